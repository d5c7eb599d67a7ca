"""`paft VERB CONFIG [section.field=value ...]`: parse, load, call one function.

The only place that starts Ray, sets up logging and picks exit codes: 0 done; 2 the input or the
configuration is wrong and nothing was written; 1 the run failed, work kept; 130 and 143
interrupted. Everything that libraries print goes to the run's log file; the screen shows stages.
"""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from rich.console import Console

from paft_ray.admission import INSIST, admit, admit_dashboard, named_cluster
from paft_ray.config import Config
from paft_ray.errors import ConfigError, PaftError
from paft_ray.loading import dump_config, load_config
from paft_ray.screen import RichScreen
from paft_ray.session import Session

logger = logging.getLogger(__name__)

LOG = "log.txt"
SUBMIT = "submit"


@dataclass(frozen=True)
class Result:
    """What a verb hands back."""

    data: Mapping[str, Any]
    """The JSON object of `--json`."""
    text: str
    """What a person sees at the end."""
    missing: tuple[str, ...] = ()
    """What stands in the way, shown first; with any, the exit code is 2."""


@dataclass(frozen=True)
class Verb:
    """One command."""

    help: str
    run: Callable[[Session, argparse.Namespace], Result]
    needs_ray: bool = True
    logged: bool = True
    """Whether what libraries print goes to the run's log, which may be the first file written."""
    trains: bool = False
    """Whether model and adapter are tried first."""
    others: Callable[[Session], Sequence[Config]] | None = None
    """Configurations whose adapters are tried as well."""
    finished: Callable[[Session], Result | None] | None = None
    """The result where everything is done, found without Ray."""
    reads_test: bool = True
    """Whether test examples are read from the beginning."""
    check: Callable[[Session, argparse.Namespace], Any] | None = None
    """Refuses what it can before anything is written, the log included."""


