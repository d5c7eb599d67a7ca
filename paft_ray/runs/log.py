"""The run's log file, which receives all that is printed while a command runs."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from paft_ray.config.errors import ConfigError, DataError, DiskFullError, one_line
from paft_ray.config.visible import visible
from paft_ray.storage.full_disk import naming_full_disk
from paft_ray.storage.paths import Storage

LOG = "log.txt"


@dataclass
class Log:
    """The log file of a command."""

    place: str
    """Path or URI on storage."""
    kept: bool = True
    """Set to false, it and the folders made for it are removed, where nothing else was written."""


@contextmanager
def log_file(folder: Storage) -> Iterator[Log]:
    """Send everything that is printed or logged, by us and by libraries, to a run's log file.

    The process is a command's: logging is set up anew.
    """
    with _log(folder) as (log, _):
        logging.basicConfig(level=logging.INFO, handlers=[handler := _handler()], force=True)
        try:
            yield log
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger().addHandler(logging.NullHandler())


@contextmanager
def log_of_call(folder: Storage) -> Iterator[None]:
    """Do the same in a process of the user's, a notebook's kernel for example.

    Their logging stays as it is, and what is printed in Python goes to the log too, which need not
    be descriptor 1. Where the input is refused and nothing else was written, no log stays.
    """
    new = not folder.exists()
    with ExitStack() as stack:
        log, local = stack.enter_context(_log(folder))
        stream = stack.enter_context(local.open("a", encoding="utf-8", buffering=1))
        stack.enter_context(redirect_stdout(stream))
        stack.enter_context(redirect_stderr(stream))
        logging.getLogger().addHandler(handler := _handler())
        stack.callback(logging.getLogger().removeHandler, handler)
        try:
            yield
        except (ConfigError, DataError):
            log.kept = not new
            raise


@contextmanager
def _log(folder: Storage) -> Iterator[tuple[Log, Path]]:
    """The log file of a folder, and where it lies on this machine meanwhile."""
    log = Log(folder.path(LOG))
    local = Path(folder.path(LOG)) if folder.is_local else Path(tempfile.mkdtemp()) / LOG
    made = [parent for parent in local.parents if not parent.exists()]
    try:
        with naming_full_disk(local.parent):
            local.parent.mkdir(parents=True, exist_ok=True)
            local.touch()
    except DiskFullError:
        raise
    except OSError as error:
        raise ConfigError(
            f"storage: {local.parent} cannot be made ({one_line(error)}): name another folder"
        ) from error
    try:
        with redirected(local):
            yield log, local
    finally:
        _put(log, folder, local, made)


def _put(log: Log, folder: Storage, local: Path, made: list[Path]) -> None:
    if folder.is_local:
        if not log.kept and folder.names() == [LOG]:
            local.unlink()
            with suppress(OSError):  # a folder that is not empty stays
                for parent in made:
                    parent.rmdir()
    elif log.kept or folder.names():
        folder.write_bytes(LOG, local.read_bytes())


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    return handler


class _VisibleFormatter(logging.Formatter):
    """Formats records without control characters, since people read logs on terminals."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


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
