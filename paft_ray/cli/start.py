"""`paft init`: asks a person at a terminal what the data do not show, and writes the files."""

import argparse
import json
import sys

from rich.text import Text

from paft_ray.cli.grammar import start_of
from paft_ray.cli.streams import Streams, open_streams, write
from paft_ray.config.visible import visible
from paft_ray.pipeline.first_config import Unknown, first_config


def start(options: argparse.Namespace) -> int:
    """Write a first configuration, and return the exit code.

    Raises:
        ConfigError: See `first_config`.
        DataError: The rows cannot be read.
    """
    with open_streams(options.json) as streams:
        terminal = sys.stdin.isatty() and streams.console.is_terminal and not options.json
        ask = (lambda unknown: _ask(unknown, streams)) if terminal else None
        result = first_config(start_of(options), ask).write()
        text = json.dumps(result.data, ensure_ascii=False) if options.json else result.text
        write(streams.stdout, text + "\n")
    return 0


def _ask(unknown: Unknown, streams: Streams) -> str:
    """Ask until the answer is an allowed one; an empty line takes the default."""
    shown = f"{unknown.question} [{unknown.default or 'decide later'}]: "
    while True:
        streams.console.print(Text(visible(shown)), end="", soft_wrap=True)
        answer = sys.stdin.readline().strip() or unknown.default
        words = [word.strip() for word in answer.split(",")] if unknown.several else [answer]
        if not unknown.allowed or all(word in unknown.allowed for word in words):
            return answer
        streams.console.print(Text(visible(f"one of {', '.join(unknown.allowed)}")), soft_wrap=True)