@dataclass(frozen=True)
class _Streams:
    """Where a person and a program read, whatever becomes of descriptors 1 and 2."""

    stdout: TextIO
    stderr: TextIO
    console: Console
    """Stages and lines."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if getattr(options, "cluster", None):
        os.environ["RAY_ADDRESS"] = options.cluster
    options.for_job = []
    if options.verb == SUBMIT:
        options.for_job = [word for word in rest if word.startswith("-")]
        rest = [word for word in rest if word not in options.for_job]
        parser.parse_args([options.job, options.config, *options.for_job])
    if wrong := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    options.overrides += rest  # overrides that stand behind an option
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger().addHandler(logging.NullHandler())  # else errors go to the screen unasked
    try:
        config = load_config(options.config, options.overrides)
        if options.print_config:
            tree = dump_config(config)
            text = (
                json.dumps(tree) + "\n" if options.json else yaml.safe_dump(tree, sort_keys=False)
            )
            sys.stdout.write(text)
            return 0
        with _streams(options.json) as streams:
            if options.verb == SUBMIT:
                return _submit(config, options, streams)
            return _execute(VERBS[options.verb], config, options, streams)
    except ConfigError as error:
        return _say(sys.stderr, error, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paft", description="Prompt-agnostic fine-tuning on Ray (arXiv 2502.12859)."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = _add_verb(verbs, name, verb.help)
        if verb.needs_ray:
            _add_insist(sub)
        if name == "export":
            _add_export_options(sub)
        if name == "plan":
            sub.add_argument(
                "--cluster",
                metavar="HOST:PORT",
                help="look at this cluster's nodes, too (default: RAY_ADDRESS, if set)",
            )
            _add_insist(sub)
        if name not in ("run", "train", "tune"):
            continue
        sub.add_argument(
            "--overwrite",
            action="store_true",
            help="discard what another configuration left under this run's name",
        )
    _add_submit_options(_add_verb(verbs, SUBMIT, "do any of these as a job of a cluster"))
    return parser


def _add_verb(verbs: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help)
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="change one value"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    parser.add_argument("--print-config", action="store_true", help="show what was understood")
    parser.set_defaults(overwrite=False, insist=False)
    return parser


def _add_insist(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        INSIST,
        dest="insist",
        action="store_true",
        help="work on a cluster that runs the code of whoever reaches it",
    )


def _add_submit_options(parser: argparse.ArgumentParser) -> None:
    from paft_ray.submission import DASHBOARD, JOBS

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


def _submit(config: Config, options: argparse.Namespace, streams: _Streams) -> int:
    """Send a job and follow it; what it logs goes where progress goes."""
    from paft_ray.submission import follow, plan_job, send

    home = None if options.working_dir is None else Path(options.working_dir)
    said = streams.stderr if options.json else streams.stdout
    try:
        insisting = [INSIST] if options.insist and VERBS[options.job].needs_ray else []
        words = [*options.overrides, *options.for_job, *insisting]
        job = plan_job(config, options.job, options.config, words, home)
        admit_dashboard(options.address, options.insist)
        client = send(job, options.address)
        streams.console.print(f"job {job.id}: {job.entrypoint}", soft_wrap=True, highlight=False)
        if options.no_wait:
            data: dict[str, Any] = {"job": job.id}
            text, code = f"follow it: ray job logs --follow {job.id}", 0
        else:
            ended = follow(client, job, lambda piece: _write(said, piece))
            data = {"job": job.id, "status": ended.status, "result": ended.result}
            text, code = f"job {job.id}: {ended.status.lower()}", ended.code
            if code:
                _say(streams.stderr, f"job {job.id} {ended.status.lower()}: {ended.message}", code)
    except ConfigError:
        raise
    except PaftError as error:
        return _say(streams.stderr, error, 1)
    except KeyboardInterrupt:
        said.write("interrupted; the job goes on: `ray job stop` ends it\n")
        return 130
    _write(streams.stdout, (json.dumps(data, ensure_ascii=False) if options.json else text) + "\n")
    return code


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _execute(verb: Verb, config: Config, options: argparse.Namespace, streams: _Streams) -> int:
    from paft_ray.api import open_session

    screen = RichScreen(streams.console)
    try:
        session = open_session(
            config, options.overwrite, screen, not verb.needs_ray, verb.reads_test
        )
        if verb.check is not None:
            verb.check(session, options)
    except PaftError as error:
        return _say(streams.stderr, error, 2)
    for warning in session.warnings:
        screen.line(f"note: {warning}")
    with _log_file(session) if verb.logged else nullcontext("no log") as log:
        try:
            with _interruptible():
                result = _run(verb, session, options)
        except ConfigError as error:
            _leave_nothing(session)
            return _say(streams.stderr, error, 2)
        except PaftError as error:
            logger.exception("failed")
            return _say(streams.stderr, error, 1)
        except KeyboardInterrupt:
            screen.line("interrupted; run the same command to continue")
            return 130
        except SystemExit:  # from SIGTERM; Ray may have changed its code on the way
            screen.line("terminated; run the same command to continue")
            return 143
        except Exception as error:
            logger.exception("failed unexpectedly")
            reason = " ".join(str(error).split())[:200]
            message = f"{type(error).__name__}: {reason}\nthe traceback is in {log}"
            return _say(streams.stderr, message, 1)
    for line in result.missing:
        streams.console.print(f"missing: {line}", style="red", soft_wrap=True, highlight=False)
    text = json.dumps(result.data, ensure_ascii=False) if options.json else result.text
    _write(streams.stdout, text + "\n")
    return 2 if result.missing else 0


def _run(verb: Verb, session: Session, options: argparse.Namespace) -> Result:
    if not verb.needs_ray:
        return verb.run(session, options)
    if verb.finished and not options.overwrite and (result := verb.finished(session)) is not None:
        return result
    from paft_ray.api import begin_trial, finish_trial
    from paft_ray.cluster import check_cluster, import_ray, node_resources, ray_session
    from paft_ray.survey import require_nodes, survey
    from paft_ray.tracking import import_early

    admit(options.insist)
    import_early(session.config)
    if verb.trains:
        others = verb.others(session) if verb.others else ()
        begin_trial(session, options.overwrite, others)
        import_ray()  # while the model is tried
        finish_trial(session)
    with ray_session(options.insist):
        check_cluster(session.config)
        if len(node_resources()) > 1:
            require_nodes(survey(session.config, session.storage))
        # Ray's own handler ends the raylet first, and then this process aborts
        signal.signal(signal.SIGTERM, _terminate)
        return verb.run(session, options)


def _leave_nothing(session: Session) -> None:
    """Take the log of a command back that was refused before it wrote anything else."""
    folder = session.run_folder
    if folder.is_local and folder.names() == [LOG]:
        folder.delete()


def _say(stream: TextIO, error: PaftError | str, code: int) -> int:
    stream.write(f"error: {error}\n")
    stream.flush()
    return code


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _streams(as_json: bool) -> Iterator[_Streams]:
    """Copies of the real descriptors; with `--json` nothing but the object goes to stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout,
        os.fdopen(os.dup(2), "w", encoding="utf-8") as stderr,
    ):
        yield _Streams(stdout, stderr, Console(file=stderr if as_json else stdout))


