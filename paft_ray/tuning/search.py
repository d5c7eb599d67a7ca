"""A whole search: pools, trials, finalists with several seeds, one evaluation on test prompts.

Neither test prompts nor test examples are read before the finalists are chosen. What is complete is
found, so that a search that was killed is finished by calling it again.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from paft_ray.artifacts import fingerprint, load_manifest
from paft_ray.cluster import BoardHandle
from paft_ray.config import Config, PaftVariant, Training, TuningConfig
from paft_ray.errors import ConfigError, TrainingError
from paft_ray.loading import dump_config, from_anywhere, without
from paft_ray.report import SEARCH_FILE
from paft_ray.running import StageClock, check_lengths, claimed, conclude, evaluate_models
from paft_ray.session import Session
from paft_ray.tasks import load_task
from paft_ray.tracking import replay
from paft_ray.training.trainer import Orders, TrainedAdapter, train_until
from paft_ray.training.worker import Record
from paft_ray.tuning.bookkeeping import Bookkeeper, closing
from paft_ray.tuning.check import room, tuning_of
from paft_ray.tuning.goal import goal_name, read_records
from paft_ray.tuning.pools import SearchPools, build_pools, generation_key, pools_fingerprint
from paft_ray.tuning.result import Finalist, choose_finalists, search_result
from paft_ray.tuning.space import apply, edge_configs, samples
from paft_ray.tuning.trial import TrialSetup, trial_key, validation_examples
from paft_ray.tuning.tuner import TRIAL_CPUS, Suggester, run_trials
from paft_ray.tuning.view import TrialView

logger = logging.getLogger(__name__)

_HOW_MUCH = ("trials", "concurrency", "finalists", "seeds")
"""Fields of `tuning` that say how much work is done, not what is searched."""


def search(session: Session, overwrite: bool = False) -> dict[str, Any]:
    """Search, or read the result of a search that is complete.

    Args:
        session: Opened without test examples.
        overwrite: Delete what another configuration left under this name.

    Returns:
        The content of `search.json`, with the finalists' `summary`.

    Raises:
        ConfigError: The cluster has no room for a trial, or for as many as are asked for; or the
            search is complete, with fewer trials.
        TrainingError: No trial came to its end.
    """
    tuning, config = tuning_of(session.config), session.config
    if not overwrite and (found := finished_search(session)) is not None:
        return found
    trials = [apply(config, sample) for sample in samples(tuning, config.seed)]
    trials += [trial for _, trial in edge_configs(config, tuning)]
    cpus, concurrency = room(config, tuning, trials)
    searched = without(tuning.model_dump(mode="json"), _HOW_MUCH)
    made_from = {
        "work": "search",
        "search space": fingerprint(searched),
        "set of prompts": pools_fingerprint(session, tuning),
    }
    with claimed(session, overwrite, made_from) as tracker:
        clock = StageClock(session.run_folder)
        with clock.stage("prompt_pools"):
            pools = build_pools(session, tuning)
            check_lengths(
                session,
                replace(pools.any, train=pools.trained),
                (pools.any.validation[: tuning.prompts], validation_examples(session, tuning)),
            )
        with clock.stage("trials"):
            _run_trials(session, tuning, pools.without_test(), cpus, concurrency)
        finalists, seeds = choose_finalists(session, tuning), tuning.final_seeds(config.seed)
        final = _final_session(session, finalists, seeds)
        check_lengths(final, replace(pools.any, train=()))
        with clock.stage("finalists"):
            trained = [
                training
                for finalist in finalists
                for training in _train_finalist(final, finalist, seeds, pools)
            ]
        with clock.stage("evaluation"):
            scores = evaluate_models(final, pools.any, trained)
        split = pa.array(["test"] * scores.table.num_rows, pa.string())
        tested = scores.table.append_column("split", split)
        result = search_result(session, tuning, finalists, seeds, tested)
        result["made_from"] = _identity(session)
        session.run_folder.write_json(SEARCH_FILE, result)
        tracker.log_artifact(SEARCH_FILE, session.run_folder.path(SEARCH_FILE))
        configs = {f.label: apply(config, f.trial.sample) for f in finalists}
        summary = conclude(final, pools.any, trained, scores, clock.seconds, tracker, configs)
        return {**result, "summary": summary}


def finished_search(session: Session) -> dict[str, Any] | None:
    """The result of a search that is complete under this configuration; needs no Ray.

    Raises:
        ConfigError: It is complete under another number of trials or finalists: these would now be
            chosen after the figures on test prompts are known.
    """
    if not holds_search(session):
        return None
    folder, name = session.run_folder, session.config.name
    result = folder.read_json(SEARCH_FILE)
    if result["made_from"] != _identity(session):
        raise ConfigError(
            f"name: search {name!r} is complete with other settings or data, and its figures on "
            "test prompts are known: choose another name, or pass --overwrite"
        )
    session.screen.line(f"search {name} is complete, nothing to do")
    replay(session.tracking)
    return {**result, "summary": folder.read_json("summary.json")}


def holds_search(session: Session) -> bool:
    """Whether the run's folder holds a search that is complete."""
    folder = session.run_folder
    return (
        session.config.tuning is not None
        and load_manifest(folder) is not None
        and folder.exists(SEARCH_FILE)
    )


