"""A process beside the driver that imports torch, transformers and peft to check a model."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.config.launchers import without_launchers

_CPU_SECONDS = 5
_MEMORY_BYTES = 2 << 30


class ModelCheckProcess:
    """A process that imports torch, transformers and peft, so that the driver need not.

    It starts at the first call, returns results in the order of calls, and ends with the driver.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._running: tuple[Connection, BaseProcess] | None = None
        self.passed: set[str] = set()
        """Fingerprints of what passed a check, which need not be checked again."""
        self.unknown_tokens: dict[int, str] = {}
        """Tokens of the base model that it has no row for, which no text may hold."""

    def __enter__(self) -> Self:
        """Return the process, which is not started yet."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process."""
        self.close()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call of a module-level function."""
        if self._running is None:
            context = multiprocessing.get_context("spawn")
            connection, other = context.Pipe()
            process = context.Process(target=_serve, args=(other,), name="model check", daemon=True)
            with without_launchers(), _safe_path(), _without_main():
                process.start()
            other.close()  # so that each side sees the end of the other
            self._running = connection, process
        with suppress(OSError):  # it died, which `finish` reports
            self._running[0].send((function, arguments))

    def finish(self) -> Any:
        """Wait for the oldest pending call and return its result.

        Raises:
            ConfigError: A chat template computed too long, see `limited`.
            PaftError: The function raised it, or the process died.
        """
        assert self._running is not None
        connection, process = self._running
        try:
            result, error = connection.recv()
        except (EOFError, OSError) as end:  # the connection is reset where it had not read all
            process.join()
            self._running = None
            if process.exitcode == -signal.SIGPROF:
                raise ConfigError(
                    f"model.chat_template: it computes for over {_CPU_SECONDS} s to render one "
                    "sentence; mend the template, or use chat_template: none"
                ) from end
            raise PaftError(
                f"the process that tries the model died with code {process.exitcode}: look into "
                "the log, and at the machine's free memory"
            ) from end
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the process, which frees its memory; the next call starts another."""
        if self._running is not None:
            connection, process = self._running
            self._running = None
            connection.close()
            process.terminate()
            process.join()


def warm_up() -> None:
    """Import transformers ahead of the first check."""
    from transformers import AutoTokenizer  # noqa: F401


@contextmanager
def limited() -> Iterator[None]:
    """Limit what a model's chat template makes this process compute.

    Beyond 5 s of CPU time the process ends, by a signal that no handler has to wait for; memory is
    limited where the system can.

    Raises:
        ConfigError: It needs more than 2 GiB of new memory.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        bytes = pages * resource.getpagesize() + _MEMORY_BYTES
        if before[0] == resource.RLIM_INFINITY or bytes < before[0]:
            resource.setrlimit(resource.RLIMIT_DATA, (bytes, before[1]))
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    try:
        yield
    except MemoryError as error:
        raise ConfigError(
            "model.chat_template: what it renders fills the memory; mend the template, or use "
            "chat_template: none"
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _safe_path() -> Iterator[None]:
    """Let Python look for modules where this process does from the very first import on.

    `python -c`, by which processes are spawned, looks into the working directory first.
    """
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a process that is spawned from running the user's script once more.

    It would, to find there what it is called with; all that this one is called with is ours. A
    script that trains needs no `if __name__ == "__main__"` then.
    """
    name = "__main__"
    main, sys.modules[name] = sys.modules[name], ModuleType(name)
    try:
        yield
    finally:
        sys.modules[name] = main


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:  # the driver is gone
            return
        try:
            result = function(*arguments), None
        except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it
            result = None, error
        connection.send(result)
