"""The commands: their arguments and options, and what a parsed command asks for."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import metadata
from typing import Any, NoReturn

from paft_ray.cli.arguments import (
    add_columns,
    add_export_options,
    add_insist,
    add_server,
    add_submit_options,
    said_in,
    server_in,
)
from paft_ray.cli.help import (
    COMPARE,
    DELETE,
    FORMATTER,
    ON_STORAGE,
    RUNS,
    STATUS,
    epilog_of,
    main_epilog,
)
from paft_ray.cli.streams import write, write_error
from paft_ray.pipeline import robustness
from paft_ray.pipeline.first_config import Start
from paft_ray.pipeline.perform import Options
from paft_ray.pipeline.question import CONFIG_FILE, Question
from paft_ray.pipeline.verbs import VERBS

SUBMIT = "submit"
ROBUSTNESS, INIT = "robustness", "init"
"""Commands that make a configuration."""
COMPLETION, SHELLS = "completion", ("bash", "zsh", "fish", "tcsh")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other refusal, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(write_error(sys.stderr, f"{message}; see {self.prog} --help", 2))


class _Version(argparse.Action):
    """Shows the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        try:
            version = metadata.version("paft_ray")
        except metadata.PackageNotFoundError:  # a folder that a job brought along
            version = "(not installed)"
        write(sys.stdout, f"paft {version}\n")
        parser.exit()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse one command; overrides may be anywhere among the arguments.

    Ends the process with code 2 where the arguments are wrong.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if options.verb in ON_STORAGE:
        _take_storage(parser, options, rest)
        return options
    if options.verb == COMPLETION:
        return parser.parse_args(arguments)
    options.for_job = []
    if options.verb == SUBMIT:
        options.for_job = [word for word in rest if word.startswith("-")]
        rest = [word for word in rest if word not in options.for_job]
        parser.parse_args([options.job, options.config, *options.for_job])
    if wrong := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    options.overrides += rest  # overrides behind an option
    return options


def _take_storage(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]
) -> None:
    """Take `storage=` from among the names, as other commands take overrides."""
    words = [*options.names, *rest]
    options.names = [word for word in words if "=" not in word and not word.startswith("-")]
    given = [word for word in words if word not in options.names]
    if wrong := [word for word in given if not word.startswith("storage=")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if options.verb == RUNS and options.names:
        parser.error(f"unrecognized arguments: {' '.join(options.names)}")
    if options.verb == STATUS and len(options.names) != 1:
        parser.error(f"status takes the name of one run, not {len(options.names)}")
    options.storage = given[-1].removeprefix("storage=") if given else "storage"


def options_of(parsed: argparse.Namespace) -> Options:
    """The options of a verb, from its parsed command."""
    known = {field.name: getattr(parsed, field.name, None) for field in fields(Options)}
    return Options(**{name: value for name, value in known.items() if value is not None})


def question_of(parsed: argparse.Namespace) -> Question:
    """What `paft robustness` asks, from its parsed command."""
    overrides = tuple(parsed.overrides)
    said, behind = said_in(parsed), server_in(parsed)
    return Question(parsed.model, parsed.data, said, parsed.llm, overrides, behind)


def start_of(parsed: argparse.Namespace) -> Start:
    """The arguments of `paft init`, from its parsed command."""
    overrides = tuple(parsed.overrides)
    return Start(parsed.data, said_in(parsed), parsed.model, overrides, parsed.file)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="paft",
        description="Prompt-agnostic fine-tuning on Ray (arXiv 2502.12859).",
        epilog=main_epilog(),
        formatter_class=FORMATTER,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_init(verbs)
    for name, verb in VERBS.items():
        sub = _add_verb(verbs, name, verb.help)
        if verb.joins:
            add_insist(sub)
        if name == "export":
            add_export_options(sub)
        if name == "plan":
            sub.add_argument(
                "--cluster",
                metavar="HOST:PORT",
                help="look at this cluster's nodes, too (default: RAY_ADDRESS, if set)",
            )
        if verb.replaces:
            sub.add_argument(
                "--overwrite",
                action="store_true",
                help="discard what another configuration left under this run's name",
            )
    _add_robustness(verbs)
    for name, help in ON_STORAGE.items():
        _add_on_storage(verbs, name, help)
    add_submit_options(_add_verb(verbs, SUBMIT, "do any of these as a job of a cluster"))
    help = "print a script by which the shell completes commands"
    _new(verbs, COMPLETION, help).add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def _new(verbs: Any, name: str, help: str) -> argparse.ArgumentParser:
    sentence = f"{help[0].upper()}{help[1:]}."
    return verbs.add_parser(
        name, help=help, description=sentence, epilog=epilog_of(name), formatter_class=FORMATTER
    )


def _add_verb(verbs: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = _new(verbs, name, help)
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the config.json of a run")
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_overrides(parser)
    parser.add_argument("--print-config", action="store_true", help="show what was understood")
    parser.set_defaults(overwrite=False, insist=False)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="change one value"
    )
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout")


def _add_on_storage(verbs: Any, name: str, help: str) -> None:
    parser = _new(verbs, name, help)
    place = "storage=PLACE (default: storage)"
    about = {
        RUNS: ("storage=PLACE", "folder or URI (default: storage)"),
        STATUS: ("RUN", f"name of a run, or RUN/EVALUATION; and {place}"),
        COMPARE: ("RUN", f"names of runs, and {place}"),
        DELETE: ("RUN", f"names of runs, or RUN/EVALUATION; and {place}"),
    }
    metavar, words = about[name]
    parser.add_argument("names", nargs="*", default=[], metavar=metavar, help=words)
    _add_json(parser)
    if name == DELETE:
        parser.add_argument("--yes", action="store_true", help="remove without asking")


def _add_init(verbs: Any) -> None:
    help = "write a first configuration for your own data, and wordings to edit"
    parser = _new(verbs, INIT, help)
    _add_data(parser)
    _add_overrides(parser)
    add_columns(parser)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="model folder, GGUF file or hub name (default: the demo's model, where it is "
        "installed; else it is left for you to write)",
    )
    parser.add_argument(
        "--config",
        dest="file",
        metavar="FILE",
        help="where the configuration is written (default: NAME.yaml, after the data); the "
        "wordings go beside it",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help="file or saved data set, or a built-in task: sst2, or sst2=PATH",
    )


def _add_robustness(verbs: Any) -> None:
    parser = _new(verbs, ROBUSTNESS, robustness.ROBUSTNESS.help)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, GGUF file, hub name, pkg:NAME/file.gguf, an adapter's folder, or the "
        "URL of an OpenAI-compatible server",
    )
    _add_data(parser)
    _add_common(parser)
    add_insist(parser)
    add_columns(parser)
    add_server(parser)
    parser.add_argument(
        "--llm", metavar="FILE", help="YAML with an LLM, or prompts.generation: more wordings"
    )
    parser.add_argument(
        "--config",
        dest="file",
        metavar="FILE",
        default=CONFIG_FILE,
        help=f"where the configuration is written (default: {CONFIG_FILE})",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace another configuration in that file, and what is there under the run's name",
    )
