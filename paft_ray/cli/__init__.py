"""`paft VERB CONFIG [section.field=value ...]`: parse, load, call one verb.

command.py   one command, from its arguments to its exit code
grammar.py   arguments and options
submit.py    a verb as a job of a cluster
streams.py   streams and the log file of a command

Exit codes: 0 done; 2 the input or the configuration is wrong and nothing was written, unless only
a worker's node or a finished pool (a row too long for a prompt) can show it; 1 the run failed, work kept; 130 and 143 interrupted. Everything that
libraries print goes to the run's log file; the screen shows stages.
"""

from paft_ray.cli.command import call, main

__all__ = ["call", "main"]
