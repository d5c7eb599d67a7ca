"""The process that checks models, kept from one command of a test to the next."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from paft_ray.models.check_process import ModelCheckProcess


class KeptProcess(ModelCheckProcess):
    """Stays when a command closes it; what that command did not wait for is taken then."""

    _pending = 0

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().begin(os.chdir, Path.cwd())  # a new process would begin where the command does
        super().begin(function, *arguments)
        self._pending += 1

    def finish(self) -> Any:
        self._pending -= 1
        super().finish()
        return super().finish()

    def close(self) -> None:
        while self._pending:
            with suppress(Exception):
                self.finish()

    def fresh(self) -> "KeptProcess":
        """The process as a command begins with it."""
        self.unknown_tokens = {}
        return self

    def end(self) -> None:
        """End the process."""
        super().close()
