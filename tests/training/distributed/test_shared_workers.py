"""Trainings that are done by the same workers, one after another, against fresh workers."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_training import TellingScreen, train_small, worker_processes

from paft_ray.config import Config
from paft_ray.training.distributed.launch import Workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 8
TRAININGS = 10
MIB = 2**20


def outcome(folder: Path) -> tuple[bytes, list[dict]]:
    """The adapter, and what was drawn with which loss."""
    rows = pq.read_table(folder / "ledger").to_pylist()
    rows.sort(key=lambda row: (row["step"], row["slot"]))
    return (folder / "adapter/adapter_model.safetensors").read_bytes(), rows


@pytest.fixture(scope="module")
def shared(make_config: Callable[..., Config], ray_cluster: None) -> tuple[Path, list, list]:
    """Folder, workers' processes and their memory of ten trainings in the same workers."""
    config, pids, memory = make_config("shared"), [], []
    with Workers(shared=True) as workers:
        for seed in range(1, TRAININGS + 1):
            train_small(config, TellingScreen(), workers, seed)
            [worker] = worker_processes()
            pids.append(worker.pid)
            memory.append(worker.memory_full_info().uss)
    return Path(config.storage) / "runs/small/training", pids, memory


def test_trainings_in_the_same_workers_end_like_one_in_fresh_ones(
    shared: tuple[Path, list, list], make_config: Callable[..., Config]
) -> None:
    folder, pids, _ = shared
    assert len(set(pids)) == 1
    fresh = train_small(make_config("fresh"), TellingScreen(), seed=3)
    assert outcome(folder / "paft-s3") == outcome(Path(fresh.folder.path()))
    assert outcome(folder / "paft-s3") != outcome(folder / "paft-s2")


def test_memory_after_the_tenth_training_equals_that_after_the_second(
    shared: tuple[Path, list, list],
) -> None:
    _, _, memory = shared
    allocator = 12 * MIB  # what it keeps differs by as much from one training to the next
    assert memory[-1] - memory[1] < allocator, [used // MIB for used in memory]


def test_worker_killed_in_the_second_training_loses_only_that_one(
    shared: tuple[Path, list, list], make_config: Callable[..., Config]
) -> None:
    config, killed = make_config("killed"), []
    folder = Path(config.storage) / "runs/small/training"

    def kill(step: int) -> None:
        if step >= 3 and not killed:
            killed.append(worker_processes()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with Workers(shared=True) as workers:
        train_small(config, TellingScreen(), workers, 1)
        [first] = worker_processes()
        written = (folder / "paft-s1/manifest.json").stat().st_mtime_ns
        train_small(config, TellingScreen(kill), workers, 2)
        [second] = worker_processes()
        train_small(config, TellingScreen(), workers, 3)
        [third] = worker_processes()
    assert killed == [first.pid]
    assert len({first.pid, second.pid, third.pid}) == 3  # losses are counted for each training
    assert (folder / "paft-s1/manifest.json").stat().st_mtime_ns == written
    for seed in (1, 2, 3):
        assert outcome(folder / f"paft-s{seed}") == outcome(shared[0] / f"paft-s{seed}")


def test_training_with_other_needs_gets_workers_of_its_own(
    make_config: Callable[..., Config], ray_cluster: None
) -> None:
    config, pids = make_config("other"), []
    other = config.model_copy(
        update={
            "name": "other",
            "train": config.train.model_copy(
                update={"deepspeed": config.train.deepspeed.model_copy(update={"stage": 2})}
            ),
        }
    )
    with Workers(shared=True) as workers:
        for each in (config, other):
            train_small(each, TellingScreen(), workers)
            pids.append(worker_processes()[0].pid)
    assert pids[0] != pids[1]
