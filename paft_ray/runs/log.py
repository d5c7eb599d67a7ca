"""The run's log file, which receives all that is printed while a command runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = "log.txt"


@contextmanager
def redirected(file: Path) -> Iterator[None]:
    """Send the output of this process and its children to a file during the block."""
    real = os.dup(1), os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        _flush()
        os.dup2(real[0], 1)
        os.dup2(real[1], 2)
        for descriptor in (*real, log):
            os.close(descriptor)


def _flush() -> None:
    """Write what is left of the output, which must not go where the command's own result goes."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the disk is full
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            sys.stdout.flush()
            sys.stderr.flush()
