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
        (folder / f"meeting-{ranks}").unlink(missing_ok=True)
        said = [folder / f"said-{ranks}-{rank}.txt" for rank in range(ranks)]  # pipes fill up
        processes = [
            subprocess.Popen(
                [sys.executable, str(program), json.dumps({**settings, "rank": rank})],
                stdout=path.open("w"),
                stderr=subprocess.STDOUT,
            )
            for rank, path in enumerate(said)
        ]
        try:
            codes = [process.wait(timeout=280) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert not any(codes), "\n".join(path.read_text()[-4000:] for path in said)

    return start
