"""What to do after a run: three commands that can be copied, with the arguments of this one."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from paft_ray.config import Config
from paft_ray.config.visible import near, shell_words

_WIDE = 80
"""Characters of a command above which it does not push the comments of all to the right."""


def next_commands(config: Config, path: str, overrides: Sequence[str]) -> list[str]:
    """Lines with the next three commands after `paft run`.

    Args:
        config: The configuration of the run.
        path: Its file.
        overrides: What was given behind it, which every command about the run needs again.

    Returns:
        Nothing where the run trains nothing.
    """
    if not config.variants:
        return []
    own = [override for override in overrides if not override.startswith("name=")]
    commands = [
        ("write the adapter to a folder of its own", ["export", path, *overrides]),
        (
            "train with three seeds, for a measurement",
            ["run", path, *own, "seeds=[0, 1, 2]", f"name={config.name}-seeds"],
        ),
        ("how brittle is a model of yours?", ["robustness", "MODEL", "DATA"]),
    ]
    if len(config.trainings) > len(config.variants):  # several seeds already
        commands[1] = ("what else is on this storage", ["runs", f"storage={config.storage}"])
    program = _program()
    lines = [(f"{program} {shell_words(words)}", what) for what, words in commands]
    width = max((len(c) for c, _ in lines if len(c) <= _WIDE), default=0)
    return ["", "next:", *(f"    {command.ljust(width)}    # {what}" for command, what in lines)]


def _program() -> str:
    """What calls this program from the working directory."""
    started, found = Path(sys.argv[0]).absolute(), shutil.which("paft")
    if started.name != "paft" or (found is not None and Path(found).absolute() == started):
        return "paft"
    return near(str(started))
