"""A run's files, read into what the page and the pictures show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paft_ray.artifacts import MANIFEST, Storage
from paft_ray.errors import ArtifactError

REQUIRED = ("config.json", "summary.json", "scores.parquet")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One training prompt as a ledger knows it."""

    prompt_id: str
    examples: int
    """How many examples were rendered through it."""
    loss: float
    """Mean answer loss under it, in nats per token, over the whole training."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What past losses made of one prompt, over the checkpoints of a training."""

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
    """Of the manifest: steps, tokens, seconds, ..."""
    weighed_at: tuple[int, ...] = ()
    """Steps at which `shares` were recorded; none under uniform sampling and plain loss."""
    shares: tuple[Shares, ...] = ()
    """The largest at the end first."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """All that the report shows."""

    about: Mapping[str, Any]
    """`config.json`: the configuration under `config`, beside it versions and the like."""
    summary: Mapping[str, Any]
    accuracies: Mapping[str, Mapping[str, float]]
    """Label to test prompt to accuracy over all examples and seeds."""
    answers: int
    """Rows of the scores."""
    generated_tokens: int
    trainings: tuple[Training, ...]
    texts: Mapping[str, str]
    """Prompt id to template, as far as `prompts.parquet` has it."""


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
    scores = folder.read_table("scores.parquet")
    return RunFiles(
        about=folder.read_json("config.json"),
        summary=summary,
        accuracies={label: _accuracy_by_prompt(scores, label) for label in summary["models"]},
        answers=scores.num_rows,
        generated_tokens=sum(filter(None, scores["generated_tokens"].to_pylist())),
        trainings=_trainings(folder.child("training")),
        texts=_texts(folder),
    )


def _accuracy_by_prompt(scores: pa.Table, label: str) -> dict[str, float]:
    rows = scores.filter((pc.field("variant") == label) & (pc.field("split") == "test"))
    numeric = pa.table(
        {"prompt_id": rows["prompt_id"], "correct": rows["correct"].cast(pa.float64())}
    )
    means = numeric.group_by("prompt_id").aggregate([("correct", "mean")]).to_pylist()
    return {row["prompt_id"]: row["correct_mean"] for row in means}


def _texts(folder: Storage) -> dict[str, str]:
    if not folder.exists("prompts.parquet"):
        return {}
    rows = folder.read_table("prompts.parquet").select(["prompt_id", "text"]).to_pylist()
    return {row["prompt_id"]: row["text"] for row in rows}


def _trainings(folder: Storage) -> tuple[Training, ...]:
    trainings = []
    for name in folder.names():
        label, _, seed = name.rpartition("-s")
        home = folder.child(name)
        about = home.read_json(MANIFEST)["about"] if home.exists(MANIFEST) else {}
        losses, drawn = _read_ledger(home.child("ledger"))
        weighed_at, shares = _read_shares(home.child("sampling"))
        trainings.append(Training(label, seed, losses, drawn, about, weighed_at, shares))
    return tuple(trainings)


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


def _read_ledger(folder: Storage) -> tuple[tuple[float, ...], tuple[Drawn, ...]]:
    """Losses by step and draws by prompt; a slot that was trained twice counts once."""
    parts = [folder.read_table(name) for name in folder.names() if name.endswith(".parquet")]
    if not parts:
        return (), ()
    columns = ("prompt_id", "loss", "answer_tokens")
    slots = pa.concat_tables(parts).group_by(["step", "slot"], use_threads=False)
    rows = slots.aggregate([(column, "first") for column in columns])
    rows = rows.rename_columns(["step", "slot", *columns])
    sums = [("loss", "sum"), ("answer_tokens", "sum"), ("loss", "count")]
    steps = rows.group_by("step").aggregate(sums).sort_by("step").to_pylist()
    prompts = rows.group_by("prompt_id").aggregate(sums).to_pylist()
    drawn = [Drawn(row["prompt_id"], row["loss_count"], _per_token(row)) for row in prompts]
    return (
        tuple(_per_token(row) for row in steps),
        tuple(sorted(drawn, key=lambda prompt: (-prompt.examples, prompt.prompt_id))),
    )


def _per_token(row: Mapping[str, Any]) -> float:
    return row["loss_sum"] / max(row["answer_tokens_sum"], 1)
