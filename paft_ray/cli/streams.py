"""Where people, programs and libraries read and write while a command runs."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from paft_ray.config.errors import PaftError
from paft_ray.runs.context import RunContext
from paft_ray.runs.log import LOG, redirected


@dataclass(frozen=True)
class Streams:
    """Where a person and a program read, whatever becomes of descriptors 1 and 2."""

    stdout: TextIO
    stderr: TextIO
    console: Console
    """Stages and lines."""


@contextmanager
def open_streams(as_json: bool) -> Iterator[Streams]:
    """Copies of the real descriptors; with `--json` nothing but the object goes to stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout,
        os.fdopen(os.dup(2), "w", encoding="utf-8") as stderr,
    ):
        yield Streams(stdout, stderr, Console(file=stderr if as_json else stdout))


@dataclass
class Log:
    """The log file of a command that runs."""

    place: str
    """As storage names it."""
    kept: bool = True

    def discard(self) -> None:
        """Leave nothing of it, nor of the folders made for it, when the command ends."""
        self.kept = False


@contextmanager
def log_file(context: RunContext) -> Iterator[Log]:
    """Send everything that is printed or logged, by us and by libraries, to the run's log file."""
    log = Log(context.run_folder.path(LOG))
    folder = context.run_folder
    local = Path(folder.path(LOG)) if folder.is_local else Path(tempfile.mkdtemp()) / LOG
    made = [parent for parent in local.parents if not parent.exists()]
    local.parent.mkdir(parents=True, exist_ok=True)
    with redirected(local):
        handler = logging.StreamHandler(sys.stderr)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
            handlers=[handler],
            force=True,
        )
        try:
            yield log
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger().addHandler(logging.NullHandler())
    if folder.is_local:
        if not log.kept and folder.names() == [LOG]:
            local.unlink()
            with suppress(OSError):  # one that holds something else by now stays
                for parent in made:
                    parent.rmdir()
    elif log.kept:
        folder.write_bytes(LOG, local.read_bytes())


def write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def say(stream: TextIO, error: PaftError | str, code: int) -> int:
    stream.write(f"error: {error}\n")
    stream.flush()
    return code
