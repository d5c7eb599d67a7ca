"""`paft compare`: models of several runs in one table, on the prompts and examples they share.

Every two models are compared by pairs of prompt and example. Not covered: runs of which a part was
scored, whose figures are estimates, and differences between the seeds of trainings.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paft_ray.config import BASE
from paft_ray.config.errors import ConfigError
from paft_ray.evaluation.figures import figures_of
from paft_ray.evaluation.scores import grades_of
from paft_ray.evaluation.summary import summarise
from paft_ray.pipeline.listing import run_folder
from paft_ray.pipeline.results import RunResult
from paft_ray.report import results_table, write_report
from paft_ray.report.tables import trained_labels
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage, to_json, to_parquet

_FILES = ("config.json", "summary.json", "scores.parquet", "prompts.parquet", "examples.parquet")
_SAME = ("answer_end", "stop", "grades", "grading_code", "demonstrations")
"""What must be graded alike."""
_SAME_POOL = (
    "the same pool: prompts, seed and prompts.split alike, or the same evaluation.prompt_files"
)


def compare_runs(storage: Storage, names: Sequence[str]) -> RunResult:
    """Compare the models of some runs; writes a report under `comparisons/`.

    Args:
        storage: Holds the runs.
        names: Names of two runs or more; `RUN/EVALUATION` is a further evaluation.

    Raises:
        ConfigError: A run is not there or not measured, or two cannot be compared.
    """
    if len(set(names)) < 2:
        raise ConfigError(f"{' '.join(names) or 'RUN'}: name two different runs or more to compare")
    runs = {name: run_folder(storage, name) for name in names}
    for name, folder in runs.items():
        if missing := [file for file in _FILES if not folder.exists(file)]:
            raise ConfigError(
                f"{name}: {folder.path(missing[0])} is not there; name a run whose evaluation is "
                "finished (`paft runs` lists them)"
            )
    summaries = {name: folder.read_json("summary.json") for name, folder in runs.items()}
    first = names[0]
    for name in names[1:]:
        _require_alike(first, summaries[first], name, summaries[name])
    tables = {name: _scores(folder, summaries[name]) for name, folder in runs.items()}
    for name in names[1:]:
        _require_shared(first, tables[first], name, tables[name])
    found = _together(tables, summaries)
    thresholds = [float(f.threshold) for f in figures_of(summaries[first]) if f.threshold]
    seeds = list(dict.fromkeys(seed for s in summaries.values() for seed in s["seeds"]))
    others = [label for label in found.models if label != BASE]
    further = [grade["label"] for grade in summaries[first].get("grades", ())[1:]]
    summary = summarise(
        found.table, list(found.models), thresholds, seeds, {}, subjects=others, grades=further
    )
    summary |= {key: summaries[first][key] for key in _SAME if key in summaries[first]}
    for label, model in found.models.items():
        if "endpoint" in model:  # how it was asked stands beside its figures
            summary["models"][label]["endpoint"] = model["endpoint"]
    if parities := {n: s["parity"] for n, s in summaries.items() if "parity" in s}:
        summary["parities"] = parities
    summary |= {"runs": list(names), "trained": found.trained, **_of_files(summaries.values())}
    folder = storage.child("comparisons", _folder_name(names))
    _write(folder, runs[first], found.table, summary, names)
    report = write_report(folder)
    once = [f"{label}: the same answers as {known}, shown once" for label, known in found.again]
    text = "\n".join([results_table(summary), *once, "", f"report:  {report}"])
    return RunResult(summary, text, folder=folder)


def _of_files(summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The files of prompts of all runs, and the prompts that are like trained ones of any."""
    found = [summary["prompt_files"] for summary in summaries if "prompt_files" in summary]
    keys = ("files", "like_trained")
    together = {key: list(dict.fromkeys(x for each in found for x in each[key])) for key in keys}
    return {"prompt_files": together} if found else {}


