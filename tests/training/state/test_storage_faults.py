"""Checkpoints of several ranks; storage that is full, or away for a while; writers that die."""

import multiprocessing
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from paft_ray.config.errors import TrainingError
from paft_ray.storage.artifacts import MANIFEST
from paft_ray.storage.paths import Storage
from paft_ray.training.state.checkpoint import Checkpoints, Progress, RankGroup, WriteLimits

SMALL = 1200
"""Most bytes of a file in these tests."""
NO_PAUSES = (0.0,) * 4


def tensors(step: int, rank: int) -> dict[str, torch.Tensor]:
    return {f"weight/{rank}.{index}": torch.full((150,), step + index / 10) for index in range(3)}


def extras(step: int) -> dict[str, torch.Tensor]:
    return {"sampler/scores": torch.full((3,), step / 3, dtype=torch.float64)}


class Threads:
    """Several ranks of one attempt, each in a thread, that exchange through a barrier."""

    def __init__(self, number: int, attempt: str, make: Callable[[RankGroup], Checkpoints]) -> None:
        self._said: list[Any] = [None] * number
        self._barrier = threading.Barrier(number)
        self.checkpoints = [
            make(RankGroup(rank, number, attempt, self._exchange(rank))) for rank in range(number)
        ]

    def _exchange(self, rank: int) -> Callable[[Any], list[Any]]:
        def exchange(mine: Any) -> list[Any]:
            self._said[rank] = mine
            self._barrier.wait(20)
            said = list(self._said)
            self._barrier.wait(20)
            return said

        return exchange

    def do(self, work: Callable[[Checkpoints, int], Any]) -> list[Any]:
        """What each rank makes of `work(checkpoints, rank)`; the first error, if there is one."""
        with ThreadPoolExecutor(len(self.checkpoints)) as pool:
            ranks = range(len(self.checkpoints))
            futures = [pool.submit(work, self.checkpoints[rank], rank) for rank in ranks]
            return [future.result() for future in futures]

    def save(self, step: int) -> None:
        def work(checkpoints: Checkpoints, rank: int) -> None:
            checkpoints.save(Progress(step=step), {**tensors(step, rank), **extras(step)})
            checkpoints.wait()

        self.do(work)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def ranks(folder: Path) -> Callable[..., Threads]:
    def make_ranks(number: int, attempt: str = "first", **options) -> Threads:
        options = {"pauses_s": NO_PAUSES, "shard_bytes": SMALL, **options}
        storage = Storage.open(str(folder))
        return Threads(
            number,
            attempt,
            lambda group: Checkpoints(storage, "x", 2, group, WriteLimits(**options)),
        )

    return make_ranks


def read(checkpoints: Checkpoints) -> tuple[int, dict[str, torch.Tensor]] | None:
    restored = checkpoints.load()
    if restored is None:
        return None
    return restored.progress.step, {**dict(restored.state), **restored.other}


def assert_holds(found: tuple[int, dict[str, torch.Tensor]] | None, step: int, number: int) -> None:
    assert found is not None
    assert found[0] == step
    parts = [tensors(step, rank) for rank in range(number)]
    expected = {key: t for part in [*parts, extras(step)] for key, t in part.items()}
    assert found[1].keys() == expected.keys()
    assert all(torch.equal(found[1][key], expected[key]) for key in expected)
    assert found[1]["sampler/scores"].dtype == torch.float64


def test_checkpoint_of_three_ranks_is_read_whole_by_any_number_of_ranks(ranks, folder):
    ranks(3).save(4)
    files = sorted(path.name for path in (folder / "step-000000004").iterdir())
    shards = [f"state-first-{n:05d}-of-00006.safetensors" for n in range(1, 7)]
    assert files == [MANIFEST, "other-first.safetensors", "progress.json", *shards]
    for number in (1, 2, 4):
        for found in ranks(number, "second").do(lambda checkpoints, rank: read(checkpoints)):
            assert_holds(found, 4, 3)


def test_checkpoint_that_one_rank_cannot_write_stops_all_ranks_with_its_reason(ranks, folder):
    threads = ranks(3)
    threads.save(4)

    def work(checkpoints: Checkpoints, rank: int) -> str:
        state = tensors(8, rank)
        if rank == 1:  # where its second file belongs, there is a folder
            (folder / "step-000000008" / "state-first-00004-of-00006.safetensors").mkdir(
                parents=True
            )
        checkpoints.save(Progress(step=8), state)
        with pytest.raises(TrainingError) as caught:
            checkpoints.wait()
        return str(caught.value)

    reasons = set(threads.do(work))
    assert len(reasons) == 1
    assert "writing the checkpoint of step 8 failed 5 times" in reasons.pop()
    for found in ranks(2, "second").do(lambda checkpoints, rank: read(checkpoints)):
        assert_holds(found, 4, 3)
    assert not (folder / "step-000000008").exists(), "what a dead attempt left is still there"


def test_checkpoint_whose_other_rank_died_is_given_up_and_the_one_before_counts(ranks, folder):
    ranks(2).save(4)
    alone = Checkpoints(
        Storage.open(str(folder)),
        "x",
        2,
        RankGroup(0, 2, "second", lambda mine: [mine, 1 if mine == 1 else ""]),
        WriteLimits(NO_PAUSES, 10 * SMALL, peers_s=0),
    )
    alone.save(Progress(step=8), tensors(8, 0))
    with pytest.raises(TrainingError, match="holds no files of rank 1 after 0 s"):
        alone.wait()
    assert_holds(read(ranks(1, "third").checkpoints[0]), 4, 2)


