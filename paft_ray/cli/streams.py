"""Streams for people and programs, and the log file of a command."""

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

from paft_ray.config.errors import OutputError, PaftError
from paft_ray.config.visible import visible
from paft_ray.runs.log import LOG, redirected
from paft_ray.storage.full_disk import naming_full_disk
from paft_ray.storage.paths import Storage


@dataclass(frozen=True)
class Streams:
    """The command's own streams, which redirecting descriptors 1 and 2 does not change."""

    stdout: TextIO
    stderr: TextIO
    console: Console
    """Shows progress."""


@contextmanager
def open_streams(as_json: bool) -> Iterator[Streams]:
    """Open copies of descriptors 1 and 2; with `--json` only the JSON object goes to stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = (os.fdopen(os.dup(n), "w", encoding="utf-8") for n in (1, 2))
    try:
        # no text from outside is taken for markup
        console = Console(
            file=stderr if as_json else stdout, markup=False, emoji=False, highlight=False
        )
        yield Streams(stdout, stderr, console)
    finally:
        for stream in (stdout, stderr):
            with suppress(OSError):  # of what could not be written before either
                stream.close()


@dataclass
class Log:
    """The log file of a command."""

    place: str
    """Path or URI on storage."""
    kept: bool = True
    """Set to false, it and the folders made for it are removed, where nothing else was written."""


@contextmanager
def log_file(folder: Storage) -> Iterator[Log]:
    """Send everything that is printed or logged, by us and by libraries, to a run's log file."""
    log = Log(folder.path(LOG))
    local = Path(folder.path(LOG)) if folder.is_local else Path(tempfile.mkdtemp()) / LOG
    made = [parent for parent in local.parents if not parent.exists()]
    with naming_full_disk(local.parent):
        local.parent.mkdir(parents=True, exist_ok=True)
        local.touch()
    with redirected(local):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_VisibleFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        try:
            yield log
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger().addHandler(logging.NullHandler())
    if folder.is_local:
        if not log.kept and folder.names() == [LOG]:
            local.unlink()
            with suppress(OSError):  # a folder that is not empty stays
                for parent in made:
                    parent.rmdir()
    elif log.kept or folder.names():
        folder.write_bytes(LOG, local.read_bytes())


class _VisibleFormatter(logging.Formatter):
    """Formats records without control characters, since people read logs on terminals."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def write(stream: TextIO, text: str) -> None:
    """Write to a stream at once, without control characters.

    Raises:
        OutputError: The stream leads to a full disk, or nobody reads it any more.
    """
    try:
        stream.write(visible(text))
        stream.flush()
    except OSError as error:
        raise OutputError(
            f"what is printed cannot be written ({error.strerror}): send it elsewhere; what is on "
            "storage is kept"
        ) from error


def write_error(stream: TextIO, error: PaftError | str, code: int) -> int:
    """Write an error and return the exit code."""
    write(stream, f"error: {error}\n")
    return code
