"""A whole search: pools, trials, finalists with several seeds, one evaluation on test prompts.

Neither test prompts nor test examples are read before the finalists are chosen. Complete parts are
reused, so that running a killed search again finishes it.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from paft_ray.cluster.control import Control
from paft_ray.config import Config, PaftVariant, Training, TuningConfig
from paft_ray.config.affects import affecting, recorded_fields, take
from paft_ray.config.errors import ConfigError, TrainingError
from paft_ray.config.loading import from_anywhere
from paft_ray.evaluation.grid import GridScores
from paft_ray.evaluation.subjects import evaluate_subjects
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.prompts.rewrite import asked_for
from paft_ray.report import SEARCH_FILE
from paft_ray.report.results import Results, write_results
from paft_ray.runs.context import REWRITTEN, RunContext
from paft_ray.runs.opening import StageClock, open_run
from paft_ray.serving.record import TrainedAdapter
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tracking import TrackedRun, Tracker, send_waiting
from paft_ray.training.distributed.launch import Workers
from paft_ray.training.distributed.trainer import train_until
from paft_ray.training.identity import subjects
from paft_ray.training.job import TrainingHooks
from paft_ray.training.lengths import check_lengths
from paft_ray.training.paraphrased import with_paraphrases
from paft_ray.tuning.finalists import (
    Finalist,
    FinalistResult,
    choose_finalists,
    final_context,
    search_result,
)
from paft_ray.tuning.monitor import TrialMonitor, closing
from paft_ray.tuning.pools import SearchPools, build_pools, generation_key, pools_fingerprint
from paft_ray.tuning.settings import fit_trials, read_by_trials, tuning_of
from paft_ray.tuning.space import apply, trial_configs
from paft_ray.tuning.suggest import Suggester
from paft_ray.tuning.trial import (
    TRIAL_CPUS,
    TrialSetup,
    read_records,
    trial_key,
    validation_examples,
)
from paft_ray.tuning.view import TrialView

logger = logging.getLogger(__name__)


def search(
    context: RunContext, checks: ModelCheckProcess, overwrite: bool = False
) -> dict[str, Any]:
    """Run a search, or continue it.

    Args:
        context: Opened without test examples.
        checks: The process that tokenises texts.
        overwrite: Delete a run of another configuration under this name.

    Returns:
        The content of `search.json`, with the finalists' `summary`.

    Raises:
        ConfigError: The cluster has no room for a trial, or for `tuning.concurrency` of them.
        TrainingError: No trial is finished.
    """
    tuning, config = tuning_of(context.config), context.config
    cpus, concurrency = fit_trials(config, tuning, trial_configs(config, tuning))
    made_from = {
        "work": "search",
        "search space": fingerprint(affecting(tuning, "search")),
        "set of prompts": pools_fingerprint(context, tuning),
    }
    with open_run(context, overwrite, made_from) as (context, tracker):
        clock = StageClock(context.run_folder)
        with clock.stage("prompt_pools"):
            pools = build_pools(context, tuning)
            every = replace(pools.any, train=pools.trained)
            check_lengths(
                context,
                every,
                checks,
                (pools.any.validation[: tuning.prompts], validation_examples(context.task, tuning)),
            )
        if asked_for(context, "train") is not None:
            with clock.stage("paraphrase_examples"):
                examples = read_by_trials(config, tuning, context.task)
                context = with_paraphrases(context, every, checks, examples)
        with clock.stage("trials"):
            _run_trials(context, tuning, pools.without_test(), cpus, concurrency)
        finalists = choose_finalists(context, tuning)
        final = final_context(context, finalists)
        check_lengths(final, replace(pools.any, train=()), checks)
        with clock.stage("finalists"), Workers(shared=True) as workers:
            trained = [
                training
                for finalist in finalists
                for training in _train_finalist(final, finalist, pools, workers)
            ]
        with clock.stage("evaluation"):
            scores = evaluate_subjects(final, pools.any, subjects(final.config.model, trained))
        result = _write_result(context, tuning, finalists, scores, tracker)
        configs = {f.label: apply(config, f.trial.sample) for f in finalists}
        results = Results(pools.any, trained, scores, clock.seconds, configs)
        return {**result, "summary": write_results(final, results, tracker)}


def _write_result(
    context: RunContext,
    tuning: TuningConfig,
    finalists: Sequence[Finalist],
    scores: GridScores,
    tracker: Tracker,
) -> dict[str, Any]:
    tested = scores.by_split
    result = asdict(search_result(context, tuning, finalists, tested, _identity(context)))
    context.run_folder.write_json(SEARCH_FILE, result)
    tracker.log_artifact(SEARCH_FILE, context.run_folder.path(SEARCH_FILE))
    return result


def finished_search(context: RunContext) -> dict[str, Any] | None:
    """The result of a search that is complete under this configuration, else None; needs no Ray.

    Raises:
        ConfigError: It is complete under other settings, which would now be chosen after the
            figures on test prompts are known.
    """
    if not holds_search(context):
        return None
    folder, name = context.run_folder, context.config.name
    result = folder.read_json(SEARCH_FILE)
    if result["made_from"] != _identity(context):
        raise ConfigError(
            f"name: search {name!r} is complete with other settings or data, and its figures on "
            "test prompts are known: choose another name, or pass --overwrite"
        )
    context.screen.line(f"search {name} is complete, nothing to do")
    send_waiting(context.tracked().tracking)
    return {**result, "summary": folder.read_json("summary.json")}


def holds_search(context: RunContext) -> bool:
    """Return whether the run's folder holds a search that is complete."""
    folder = context.run_folder
    return (
        context.config.tuning is not None
        and load_manifest(folder, rewritten=REWRITTEN) is not None
        and folder.exists(SEARCH_FILE)
    )


