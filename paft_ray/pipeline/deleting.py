"""`paft delete RUN`: removes runs from a storage, after a look at what goes and what needs it.

Only the run's own folder goes: trained weights, checkpoints, scores, report. What runs share stays
(prompt pools, answers of LLMs, converted models), and so does what MLflow has. A run is kept while
a process is at work in it, and while another run on the storage names a file of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.fs as pafs

from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.pipeline.listing import find_run, further_folders, run_folders
from paft_ray.pipeline.perform import Result
from paft_ray.pipeline.recorded import RUN_RECORD
from paft_ray.storage.artifacts import MANIFEST
from paft_ray.storage.lock import LOCK_FILE, live_holder, lock
from paft_ray.storage.paths import Storage

_CONTENT = {
    "training": "trained weights and checkpoints",
    "trials": "trials of a search",
    "scores": "scores",
    "evaluations": "further evaluations",
    "export": "exported models",
    "lm_eval": "exported tasks",
    "events": "records that MLflow may not have yet",
}
"""Folders of a run, for people."""
_STAYS = (
    "what runs share stays: prompt pools, answers of LLMs, converted models; so does what MLflow "
    "has recorded"
)


@dataclass(frozen=True, slots=True)
class RunToRemove:
    """A run that is to be removed."""

    name: str
    folder: str
    files: int
    bytes: int
    holds: tuple[str, ...]
    """What is in it, in words."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """Runs that may be removed, as a look at the storage found."""

    storage: Storage
    runs: tuple[RunToRemove, ...]

    @property
    def text(self) -> str:
        """What would go, and what stays."""
        lines = [
            f"{run.folder}: {run.files:,} files, {_size(run.bytes)}"
            + (f" ({', '.join(run.holds)})" if run.holds else "")
            for run in self.runs
        ]
        return "\n".join([*lines, _STAYS])

    @property
    def data(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"storage": self.storage.path(), "runs": [asdict(run) for run in self.runs]}

    def perform(self) -> Result:
        """Remove the runs, each under its lock.

        Raises:
            ConfigError: A process has begun to work in one meanwhile; those before it are removed.
        """
        for run in self.runs:
            _remove(find_run(self.storage, run.name), run.name)
        freed = _size(sum(run.bytes for run in self.runs))
        names = ", ".join(run.name for run in self.runs)
        return Result({**self.data, "deleted": True}, f"deleted: {names} ({freed})")


def plan_deletion(storage: Storage, names: Sequence[str]) -> Deletion:
    """Look at runs that are to be removed; nothing is changed.

    Args:
        storage: Holds the runs.
        names: `RUN`, which goes with its further evaluations, or `RUN/EVALUATION`.

    Raises:
        ConfigError: A run is not there, a process is at work in it, or another run needs it.
    """
    if not names:
        raise ConfigError("RUN: name one run or more; `paft runs` lists them")
    folders = {name: find_run(storage, name) for name in dict.fromkeys(names)}
    of_others = [name for name in folders if name.partition("/")[0] in folders and "/" in name]
    folders = {name: folder for name, folder in folders.items() if name not in of_others}
    for name, folder in folders.items():
        _refuse_at_work(folder, name)
    for other, inner in run_folders(storage):
        if any(inner.root == root.root or root.holds(inner.root) for root in folders.values()):
            continue
        for name, folder in folders.items():
            if (path := _used(inner, folder)) is not None:
                raise ConfigError(
                    f"{name}: run {other} uses {path}: delete that one too, or keep this one"
                )
    return Deletion(storage, tuple(_content_of(name, folder) for name, folder in folders.items()))


def _refuse_at_work(folder: Storage, name: str) -> None:
    inside = [(f"{name}/{each}", inner) for each, inner in further_folders(folder)]
    for called, each in [(name, folder), *inside]:
        if (holder := live_holder(each)) is not None:
            raise ConfigError(
                f"{name}: {holder} is at work in {called}: wait for it to end, or stop it first"
            )


def _used(by: Storage, folder: Storage) -> str | None:
    """A path in the configuration of one run that leads into the folder of another, or None.

    The end of the folder's path decides, because other machines may have the storage elsewhere,
    and what is relative belongs to a working directory that is not known.
    """
    try:
        tree = by.read_json(RUN_RECORD)["config"]
    except (ArtifactError, KeyError, TypeError):  # damaged, and so never continued
        return None
    inside = "/" + folder.root[folder.root.rindex("/runs/") + 1 :] + "/"
    return next((text for text in _texts(tree) if inside in f"/{text}/"), None)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _texts(each)
    elif isinstance(node, str):
        yield node


def _content_of(name: str, folder: Storage) -> RunToRemove:
    selector = pafs.FileSelector(folder.root, recursive=True)
    sizes = [
        info.size or 0
        for info in folder.filesystem.get_file_info(selector)
        if info.type == pafs.FileType.File
    ]
    inside = folder.names()
    holds = tuple(words for part, words in _CONTENT.items() if part in inside)
    return RunToRemove(name, folder.path(), len(sizes), sum(sizes), holds)


def _remove(folder: Storage, name: str) -> None:
    """Remove a run's folder: the manifest first, the record by which it is listed last."""
    with lock(folder, f"run {name!r}"):
        for called, inner in further_folders(folder):
            _refuse_at_work(inner, f"{name}/{called}")
        inside = [each for each in folder.names() if each not in (MANIFEST, RUN_RECORD, LOCK_FILE)]
        for each in (MANIFEST, *inside, RUN_RECORD):
            folder.delete(each)
    if folder.names():  # another process began a run of this name at this very moment
        return
    folder.delete()


def _size(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
