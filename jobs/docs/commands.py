"""The reference of the command line, from its grammar."""

import argparse
import textwrap
from collections.abc import Iterator

from paft_ray.cli.grammar import ROBUSTNESS, build_parser
from paft_ray.pipeline import robustness
from paft_ray.pipeline.verbs import VERBS

_HEAD = """\
# Command line

{note}

Commands that say **Ray** start Ray on this machine, or join the cluster that `RAY_ADDRESS` names.
The others start none.

**`storage=PLACE`** says where everything is kept: a folder, or a URI (`s3://`, `gs://`). By
default it is the folder `storage` of the working directory. It is a value of the configuration,
so it goes behind any command, also behind those that take no configuration:
`paft runs storage=/data/paft`.

**Values are not remembered.** What is given behind a command as `section.field=value` holds for
this command alone. A run that was made with such values is only found again with the same values:
repeat them in `paft report`, `paft export`, `paft evaluate` and whatever else reads the run, or
write them into the configuration.

**The same command again continues.** A run that was killed continues where it was; of a run that
is finished the table is printed. What is complete is found by the fingerprint of what made it.
`--overwrite` discards what is there under the same name.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed; its work is kept, and the same command continues |
| 2 | the configuration or an input is wrong; nothing was written, unless only a worker's \
node, or a row under the prompts of a finished pool, could show it |
| 130, 143 | interrupted (Ctrl-C, SIGTERM); the same command continues |

`--json` makes one JSON object the last line of standard output, and the only one; everything for
people goes to standard error.
"""


def page(note: str) -> str:
    """The whole page."""
    return _HEAD.format(note=note) + "".join(_verbs())


def _verbs() -> Iterator[str]:
    parser = build_parser()
    for name, sub in _choices(parser).items():
        verb = {**VERBS, ROBUSTNESS: robustness.ROBUSTNESS}.get(name)
        ray = "**Ray.** " if verb is not None and verb.needs_ray else ""
        said = (sub.description or "").rstrip(".")
        yield f"\n## paft {name}\n\n{ray}{said[:1].upper()}{said[1:]}.\n\n"
        positional = [a for a in sub._actions if not a.option_strings]
        options = [a for a in sub._actions if a.option_strings and a.dest != "help"]
        words = " ".join(f"[{_value(a)} ...]" if a.nargs == "*" else _value(a) for a in positional)
        yield f"```text\npaft {name} {words}{' [options]' if options else ''}\n```\n\n"
        yield "| argument or option | meaning |\n|---|---|\n"
        for action in (*positional, *options):
            yield f"| `{_said(action)}` | {_meaning(action)} |\n"
        if examples := (sub.epilog or "").partition("examples:\n")[2]:
            yield f"\n```sh\n{textwrap.dedent(examples).strip()}\n```\n"


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    subs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(subs.choices)


def _value(action: argparse.Action) -> str:
    if action.metavar is None and action.choices:
        return "{" + ",".join(action.choices) + "}"
    return str(action.metavar or action.dest.upper())


def _said(action: argparse.Action) -> str:
    flags = ", ".join(action.option_strings)
    takes = action.nargs != 0
    return f"{flags} {_value(action)}".strip() if takes or not flags else flags


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return text[:1].upper() + text[1:]
