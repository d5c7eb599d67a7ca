"""Streams for people and programs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console

from paft_ray.config.errors import OutputError, PaftError
from paft_ray.config.visible import visible


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
