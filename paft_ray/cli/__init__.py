"""`paft VERB CONFIG [section.field=value ...]`: parse, load, call one function.

command.py   one command from its words to its exit code; the only place that starts Ray
grammar.py   the words
verbs.py     what each verb calls, and what a person sees of it
submit.py    a verb as a job of a cluster
streams.py   where people, programs and libraries read and write

Exit codes: 0 done; 2 the input or the configuration is wrong and nothing was written; 1 the run
failed, work kept; 130 and 143 interrupted. Everything that libraries print goes to the run's log
file; the screen shows stages.
"""

from paft_ray.cli.command import call, main

__all__ = ["call", "main"]
