"""Training through Ray Train while its workers are stopped and told to go."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.util import placement_group_table
from small_training import TellingScreen, train_small, worker_processes

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 100


def ledger(folder: Path) -> list[dict]:
    rows = pq.read_table(folder / "ledger").to_pylist()
    return sorted(rows, key=lambda row: (row["step"], row["slot"]))


@pytest.fixture(scope="module")
def undisturbed(
    make_config: Callable[..., Config], ray_cluster: None
) -> tuple[Path, list[set[str]]]:
    """The folder of a training on two workers over `lo`, and where they were connected."""
    connected: list[set[str]] = []

    def look(step: int) -> None:
        workers = worker_processes()
        if step and not connected and len(workers) == 2:
            links = [c for worker in workers for c in worker.net_connections("tcp4") if c.raddr]
            own = {c.laddr for c in links}
            connected.append({c.laddr.ip for c in links if c.raddr in own})

    config = make_config("undisturbed", num=2, interface="lo")
    adapter = train_small(config, TellingScreen(look))
    return Path(adapter.folder.path()), connected


def test_ranks_talk_over_the_interface_that_is_named(undisturbed) -> None:
    _, connected = undisturbed
    assert connected == [{"127.0.0.1"}]


def test_worker_told_to_go_and_worker_stopped_change_nothing(
    make_config: Callable[..., Config], undisturbed: tuple[Path, list[set[str]]]
) -> None:
    """SIGTERM makes all ranks save that very step and leave; a stopped rank is named and ended."""
    config = make_config("disturbed", num=2, heartbeat_timeout_s=6)
    folder = Path(config.storage) / "runs/small/training/paft-s1"
    sent: list[int] = []

    def disturb(step: int) -> None:
        if not sent and step >= 10:
            os.kill(worker_processes()[0].pid, signal.SIGTERM)
            sent.append(step)
        saved = list(folder.glob("checkpoints/*/manifest.json"))
        if len(sent) == 1 and saved and step > int(saved[0].parent.name[-9:]) + 10:
            stopped = worker_processes()[-1].pid
            os.kill(stopped, signal.SIGSTOP)
            sent.append(stopped)

    screen = TellingScreen(disturb)
    train_small(config, screen)
    assert len(sent) == 2, screen.lines
    [left, stuck] = screen.lines
    steps = sorted(int(p.name[-9:]) for p in (folder / "checkpoints").iterdir())
    assert len(steps) == 2
    assert sent[0] <= steps[0] < steps[1] == STEPS
    assert f"{steps[0]} steps are saved" in left
    assert f"(pid {sent[1]}) has not moved" in stuck
    assert "silent" in stuck
    assert ledger(folder) == ledger(undisturbed[0])
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (undisturbed[0] / adapter).read_bytes()


def test_interface_that_is_not_there_is_named_beside_those_that_are(
    make_config: Callable[..., Config], ray_cluster: None
) -> None:
    with pytest.raises(ConfigError, match=r"no interface 'eth77', only .*lo"):
        train_small(make_config("interface", interface="eth77"), TellingScreen())
    held = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert held == []  # else the next training of this process would wait for its CPUs
