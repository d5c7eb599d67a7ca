"""`paft runs`: the runs and searches on a storage, and what came out of them; no Ray, no torch."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow.fs import FileType

from paft_ray.config.base import NAME_PATTERN
from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.config.model import NO_MODEL
from paft_ray.evaluation.figures import MEAN, STD, WORST
from paft_ray.pipeline.perform import Result
from paft_ray.pipeline.recorded import RUN_RECORD
from paft_ray.report.tables import display_name, main_label
from paft_ray.runs.context import EVALUATIONS
from paft_ray.storage.artifacts import MANIFEST
from paft_ray.storage.lock import live_holder
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
    """`damaged`, where a file of its records cannot be read; `complete`; `running`, while a live
    process has it; `measured`, with results that lack a part; or `unfinished`."""
    changed: str
    """When its newest record was written, in UTC."""
    task: str
    model: str
    figures: Mapping[str, Mapping[str, float]]
    """By model the mean, std and worst accuracy over held-out prompts; empty without results."""
    main: str
    """Label of the model that its report puts first; empty without results."""
    damaged: tuple[str, ...] = ()
    """Paths of the files that cannot be read."""


def list_runs(storage: Storage) -> Result:
    """List what is under `runs/`, the newest first.

    Raises:
        ConfigError: The storage is not there, or is a file.
    """
    found = sorted(stored_runs(storage), key=lambda run: run.changed, reverse=True)
    data = {"storage": storage.path(), "runs": [asdict(run) for run in found]}
    if not found:
        return Result(data, f"no runs in {storage.path()}")
    lines = [*_lines([_HEADINGS, *map(_row, found)])]
    lines += [f"damaged: {file} cannot be read" for run in found for file in run.damaged]
    return Result(data, "\n".join(lines))


def stored_runs(storage: Storage) -> Iterator[StoredRun]:
    """The runs on a storage, by name, each followed by its further evaluations.

    Raises:
        ConfigError: The storage is not there, or is a file.
    """
    for name, folder in run_folders(storage):
        yield read_run(name, folder)


def run_folders(storage: Storage) -> Iterator[tuple[str, Storage]]:
    """Names and folders of the runs on a storage, each followed by its further evaluations.

    Raises:
        ConfigError: The storage is not there, or is a file.
    """
    for folder in (storage, runs := storage.child("runs")):
        kind = folder.filesystem.get_file_info(folder.path()).type
        if kind == FileType.File:
            raise ConfigError(f"storage: {folder.path()} is a file, not a folder; name a folder")
        if kind == FileType.NotFound and folder is storage:
            raise ConfigError(
                f"storage: {folder.path()} is not there: name the place that runs are kept in, as "
                "in `paft runs storage=/data/paft`"
            )
    for name in runs.names():
        folder = runs.child(name)
        if not folder.exists(RUN_RECORD):
            continue
        yield name, folder
        for each, inner in further_folders(folder):
            yield f"{name}/{each}", inner


def further_folders(folder: Storage) -> Iterator[tuple[str, Storage]]:
    """Names and folders of the further evaluations in a run's folder."""
    further = folder.child(EVALUATIONS)
    for each in further.names():
        if further.exists(f"{each}/{RUN_RECORD}"):
            yield each, further.child(each)


def run_folder(storage: Storage, name: str) -> Storage:
    """The folder of a run, or of `RUN/EVALUATION`; it may not be there.

    Raises:
        ConfigError: No run can have this name.
    """
    run, _, evaluation = name.partition("/")
    parts = (run, EVALUATIONS, evaluation) if evaluation else (run,)
    for part in parts:
        if not NAME_PATTERN.fullmatch(part):
            raise ConfigError(f"{name}: is no name of a run; `paft runs` lists them")
    return storage.child("runs", *parts)


def find_run(storage: Storage, name: str) -> Storage:
    """The folder of a run that is there.

    Raises:
        ConfigError: It is not there.
    """
    folder = run_folder(storage, name)
    if folder.exists(RUN_RECORD):
        return folder
    near = difflib.get_close_matches(name, [known for known, _ in run_folders(storage)], n=1)
    remedy = f"did you mean {near[0]}?" if near else "`paft runs` lists what is there"
    raise ConfigError(f"{name}: there is no run of this name in {storage.path()}; {remedy}")


def read_run(name: str, folder: Storage) -> StoredRun:
    """What the records in a run's folder say.

    Args:
        name: `RUN` or `RUN/EVALUATION`.
        folder: Its folder.
    """
    trees = {file: _tree(folder, file) for file in (RUN_RECORD, "summary.json")}
    damaged = tuple(folder.path(file) for file, tree in trees.items() if tree is None)
    record, summary = (tree or {} for tree in trees.values())
    config, models = _part(record, "config"), _part(summary, "models")
    task = _part(config, "task")
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
        "damaged" if damaged else "running" if live_holder(folder) else state,
        folder.changed((RUN_RECORD, "summary.json", MANIFEST, "search.json")),
        str(task.get("name") or ""),
        _model_of(config),
        figures,
        main_label(summary) if models else "",
        damaged,
    )


def _model_of(config: Mapping[str, Any]) -> str:
    """The last part of the base model's name; without one, the names of models at endpoints."""
    path = str(_part(config, "model").get("path") or "")
    if path != NO_MODEL:
        return path.rstrip("/").rpartition("/")[2]
    subjects = _part(config, "evaluation").get("subjects")
    named = subjects if isinstance(subjects, list) else []
    return ", ".join(str(s["model"]) for s in named if isinstance(s, dict) and s.get("model"))


def _tree(folder: Storage, name: str) -> dict[str, Any] | None:
    """A file's content, empty where there is none; None where it is no record."""
    if not folder.exists(name):
        return {}
    try:
        tree = folder.read_json(name)
    except (ArtifactError, OSError):
        return None
    return tree if isinstance(tree, dict) and _is_sound(tree) else None


def _is_sound(tree: Mapping[str, Any]) -> bool:
    """Whether a record holds what is listed of it: a configuration's task, or models."""
    if "models" in tree:
        models = tree["models"]
        return isinstance(models, dict) and all(isinstance(each, dict) for each in models.values())
    return isinstance(_part(tree, "config").get("task"), dict)


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