def _require_alike(
    one: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any]
) -> None:
    for name, summary in ((one, first), (other, second)):
        if not summary.get("models"):
            raise ConfigError(f"{name}: its summary.json names no model: evaluate it again")
        if "scored_share" in summary:
            raise ConfigError(
                f"{name}: {summary['scored_share']:.0%} of its grid was scored, and estimates "
                "cannot be paired: evaluate it without evaluation.estimate"
            )
    for key in _SAME:
        if first.get(key) != second.get(key):
            raise ConfigError(
                f"{other}: its answers were given and graded with {key} {second.get(key)}, those "
                f"of {one} with {first.get(key)}: evaluate both alike"
            )


def _scores(folder: Storage, summary: Mapping[str, Any]) -> pa.Table:
    """The scores of a run on test prompts, of the models in its summary."""
    table = folder.read_table("scores.parquet")
    kept = pc.field("variant").isin(list(summary["models"]))
    return table.filter(kept & (pc.field("split") == "test"))


def _require_shared(one: str, first: pa.Table, other: str, second: pa.Table) -> None:
    for column, what, remedy in (
        ("prompt_id", "held-out prompts", _SAME_POOL),
        ("example_id", "test examples", "the same task: data, seed and evaluation.examples alike"),
    ):
        mine, theirs = (set(table[column].to_pylist()) for table in (first, second))
        if mine != theirs:
            raise ConfigError(
                f"{other}: it shares {len(mine & theirs)} of its {len(theirs)} {what} with {one}, "
                f"which has {len(mine)}, so that nothing can be paired: give both {remedy}"
            )


@dataclass(frozen=True, slots=True)
class _Together:
    """All scores under labels of their own."""

    table: pa.Table
    models: Mapping[str, Mapping[str, Any]]
    """Label to what its own summary says of it."""
    trained: list[str]
    """Those of them that variants trained."""
    again: list[tuple[str, str]]
    """Models with another one's answers, and that one's label."""


def _together(
    tables: Mapping[str, pa.Table], summaries: Mapping[str, Mapping[str, Any]]
) -> _Together:
    """All scores under labels of their own.

    A model of the same label and answers in several runs is there once.
    """
    parts: list[pa.Table] = []
    again: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    models: dict[str, Mapping[str, Any]] = {}
    trained: list[str] = []
    for name, table in tables.items():
        for label, model in summaries[name]["models"].items():
            own = table.filter(pc.field("variant") == label)
            content = own.select(["seed", "prompt_id", "example_id", "prediction", "correct"])
            content = content.append_column("grade", pa.array(grades_of(own)))
            order = [(column, "ascending") for column in content.column_names]
            found = fingerprint(label, content.sort_by(order).to_pylist())
            if found in seen:
                again.append((f"{name} {label}", seen[found]))
                continue
            called = label if label == BASE and BASE not in seen.values() else _label(name, label)
            if called in seen.values():
                raise ConfigError(f"{name}: two models would be called {called}: rename a run")
            seen[found] = called
            models[called] = model
            if label in trained_labels(summaries[name]):
                trained.append(called)
            at = own.column_names.index("variant")
            renamed = pa.array([called] * own.num_rows, pa.string())
            parts.append(own.set_column(at, "variant", renamed))
    table = pa.concat_tables(parts, promote_options="default")
    return _Together(table, models, trained, again)


def _label(run: str, label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", f"{run} {label}".lower()).strip("_")


def _folder_name(names: Sequence[str]) -> str:
    joined = "--".join(name.replace("/", "-") for name in names)
    return joined if len(joined) <= 100 else f"{joined[:80]}--{fingerprint(list(names))[:12]}"


def _write(
    folder: Storage,
    first: Storage,
    table: pa.Table,
    summary: Mapping[str, Any],
    names: Sequence[str],
) -> None:
    config = first.read_json("config.json").get("config", {})
    about = {"config": {"task": config.get("task", {})}, "compared": ", ".join(names)}
    folder.write_bytes("config.json", to_json(about))
    for name in ("prompts.parquet", "examples.parquet"):
        folder.write_bytes(name, first.read_bytes(name))
    folder.write_bytes("scores.parquet", to_parquet(table))
    folder.write_bytes("summary.json", to_json(dict(summary)))
