"""Checkpoints: training state to and from storage, independent of the number of ranks.

A checkpoint is an artifact `checkpoints/step-000000050/`: files `state-<attempt>-00002-of-00008`,
each written by the rank that keeps these weights and moments (`state.shards`), `other-<attempt>`
with tensors that belong to no parameter, `progress.json`, and the manifest, which rank 0 writes
last, once every rank has left a record of its files. The newest valid checkpoint is loaded; a torn
one is passed over. Nothing is pickled.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from paft_ray.config.errors import ArtifactError, PaftError, TrainingError
from paft_ray.storage.artifacts import MANIFEST, ArtifactWriter, FileEntry, file_entry
from paft_ray.storage.paths import Storage, to_json
from paft_ray.training.state.progress import Progress, RankGroup, Restored, WriteLimits
from paft_ray.training.state.pruning import (
    checkpoint_name,
    count_complete,
    find,
    find_newest,
    prune,
)
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.state.shards import (
    bytes_needed,
    cut_files,
    file_names,
    refuse_small_disk,
)

if TYPE_CHECKING:
    import torch

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""Tensors of each parameter; kind and name make the key of a tensor: `exp_avg/<name>`."""
_PROGRESS = "progress.json"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _PartRecord:
    """The files that one rank wrote of a checkpoint, or the error that it failed with."""

    files: Mapping[str, FileEntry] = field(default_factory=dict)
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value}


