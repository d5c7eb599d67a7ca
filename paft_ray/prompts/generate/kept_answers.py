"""Answers of LLMs on storage, written as they arrive, so that none is generated and paid for twice.

One file of JSON lines per unit of requests on a local file system, to which every answer is
appended at once; on an object store, which cannot append, one object per group of answers. Failed
requests are recorded beside them, and sent again by the next attempt.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from paft_ray.prompts.generate.completions import Completion
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.full_disk import naming_full_disk
from paft_ray.storage.paths import Storage


@dataclass(frozen=True)
class Answers:
    """The answers of one unit."""

    folder: Storage
    """`generations/<author>/`."""
    name: str

    def read(self) -> dict[str, Completion]:
        """Request id to the first answer that was kept; a torn last line is passed over."""
        return {c.request_id: c for c in reversed(list(self._read(""))) if c.text is not None}

    def failed(self) -> dict[str, Completion]:
        """Request id to its last failure; a later attempt may have been answered."""
        return {completion.request_id: completion for completion in self._read("-failed")}

    def add(self, completions: Sequence[Completion]) -> None:
        """Write completions; when this returns, a kill does not lose them."""
        answered = [completion for completion in completions if completion.text is not None]
        failed = [completion for completion in completions if completion.text is None]
        for suffix, group in (("", answered), ("-failed", failed)):
            if group:
                self._append(suffix, group)

    def _append(self, suffix: str, completions: Sequence[Completion]) -> None:
        data = "".join(json.dumps(asdict(c)) + "\n" for c in completions).encode()
        if not self.folder.is_local:
            ids = fingerprint([completion.request_id for completion in completions])
            name = f"t{time.time_ns():020}-{ids}.jsonl"  # in order of time, after earlier versions'
            self.folder.child(self.name + suffix).write_bytes(name, data)
            return
        path = Path(self.folder.path(f"{self.name}{suffix}.jsonl"))
        with naming_full_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                if stream.tell() and not _ends_line(path):
                    data = b"\n" + data  # what a killed process left behind
                stream.write(data)

    def _read(self, suffix: str) -> Iterator[Completion]:
        for data in self._files(suffix):
            for line in data.splitlines():
                try:
                    yield Completion(**json.loads(line))
                except (ValueError, TypeError):
                    continue

    def _files(self, suffix: str) -> Iterable[bytes]:
        if self.folder.is_local:
            name = f"{self.name}{suffix}.jsonl"
            return [self.folder.read_bytes(name)] if self.folder.exists(name) else []
        folder = self.folder.child(self.name + suffix)
        return [folder.read_bytes(name) for name in folder.names()]


def _ends_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"