def of_finalists(session: Session, label: str | None = None) -> Session:
    """A complete search's session as that of a run whose variants are the finalists.

    Args:
        session: The search.
        label: Only this finalist, with its settings; the empty text is the best one.

    Raises:
        ConfigError: The search has no such finalist.
    """
    config = session.config
    found = session.run_folder.read_json(SEARCH_FILE)["finalists"]
    chosen = [entry for entry in found if label in (None, entry["label"])]
    if label == "":
        chosen = found[:1]
    if not chosen:
        labels = ", ".join(entry["label"] for entry in found)
        raise ConfigError(f"--variant: {label!r} is none of this search's: {labels}")
    settings = config if label is None else apply(config, chosen[0]["sample"])
    variants = tuple(PaftVariant(type="paft", name=entry["label"]) for entry in chosen)
    seeds = tuple(chosen[0]["seeds"])
    return session.of_config(
        settings.model_copy(update={"variants": variants, "seeds": seeds}), session.screen
    )


def _identity(session: Session) -> str:
    tuning = tuning_of(session.config)
    tree = without(dump_config(session.config), ["storage", "tracking", "tuning.concurrency"])
    prompts = pools_fingerprint(session, tuning)
    return fingerprint("search", tree, prompts, session.task_identity, session.model_identity)


def _run_trials(
    session: Session, tuning: TuningConfig, pools: SearchPools, cpus: float, concurrency: int
) -> None:
    """All trials, shown and tracked."""
    run, config = session.run_folder, session.config
    begun = {record.number: record for record in read_records(run)}
    suggester = Suggester(tuning, config, begun)
    concurrency = min(concurrency, suggester.total)
    travelling = session.of_config(_absolute(config))
    setup = TrialSetup(travelling, tuning, pools, BoardHandle(), cpus, TRIAL_CPUS)
    goal = goal_name(tuning.goal)
    view = TrialView(session.screen, suggester.total, tuning.reports, goal, concurrency)
    with session.screen.stage("search") as stage:
        session.screen.line(
            f"search: {suggester.total} trials, {concurrency} at a time, {cpus:g} CPUs per worker"
        )
        books = Bookkeeper(session, tuning, view)
        with session.screen.live(view.draw), books.keeping():
            problems = run_trials(setup, suggester, concurrency, books)
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
    """Local paths as they are from any folder: Tune's trials do not run in ours."""
    model = config.model.model_copy(update={"path": from_anywhere(config.model.path)})
    adapter = config.train.warm_start
    train = config.train.model_copy(
        update={"warm_start": None if adapter is None else from_anywhere(adapter)}
    )
    return config.model_copy(update={"model": model, "train": train})


def _final_session(
    session: Session, finalists: Sequence[Finalist], seeds: tuple[int, ...]
) -> Session:
    """The search as a run that compares its finalists, with test examples."""
    config = session.config
    variants = tuple(finalist.variant for finalist in finalists)
    final = config.model_copy(update={"variants": variants, "seeds": seeds})
    task = load_task(config.task, config.seed)
    return replace(session, task=task).of_config(final, session.screen)


def _train_finalist(
    final: Session, finalist: Finalist, seeds: Sequence[int], pools: SearchPools
) -> list[TrainedAdapter]:
    """One finalist with every seed, each recorded below its trial."""
    sample = finalist.trial.sample
    settings = apply(final.config, sample)
    own = final.of_config(settings, final.screen)
    pool = pools.of(sample, settings.prompts.pool_size)
    trained = []
    for seed in seeds:
        training = Training(finalist.variant, seed)
        record = Record(
            f"training/{training.name}",
            f"{settings.name}/{training.name}",
            trial_key(finalist.trial.number),
        )
        orders = Orders(record=record, pool=pools.registered[generation_key(sample)])
        with closing(own, record):
            adapter = train_until(own, pool.train, training, pool, orders)
        assert adapter is not None  # nobody stops it
        trained.append(adapter)
    return trained
