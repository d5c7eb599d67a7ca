"""Groups of options that verbs have: columns of data, servers, clusters, exports."""

import argparse
import os

from paft_ray.cluster.access import INSIST
from paft_ray.cluster.jobs import DASHBOARD, JOBS
from paft_ray.pipeline.behind_url import BehindUrl
from paft_ray.tasks.guessing import Said


def said_in(parsed: argparse.Namespace) -> Said:
    """What a parsed command says of the columns of data."""
    return Said(
        tuple(parsed.field),
        parsed.answer,
        tuple(parsed.choices),
        parsed.choices_column,
        tuple(parsed.choices_columns),
        parsed.description,
    )


def server_in(parsed: argparse.Namespace) -> BehindUrl:
    """What a parsed command says of a model behind a URL."""
    return BehindUrl(parsed.endpoint_model, parsed.api, parsed.api_key_env)


def add_columns(parser: argparse.ArgumentParser) -> None:
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


def add_server(parser: argparse.ArgumentParser) -> None:
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


def add_insist(parser: argparse.ArgumentParser) -> None:
    """The option that allows clusters without authentication."""
    parser.add_argument(
        INSIST,
        dest="insist",
        action="store_true",
        help="work on a cluster that runs the code of whoever reaches it",
    )


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Options of a job."""
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
    add_insist(parser)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is exported."""
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