def of_finalists(context: RunContext, label: str | None = None) -> RunContext:
    """The context of a complete search as that of a run whose variants are the finalists.

    Args:
        context: The search.
        label: Label of the only finalist, with its settings; empty for the best one.

    Raises:
        ConfigError: The search has no such finalist.
    """
    config = context.config
    entries = context.run_folder.read_json(SEARCH_FILE)["finalists"]
    found = [FinalistResult(**entry) for entry in entries]
    chosen = found[:1] if label == "" else [f for f in found if label in (None, f.label)]
    if not chosen:
        labels = ", ".join(finalist.label for finalist in found)
        raise ConfigError(f"--variant: {label!r} is none of this search's: {labels}")
    settings = config if label is None else apply(config, chosen[0].sample)
    variants = tuple(PaftVariant(type="paft", name=finalist.label) for finalist in chosen)
    seeds = tuple(chosen[0].seeds)
    return context.of_config(
        settings.model_copy(update={"variants": variants, "seeds": seeds}), context.screen
    )


def _identity(context: RunContext) -> str:
    tuning = tuning_of(context.config)
    fields = recorded_fields(context.config)
    _, made_from = take(fields, "storage", "tracking", "tuning.concurrency")
    prompts = pools_fingerprint(context, tuning)
    content = [context.task_identity, context.model_identity, context.grading_code]
    return fingerprint("search", made_from, prompts, *filter(None, content))


def _run_trials(
    context: RunContext, tuning: TuningConfig, pools: SearchPools, cpus: float, concurrency: int
) -> None:
    """Run all trials, shown and tracked."""
    from paft_ray.tuning.tuner import run_trials

    run, config = context.run_folder, context.config
    begun = {record.number: record.sample for record in read_records(run)}
    suggester = Suggester(tuning, config, begun)
    concurrency = min(concurrency, suggester.total)
    absolute = context.of_config(_absolute(config))
    setup = TrialSetup(absolute, tuning, pools, Control(), cpus, TRIAL_CPUS)
    with context.screen.stage("search") as stage:
        view = TrialView(context.screen, stage, tuning, suggester.total, concurrency)
        context.screen.line(
            f"search: {suggester.total} trials, {concurrency} at a time, {cpus:g} CPUs per worker"
        )
        monitor = TrialMonitor(context, tuning, view)
        with context.screen.live(view.draw), monitor.tracking():
            problems = run_trials(setup, suggester, concurrency, monitor)
        states = [record.state for record in read_records(run)]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        stage.finish(", ".join(f"{count} {state}" for state, count in counts.items()))
    if problems:
        logger.error("trials that ended without a record: %s", problems)
        raise TrainingError(
            f"{len(problems)} trials did not come to an end: {problems[0].splitlines()[-1]}; "
            "run the same command to continue"
        )


def _absolute(config: Config) -> Config:
    """The configuration with absolute local paths, since trials run in another folder."""
    model = config.model.model_copy(update={"path": from_anywhere(config.model.path)})
    adapter = config.train.warm_start
    train = config.train.model_copy(
        update={"warm_start": None if adapter is None else from_anywhere(adapter)}
    )
    return config.model_copy(update={"model": model, "train": train})


def _train_finalist(
    final: RunContext, finalist: Finalist, pools: SearchPools, workers: Workers
) -> list[TrainedAdapter]:
    """Train one finalist with every seed, each tracked below its trial."""
    sample = finalist.trial.sample
    settings = apply(final.config, sample)
    own = final.of_config(settings, final.screen)
    pool = pools.of(sample, settings.prompts.pool_size)
    trained = []
    for seed in finalist.seeds:
        training = Training(finalist.variant, seed)
        tracked = TrackedRun(
            f"training/{training.name}",
            f"{training.name} trained in {settings.name}",
            trial_key(finalist.trial.number),
        )
        pooled = pools.registered[generation_key(sample)]
        hooks = TrainingHooks(tracked=tracked, pool=pooled, workers=workers)
        with closing(own.tracking, tracked):
            adapter = train_until(own, pool.train, training, pool, hooks)
        assert adapter is not None  # only a trial's training is stopped early
        trained.append(adapter)
    return trained
