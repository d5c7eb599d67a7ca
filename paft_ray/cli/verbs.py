"""What each verb calls, and what a person sees of its result."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paft_ray.admission import admit, named_cluster
from paft_ray.cli.streams import LOG, redirected
from paft_ray.config import Config
from paft_ray.errors import ConfigError
from paft_ray.session import Session


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
    may_join: bool = False
    """Whether it looks at a cluster where one is named, and does without where none is."""
    logged: bool = True
    """Whether what libraries print goes to the run's log, which may be the first file written."""
    trains: bool = False
    """Whether model and adapter are tried first."""
    finished: Callable[[Session], Result | None] | None = None
    """The result where everything is done, found without Ray."""
    reads_test: bool = True
    """Whether test examples are read from the beginning."""
    check: Callable[[Session, argparse.Namespace], Any] | None = None
    """Refuses what it can before anything is written, the log included; of a verb that trains it
    returns configurations whose adapters are tried as well."""

    @property
    def joins(self) -> bool:
        """Whether it may join a cluster."""
        return self.needs_ray or self.may_join


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


def _check_evaluate(session: Session, options: argparse.Namespace) -> None:
    from paft_ray import running

    running.find_all_trained(session)


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


def _check_search(session: Session, options: argparse.Namespace) -> Sequence[Config]:
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
    if named_cluster() is not None:
        admit(options.insist, "--cluster" if options.cluster else "RAY_ADDRESS")
    plan = describe_plan(session)
    with tempfile.TemporaryDirectory() as scratch, redirected(Path(scratch) / LOG):
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
    "evaluate": Verb(
        "evaluate trained variants on held-out prompts", _evaluate, check=_check_evaluate
    ),
    "run": Verb(
        "pool, variants, evaluation, report", _run_all, trains=True, finished=_finished_run
    ),
    "tune": Verb(
        "search pool size, sampling temperature and other settings for the most robust model",
        _tune,
        trains=True,
        finished=_finished_search,
        reads_test=False,
        check=_check_search,
    ),
    "report": Verb("write the report of a run again", _report, needs_ray=False, logged=False),
    "export": Verb(
        "write an adapter, a merged model, an MLflow pyfunc or lm-eval tasks to a folder",
        _export,
        needs_ray=False,
        check=_plan_export,
    ),
    "plan": Verb(
        "check everything and say what would be done",
        _plan,
        needs_ray=False,
        may_join=True,
        logged=False,
    ),
}
