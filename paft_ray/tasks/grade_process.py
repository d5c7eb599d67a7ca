"""Calls a function of the user's own that grades texts, in a process of its own.

The process runs `grade_script.py`, which imports nothing of this package. It is started for the
first call, lives as long as the process that calls, and is ended where a call takes too long.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ConfigError, GradeError, one_line

_SCRIPT = Path(__file__).with_name("grade_script.py")
_START_S = 120
"""Most seconds until the file is imported: it may import torch."""


@dataclass(frozen=True, slots=True)
class UserCode:
    """A function in a file; the source travels to workers, since their nodes may lack the file."""

    path: str
    source: str
    function: str

    @property
    def identity(self) -> str:
        """A hash of the code."""
        return sha256(f"{self.function}\0{self.source}".encode()).hexdigest()

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.path}:{self.function}"

    def check(self, where: str) -> None:
        """Import the file once; `where` names its place in the configuration.

        Raises:
            ConfigError: It cannot be imported, or has no such function.
        """
        try:
            _Process(self).end()
        except GradeError as error:
            raise ConfigError(f"{where}.path: {error}") from error


def call_user(code: UserCode, arguments: Sequence[Any], timeout_s: float, where: str) -> float:
    """Call the function; `where` names the example and its prompt in errors.

    Raises:
        GradeError: It raises, takes too long, or returns something that is not from 0 to 1.
    """
    with _LOCK:
        process = _process(code)
        reply = process.ask(arguments, timeout_s)
        if "value" not in reply and not process.lives:
            _process.cache_clear()
    if "value" not in reply or not 0 <= reply["value"] <= 1:
        raise GradeError(
            f"{where}: {code.name} {reply.get('error') or 'returned ' + reply['shown']} for the "
            f"text {one_line(ValueError(arguments[-1]), 80)!r}; a grade is a number from 0 to 1: "
            "mend the function, and run the command again"
        )
    return reply["value"]


_LOCK = threading.Lock()


@cache
def _process(code: UserCode) -> "_Process":
    return _Process(code)


class _Process:
    """A process with the user's file imported."""

    def __init__(self, code: UserCode) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.end)
        reply = self._exchange([code.path, code.source, code.function], _START_S)
        if "error" in reply:
            self.end()
            raise GradeError(f"{code.name} {reply['error']}")

    @property
    def lives(self) -> bool:
        """Return whether it can be asked again."""
        return self._child.poll() is None

    def ask(self, arguments: Sequence[Any], timeout_s: float) -> dict[str, Any]:
        """Return what the function said: `value` and `shown`, or `error`."""
        return self._exchange(list(arguments), timeout_s)

    def end(self) -> None:
        """End the process."""
        atexit.unregister(self.end)
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _exchange(self, message: Any, timeout_s: float) -> dict[str, Any]:
        into, out = self._child.stdin, self._child.stdout
        assert into is not None and out is not None
        try:
            into.write(json.dumps(message).encode() + b"\n")
            into.flush()
        except OSError:
            return self._ended()
        reply = b""
        while not reply.endswith(b"\n"):
            if not select.select([out], [], [], timeout_s)[0]:
                self.end()
                return {"error": f"did not answer within {timeout_s:g} s"}
            if not (read := os.read(out.fileno(), 65536)):
                return self._ended()
            reply += read
        return json.loads(reply)

    def _ended(self) -> dict[str, Any]:
        code = self._child.wait()
        self.end()
        return {"error": f"ended its process (exit code {code})"}
