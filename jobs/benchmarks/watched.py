"""`paft train` inside a node, watched through what it leaves on storage."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from nodes import Lan, process_of

PATIENCE_S = 300.0


class LostRunError(RuntimeError):
    """The command ended, or nothing happened for five minutes."""


class Training:
    """One training as its storage and its driver's process show it."""

    def __init__(self, cluster: Lan, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._cluster = cluster
        self._config, self._log = folder / "config.yaml", folder / "command.log"
        text = yaml.safe_dump({**settings, "storage": str(folder / "storage")})
        self._config.write_text(text, encoding="utf-8")
        self.folder = (
            folder / "storage/runs" / settings["name"] / f"training/paft-s{settings['seed']}"
        )
        self.driver: subprocess.Popen[str] | None = None

    def start(self, workers: int) -> None:
        """Run the command, the first time or again."""
        command = [sys.executable, "-m", "paft_ray.cli", "train", str(self._config), "--json"]
        command.append(f"train.workers.num={workers}")
        with self._log.open("a", encoding="utf-8") as log:
            self.driver = self._cluster.popen(self._cluster.head, command, stdout=log, stderr=log)

    def kill_driver(self) -> None:
        """SIGKILL for the command, but for nothing that it started."""
        assert self.driver is not None
        os.kill(process_of(self.driver), signal.SIGKILL)
        self.driver.wait()

    def newest(self) -> int:
        """The step of the newest complete checkpoint, 0 for none."""
        found = (self.folder / "checkpoints").glob("step-*/manifest.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)

    def resumed_from(self, since: float) -> int:
        """Where the earliest stretch of steps begins that was written after this time."""
        parts = (self.folder / "ledger").glob("steps-*.parquet")
        return min(int(p.name.split("-")[1]) for p in parts if p.stat().st_mtime > since)

    def wait(self, until: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Return when something is so.

        Raises:
            LostRunError: The command ended before, or it took too long.
        """
        deadline = time.monotonic() + patience_s
        while not until():
            assert self.driver is not None
            if (code := self.driver.poll()) is not None:
                raise LostRunError(f"{what}: the command ended with {code}, see {self._log}")
            if time.monotonic() > deadline:
                raise LostRunError(f"{what}: not within {patience_s:.0f} s, see {self._log}")
            time.sleep(0.02)

    def finish(self) -> None:
        """Wait for the end of the command.

        Raises:
            LostRunError: It failed, or wrote no checkpoint for five minutes.
        """
        assert self.driver is not None
        step, deadline = -1, 0.0
        while self.driver.poll() is None:
            if (newest := self.newest()) > step:
                step, deadline = newest, time.monotonic() + PATIENCE_S
            if time.monotonic() > deadline:
                raise LostRunError(f"training stands still after step {step}, see {self._log}")
            time.sleep(0.1)
        if code := self.driver.returncode:
            raise LostRunError(f"the command ended with {code}, see {self._log}")
