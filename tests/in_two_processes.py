"""Runs the tests in two halves of about equal length, beside each other: two cores are seldom idle.

    python tests/in_two_processes.py "not slow and not gpu and not vllm"

The second half has the tests that start Ray, one after the other, and then some that do not. What
it prints comes when the first one is over. The exit code is 0 if all passed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

AFTER_RAY = ("tests/training",)
"""Folders whose tests without Ray are in the second half, so that both take about as long."""


def run(sessions: Sequence[Sequence[str]], output: IO[bytes] | None = None) -> int:
    """Run some sessions of pytest one after the other; return the first exit code but 0."""
    codes = [
        subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            check=False, stdout=output, stderr=None if output is None else subprocess.STDOUT,
        ).returncode
        for arguments in sessions
    ]  # fmt: skip
    return next(filter(None, codes), 0)


def main(selected: str) -> int:
    """Run both halves and return the exit code."""
    ray, others = f"ray and {selected}", f"not ray and {selected}"
    first = [["-m", others, *(f"--ignore={folder}" for folder in AFTER_RAY)]]
    second = [["-m", ray], ["-m", others, *AFTER_RAY]]
    with tempfile.TemporaryFile() as output, ThreadPoolExecutor(1) as thread:
        later = thread.submit(run, second, output)
        failed = run(first)
        failed = later.result() or failed
        output.seek(0)
        sys.stdout.buffer.write(output.read())
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
