"""What to do after a run: three commands that can be copied, with the arguments of this one."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from paft_ray.config import Config
from paft_ray.config.visible import shell_words


def next_commands(config: Config, path: str, overrides: Sequence[str]) -> list[str]:
    """Lines with the next three commands after `paft run`.

    Args:
        config: The configuration of the run.
        path: Its file.
        overrides: What was given behind it, which every command about the run needs again.
    """
    own = [override for override in overrides if not override.startswith("name=")]
    name = f"name={config.name}"
    named = [*own, name] if name in overrides else own
    measured = ["seeds=[0, 1, 2]", f"name={config.name}-seeds"]
    commands = [
        ("write the adapter to a folder of its own", ["export", path, *named]),
        ("train with three seeds, for a measurement", ["run", path, *own, *measured]),
        ("how brittle is a model of yours?", ["robustness", "MODEL", "DATA"]),
    ]
    if len(config.trainings) > len(config.variants):  # several seeds already
        more = ["evaluation.name=more", f"evaluation.examples={4 * config.evaluation.examples}"]
        commands[1] = ("measure on four times the examples", ["evaluate", path, *named, *more])
    program = _program()
    lines = [(f"{program} {shell_words(words)}", what) for what, words in commands]
    width = max(len(command) for command, _ in lines)
    return ["", "next:", *(f"    {command.ljust(width)}    # {what}" for command, what in lines)]


def _program() -> str:
    """What calls this program from the working directory."""
    started = Path(sys.argv[0])
    if started.name != "paft" or not started.is_absolute():
        return "paft" if started.name != "paft" else str(started)
    found = shutil.which("paft")
    if found is not None and Path(found) == started:
        return "paft"
    inside = started.is_relative_to(Path.cwd())
    return str(started.relative_to(Path.cwd())) if inside else str(started)