@contextmanager
def _log_file(session: Session) -> Iterator[str]:
    """Send everything that is printed or logged, by us and by libraries, to the run's log file."""
    folder = session.run_folder
    local = Path(folder.path(LOG)) if folder.is_local else Path(tempfile.mkdtemp()) / LOG
    local.parent.mkdir(parents=True, exist_ok=True)
    with _redirected(local):
        handler = logging.StreamHandler(sys.stderr)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
            handlers=[handler],
            force=True,
        )
        try:
            yield folder.path(LOG)
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger().addHandler(logging.NullHandler())
    if not folder.is_local:
        folder.write_bytes(LOG, local.read_bytes())


@contextmanager
def _redirected(file: Path) -> Iterator[None]:
    """While the block runs, what this process and its children print goes to a file."""
    real = os.dup(1), os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(real[0], 1)
        os.dup2(real[1], 2)
        for descriptor in (*real, log):
            os.close(descriptor)


def _prompts(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray.prompts.build import pool_fingerprint, pool_record
    from paft_ray.report import funnel_lines, write_pool_page
    from paft_ray.running import prepare_pool

    pool = prepare_pool(session)
    folder = session.storage.child("pools", pool_fingerprint(session))
    about = pool_record(folder) or {}
    page = write_pool_page(folder)
    text = [*funnel_lines(about), "", f"pool: {_near(folder.path())}", f"page: {_near(page)}"]
    data = {"pool": folder.path(), "page": page, "fingerprint": pool.fingerprint, **about}
    return Result(data, "\n".join(text))


def _train(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray import running
    from paft_ray.modeling.model import result_folder

    with running.claimed(session, options.overwrite):
        pool = running.prepare_pool(session)
        running.check_lengths(session, pool)
        trained = running.train_all(session, pool)
    kind = result_folder(session.config.model.peft)
    data = {
        session.config.called(t.training): {
            kind: t.folder.path(kind),
            "fingerprint": t.fingerprint,
            **t.about,
        }
        for t in trained
    }
    lines = [f"{kind}: {entry[kind]}" for entry in data.values()]
    return Result(data, "\n".join(lines))


def _evaluate(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray import running

    return _results(session, running.evaluate(session))


def _run_all(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray import running

    return _results(session, running.run(session, options.overwrite))


def _finished_run(session: Session) -> Result | None:
    from paft_ray import running

    summary = running.finished_summary(session)
    return None if summary is None else _results(session, summary)


def _tune(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray.tuning.search import search

    return _search_results(session, search(session, options.overwrite))


def _finished_search(session: Session) -> Result | None:
    from paft_ray.tuning.search import finished_search

    found = finished_search(session)
    return None if found is None else _search_results(session, found)


def _edges(session: Session) -> Sequence[Config]:
    from paft_ray.tuning.check import check_search

    return check_search(session)


def _search_results(session: Session, found: Mapping[str, Any]) -> Result:
    from paft_ray.report import search_table

    results = _results(session, found["summary"])
    return Result(found, "\n".join([search_table(found), "", results.text]))


def _report(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray.report import write_report

    folder = session.run_folder
    if not folder.exists("summary.json"):
        raise ConfigError(
            f"name: there is no finished evaluation in {folder.path()}: run `paft run` or `paft "
            "evaluate` with this configuration first"
        )
    path = write_report(folder)
    return Result({"report": path}, f"report: {path}")


def _plan_export(session: Session, options: argparse.Namespace) -> Any:
    from paft_ray.exporting import plan_export
    from paft_ray.lm_eval_export import plan_lm_eval
    from paft_ray.tuning.search import holds_search, of_finalists

    if holds_search(session):
        label = None if options.lm_eval else options.variant or ""
        session = of_finalists(session, label)
    if options.lm_eval:
        if options.variant or options.seed is not None or options.merge or options.pyfunc:
            raise ConfigError(
                "--lm-eval writes prompts and examples, no model: leave out --variant, --seed, "
                "--merge and --pyfunc, and export the model by another command"
            )
        return plan_lm_eval(session, options.out)
    return plan_export(
        session, options.variant, options.seed, options.merge, options.pyfunc, options.out
    )


def _export(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray.cluster import prepare_environment
    from paft_ray.exporting import export
    from paft_ray.lm_eval_export import export_lm_eval

    prepare_environment()
    plan = _plan_export(session, options)
    if options.lm_eval:
        tasks = export_lm_eval(plan)
        base, *others = tasks.commands.items()
        lines = [f"{model}: {command}" for model, command in others]
        wrote = f"lm_eval: {tasks.tasks} tasks of {tasks.examples} examples"
        last = f"{wrote}: {_near(tasks.folder)}; run: {base[1]}"
        return Result(asdict(tasks), "\n".join([*lines, last]))
    exported = export(plan)
    return Result(asdict(exported), f"{exported.kind}: {_near(exported.folder)}")


def _results(session: Session, summary: Mapping[str, Any]) -> Result:
    from paft_ray.report import results_table

    lines = [
        results_table(summary),
        "",
        f"report:  {_near(session.run_folder.path('report.html'))}",
    ]
    if session.tracking is not None:
        mlflow = _near(str(Path(sys.executable).with_name("mlflow")))
        uri = session.tracking.uri
        lines.append(
            f"MLflow:  {mlflow} ui --backend-store-uri {uri}"
            if uri.startswith("sqlite:")
            else f"MLflow:  {uri}"
        )
    return Result(summary, "\n".join(lines))


def _near(path: str) -> str:
    """A path relative to the working directory, where it lies below."""
    below = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if below else path


def _plan(session: Session, options: argparse.Namespace) -> Result:
    from paft_ray.cluster import prepare_environment
    from paft_ray.plan import describe_plan, describe_sizes, plan_lines

    prepare_environment()
    plan = describe_plan(session)
    with tempfile.TemporaryDirectory() as scratch, _redirected(Path(scratch) / LOG):
        plan["sizes"] = describe_sizes(session)
        if named_cluster() is not None:
            plan |= _look_at_cluster(session, options.insist, plan["sizes"])
    return Result(plan, "\n".join(plan_lines(plan)), tuple(plan.get("missing", ())))


def _look_at_cluster(session: Session, insist: bool, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    from paft_ray.cluster import ray_session
    from paft_ray.plan import describe_cluster
    from paft_ray.survey import survey

    with ray_session(insist):
        nodes = survey(session.config, session.storage)
        return describe_cluster(session, nodes, sizes)


VERBS: Mapping[str, Verb] = {
    "prompts": Verb("build the prompt pool", _prompts),
    "train": Verb("train the variants of the configuration", _train, trains=True),
    "evaluate": Verb("evaluate trained variants on held-out prompts", _evaluate),
    "run": Verb(
        "pool, variants, evaluation, report", _run_all, trains=True, finished=_finished_run
    ),
    "tune": Verb(
        "search pool size, sampling temperature and other settings for the most robust model",
        _tune,
        trains=True,
        finished=_finished_search,
        others=_edges,
        reads_test=False,
        check=lambda session, options: _edges(session),
    ),
    "report": Verb("write the report of a run again", _report, needs_ray=False, logged=False),
    "export": Verb(
        "write an adapter, a merged model, an MLflow pyfunc or lm-eval tasks to a folder",
        _export,
        needs_ray=False,
        check=_plan_export,
    ),
    "plan": Verb("check everything and say what would be done", _plan, False, logged=False),
}


if __name__ == "__main__":
    main()
