"""The lock of a folder, which one live process at a time may write to.

On a local file system `flock` makes reading and writing the lock's file one step, so that one of
two processes that start together gets the lock. An object store has no such step: there a process
writes its name, waits, and holds the lock if the name is still its own. A process that loses the
lock later is stopped.
"""

import fcntl
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

LOCK_FILE = "lease.json"
_SECONDS = 60.0
_SETTLE_S = 2.0
_LOST = signal.SIGUSR2
"""Stops the block of a lost lock. SIGINT is ignored in a job that a script began with `&`."""
_held: set[str] = set()
"""Tokens of the locks that this process holds."""


@contextmanager
def lock(
    folder: Storage, what: str, wait: bool = False, show: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Lock a folder for this process during the block; a thread renews the lock.

    The lock of a process that died on this host is taken over at once. The lock of another host is
    taken over after 60 s without renewal, for which this waits, because a job that is tried again
    on a new cluster starts sooner. A live process renews its lock within 15 s; then this is
    refused.

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
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "token": token}
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
        if _read(folder).get("token") == token:
            folder.delete(LOCK_FILE)


@contextmanager
def _renewed(
    folder: Storage, mine: Mapping[str, Any], what: str, lost: threading.Event
) -> Iterator[None]:
    """Renew a lock during the block in a thread, which stops the block where the lock is lost."""
    stop = threading.Event()

    def renew(stopping: int) -> None:
        while not stop.wait(_SECONDS / 4):
            try:
                if _read(folder).get("token") not in (None, mine["token"]):
                    lost.set()
                    os.kill(os.getpid(), stopping)
                    return
                folder.write_json(LOCK_FILE, {**mine, "renewed": time.time()})
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
    folder: Storage, mine: Mapping[str, Any], what: str, wait: bool, show: Callable[[str], None]
) -> None:
    first: Mapping[str, Any] | None = None
    while (held := _try(folder, mine)) is not None:
        age = time.time() - float(held.get("renewed", 0))
        holder = f"process {held.get('pid')} on {held.get('host')} (seen {age:.0f} s ago)"
        elsewhere = held.get("host") != mine["host"]
        if not wait and not (elsewhere and first in (None, held)):
            raise ConfigError(
                f"{what} is in use by {holder}: wait for it to end, or choose another name"
            )
        if first is None:
            show(f"{what} is in use by {holder}: waiting for it")
            first = held
        time.sleep(_SETTLE_S)


def _try(folder: Storage, mine: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Write the lock, or return the live one of another holder."""
    with _exclusive(folder):
        held = _read(folder)
        if _is_live(held, mine):
            return held
        folder.write_json(LOCK_FILE, {**mine, "renewed": time.time()})
    if folder.is_local:
        return None
    time.sleep(_SETTLE_S)
    held = _read(folder)
    return None if held.get("token") == mine["token"] else held


@contextmanager
def _exclusive(folder: Storage) -> Iterator[None]:
    """Let in one process at a time on a local file system; no such guarantee elsewhere."""
    if not folder.is_local:
        yield
        return
    path = Path(folder.path(".lease.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed
        yield


def _read(folder: Storage) -> Mapping[str, Any]:
    """The content of the lock's file; empty where there is none or it is damaged."""
    try:
        held = folder.read_json(LOCK_FILE)
    except ArtifactError:
        return {}
    return held if isinstance(held, dict) else {}


def _is_live(held: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    if time.time() - float(held.get("renewed", 0)) >= _SECONDS:
        return False  # its pid may have been given to another process
    if held.get("host") != mine["host"]:
        return True
    if held.get("pid") == mine["pid"]:
        return held.get("token") in _held  # else a process of an earlier boot had our pid
    return _is_alive(int(held.get("pid", -1)))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
