"""`paft VERB CONFIG [section.field=value ...]`: parse, load, call one verb.

command.py   one command, from its arguments to its exit code; next_commands.py: what to do then
grammar.py   the commands; arguments.py: groups of options; help.py: examples
start.py     `paft init`, which may ask
on_storage.py  commands about what is on a storage
completion.py  a script by which a shell completes commands
submit.py    a verb as a job of a cluster
streams.py   streams and the log file of a command

Exit codes: 0 done; 2 the input or the configuration is wrong and nothing was written, unless only
a worker's node or a finished pool (a row too long for a prompt) can show it; 1 the run failed, work
kept; 130 and 143 interrupted. What libraries print goes to the run's log file; the screen shows
stages.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    from paft_ray.cli import command  # late: `__main__` decides first where modules are found

    command.main(arguments)


def call(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    from paft_ray.cli import command

    return command.call(arguments)