def test_shard_of_a_dead_attempt_is_not_taken_for_one_of_this_and_goes(ranks, folder):
    ranks(3, "dead").save(4)
    step = folder / "step-000000004"
    (step / MANIFEST).unlink()
    (step / ".writing-12345678-state-dead-00009-of-00009.safetensors").write_bytes(b"half")
    ranks(2, "live").save(4)  # did not load, as if the folder appeared between
    named = [path.name for path in step.glob("*-*")]
    assert named
    assert all("-live" in name for name in named)
    assert_holds(read(ranks(1, "next").checkpoints[0]), 4, 2)


def test_retention_removes_torn_ones_and_counts_whole_ones_only(ranks, folder):
    threads = ranks(2)
    for step in (2, 4, 6):
        threads.save(step)
    (folder / "step-000000006" / MANIFEST).write_bytes(b"{")
    threads.save(8)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-000000004", "step-000000008"]


def test_disk_that_fills_up_during_a_checkpoint_stops_training_and_leaves_the_one_before(
    small_disk,
):
    def make() -> Checkpoints:
        storage = Storage.open(str(small_disk / "checkpoints"))
        return Checkpoints(storage, "x", 2, limits=WriteLimits(NO_PAUSES, 100_000))

    def big(step: int) -> dict[str, torch.Tensor]:
        return {f"weight/{i}": torch.full((25_000,), float(step)) for i in range(5)}

    checkpoints = make()
    for step in (2, 4):
        checkpoints.save(Progress(step=step), big(step))
        checkpoints.wait()
    other = small_disk / "other-file"
    other.write_bytes(b"x" * 900_000)
    checkpoints.save(Progress(step=6), big(6))
    with pytest.raises(TrainingError) as caught:
        checkpoints.wait()
    said = str(caught.value)
    assert f"checkpoint of step 6 failed 5 times in {small_disk}/checkpoints" in said
    assert "No space left on device" in said
    assert "free space there, and run the same command again" in said
    resumed = make()
    found = read(resumed)
    assert found is not None
    assert found[0] == 4
    assert all(torch.equal(t, big(4)[key]) for key, t in found[1].items())
    other.unlink()
    resumed.save(Progress(step=6), big(6))
    resumed.wait()
    assert (read(make()) or (0,))[0] == 6


def test_training_is_refused_before_its_first_step_where_the_disk_is_too_small(small_disk):
    checkpoints = Checkpoints(Storage.open(str(small_disk / "new" / "checkpoints")), "x", 2)
    checkpoints.require_space(state=500_000, result=400_000)
    with pytest.raises(TrainingError, match=rf"{small_disk}.* has 2\.1 MB free.* need 2\.3 MB"):
        checkpoints.require_space(state=600_000, result=500_000)


class Failing(LocalFileSystem):
    """A file system that raises for the next `n` opened files, writing or reading."""

    cachable = False

    def __init__(self) -> None:
        super().__init__(auto_mkdir=True)
        self.failures = 0
        self.tried = 0

    def _open(self, path, mode="rb", **options):
        self.tried += 1
        if self.failures:
            self.failures -= 1
            raise OSError(f"{path}: the storage is away")
        return super()._open(path, mode, **options)


def test_storage_that_fails_for_a_while_is_waited_for_in_writing_and_reading(tmp_path):
    away = Failing()
    storage = Storage(pafs.PyFileSystem(pafs.FSSpecHandler(away)), str(tmp_path))
    checkpoints = Checkpoints(storage, "x", 2, limits=WriteLimits(NO_PAUSES))
    away.failures = 4
    checkpoints.save(Progress(step=4), {**tensors(4, 0), **extras(4)})
    checkpoints.wait()
    assert away.failures == 0
    away.failures = 4
    assert_holds(read(checkpoints), 4, 1)
    away.failures = 1000
    with pytest.raises(TrainingError, match=r"reading checkpoints failed 5 times.*is away"):
        checkpoints.load()


def test_pauses_of_a_training_outlast_a_minute_of_failing_storage():
    from paft_ray.training.state.retries import PAUSES_S

    assert 60 < sum(PAUSES_S) * 0.75 < sum(PAUSES_S) < 120


def test_process_killed_at_random_moments_of_writing_never_leaves_a_torn_checkpoint(tmp_path):
    # in a process of its own, which imports torch once and forks what is killed
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["25", "kills"]


def write_until_killed(folder: str, committed: Any, begun: Any) -> None:
    checkpoints = killed_checkpoints(folder)
    for step in range(committed.value + 1, 10_000):
        begun.send(step)
        checkpoints.save(Progress(step=step), killed_state(step))
        checkpoints.wait()
        committed.value = step


def killed_checkpoints(folder: str) -> Checkpoints:
    return Checkpoints(Storage.open(folder), "x", keep=2, limits=WriteLimits(shard_bytes=1 << 19))


def killed_state(step: int) -> dict[str, torch.Tensor]:
    return {f"weight/{index}": torch.full((1 << 17,), float(step)) for index in range(4)}


def kill_at_random_moments(folder: str) -> None:
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    committed = context.Value("q", 0, lock=False)
    for trial in range(25):
        heard, begun = context.Pipe(duplex=False)
        process = context.Process(target=write_until_killed, args=(folder, committed, begun))
        process.start()
        for _ in range(trial % 3 + 1):  # else a busy machine kills it before it writes anything
            assert heard.poll(60)
            heard.recv()
        process.join(rng.uniform(0.0, 0.05))
        process.kill()
        process.join()
        found = read(killed_checkpoints(folder))
        step = found[0] if found else 0
        assert step in (committed.value, committed.value + 1), (step, committed.value)
        if found:
            expected = killed_state(step)
            assert found[1].keys() == expected.keys()
            assert all(torch.equal(found[1][key], expected[key]) for key in expected)
        committed.value = step
    assert committed.value >= 24
    sys.stdout.write("25 kills\n")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    kill_at_random_moments(sys.argv[1])
