"""One command, from its arguments to its exit code."""

import argparse
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import yaml

from paft_ray.cli.completion import completion_script
from paft_ray.cli.grammar import (
    COMPLETION,
    INIT,
    ON_STORAGE,
    ROBUSTNESS,
    SUBMIT,
    build_parser,
    options_of,
    parse,
    question_of,
)
from paft_ray.cli.next_commands import next_commands
from paft_ray.cli.on_storage import look
from paft_ray.cli.start import start
from paft_ray.cli.streams import Streams, open_streams, write, write_error
from paft_ray.cli.submit import submit
from paft_ray.config import Config
from paft_ray.config.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    OutputError,
    PaftError,
    last_line,
)
from paft_ray.config.loading import dump_config, load_config, without_unread
from paft_ray.pipeline import robustness
from paft_ray.pipeline.perform import Result, Verb, Work, perform, prepare
from paft_ray.pipeline.question import Robustness, ask
from paft_ray.pipeline.verbs import VERBS
from paft_ray.runs.log import log_file
from paft_ray.runs.progress import RichScreen
from paft_ray.storage.full_disk import disk_full

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    options = parse(arguments)
    if getattr(options, "cluster", None):
        os.environ["RAY_ADDRESS"] = options.cluster
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger().addHandler(logging.NullHandler())  # without one, errors are printed
    try:
        if options.verb in ON_STORAGE:
            return look(options)
        if options.verb == INIT:
            return start(options)
        if options.verb == COMPLETION:
            write(sys.stdout, completion_script(build_parser(), options.shell) + "\n")
            return 0
        asked = ask(question_of(options)) if options.verb == ROBUSTNESS else None
        config = asked.config if asked else load_config(options.config, options.overrides)
        if options.print_config:
            tree = without_unread(dump_config(config))
            text = (
                json.dumps(tree) + "\n" if options.json else yaml.safe_dump(tree, sort_keys=False)
            )
            write(sys.stdout, text)
            return 0
        with open_streams(options.json) as streams:
            if options.verb == SUBMIT:
                return submit(config, options, streams)
            if asked is not None:
                return _ask(asked, options, streams)
            return _execute(VERBS[options.verb], config, options, streams)
    except (ConfigError, DataError) as error:
        return write_error(sys.stderr, error, 2)
    except (DiskFullError, OutputError) as error:  # of a disk: not even a log could be begun
        with suppress(OutputError):
            write_error(sys.stderr, error, 1)
        return 1
    except KeyboardInterrupt:  # before or after the work, or a second one during it
        return 130


def _ask(asked: Robustness, options: argparse.Namespace, streams: Streams) -> int:
    """Do what `paft robustness` asks, and keep its configuration."""
    for note in asked.notes:
        RichScreen(streams.console).line(note)
    if not options.overwrite:
        asked.refuse_other(options.file)
    return _execute(robustness.ROBUSTNESS, asked.config, options, streams, asked)


def _execute(
    verb: Verb,
    config: Config,
    options: argparse.Namespace,
    streams: Streams,
    asked: Robustness | None = None,
) -> int:
    screen = RichScreen(streams.console)
    with ExitStack() as stack:
        try:
            work = stack.enter_context(prepare(verb, config, options_of(options), screen))
            if asked is not None:
                asked.write(options.file)
        except PaftError as error:
            return write_error(streams.stderr, error, 2)
        for warning in work.context.warnings:
            screen.line(f"note: {warning}")
        result = _perform(work, streams)
    if isinstance(result, int):
        return result
    if asked is not None:
        result = robustness.with_file(result, work.context, options.file)
    for line in result.missing:
        screen.problem(f"missing: {line}")
    _show(verb, result, config, options, streams)
    return 2 if result.missing else 0


def _show(
    verb: Verb, result: Result, config: Config, options: argparse.Namespace, streams: Streams
) -> None:
    """Write the result; for programs one object, after what people read in the log of a job."""
    after = verb is VERBS["run"]
    more = next_commands(config, options.config, options.overrides) if after else []
    text = "\n".join([result.text, *more]) + "\n"
    if not options.json:
        write(streams.stdout, text)
        return
    if not verb.plans:  # of a plan `paft submit` shows a person what it says
        write(streams.stderr, f"\n{text}\n")
    write(streams.stdout, json.dumps(result.data, ensure_ascii=False) + "\n")


def _perform(work: Work, streams: Streams) -> Result | int:
    """The result of the work, or the exit code where it failed."""
    screen, folder = work.context.screen, work.context.results_folder
    new = not folder.exists()
    termination = _Termination()
    with log_file(folder) if work.verb.logged else nullcontext(None) as log:
        try:
            with termination.handled():
                return perform(work, termination.handle)
        except (ConfigError, DataError) as error:
            if log is not None and new:
                log.kept = False
            return write_error(streams.stderr, error, 2)
        except PaftError as error:
            logger.exception("failed")
            return write_error(streams.stderr, error, 1)
        except KeyboardInterrupt:
            screen.line("interrupted; run the same command to continue")
            return 130
        except SystemExit:  # Ray may have changed its code on the way
            if not termination.received:  # Ray Train's own answer to a second or third Ctrl-C
                screen.line("interrupted; run the same command to continue")
                return 130
            screen.line("terminated; run the same command to continue")
            return 143
        except Exception as error:
            logger.exception("failed unexpectedly")
            if (full := disk_full(error)) is not None:
                return write_error(streams.stderr, full, 1)
            if log is None:
                write(streams.stderr, traceback.format_exc())
            place = "above" if log is None else f"in {log.place}"
            message = f"{type(error).__name__}: {last_line(error)}\nthe traceback is {place}"
            return write_error(streams.stderr, message, 1)


class _Termination:
    """SIGTERM during the work, which raises SystemExit."""

    received = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signal during the block."""
        before = signal.getsignal(signal.SIGTERM)
        self.handle()
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def handle(self) -> None:
        """Replace Ray's handler, which ends the raylet and then aborts this process."""
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True
        raise SystemExit(128 + number)