class Checkpoints:
    """The checkpoints of one training; writing happens in a thread, with bounded retries.

    `load`, `save`, `wait` and `require_space` are collective: all ranks call them at the same
    points, and all raise where one of them fails.
    """

    def __init__(
        self,
        folder: Storage,
        identity: str,
        keep: int,
        group: RankGroup | None = None,
        limits: WriteLimits | None = None,
    ) -> None:
        """Checkpoints below `folder`, for the training with this fingerprint.

        Args:
            folder: Folder of the checkpoints.
            identity: The training's fingerprint; checkpoints of another one are passed over.
            keep: How many of the newest stay.
            group: The ranks that write together.
            limits: Bounds other than the defaults.
        """
        self._folder = folder
        self._identity = identity
        self._keep = keep
        self._group = group or RankGroup()
        self._limits = limits or WriteLimits()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._retained: int | None = None

    def load(self, needed: Callable[[int], int | None] = lambda step: step) -> Restored | None:
        """The newest valid checkpoint, or None where there is none; collective.

        Rank 0 finds it, so that all load the same one, and removes unfinished checkpoints.

        Args:
            needed: See `find_newest`; called on rank 0.

        Raises:
            TrainingError: Storage cannot be read.
        """
        found = self.on_first(lambda: find_newest(self._folder, self._identity, needed))
        return None if found is None else self._open(*found)

    def load_step(self, step: int) -> Restored:
        """The checkpoint of a step; collective.

        Raises:
            TrainingError: Storage cannot be read, or this checkpoint is torn.
        """
        name = checkpoint_name(step)
        files = self.on_first(lambda: find(self._folder, self._identity, name))
        if files is None:
            raise TrainingError(
                f"{self._folder.path(name)} is torn or missing, and its weights are the best: run "
                "the same command, which trains again from the checkpoint before it"
            )
        return self._open(name, files)

    def retain(self, step: int | None) -> None:
        """Never prune the checkpoint of this step, from the next `save` on; of one step only."""
        self._retained = step

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of `work` on storage, done by rank 0 alone, on every rank; collective.

        Raises:
            TrainingError: Storage cannot be read.
        """
        mine = self._together(lambda: work() if self._group.rank == 0 else None)
        return self._group.exchange(mine)[0]

    def _open(self, name: str, files: Mapping[str, FileEntry]) -> Restored:
        folder = self._folder.child(name)
        progress = self._together(lambda: Progress(**folder.read_json(_PROGRESS)))
        other: dict[str, torch.Tensor] = {}
        for file in files:
            if file.startswith("other-"):
                other |= self._together(partial(_read_tensors, folder, file, files[file]))
        shards = {file: entry for file, entry in files.items() if file.startswith("state")}
        return Restored(progress, other, self._read_shards(folder, shards))

    def save(
        self,
        progress: Progress,
        state: "Mapping[str, torch.Tensor]",
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to write a checkpoint, once the one before is written; raises that one's errors.

        Args:
            progress: How far training has come.
            state: The tensors that this rank keeps, by keys whose first part is one of `KINDS`;
                none may change any more. Tensors under other keys belong to no parameter and are
                the same on every rank.
            before: Called first, in rank 0's thread, to write what must precede the checkpoint.

        Raises:
            TrainingError: A rank could not write its part of the one before.
        """
        self.wait()
        own = {key: t for key, t in state.items() if key.partition("/")[0] in KINDS}
        cut = cut_files({key: t.nbytes for key, t in own.items()}, self._limits.shard_bytes)
        counts: list[int] = self._group.exchange(len(cut))
        names = file_names(self._group.attempt, counts, self._group.rank)
        files = {
            name: {key: own[key] for key in keys} for name, keys in zip(names, cut, strict=True)
        }
        other = {key: t for key, t in state.items() if key not in own}
        if other and self._group.rank == 0:
            files[f"other-{self._group.attempt}.safetensors"] = other
        if self._group.rank:
            self._pending = self._thread.submit(self._write_part, progress.step, files)
            return
        peers = [rank for rank, count in enumerate(counts) if rank and count]
        tidy = partial(prune, self._folder, self._identity, checkpoint_name(progress.step))
        tidy = partial(tidy, self._keep, self._retained)
        self._pending = self._thread.submit(self._write_all, progress, files, peers, before, tidy)

    def wait(self) -> None:
        """Return when the last checkpoint is on storage; collective.

        Raises:
            TrainingError: A rank could not write its part, however often it tried.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._agree(pending.result)

    def require_space(self, state: int, result: int, extra: int = 0) -> None:
        """Refuse to begin where local storage cannot hold what training will write; collective.

        Args:
            state: Bytes of one checkpoint.
            result: Bytes of the training's result.
            extra: Checkpoints that may stay besides the newest.

        Raises:
            TrainingError: Local storage is too small; an object store has no bound.
        """

        def check() -> None:
            if self._group.rank == 0 and self._folder.is_local:
                path = Path(self._folder.root)
                existing = next(p for p in (path, *path.parents) if p.exists())
                there = count_complete(self._folder)
                needed = bytes_needed(state, result, self._keep + extra, there)
                refuse_small_disk(needed, shutil.disk_usage(existing).free, str(path))

        self._together(check)

    def _retry(self, work: Callable[[], T], doing: str) -> T:
        return retry_storage(work, doing, self._folder.path(), self._limits.pauses_s)

    def _together(self, work: Callable[[], T]) -> T:
        """Read storage on this rank; raises on all ranks where one of them fails."""
        return self._agree(lambda: self._retry(work, "reading checkpoints"))

    def _agree(self, work: Callable[[], T]) -> T:
        result, problem, cause = None, "", None
        try:
            result = work()
        except PaftError as error:
            problem, cause = str(error), error
        problems = [text for text in self._group.exchange(problem) if text]
        if problems:  # the last one: rank 0's may only say that it waited in vain
            raise TrainingError(problems[-1]) from cause
        return result  # pyright: ignore[reportReturnType]

    def _read_shards(
        self, folder: Storage, files: Mapping[str, FileEntry]
    ) -> "Iterator[tuple[str, torch.Tensor]]":
        for name in sorted(files):
            tensors = self._together(partial(_read_tensors, folder, name, files[name]))
            for key in sorted(tensors):  # safetensors orders them differently in each process
                yield key, tensors.pop(key)

    def _write_part(self, step: int, files: "dict[str, dict[str, torch.Tensor]]") -> None:
        """Write the files of a rank other than 0, then the record of them; runs in a thread."""
        folder, record = self._folder.child(checkpoint_name(step)), self._record(self._group.rank)
        try:
            if written := self._write_files(folder, files, step):
                content = _PartRecord(written).to_json()
                self._retry(lambda: folder.write_json(record, content), _writing(step))
        except TrainingError as error:
            with suppress(OSError):  # then rank 0 need not wait
                folder.write_json(record, _PartRecord(failed=str(error)).to_json())
            raise

    def _write_all(
        self,
        progress: Progress,
        files: "dict[str, dict[str, torch.Tensor]]",
        peers: Sequence[int],
        before: Callable[[], None],
        tidy: Callable[[], None],
    ) -> None:
        """Write rank 0's files, read others' records, write the manifest, prune; in a thread."""
        doing = _writing(progress.step)
        folder = self._folder.child(checkpoint_name(progress.step))
        self._retry(before, doing)
        writer = ArtifactWriter(folder, self._write_files(folder, files, progress.step))
        writer.files |= self._read_records(folder, peers, progress.step)
        self._retry(lambda: writer.add(_PROGRESS, to_json(asdict(progress))), doing)
        self._retry(lambda: writer.commit(self._identity, {"step": progress.step}), doing)
        self._retry(lambda: folder.prune({MANIFEST, *writer.files}), "removing old files")
        self._retry(tidy, "removing old checkpoints")

    def _write_files(
        self, folder: Storage, files: "dict[str, dict[str, torch.Tensor]]", step: int
    ) -> dict[str, FileEntry]:
        import safetensors.torch

        written = {}
        for name in list(files):
            data = safetensors.torch.save(files.pop(name))  # frees its tensors
            self._retry(partial(folder.write_bytes, name, data), _writing(step))
            written[name] = file_entry(data)
            self._group.work()
        return written

    def _record(self, rank: int) -> str:
        return f"record-{self._group.attempt}-{rank:05d}.json"

    def _read_records(
        self, folder: Storage, peers: Sequence[int], step: int
    ) -> dict[str, FileEntry]:
        """Wait for the records of the other ranks' files, and return the files."""
        written: dict[str, FileEntry] = {}
        missing = {self._record(rank): rank for rank in peers}
        deadline, pause_s, there = 0.0, 0.05, None
        while missing:
            before, there = there, set(self._retry(folder.names, _writing(step)))
            if there != before:  # somebody writes
                deadline = time.monotonic() + self._limits.peers_s
            for name in there & set(missing):
                found = self._retry(partial(folder.read_json, name), _writing(step))
                record = _PartRecord(**found)
                if record.failed:
                    raise TrainingError(record.failed)
                written |= record.files
                del missing[name]
            if missing and time.monotonic() >= deadline:
                raise TrainingError(
                    f"storage: {folder.path()} holds no files of rank {min(missing.values())} "
                    f"after {self._limits.peers_s:.0f} s: see to its node, or name a storage that "
                    "all nodes share; the same command goes on from the checkpoint before"
                )
            time.sleep(pause_s if missing else 0.0)
            pause_s = min(2 * pause_s, 2.0)
        return written


def _writing(step: int) -> str:
    return f"writing the checkpoint of step {step}"


def _read_tensors(folder: Storage, name: str, entry: FileEntry) -> "dict[str, torch.Tensor]":
    import safetensors.torch

    data = folder.read_bytes(name)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ArtifactError(
            f"{folder.path(name)} changed while it was read: run the same command again"
        )
    return safetensors.torch.load(data)
