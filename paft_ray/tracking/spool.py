"""What waits for MLflow: batches of a run's records, and their JSON files in the spool.

A batch carries all that is needed to create its run, under a key of our own, because run ids come
from the server. Nothing in it is secret. mlflow is not needed here.
"""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from paft_ray.config.errors import ArtifactError
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_ARTIFACTS = ".artifacts.json"


@dataclass(frozen=True, slots=True)
class TrackingTarget:
    """All that a process, on any node, needs to record a run; picklable."""

    uri: str = field(repr=False)
    """MLflow tracking URI; it may carry a password, so it is never shown nor spooled."""
    experiment: str
    spool: Storage
    """Folder with one folder per run, which holds one JSON file per batch."""
    storage: Storage
    """Files under it stay where they are; the spool keeps a copy of any other artifact."""
    identity: str
    """Tells this run from one of the same name elsewhere at the same server; it lives in the
    run's folder, so a run that is overwritten becomes a new one in MLflow."""

    @property
    def database(self) -> Path | None:
        """The file behind a sqlite URI, None for any other."""
        prefix = "sqlite:///"
        return Path(self.uri.removeprefix(prefix)) if self.uri.startswith(prefix) else None


@dataclass(frozen=True, slots=True)
class RunRef:
    """Which run, in words of our own; all that is needed to create it."""

    key: str
    name: str
    parent_key: str | None
    tags: Mapping[str, str]
    started_ms: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one run."""

    run: RunRef
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[tuple[str, float, int, int]] = ()
    """Name, value, time in ms, step."""
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
    """Name to a path, local or as storage names it, or to the content."""
    versions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name in MLflow's registry to the alias of a version, and the run's artifact that it is."""
    status: Status | None = None
    ended_ms: int | None = None


def merge(batches: Sequence[Batch]) -> Batch:
    """One batch with the records of several of the same run, in order."""
    last = next((batch for batch in reversed(batches) if batch.status is not None), None)
    return Batch(
        run=batches[0].run,
        params={name: text for batch in batches for name, text in batch.params.items()},
        metrics=tuple(row for batch in batches for row in batch.metrics),
        tags={name: text for batch in batches for name, text in batch.tags.items()},
        artifacts={name: source for batch in batches for name, source in batch.artifacts.items()},
        versions={name: place for batch in batches for name, place in batch.versions.items()},
        status=last and last.status,
        ended_ms=last and last.ended_ms,
    )


def parts(batch: Batch) -> list[Batch]:
    """The batch taken apart: one batch for each kind of record it holds."""
    run = batch.run
    kinds = [
        Batch(run, params=batch.params),
        Batch(run, metrics=batch.metrics),
        Batch(run, tags=batch.tags),
        Batch(run, artifacts=batch.artifacts),
        Batch(run, versions=batch.versions),
        Batch(run, status=batch.status, ended_ms=batch.ended_ms),
    ]
    return [kind for kind in kinds if kind != Batch(run)]


def artifacts_apart(batch: Batch) -> list[Batch]:
    """Artifacts as a batch of their own: their store can fail where the records' does not."""
    halves = [replace(batch, artifacts={}), Batch(batch.run, artifacts=batch.artifacts)]
    return [half for half in halves if half != Batch(batch.run)]


def spool_folder(target: TrackingTarget, key: str) -> Storage:
    """Where batches of a run wait."""
    readable = re.sub(r"[^\w-]+", "-", key.partition("/")[2])
    return target.spool.child(f"{readable}-{fingerprint(key)[:8]}")


def keep(target: TrackingTarget, folder: Storage, batch: Batch) -> None:
    """Write a batch into the spool, artifacts by reference where storage has them."""
    name = f"{time.time_ns():020d}"
    suffix = _ARTIFACTS if batch.artifacts else ".json"
    paths: dict[str, str | bytes] = {}
    try:
        for index, (artifact, source) in enumerate(batch.artifacts.items()):
            if isinstance(source, str) and source.startswith(f"{target.storage.root}/"):
                paths[artifact] = source
            elif (content := artifact_content(target.storage, source)) is not None:
                copies = folder.child("files")
                copies.write_bytes(f"{name}-{index}", content)
                paths[artifact] = copies.path(f"{name}-{index}")
        folder.write_json(f"{name}{suffix}", asdict(replace(batch, artifacts=paths)))
    except OSError as error:
        logger.warning("tracking: records lost, %s cannot be written: %s", folder.path(), error)


def waiting(folder: Storage) -> list[str]:
    """Names of the batches in a run's spool folder: records, oldest first, then artifacts."""
    names = [name for name in folder.names() if name.endswith(".json")]
    return sorted(names, key=lambda name: (has_artifacts(name), name))


def has_artifacts(name: str) -> bool:
    """Whether a waiting batch holds artifacts, by its name."""
    return name.endswith(_ARTIFACTS)


def read(folder: Storage, name: str) -> Batch | None:
    """A waiting batch; None, with a warning, where the file is not one."""
    try:
        raw = folder.read_json(name)
        return Batch(**{**raw, "run": RunRef(**raw["run"])})
    except (ArtifactError, KeyError, TypeError) as error:
        logger.warning("tracking: %s left where it is: %s", folder.path(name), error)
        return None


def remove(folder: Storage, name: str, batch: Batch) -> None:
    """Delete a batch that MLflow has, and the copies of its artifacts."""
    folder.delete(name)
    copies = folder.child("files")
    for path in map(str, batch.artifacts.values()):
        if path.startswith(f"{copies.root}/"):
            copies.delete(PurePosixPath(path).name)


def artifact_content(storage: Storage, source: str | bytes) -> bytes | None:
    """An artifact as bytes; None, with a warning, where its file is gone."""
    if isinstance(source, bytes):
        return source
    try:
        if Path(source).is_file():
            return Path(source).read_bytes()
        with storage.filesystem.open_input_stream(source) as stream:
            return stream.read()
    except FileNotFoundError:
        logger.warning("tracking: artifact %s is gone, left out", source)
        return None


def without_password(text: str) -> str:
    """A text with user and password of any URL in it blotted out."""
    return re.sub(r"://[^/\s@]+@", "://***@", text)
