"""The event log: a process's events for MLflow, which are written to storage first.

A log is a folder with `000000.jsonl`, `000001.jsonl`, ..., one event per line; each file begins
with the run that it belongs to. On a local disk, events are appended to a file until it is large;
object stores cannot append, so every flush makes a file there. The folder also holds copies of
artifacts that are nowhere else on storage, and `offset.json`: file and line up to which MLflow has
the events.

One process writes a log. A log without an event `end` belongs to a live process or to one that
died. Nothing in a log is secret.
"""

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ArtifactError
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.full_disk import naming_full_disk
from paft_ray.storage.paths import Storage
from paft_ray.tracking.place import sqlite_path

logger = logging.getLogger(__name__)

ARTIFACTS = "-artifacts"
"""Suffix of logs of artifacts, which are separate because their store can fail alone."""

_OFFSET = "offset.json"
_BUFFER_EVENTS = 10_000
_FILE_BYTES = 1 << 20  # a sender reads a whole file at a time


@dataclass(frozen=True, slots=True)
class TrackingTarget:
    """The destination of a run's records, for any node; can be pickled."""

    uri: str = field(repr=False)
    """MLflow tracking URI; it may carry a password, so it is never shown nor logged."""
    experiment: str
    logs: Storage
    """Folder with one folder per run in MLflow, which holds one folder per event log."""
    storage: Storage
    """Artifacts under it are not copied; a log keeps a copy of any other."""
    identity: str
    """Distinguishes this run from runs of the same name elsewhere on the same server; it is kept in
    the run's folder, so that an overwritten run becomes a new one in MLflow."""

    @property
    def database(self) -> Path | None:
        """The file behind a sqlite URI, None for any other."""
        return sqlite_path(self.uri)

    def run_logs(self, key: str) -> Storage:
        """The folder of the logs of one run."""
        readable = re.sub(r"[^\w-]+", "-", key.partition("/")[2])
        return self.logs.child(f"{readable}-{fingerprint(key)[:8]}")


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run's key and all that is needed to create it in MLflow."""

    key: str
    name: str
    parent_key: str | None
    tags: Mapping[str, str]
    started_ms: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to record."""

    kind: str
    payload: Mapping[str, Any]
    """By kind: `params` and `tags`: name to text; `metrics`: `step`, `values`; `figures`: name to
    value, which replaces an earlier one; `artifact`: `name`, and `path` or, until it is written,
    `content`; `version`: `name`, `alias`, `artifact`; `status`: `status`; `run`, which begins a
    file: a `RunRef`; `end`: nothing."""
    time_ms: int


class EventLog:
    """The log that this process writes for one run; only `flush` waits for storage."""

    def __init__(self, storage: Storage, folder: Storage, run: RunRef) -> None:
        """Create a log in `folder`, which the first flush creates."""
        self._storage, self._folder = storage, folder
        self._header = _line(Event("run", asdict(run), run.started_ms))
        self._buffer: list[Event] = []
        self._begun, self._lost, self._file = False, 0, 0
        self._writing = threading.Lock()

    def add(self, kind: str, payload: Mapping[str, Any], at_ms: int | None = None) -> None:
        """Add an event; after 10,000 that storage did not take, events are lost and counted."""
        if len(self._buffer) >= _BUFFER_EVENTS and kind != "status":
            self._lost += 1
            return
        self._begun = True
        self._buffer.append(Event(kind, payload, at_ms or now_ms()))

    def close(self) -> None:
        """Add the event `end`, if there are others; does not flush."""
        if self._lost:
            lost = {"paft.lost_records": str(self._lost)}
            self._buffer.append(Event("tags", lost, now_ms()))
            logger.warning("tracking: %s records lost, storage did not take them", self._lost)
        if self._begun:
            self._buffer.append(Event("end", {}, now_ms()))

    def flush(self) -> bool:
        """Write the added events; returns whether there were any.

        Raises:
            OSError: Storage does not take it; a later flush writes it.
        """
        with self._writing:
            events = self._buffer[:]
            if not events:
                return False
            try:
                self._append(b"".join(_line(self._stored(event)) for event in events))
            except OSError:
                self._file += 1  # this one may end in the middle of a line
                raise
            del self._buffer[: len(events)]
            return True

    def _append(self, lines: bytes) -> None:
        name = f"{self._file:06d}.jsonl"
        if not self._folder.is_local:
            self._folder.write_bytes(name, self._header + lines)
            self._file += 1
            return
        path = Path(self._folder.path(name))
        with naming_full_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.write(lines if stream.tell() else self._header + lines)
                stream.flush()
                os.fsync(stream.fileno())
                if stream.tell() >= _FILE_BYTES:
                    self._file += 1

    def _stored(self, event: Event) -> Event:
        """The event; an artifact that is not on storage is replaced by a copy in the log."""
        payload = event.payload
        if event.kind != "artifact" or self._storage.holds(payload.get("path", "")):
            return event
        try:
            given = payload.get("content")
            content = Path(payload["path"]).read_bytes() if given is None else given
        except OSError as error:
            logger.warning("tracking: artifact %s left out: %s", payload["path"], error)
            return replace(event, kind="left out")
        copy = hashlib.sha256(content).hexdigest()
        self._folder.write_bytes(copy, content)
        return replace(event, payload={"name": payload["name"], "path": self._folder.path(copy)})


def read_unsent(log: Storage) -> Iterator[tuple[RunRef, list[Event], tuple[str, int]]]:
    """The events behind a log's offset, file by file, without lines that were cut off.

    Yields:
        The run, its events, and the offset behind them.

    Raises:
        ArtifactError: A file is damaged, or was removed while this reads.
    """
    file, line = log.read_json(_OFFSET) if log.exists(_OFFSET) else ("", 0)
    for name in _files(log):
        lines = log.read_bytes(name).split(b"\n")[:-1] if name >= file else []
        if new := lines[line if name == file else 1 :]:
            try:
                first, *events = (Event(**json.loads(text)) for text in (lines[0], *new))
                run = RunRef(**first.payload)
            except (ValueError, TypeError) as error:
                raise ArtifactError(f"{log.path(name)}: no file of events: {error}") from error
            yield run, events, (name, len(lines))


def advance(log: Storage, events: Sequence[Event], offset: tuple[str, int]) -> None:
    """Record that MLflow has the events before an offset; a finished log is removed."""
    if events[-1].kind == "end":
        log.delete()
        return
    log.write_json(_OFFSET, offset)
    for name in _files(log):
        if name < offset[0]:
            log.delete(name)


def log_names(run_logs: Storage) -> list[str]:
    """Names of a run's logs in the order of sending: by their start, artifacts last."""
    return sorted(run_logs.names(), key=lambda name: (name.endswith(ARTIFACTS), name))


def now_ms() -> int:
    """The time in MLflow's unit, milliseconds."""
    return int(time.time() * 1000)


def _files(log: Storage) -> list[str]:
    return [name for name in log.names() if name.endswith(".jsonl")]


def _line(event: Event) -> bytes:
    return json.dumps(asdict(event)).encode() + b"\n"
