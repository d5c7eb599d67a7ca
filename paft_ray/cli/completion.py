"""`paft completion SHELL`: a script by which a shell completes commands.

shtab writes it from the grammar. It asks no Python while somebody types: starting this package
takes a second, too long for a key.
"""

import argparse
from typing import Any

from paft_ray.config.errors import ConfigError

_RUNS = "ls storage/runs 2>/dev/null"
"""Names of runs in the default storage."""


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell.

    Raises:
        ConfigError: shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ConfigError(
            "completion: the package shtab is not installed: pip install shtab"
        ) from error
    files = dict.fromkeys(("CONFIG", "DATA", "FILE", "MODEL"), shtab.FILE)
    known = {**files, "DIR": shtab.DIRECTORY, "RUN": shtab.cmd(_RUNS)}
    _mark(parser, known)
    return shtab.complete(parser, shell)


def _mark(parser: argparse.ArgumentParser, known: dict[str, Any]) -> None:
    """Say of every argument what completes it, by the word that stands for it in the help."""
    for action in parser._actions:  # argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _mark(sub, known)
        elif action.metavar in known:
            action.complete = known[action.metavar]  # pyright: ignore[reportAttributeAccessIssue]
