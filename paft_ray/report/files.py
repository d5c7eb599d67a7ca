"""Reads a run's files for the page and the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config.errors import ArtifactError
from paft_ray.evaluation.answers import COLUMNS, MORE_COLUMNS, Answers, read_answers
from paft_ray.storage.artifacts import MANIFEST
from paft_ray.storage.paths import Storage

SEARCH_FILE = "search.json"
"""The result of a search, next to the summary of its finalists."""
MLFLOW_FILE = "mlflow.json"
"""Where MLflow has the run, next to its summary."""
REQUIRED = ("config.json", "summary.json", "scores.parquet")
_OF_PROMPTS = ("prompt_id", "text", "instruction", "layout", "split", "cluster", "origin")
ROLLOUTS = ["step", "prompt_id", "example_id", "question", "ended", "text", "reward", "read"]
"""Columns of `rollouts/` that are shown."""
_OF_EXAMPLES = ("example_id", "fields", "answer")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One training prompt in a ledger."""

    prompt_id: str
    examples: int
    """Examples that were rendered through it."""
    loss: float
    """Mean answer loss under it, in nats per token, over the whole training."""
    tokens: int
    """Answer tokens over which the loss is the mean."""


@dataclass(frozen=True, slots=True)
class Shares:
    """One prompt's weight by past losses, over the checkpoints of a training."""

    prompt_id: str
    shares: tuple[float, ...]
    """Probability of being drawn times weight in the loss, as a multiple of uniform sampling."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training: its ledger and its manifest."""

    label: str
    seed: str
    losses: tuple[float, ...]
    """Mean answer loss of each optimizer step, in nats per token."""
    drawn: tuple[Drawn, ...]
    """Most often drawn first."""
    about: Mapping[str, Any]
    """Its manifest's steps, tokens, seconds, ..."""
    weighed_at: tuple[int, ...] = ()
    """Steps at which `shares` were recorded; none under uniform sampling and plain loss."""
    shares: tuple[Shares, ...] = ()
    """The largest at the end first."""
    rollouts: pa.Table | None = None
    """What the model wrote and was rewarded for, with `ROLLOUTS`; None for nothing."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """All that the report shows."""

    about: Mapping[str, Any]
    """`config.json`: the configuration under `config`, next to it versions and the like."""
    summary: Mapping[str, Any]
    answers: Answers
    """Answers of the models in the summary, on test prompts."""
    scored: int
    """Rows of the scores."""
    generated_tokens: int
    trainings: tuple[Training, ...]
    prompts: tuple[Mapping[str, Any], ...]
    """Rows of `prompts.parquet`; none where the run has no such file."""
    search: Mapping[str, Any] | None
    """`search.json` where the models are a search's finalists."""
    mlflow: Mapping[str, Any] | None
    """Where MLflow has the run, see `tracking.RunPage`; None where it is not known."""
    examples: Mapping[str, Mapping[str, str]]
    """Example id to `fields`, a JSON object as text, and `answer`; empty in runs of old."""

    @property
    def texts(self) -> dict[str, str]:
        """Prompt id to template."""
        return {row["prompt_id"]: row["text"] for row in self.prompts}

    @property
    def partly_scored(self) -> bool:
        """Return whether figures are estimates from a part of the prompts x examples."""
        return "scored_share" in self.summary

    def accuracy(self, label: str) -> NDArray[np.float64]:
        """Accuracy per seed and prompt: shape [S, P], nan where nothing was scored.

        Where only a part was scored, the estimate for all examples, over seeds: shape [1, P].
        """
        if not self.partly_scored:
            return self.answers.accuracy(label)
        estimated = self.summary["models"][label]["accuracies"]
        return np.array([[estimated[prompt_id] for prompt_id in self.answers.prompt_ids]])


