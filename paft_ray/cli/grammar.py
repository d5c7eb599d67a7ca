"""Arguments and options of the command line."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from paft_ray.cli.streams import write_error
from paft_ray.cluster.access import INSIST
from paft_ray.cluster.jobs import DASHBOARD, JOBS
from paft_ray.pipeline import robustness
from paft_ray.pipeline.behind_url import BehindUrl
from paft_ray.pipeline.perform import Options
from paft_ray.pipeline.question import CONFIG_FILE, Question
from paft_ray.pipeline.verbs import VERBS
from paft_ray.tasks.guessing import Said

SUBMIT = "submit"
RUNS, COMPARE = "runs", "compare"
"""Commands about what is on a storage, which take no configuration."""
ROBUSTNESS = "robustness"
"""The command that makes its configuration."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other refusal, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(write_error(sys.stderr, f"{message}; see {self.prog} --help", 2))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse one command; overrides may be anywhere among the arguments.

    Ends the process with code 2 where the arguments are wrong.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if options.verb in (RUNS, COMPARE):
        _take_storage(parser, options, rest)
        return options
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
    options.storage = given[-1].removeprefix("storage=") if given else "storage"


def options_of(parsed: argparse.Namespace) -> Options:
    """The options of a verb, from its parsed command."""
    known = {field.name: getattr(parsed, field.name, None) for field in fields(Options)}
    return Options(**{name: value for name, value in known.items() if value is not None})


def question_of(parsed: argparse.Namespace) -> Question:
    """What `paft robustness` asks, from its parsed command."""
    said = Said(
        tuple(parsed.field),
        parsed.answer,
        tuple(parsed.choices),
        parsed.choices_column,
        tuple(parsed.choices_columns),
        parsed.description,
    )
    behind = BehindUrl(parsed.endpoint_model, parsed.api, parsed.api_key_env)
    return Question(parsed.model, parsed.data, said, parsed.llm, tuple(parsed.overrides), behind)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="paft", description="Prompt-agnostic fine-tuning on Ray (arXiv 2502.12859)."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = _add_verb(verbs, name, verb.help)
        if verb.joins:
            _add_insist(sub)
        if name == "export":
            _add_export_options(sub)
        if name == "plan":
            sub.add_argument(
                "--cluster",
                metavar="HOST:PORT",
                help="look at this cluster's nodes, too (default: RAY_ADDRESS, if set)",
            )
        if name in ("run", "train", "tune"):
            sub.add_argument(
                "--overwrite",
                action="store_true",
                help="discard what another configuration left under this run's name",
            )
    _add_robustness(verbs)
    about_storage = {
        RUNS: "list the runs and searches on a storage",
        COMPARE: "compare the models of several runs that share prompts and examples",
    }
    for name, help in about_storage.items():
        sub = verbs.add_parser(name, help=help, description=help)
        sub.add_argument(
            "names", nargs="*", metavar="storage=PLACE" if name == RUNS else "RUN",
            help="folder or URI (default: storage)" if name == RUNS
            else "names of runs, and storage=PLACE (default: storage)",
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    _add_submit_options(_add_verb(verbs, SUBMIT, "do any of these as a job of a cluster"))
    return parser


def _add_verb(verbs: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help)
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="change one value"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    parser.add_argument("--print-config", action="store_true", help="show what was understood")
    parser.set_defaults(overwrite=False, insist=False)


def _add_robustness(verbs: Any) -> None:
    help = robustness.ROBUSTNESS.help
    parser = verbs.add_parser(ROBUSTNESS, help=help, description=help)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, GGUF file, hub name, pkg:NAME/file.gguf, an adapter's folder, or the "
        "URL of an OpenAI-compatible server",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="file or saved data set, or a built-in task: sst2, or sst2=PATH",
    )
    _add_common(parser)
    _add_insist(parser)
    _add_columns(parser)
    _add_server(parser)
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


def _add_columns(parser: argparse.ArgumentParser) -> None:
    """Options that say what the columns of data are."""
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column that the model sees, also as slot=COLUMN; several times for several",
    )
    parser.add_argument("--answer", metavar="COLUMN", help="the column with the right answer")
    parser.add_argument(
        "--choices",
        type=_words,
        default=[],
        metavar="A,B",
        help="all allowed answers, also as VALUE=A,VALUE=B; by default few values of --answer",
    )
    parser.add_argument(
        "--choices-column", metavar="COLUMN", help="a column with a list of each row's choices"
    )
    parser.add_argument(
        "--choices-columns",
        type=_words,
        default=[],
        metavar="COLUMN,COLUMN",
        help="columns with one choice of each row",
    )
    parser.add_argument("--description", metavar="TEXT", help="what the model has to do")


def _add_server(parser: argparse.ArgumentParser) -> None:
    """Options of a model behind a URL."""
    parser.add_argument(
        "--endpoint-model",
        metavar="NAME",
        help="the model behind a URL (default: the only one that the server lists)",
    )
    parser.add_argument(
        "--api",
        choices=("completions", "chat"),
        help="how a model behind a URL is asked (default: completions where these give "
        "log-probabilities of prompts, else chat)",
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable with the key for a URL"
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _add_insist(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        INSIST,
        dest="insist",
        action="store_true",
        help="work on a cluster that runs the code of whoever reaches it",
    )


def _add_submit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--job",
        metavar="VERB",
        default="run",
        choices=list(JOBS),
        help=f"one of {', '.join(JOBS)} (default: run); its options go on to it as --option=value",
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", DASHBOARD),
        help=f"of the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, or {DASHBOARD})",
    )
    parser.add_argument(
        "--working-dir", metavar="DIR", help="what travels (default: the current folder)"
    )
    parser.add_argument("--no-wait", action="store_true", help="return when the job is accepted")
    _add_insist(parser)


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", metavar="NAME", help="which variant (default: paft)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="which training of it (default: the first of seeds)"
    )
    parser.add_argument("--merge", action="store_true", help="the whole model, adapter merged in")
    parser.add_argument(
        "--pyfunc", action="store_true", help="an MLflow pyfunc: text in, answer out"
    )
    parser.add_argument(
        "--lm-eval",
        action="store_true",
        help="no model: held-out prompts and test examples as tasks of lm-evaluation-harness",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder or URI (default: runs/NAME/export/VARIANT/KIND, or runs/NAME/lm_eval)",
    )
