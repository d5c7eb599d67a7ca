"""What the training tests share: starting `rank_program` on several ranks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def launch() -> Callable[[Path, Path, int, list[dict]], None]:
    """Runs scenarios one after the other, on ranks that meet in a folder: real processes, gloo."""
    program = Path(__file__).with_name("rank_program.py")

    def start(folder: Path, model: Path, ranks: int, scenarios: list[dict]) -> None:
        settings = {
            "model": str(model), "folder": str(folder), "ranks": ranks, "scenarios": scenarios,
        }  # fmt: skip
        processes = [
            subprocess.Popen(
                [sys.executable, str(program), json.dumps({**settings, "rank": rank})],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            outputs = [process.communicate(timeout=280)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert all(process.returncode == 0 for process in processes), "\n".join(outputs)[-4000:]

    return start
