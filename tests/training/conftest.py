"""What the training tests share: starting `rank_program` on several ranks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Launch = Callable[[Path, Path, int, list[dict]], None]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """Runs scenarios one after the other, on ranks that meet in a folder: real processes, gloo."""
    program = Path(__file__).with_name("rank_program.py")
    parent = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert parent.stdin is not None and parent.stdout is not None
    to_it, from_it = parent.stdin, parent.stdout

    def start(folder: Path, model: Path, ranks: int, scenarios: list[dict]) -> None:
        (folder / f"meeting-{ranks}").unlink(missing_ok=True)
        said = [folder / f"said-{ranks}-{rank}.txt" for rank in range(ranks)]
        about = {
            "model": str(model), "folder": str(folder), "ranks": ranks, "scenarios": scenarios,
        }  # fmt: skip
        each = [{**about, "rank": rank, "said": str(path)} for rank, path in enumerate(said)]
        print(json.dumps(each), file=to_it, flush=True)
        codes = json.loads(from_it.readline() or "[1]")
        texts = (path.read_text()[-4000:] for path in said if path.exists())
        assert not any(codes), "\n".join(texts)

    yield start
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
