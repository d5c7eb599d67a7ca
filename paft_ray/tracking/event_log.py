"""The event log: what a process has to send to MLflow, on storage before anywhere else.

A log is a folder with `000000.jsonl`, `000001.jsonl`, ..., one event per line, each file beginning
with the run that it belongs to. On a local disk a file is appended to until it is large; an object
store cannot append, so every flush is a file there. Beside them lie copies of artifacts that
storage has nowhere else, and `offset.json`: file and line up to which MLflow has the events.

One process writes a log. One that does not end with an event `end` belongs to a live process or to
one that died. mlflow is not needed here, and nothing in a log is secret.
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
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

ARTIFACTS = "-artifacts"
"""Ends the name of a log of artifacts: their store can fail where MLflow does not."""

_OFFSET = "offset.json"
_BUFFER_EVENTS = 10_000
_FILE_BYTES = 1 << 20  # a sender reads a whole file at a time


@dataclass(frozen=True, slots=True)
class TrackingTarget:
    """All that a process, on any node, needs to record a run; picklable."""

    uri: str = field(repr=False)
    """MLflow tracking URI; it may carry a password, so it is never shown nor logged."""
    experiment: str
    logs: Storage
    """Folder with one folder per run in MLflow, which holds one folder per event log."""
    storage: Storage
    """Files under it stay where they are; a log keeps a copy of any other artifact."""
    identity: str
    """Tells this run from one of the same name elsewhere at the same server; it lives in the
    run's folder, so a run that is overwritten becomes a new one in MLflow."""

    @property
    def database(self) -> Path | None:
        """The file behind a sqlite URI, None for any other."""
        prefix = "sqlite:///"
        return Path(self.uri.removeprefix(prefix)) if self.uri.startswith(prefix) else None

    def run_logs(self, key: str) -> Storage:
        """The folder of the logs of one run."""
        readable = re.sub(r"[^\w-]+", "-", key.partition("/")[2])
        return self.logs.child(f"{readable}-{fingerprint(key)[:8]}")


@dataclass(frozen=True, slots=True)
class RunRef:
    """Which run, in words of our own; all that is needed to create it."""

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
    """Of `params` and `tags`: name to text; of `metrics`: `step`, `values`; of `artifact`: `name`,
    and `path` or, until it is written, `content`; of `version`: `name`, `alias`, `artifact`; of
    `status`: `status`; of `run`, which begins a file: a `RunRef`; of `end`: nothing."""
    time_ms: int


class EventLog:
    """The log that this process writes for one run: adding waits for nothing, flushing writes."""

    def __init__(self, storage: Storage, folder: Storage, run: RunRef) -> None:
        """A log in `folder`; nothing is created before the first flush."""
        self._storage, self._folder = storage, folder
        self._header = _line(Event("run", asdict(run), run.started_ms))
        self._buffer: list[Event] = []
        self._begun, self._lost, self._file = False, 0, 0
        self._writing = threading.Lock()

    def add(self, kind: str, payload: Mapping[str, Any], at_ms: int | None = None) -> None:
        """Take an event; where storage has not taken the last 10,000, it is lost and counted."""
        if len(self._buffer) >= _BUFFER_EVENTS and kind != "status":
            self._lost += 1
            return
        self._begun = True
        self._buffer.append(Event(kind, payload, at_ms or now_ms()))

    def close(self) -> None:
        """Add the end of the log, if it has a beginning; not flushed yet."""
        if self._lost:
            lost = {"paft.lost_records": str(self._lost)}
            self._buffer.append(Event("tags", lost, now_ms()))
            logger.warning("tracking: %s records lost, storage did not take them", self._lost)
        if self._begun:
            self._buffer.append(Event("end", {}, now_ms()))

    def flush(self) -> bool:
        """Write what was added; whether there was anything.

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
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(lines if stream.tell() else self._header + lines)
            stream.flush()
            os.fsync(stream.fileno())
            if stream.tell() >= _FILE_BYTES:
                self._file += 1

    def _stored(self, event: Event) -> Event:
        """The event, an artifact that storage does not have replaced by a copy beside the log."""
        payload = event.payload
        if event.kind != "artifact" or payload.get("path", "").startswith(f"{self._storage.root}/"):
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
    """What a log holds beyond its offset, file by file; a line that was cut off is not there.

    Yields:
        The run, its events, and the offset behind them.

    Raises:
        ArtifactError: A file is damaged, or was removed meanwhile.
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
    """Keep that MLflow has the events before an offset; a log that ends with them is removed."""
    if events[-1].kind == "end":
        log.delete()
        return
    log.write_json(_OFFSET, offset)
    for name in _files(log):
        if name < offset[0]:
            log.delete(name)


def log_names(run_logs: Storage) -> list[str]:
    """Names of a run's logs in the order in which they are sent: as begun, artifacts last."""
    return sorted(run_logs.names(), key=lambda name: (name.endswith(ARTIFACTS), name))


def now_ms() -> int:
    """The time as MLflow counts it."""
    return int(time.time() * 1000)


def without_password(text: str) -> str:
    """A text with user and password of any URL in it blotted out."""
    return re.sub(r"://[^/\s@]+@", "://***@", text)


def _files(log: Storage) -> list[str]:
    return [name for name in log.names() if name.endswith(".jsonl")]


def _line(event: Event) -> bytes:
    return json.dumps(asdict(event)).encode() + b"\n"
