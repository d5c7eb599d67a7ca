"""Runs the tests in two halves of about equal length, beside each other: two cores are seldom idle.

    python tests/in_two_processes.py "not slow and not gpu and not vllm"

The second half has the files with tests that start Ray, and some others. What it prints comes when
the first one is over. The exit code is 0 if all passed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parent
MORE = ("cluster", "export", "storage", "training", "tuning")
"""Folders whose tests are all in the second half: both take about as long, and one without Ray."""


def second_half() -> list[Path]:
    """The files of the second half; each half imports only what its own files need."""
    return [
        path
        for path in sorted(TESTS.rglob("test_*.py"))
        if any(path.is_relative_to(TESTS / more) for more in MORE)
        or "pytest.mark.ray" in path.read_text("utf-8")
    ]


def start(arguments: Sequence[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a session of pytest."""
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments],
        stdout=output, stderr=None if output is None else subprocess.STDOUT,
    )  # fmt: skip


def main(selected: str) -> int:
    """Run both halves and return the exit code."""
    files = second_half()
    with tempfile.TemporaryFile() as output:
        second = start(["-m", selected, *map(str, files)], output)
        first = start(["-m", selected, *(f"--ignore={path}" for path in files)])
        failed = first.wait() or second.wait()
        second.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
