"""The lock of a folder, which one live process at a time may write to.

On a local file system `flock` makes reading and writing the lock's file one step, so that one of
two processes that start together gets the lock. An object store has no such step: there a process
writes its name, waits, and holds the lock if the name is still its own. A process that loses the
lock later is stopped.
"""

import fcntl
import logging
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.storage.full_disk import naming_full_disk
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

LOCK_FILE = "lease.json"
_SECONDS = 60.0
_SETTLE_S = 2.0
_LOST = signal.SIGUSR2
"""Stops the block of a lost lock. SIGINT is ignored in a job that a script began with `&`."""
_held: set[str] = set()
"""Tokens of the locks that this process holds."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """The content of the lock's file: the process that holds the lock."""

    host: str
    pid: int
    token: str
    renewed: float = 0.0
    """Seconds since 1970, by the clock of its host, which may be wrong."""


@contextmanager
def lock(
    folder: Storage, what: str, wait: bool = False, show: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Lock a folder for this process during the block; a thread renews the lock.

    The lock of a process that died on this host is taken over at once. The lock of another host is
    taken over after 60 s without renewal, for which this waits, because a job that is tried again
    on a new cluster starts sooner. A live process renews its lock within 15 s; then this is
    refused. A time in the future says nothing: then only what is seen to be renewed is live. A
    clock that is a minute late makes its host's live processes look dead: clocks have to agree.

    Args:
        folder: The folder; it may not exist yet.
        what: Its name in messages.
        wait: Wait for another holder to end, instead of refusing.
        show: Receives one line when this waits.

    Raises:
        ConfigError: Another live process holds the lock.
        ArtifactError: Another process took it over while this one slept; the block was stopped.
    """
    token = uuid.uuid4().hex
    mine = _Holder(socket.gethostname(), os.getpid(), token)
    _held.add(token)
    try:
        _acquire(folder, mine, what, wait, show or logger.info)
    except BaseException:
        _held.discard(token)
        raise
    lost = threading.Event()
    try:
        with _renewed(folder, mine, what, lost):
            yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise ArtifactError(
            f"{what} was taken over by another process while this one did not answer for "
            f"{_SECONDS:.0f} s: let that one finish, and run the same command again"
        ) from None
    finally:
        _held.discard(token)
        held = _read(folder)
        if held is not None and held.token == token:
            folder.delete(LOCK_FILE)


def live_holder(folder: Storage) -> str | None:
    """The live process that holds the lock of a folder, for messages; None where there is none."""
    held = _read(folder)
    if held is None or held.renewed > time.time() + _SECONDS:  # a clock that says nothing
        return None
    if not _is_live(held, _Holder(socket.gethostname(), os.getpid(), "")):
        return None
    return _described(held)


def _described(held: _Holder) -> str:
    age = max(time.time() - held.renewed, 0.0)
    return f"process {held.pid} on {held.host} (seen {age:.0f} s ago)"


@contextmanager
def _renewed(folder: Storage, mine: _Holder, what: str, lost: threading.Event) -> Iterator[None]:
    """Renew a lock during the block in a thread, which stops the block where the lock is lost."""
    stop = threading.Event()

    def renew(stopping: int) -> None:
        while not stop.wait(_SECONDS / 4):
            try:
                held = _read(folder)
                if held is not None and held.token != mine.token:
                    lost.set()
                    os.kill(os.getpid(), stopping)
                    return
                _write(folder, mine)
            except OSError as error:
                logger.warning("lease of %s not renewed: %s", what, error)

    with _stopping_signal() as stopping:
        thread = threading.Thread(target=renew, args=[stopping], name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def _stopping_signal() -> Iterator[int]:
    """The signal that raises KeyboardInterrupt in the main thread during the block."""
    if threading.current_thread() is not threading.main_thread():
        yield signal.SIGINT  # only the main thread may set a signal's handler
        return
    before = signal.signal(_LOST, signal.default_int_handler)
    try:
        yield _LOST
    finally:
        signal.signal(_LOST, before)


def _acquire(
    folder: Storage, mine: _Holder, what: str, wait: bool, show: Callable[[str], None]
) -> None:
    first = last = None
    since_s = time.monotonic()
    while (held := _try(folder, mine, last, since_s)) is not None:
        if held != last:
            last, since_s = held, time.monotonic()
        holder = _described(held)
        doubtful = held.host != mine.host or held.renewed > time.time()
        if not wait and not (doubtful and first in (None, held)):
            raise ConfigError(
                f"{what} is in use by {holder}: wait for it to end, or choose another name"
            )
        if first is None:
            show(f"{what} is in use by {holder}: waiting for it")
            first = held
        time.sleep(_SETTLE_S)


def _try(folder: Storage, mine: _Holder, last: _Holder | None, since_s: float) -> _Holder | None:
    """Write the lock, or return the live one of another holder.

    `last` was there when this looked first at `since_s`, or is None.
    """
    with _exclusive(folder):
        held = _read(folder)
        silent_s = time.monotonic() - since_s if held == last else 0.0
        if held is not None and silent_s < _SECONDS and _is_live(held, mine):
            return held
        _write(folder, mine)
    if folder.is_local:
        return None
    time.sleep(_SETTLE_S)
    held = _read(folder)
    return None if held is None or held.token == mine.token else held


@contextmanager
def _exclusive(folder: Storage) -> Iterator[None]:
    """Let in one process at a time on a local file system; no such guarantee elsewhere."""
    if not folder.is_local:
        yield
        return
    path = Path(folder.path(".lease.lock"))
    with naming_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed
        yield


def _write(folder: Storage, mine: _Holder) -> None:
    try:
        folder.write_json(LOCK_FILE, asdict(replace(mine, renewed=time.time())))
    except IsADirectoryError as error:
        raise ConfigError(
            f"{folder.path(LOCK_FILE)} is a folder, where the file of a lock belongs: remove it"
        ) from error


def _read(folder: Storage) -> _Holder | None:
    """Who holds the lock; nobody where there is no file, or one that no process wrote like this."""
    try:
        held = folder.read_json(LOCK_FILE)
        holder = _Holder(held["host"], held["pid"], held["token"], float(held["renewed"]))
    except (ArtifactError, KeyError, TypeError, ValueError, OverflowError):
        return None
    texts = isinstance(holder.host, str) and isinstance(holder.token, str)
    is_pid = type(holder.pid) is int and 0 < holder.pid < 2**31
    return holder if texts and is_pid and math.isfinite(holder.renewed) else None


def _is_live(held: _Holder, mine: _Holder) -> bool:
    if time.time() - held.renewed >= _SECONDS:
        return False  # its pid may have been given to another process
    if held.host != mine.host:
        return True
    if held.pid == mine.pid:
        return held.token in _held  # else a process of an earlier boot had our pid
    return _is_alive(held.pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
