"""What each verb calls, and what a person sees of its result."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paft_ray.cli.streams import LOG, redirected
from paft_ray.cluster.access import check_access, named_cluster
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.runs.context import RunContext


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
    run: Callable[[RunContext, argparse.Namespace], Result]
    needs_ray: bool = True
    may_join: bool = False
    """Whether it looks at a cluster where one is named, and does without where none is."""
    logged: bool = True
    """Whether what libraries print goes to the run's log, which may be the first file written."""
    trains: bool = False
    """Whether model and adapter are tried first."""
    finished: Callable[[RunContext], Result | None] | None = None
    """The result where everything is done, found without Ray."""
    reads_test: bool = True
    """Whether test examples are read from the beginning."""
    check: Callable[[RunContext, argparse.Namespace], Any] | None = None
    """Refuses what it can before anything is written, the log included; of a verb that trains it
    returns configurations whose adapters are tried as well."""

    @property
    def joins(self) -> bool:
        """Whether it may join a cluster."""
        return self.needs_ray or self.may_join


def _prompts(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.pipeline.run import prepare_pool
    from paft_ray.prompts.build import pool_fingerprint, pool_record
    from paft_ray.report import funnel_lines, write_pool_page

    pool = prepare_pool(context)
    folder = context.storage.child("pools", pool_fingerprint(context))
    about = pool_record(folder) or {}
    page = write_pool_page(folder)
    text = [*funnel_lines(about), "", f"pool: {_near(folder.path())}", f"page: {_near(page)}"]
    data = {"pool": folder.path(), "page": page, "fingerprint": pool.fingerprint, **about}
    return Result(data, "\n".join(text))


def _train(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.models.load import result_folder
    from paft_ray.pipeline import run as running

    with running.open_run(context, options.overwrite):
        pool = running.prepare_pool(context)
        running.check_lengths(context, pool)
        trained = running.train_all(context, pool)
    kind = result_folder(context.config.model.peft)
    data = {
        context.config.called(t.training): {
            kind: t.folder.path(kind),
            "fingerprint": t.fingerprint,
            **t.about,
        }
        for t in trained
    }
    lines = [f"{kind}: {entry[kind]}" for entry in data.values()]
    return Result(data, "\n".join(lines))


def _check_evaluate(context: RunContext, options: argparse.Namespace) -> None:
    from paft_ray.pipeline import run as running

    running.find_all_trained(context)


def _evaluate(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.pipeline import run as running

    return _results(context, running.evaluate(context))


def _run_all(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.pipeline import run as running

    return _results(context, running.run(context, options.overwrite))


def _finished_run(context: RunContext) -> Result | None:
    from paft_ray.pipeline import run as running

    summary = running.finished_summary(context)
    return None if summary is None else _results(context, summary)


def _tune(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.tuning.search import search

    return _search_results(context, search(context, options.overwrite))


def _finished_search(context: RunContext) -> Result | None:
    from paft_ray.tuning.search import finished_search

    found = finished_search(context)
    return None if found is None else _search_results(context, found)


def _check_search(context: RunContext, options: argparse.Namespace) -> Sequence[Config]:
    from paft_ray.tuning.check import check_search

    return check_search(context)


def _search_results(context: RunContext, found: Mapping[str, Any]) -> Result:
    from paft_ray.report import search_table

    results = _results(context, found["summary"])
    return Result(found, "\n".join([search_table(found), "", results.text]))


def _report(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.report import write_report

    folder = context.run_folder
    if not folder.exists("summary.json"):
        raise ConfigError(
            f"name: there is no finished evaluation in {folder.path()}: run `paft run` or `paft "
            "evaluate` with this configuration first"
        )
    path = write_report(folder)
    return Result({"report": path}, f"report: {path}")


def _plan_export(context: RunContext, options: argparse.Namespace) -> Any:
    from paft_ray.export.adapter import plan_export
    from paft_ray.export.lm_eval import plan_lm_eval
    from paft_ray.tuning.search import holds_search, of_finalists

    if holds_search(context):
        label = None if options.lm_eval else options.variant or ""
        context = of_finalists(context, label)
    if options.lm_eval:
        if options.variant or options.seed is not None or options.merge or options.pyfunc:
            raise ConfigError(
                "--lm-eval writes prompts and examples, no model: leave out --variant, --seed, "
                "--merge and --pyfunc, and export the model by another command"
            )
        return plan_lm_eval(context, options.out)
    return plan_export(
        context, options.variant, options.seed, options.merge, options.pyfunc, options.out
    )


def _export(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.cluster.session import prepare_environment
    from paft_ray.export.adapter import export
    from paft_ray.export.lm_eval import export_lm_eval

    prepare_environment()
    plan = _plan_export(context, options)
    if options.lm_eval:
        tasks = export_lm_eval(plan)
        base, *others = tasks.commands.items()
        lines = [f"{model}: {command}" for model, command in others]
        wrote = f"lm_eval: {tasks.tasks} tasks of {tasks.examples} examples"
        last = f"{wrote}: {_near(tasks.folder)}; run: {base[1]}"
        return Result(asdict(tasks), "\n".join([*lines, last]))
    exported = export(plan)
    return Result(asdict(exported), f"{exported.kind}: {_near(exported.folder)}")


def _results(context: RunContext, summary: Mapping[str, Any]) -> Result:
    from paft_ray.report import results_table

    lines = [
        results_table(summary),
        "",
        f"report:  {_near(context.run_folder.path('report.html'))}",
    ]
    if context.tracking is not None:
        mlflow = _near(str(Path(sys.executable).with_name("mlflow")))
        uri = context.tracking.uri
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


def _plan(context: RunContext, options: argparse.Namespace) -> Result:
    from paft_ray.cluster.session import prepare_environment
    from paft_ray.pipeline.plan import describe_plan, describe_sizes, plan_lines

    prepare_environment()
    if named_cluster() is not None:
        check_access(options.insist, "--cluster" if options.cluster else "RAY_ADDRESS")
    plan = describe_plan(context)
    with tempfile.TemporaryDirectory() as scratch, redirected(Path(scratch) / LOG):
        plan["sizes"] = describe_sizes(context)
        if named_cluster() is not None:
            plan |= _look_at_cluster(context, options.insist, plan["sizes"])
    return Result(plan, "\n".join(plan_lines(plan)), tuple(plan.get("missing", ())))


def _look_at_cluster(
    context: RunContext, insist: bool, sizes: Mapping[str, Any]
) -> Mapping[str, Any]:
    from paft_ray.cluster.session import ray_session
    from paft_ray.pipeline.nodes import survey
    from paft_ray.pipeline.plan import describe_cluster

    with ray_session(insist):
        nodes = survey(context.config, context.storage)
        return describe_cluster(context, nodes, sizes)


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
