"""The verbs: what each does with a configuration, and what it needs for that.

The command line, `jobs/*.py` and the Python API (`api`) call them by name. They run on the Ray that
this process has joined, or start their own.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paft_ray.cluster.access import check_access, named_cluster
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.uris import without_password
from paft_ray.config.visible import near, shell_words
from paft_ray.pipeline.perform import (
    Options,
    Result,
    Verb,
    Work,
    chat_notes,
    check_model,
    perform,
    prepare,
)
from paft_ray.pipeline.results import PoolResult, RunResult
from paft_ray.pipeline.subjects import check_subjects
from paft_ray.pipeline.verb_checks import (
    check_evaluate,
    check_plan,
    check_run,
    check_search,
    check_train,
    require_graded,
)
from paft_ray.runs.context import RunContext
from paft_ray.runs.log import LOG, redirected
from paft_ray.runs.opening import refuse_other_content
from paft_ray.runs.progress import Screen
from paft_ray.tracking import tracking_place


def _prompts(work: Work) -> Result:
    return _pool_of(work.context)


def _finished_pool(context: RunContext) -> Result | None:
    from paft_ray.prompts.build import pool_fingerprint, pool_record

    record = pool_record(context.storage.child("pools", pool_fingerprint(context)))
    return None if record is None else _pool_of(context)


def _pool_of(context: RunContext) -> PoolResult:
    from paft_ray.prompts.build import pool_fingerprint, pool_record
    from paft_ray.report import funnel_lines, write_pool_page
    from paft_ray.report.pool import build_published_pool

    context = context.tracked()
    pool = build_published_pool(context)
    folder = context.storage.child("pools", pool_fingerprint(context))
    about = pool_record(folder) or {}
    page = write_pool_page(folder)
    text = [*funnel_lines(about), "", f"pool: {near(folder.path())}", f"page: {near(page)}"]
    data = {"pool": folder.path(), "page": page, "fingerprint": pool.fingerprint, **about}
    return PoolResult(data, "\n".join(text), pool=pool)


def _train(work: Work) -> Result:
    from paft_ray.models.load import result_folder
    from paft_ray.pipeline.run import train_all

    context = work.context
    trained = train_all(context, work.checks, work.options.overwrite)
    kind = result_folder(context.config.model.peft)
    data = {
        context.config.called(t.training): {
            kind: t.folder.path(kind),
            "fingerprint": t.fingerprint,
            **t.record.to_json(),
        }
        for t in trained
    }
    return Result(data, "\n".join(f"{kind}: {entry[kind]}" for entry in data.values()))


def _evaluate(work: Work) -> Result:
    from paft_ray.pipeline.run import evaluate

    return results_of(work.context, evaluate(work.context, work.checks))


def _run_all(work: Work) -> Result:
    from paft_ray.pipeline.run import run

    return results_of(work.context, run(work.context, work.checks, work.options.overwrite))


def finished_run(context: RunContext) -> RunResult | None:
    """The result of a run that is complete."""
    from paft_ray.pipeline.run import finished_summary

    summary = finished_summary(context)
    return None if summary is None else results_of(context, summary)


def _tune(work: Work) -> Result:
    from paft_ray.tuning.search import search

    found = search(work.context, work.checks, work.options.overwrite)
    return _searchresults_of(work.context, found)


def _finished_search(context: RunContext) -> Result | None:
    from paft_ray.tuning.search import finished_search

    found = finished_search(context)
    return None if found is None else _searchresults_of(context, found)


def _searchresults_of(context: RunContext, found: Mapping[str, Any]) -> RunResult:
    from paft_ray.report import search_table

    results = results_of(context, found["summary"])
    text = "\n".join([search_table(found), "", results.text])
    return replace(results, data=found, text=text)


def _report(work: Work) -> Result:
    from paft_ray.report import write_report

    folder = work.context.results_folder
    if not folder.exists("summary.json"):
        raise ConfigError(
            f"name: there is no finished evaluation in {folder.path()}: run `paft run` or `paft "
            "evaluate` with this configuration first"
        )
    path = write_report(folder)
    return Result({"report": path}, f"report: {path}")


def _plan_export(context: RunContext, options: Options) -> Any:
    from paft_ray.export.adapter import plan_export
    from paft_ray.export.lm_eval import plan_lm_eval
    from paft_ray.tuning.search import holds_search, of_finalists

    if holds_search(context):
        context = of_finalists(context, None if options.lm_eval else options.variant or "")
    if options.lm_eval:
        if options.variant or options.seed is not None or options.merge or options.pyfunc:
            raise ConfigError(
                "--lm-eval writes prompts and examples, no model: leave out --variant, --seed, "
                "--merge and --pyfunc, and export the model by another command"
            )
        require_graded(context, "test", "export the model")
        return plan_lm_eval(context, options.out)
    if options.merge and options.pyfunc:
        raise ConfigError(
            "--merge and --pyfunc are two kinds of folder: export one, then the other"
        )
    kind = "merged" if options.merge else "pyfunc" if options.pyfunc else None
    return plan_export(context, options.variant, options.seed, kind, options.out)


def _export(work: Work) -> Result:
    from paft_ray.cluster.session import prepare_environment
    from paft_ray.export.adapter import export
    from paft_ray.export.lm_eval import export_lm_eval

    prepare_environment()
    if work.options.lm_eval:
        tasks = export_lm_eval(work.checked)
        base, *others = tasks.commands.items()
        lines = [f"{model}: {command}" for model, command in others]
        wrote = f"lm_eval: {tasks.tasks} tasks of {tasks.examples} examples"
        last = f"{wrote}: {near(tasks.folder)}; run: {base[1]}"
        return Result(asdict(tasks), "\n".join([*lines, last]))
    exported = export(work.checked)
    return Result(asdict(exported), f"{exported.kind}: {near(exported.folder)}")


def results_of(context: RunContext, summary: Mapping[str, Any]) -> RunResult:
    """The result of a verb that measured: the summary, and its table with what to look at."""
    from paft_ray.report import results_table

    report_file = near(context.results_folder.path("report.html"))
    lines = [results_table(summary), "", f"report:  {report_file}"]
    if (place := tracking_place(context.config.tracking, context.storage)) is not None:
        uri = place.uri
        mlflow = near(str(Path(sys.executable).with_name("mlflow")))
        local = uri.startswith("sqlite:")
        show = shell_words([mlflow, "ui", "--backend-store-uri", uri]) if local else uri
        lines.append(f"MLflow:  {without_password(show)}")
    return RunResult(summary, "\n".join(lines), folder=context.results_folder)


def _plan(work: Work) -> Result:
    from paft_ray.cluster.session import prepare_environment
    from paft_ray.pipeline.gpus import gpu_memory_gb, gpu_name
    from paft_ray.pipeline.plan import describe_plan, describe_sizes, plan_lines

    context, options = work.context, work.options
    if context.config.tuning is None:  # a search is opened without test examples
        refuse_other_content(context)
    prepare_environment()
    if named_cluster() is not None:
        check_access(options.insist, "--cluster" if options.cluster else "RAY_ADDRESS")
    plan = describe_plan(context)
    # what libraries print while they check goes nowhere
    with tempfile.TemporaryDirectory() as scratch, redirected(Path(scratch) / LOG):
        check_model(work)
        check_subjects(context, work.checks)
        if named_cluster() is None:
            on_gpus = context.config.train.workers.gpus > 0
            gpu_gb, gpu = (gpu_memory_gb(), gpu_name()) if on_gpus else (None, None)
            plan["sizes"] = describe_sizes(context, work.checks, gpu_gb, gpu)
        else:
            plan |= _plan_cluster(work)
        if context.config.model.chat_template == "auto" and (notes := chat_notes(work)):
            plan["chat_template"] = list(notes)
    return Result(plan, "\n".join(plan_lines(plan)), tuple(plan.get("missing", ())))


def _plan_cluster(work: Work) -> dict[str, Any]:
    """Sizes, and the nodes of the cluster, whose smallest GPU they are compared with."""
    from paft_ray.cluster.session import ray_session
    from paft_ray.pipeline.nodes import survey
    from paft_ray.pipeline.plan import describe_sizes
    from paft_ray.pipeline.plan_cluster import describe_cluster

    context = work.context
    with ray_session(work.options.insist):
        nodes = survey(context.config, context.storage)
        gpus_gb = [node.gpu_memory_gb for node in nodes if node.gpus and node.gpu_memory_gb]
        sizes = describe_sizes(context, work.checks, min(gpus_gb, default=None))
        return {"sizes": sizes, **describe_cluster(context, nodes, sizes)}


VERBS: Mapping[str, Verb] = {
    "prompts": Verb("build the prompt pool", _prompts, finished=_finished_pool),
    "train": Verb(
        "train the variants of the configuration",
        _train,
        trains=True,
        replaces=True,
        check=check_train,
    ),
    "evaluate": Verb(
        "evaluate trained variants and other subjects on held-out prompts",
        _evaluate,
        check=check_evaluate,
        measures=True,
    ),
    "run": Verb(
        "build the pool, train the variants, evaluate them, write the report",
        _run_all,
        trains=True,
        measures=True,
        replaces=True,
        check=check_run,
        finished=finished_run,
    ),
    "tune": Verb(
        "search pool size, sampling temperature and other settings for the most robust model",
        _tune,
        trains=True,
        replaces=True,
        finished=_finished_search,
        reads_test=False,
        check=check_search,
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
        check=check_plan,
        plans=True,
        logged=False,
    ),
}


def call(
    name: str, config: Config, options: Options | None = None, screen: Screen | None = None
) -> Result:
    """Call a verb by its name.

    Args:
        name: One of `VERBS`.
        config: The configuration.
        options: See `Options`.
        screen: Shows progress to a person; silent by default.

    Raises:
        ConfigError: Configuration or options cannot be used; nothing was written.
        PaftError: The work failed; what is done is kept, and the same call continues.
    """
    with prepare(VERBS[name], config, options or Options(), screen) as work:
        return perform(work)
