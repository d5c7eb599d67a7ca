"""`paft runs`: the runs and searches on a storage, and what came out of them; no Ray, no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paft_ray.config.errors import ArtifactError
from paft_ray.evaluation.figures import MEAN, STD, WORST
from paft_ray.pipeline.perform import Result
from paft_ray.report.tables import display_name, main_label
from paft_ray.runs.context import EVALUATIONS
from paft_ray.storage.artifacts import MANIFEST
from paft_ray.storage.lock import is_held
from paft_ray.storage.paths import Storage

_HEADINGS = ("run", "state", "changed", "task", "model", "figures of", MEAN.heading, STD.heading)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One folder of `runs/`."""

    name: str
    """`RUN`, or `RUN/EVALUATION` for a further evaluation."""
    kind: str
    """`run` or `search`."""
    state: str
    """`complete`; `running`, while a live process has it; `measured`, with results that lack a
    part; or `unfinished`."""
    changed: str
    """When its newest record was written, in UTC."""
    task: str
    model: str
    figures: Mapping[str, Mapping[str, float]]
    """By model the mean, std and worst accuracy over held-out prompts; empty without results."""
    main: str
    """Label of the model that its report puts first; empty without results."""


def list_runs(storage: Storage) -> Result:
    """List what is under `runs/`, the newest first."""
    found = sorted(_stored(storage.child("runs")), key=lambda run: run.changed, reverse=True)
    data = {"storage": storage.path(), "runs": [asdict(run) for run in found]}
    if not found:
        return Result(data, f"no runs in {storage.path()}")
    return Result(data, "\n".join(_lines([_HEADINGS, *map(_row, found)])))


def _stored(runs: Storage) -> Iterator[StoredRun]:
    for name in runs.names():
        folder = runs.child(name)
        if not folder.exists("config.json"):
            continue
        yield _read(name, folder)
        further = folder.child(EVALUATIONS)
        for each in further.names():
            if further.exists(f"{each}/config.json"):
                yield _read(f"{name}/{each}", further.child(each))


def _read(name: str, folder: Storage) -> StoredRun:
    record, summary = _tree(folder, "config.json"), _tree(folder, "summary.json")
    config, models = _part(record, "config"), _part(summary, "models")
    task, model = _part(config, "task"), _part(config, "model")
    kind = _part(record, "content").get("work", "run")
    complete = folder.exists("search.json" if kind == "search" else MANIFEST)
    state = "complete" if complete else "measured" if models else "unfinished"
    figures = {
        label: {f.key: f.read(model) for f in (MEAN, STD, WORST) if f.read(model) is not None}
        for label, model in models.items()
    }
    return StoredRun(
        name,
        kind,
        "running" if is_held(folder) else state,
        folder.changed(("config.json", "summary.json", MANIFEST, "search.json")),
        str(task.get("name") or ""),
        str(model.get("path") or "").rstrip("/").rpartition("/")[2],
        figures,
        main_label(summary) if models else "",
    )


def _tree(folder: Storage, name: str) -> dict[str, Any]:
    try:
        tree = folder.read_json(name)
    except ArtifactError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _part(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a record; empty where it is damaged."""
    part = tree.get(name)
    return part if isinstance(part, dict) else {}


def _row(run: StoredRun) -> tuple[str, ...]:
    known = run.figures.get(run.main, {})
    shown = [f.show(known[f.key]) if f.key in known else "–" for f in (MEAN, STD)]
    name = run.name if run.kind == "run" else f"{run.name} ({run.kind})"
    main = display_name(run.main) if run.main else "–"
    return (name, run.state, run.changed, run.task, run.model, main, *shown)


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