def read_run(folder: Storage) -> RunFiles:
    """Read `runs/<name>/`.

    Raises:
        ArtifactError: One of `REQUIRED` is missing.
    """
    for name in REQUIRED:
        if not folder.exists(name):
            raise ArtifactError(
                f"{folder.path(name)} is not there, so there is nothing to report: "
                "run or evaluate first"
            )
    summary = folder.read_json("summary.json")
    if not isinstance(summary, dict) or not isinstance(summary.get("models"), dict):
        raise ArtifactError(
            f"{folder.path('summary.json')}: no summary of a run; delete it and rerun"
        )
    scores = folder.read_table("scores.parquet")
    needed = [c for c in (*COLUMNS, *MORE_COLUMNS) if c in scores.column_names]
    return RunFiles(
        about=folder.read_json("config.json"),
        summary=summary,
        answers=read_answers(scores.select(needed), list(summary["models"])),
        scored=scores.num_rows,
        generated_tokens=int(np.nansum(scores["generated_tokens"].cast(pa.float64()).to_numpy())),
        trainings=_trainings(folder.child("training"), list(summary["models"])),
        prompts=tuple(_rows(folder, "prompts.parquet", _OF_PROMPTS)),
        search=folder.read_json(SEARCH_FILE) if folder.exists(SEARCH_FILE) else None,
        mlflow=folder.read_json(MLFLOW_FILE) if folder.exists(MLFLOW_FILE) else None,
        examples={
            row["example_id"]: row for row in _rows(folder, "examples.parquet", _OF_EXAMPLES)
        },
    )


def _rows(folder: Storage, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table, with the given columns that it has; none where there is no table."""
    if not folder.exists(name):
        return []
    table = folder.read_table(name)
    return table.select([column for column in columns if column in table.column_names]).to_pylist()


def _trainings(folder: Storage, labels: Sequence[str]) -> tuple[Training, ...]:
    """The trainings of these labels, in their order, then by seed."""
    trainings = []
    for name in folder.names():
        label, _, seed = name.rpartition("-s")
        if label not in labels:
            continue
        own = folder.child(name)
        about = own.read_json(MANIFEST)["about"] if own.exists(MANIFEST) else {}
        written = _read_rollouts(own.child("rollouts"))
        losses, drawn = _read_ledger(own.child("ledger"), written)
        weighed_at, shares = _read_shares(own.child("sampling"))
        trainings.append(Training(label, seed, losses, drawn, about, weighed_at, shares, written))
    return tuple(sorted(trainings, key=lambda t: (labels.index(t.label), len(t.seed), t.seed)))


def _read_shares(folder: Storage) -> tuple[tuple[int, ...], tuple[Shares, ...]]:
    parts = [folder.read_table(name) for name in folder.names()]
    by_prompt: dict[str, list[float]] = {}
    for part in parts:
        for row in part.to_pylist():
            share = row["probability"] * row["weight"] * part.num_rows
            by_prompt.setdefault(row["prompt_id"], []).append(share)
    shares = [Shares(prompt_id, tuple(values)) for prompt_id, values in by_prompt.items()]
    steps = tuple(part["step"][0].as_py() for part in parts)
    return steps, tuple(sorted(shares, key=lambda s: (-s.shares[-1], s.prompt_id)))


def _read_ledger(
    folder: Storage, written: pa.Table | None
) -> tuple[tuple[float, ...], tuple[Drawn, ...]]:
    """Losses by step and draws by prompt; a slot that was trained twice counts once.

    Where the model wrote its texts, those of further steps on the same ones are no further draws.
    """
    parts = [folder.read_table(name) for name in folder.names() if name.endswith(".parquet")]
    if not parts:
        return (), ()
    columns = ("prompt_id", "loss", "answer_tokens")
    slots = pa.concat_tables(parts).group_by(["step", "slot"], use_threads=False)
    rows = slots.aggregate([(column, "first") for column in columns])
    rows = rows.rename_columns(["step", "slot", *columns])
    sums = [("loss", "sum"), ("answer_tokens", "sum"), ("loss", "count")]
    steps = rows.group_by("step").aggregate(sums).sort_by("step").to_pylist()
    drawn_at = rows if written is None else rows.filter(pc.is_in(rows["step"], written["step"]))
    prompts = drawn_at.group_by("prompt_id").aggregate(sums).to_pylist()
    drawn = [
        Drawn(row["prompt_id"], row["loss_count"], _per_token(row), row["answer_tokens_sum"])
        for row in prompts
    ]
    return (
        tuple(_per_token(row) for row in steps),
        tuple(sorted(drawn, key=lambda prompt: (-prompt.examples, prompt.prompt_id))),
    )


def _per_token(row: Mapping[str, Any]) -> float:
    return row["loss_sum"] / max(row["answer_tokens_sum"], 1)


def _read_rollouts(folder: Storage) -> pa.Table | None:
    """What a model wrote and was rewarded for, in the order of steps; None for nothing."""
    names = sorted(folder.names()) if folder.exists() else []
    if not names:
        return None
    table = pa.concat_tables([folder.read_table(name, ROLLOUTS) for name in names])
    return table if table["reward"].null_count < table.num_rows else None
