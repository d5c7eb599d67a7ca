"""Ray Tune as we use it: samples from our records, early stops that a trial carries out itself.

Tune decides which trial runs when, and which is not worth going on with. A stop is not carried out
by Tune, which would end the trial's process and could leave its workers behind: the trial is asked
to save, and ends by itself. Tune's own snapshots are not used; what a search knows stands in its
records and in the results of its trainings.
"""

import logging
import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from paft_ray.cluster.control import BoardHandle
from paft_ray.config import (
    ASHA,
    Choice,
    Config,
    DimensionConfig,
    LogRandInt,
    LogUniform,
    MedianStopping,
    OptunaSearch,
    RandInt,
    TuningConfig,
)
from paft_ray.config.errors import ConfigError
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tuning.goal import State, TrialRecord, read_record, write_record
from paft_ray.tuning.space import DEFAULT_TRIALS, Sample, apply, draws, sample_key, samples
from paft_ray.tuning.trial import GOAL, REPORT, TrialSetup, run_trial, stop_key

if TYPE_CHECKING:
    from ray.tune import Callback
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

logger = logging.getLogger(__name__)

TRIAL_CPUS = 0.01
"""What a trial's own process, which only waits, takes from its workers' share."""
_OPTUNA_DRAWS = 20
"""Draws in search of a sample that there was not yet."""
_RESTARTS = 3
"""How often a trial is begun anew that lost its own process, with a node say."""
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of every trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # interrupts are ours
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed early has reported nothing
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TrialEvents(Protocol):
    """Hears in the driver what becomes of trials."""

    def started(self, number: int, sample: Sample) -> None:
        """A trial begins, or begins anew."""
        ...

    def reported(self, number: int, report: int, goal: float) -> None:
        """A trial was scored."""
        ...

    def ended(self, number: int) -> None:
        """A trial's process is over."""
        ...


def run_trials(
    setup: TrialSetup,
    suggester: "Suggester",
    concurrency: int,
    events: TrialEvents,
) -> list[str]:
    """Run all trials that the suggester has, or find them over.

    Returns:
        What went wrong in trials that ended without a record of their end.
    """
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    from ray import tune

    limited = tune.with_parameters(run_trial, setup=setup)
    trainable = tune.with_resources(limited, tune.PlacementGroupFactory([{"CPU": TRIAL_CPUS}]))
    with tempfile.TemporaryDirectory(prefix="paft-tune-") as disposable:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=GOAL,
                mode="max",
                search_alg=searcher(suggester, setup.context.run_folder),
                scheduler=cooperative(scheduler(setup.tuning), setup.board, setup.tuning.reports),
                num_samples=-1,
                max_concurrent_trials=concurrency,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=disposable,
                verbose=0,
                callbacks=[_callback(events)],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            ),
        )
        results = tuner.fit()
        return [str(error) for error in results.errors]


class _StaysHere:
    """Of this process only: Tune writes copies of its arguments, which nobody reads."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ()


def _callback(events: TrialEvents) -> "Callback":
    from ray.tune import Callback

    class Events(_StaysHere, Callback):
        """Hands on what Tune says."""

        def on_trial_start(self, iteration: int, trials: Any, trial: "Trial", **info: Any) -> None:
            events.started(trial.config["number"], trial.config["sample"])

        def on_trial_result(
            self, iteration: int, trials: Any, trial: "Trial", result: Any, **info: Any
        ) -> None:
            if GOAL in result:
                events.reported(trial.config["number"], result[REPORT], result[GOAL])

        def on_trial_complete(
            self, iteration: int, trials: Any, trial: "Trial", **info: Any
        ) -> None:
            events.ended(trial.config["number"])

        def on_trial_error(self, iteration: int, trials: Any, trial: "Trial", **info: Any) -> None:
            events.ended(trial.config["number"])

    return Events()


class Suggester:
    """Which sample comes next, with its number; trials that have begun come first, as they were."""

    def __init__(
        self, tuning: TuningConfig, config: Config, begun: Mapping[int, TrialRecord]
    ) -> None:
        """Begin, or go on.

        Args:
            tuning: The search.
            config: What its samples change.
            begun: Records of the trials that there are, by number.
        """
        self._begun, self._next = begun, 0
        self._told: dict[str, int] = {}
        self._optuna = _Optuna(tuning, config, begun) if _by_optuna(tuning) else None
        self._fixed = [] if self._optuna else samples(tuning, config.seed)
        self.total = count_trials(tuning, config.seed)

    def suggest(self, trial_id: str) -> TrialRecord | None:
        """Tune's next trial; None when there are no more."""
        number = self._next
        if number >= self.total:
            return None
        known = self._begun.get(number)
        if self._optuna:
            sample = self._optuna.ask(trial_id, None if known is None else known.sample)
            if sample is None:
                return None
        else:
            sample = self._fixed[number]
        self._next += 1
        return known or TrialRecord(number, sample)

    def tell(self, trial_id: str, record: TrialRecord | None, goal: float | None) -> None:
        """Say what came of a trial."""
        if self._optuna is not None:
            self._optuna.tell(trial_id, record.state if record else "failed", goal)


def count_trials(tuning: TuningConfig, seed: int) -> int:
    """Trials at most."""
    if _by_optuna(tuning):
        return tuning.trials or DEFAULT_TRIALS
    return len(samples(tuning, seed))


def _by_optuna(tuning: TuningConfig) -> bool:
    return isinstance(tuning.search, OptunaSearch)


class _Optuna:
    """A study in memory; what trials found before is told anew when they report it again."""

    def __init__(
        self, tuning: TuningConfig, config: Config, begun: Mapping[int, TrialRecord]
    ) -> None:
        import optuna

        assert isinstance(tuning.search, OptunaSearch)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # with the number of those that have begun: else a search that goes on would draw them again
        seed = int(fingerprint("optuna", config.seed, len(begun))[:8], 16)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=tuning.search.startup_trials
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._config, self._space = config, tuning.space
        self._distributions = {p: _distribution(d) for p, d in sorted(tuning.space.items())}
        self._asked: dict[str, Any] = {}
        self._seen = {sample_key(record.sample) for record in begun.values()}
        self._random = draws(tuning.space, config.seed)

    def ask(self, trial_id: str, sample: Sample | None) -> Sample | None:
        """A sample that there was not yet, or the given one; None where none is found.

        Where Optuna keeps to what it knows, the sample is a random one.
        """
        from optuna.trial import TrialState

        for _ in range(0 if sample else _OPTUNA_DRAWS):
            trial = self._study.ask(self._distributions)
            drawn = {path: self._outer(path, value) for path, value in trial.params.items()}
            if self._is_new(drawn):
                self._asked[trial_id] = trial
                return drawn
            self._study.tell(trial, state=TrialState.FAIL)
        sample = sample or next(filter(self._is_new, self._random), None)
        if sample is not None:
            self._study.enqueue_trial({p: self._inner(p, v) for p, v in sample.items()})
            self._asked[trial_id] = self._study.ask(self._distributions)
        return sample

    def tell(self, trial_id: str, state: State, goal: float | None) -> None:
        from optuna.trial import TrialState

        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return
        if state == "finished" and goal is not None:
            self._study.tell(trial, goal)
        elif state == "stopped" and goal is not None:
            trial.report(goal, 0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _is_new(self, sample: Sample) -> bool:
        """Whether there was no such sample yet, and it can be."""
        if sample_key(sample) in self._seen:
            return False
        self._seen.add(sample_key(sample))
        try:
            apply(self._config, sample)
        except ConfigError:
            return False
        return True

    def _inner(self, path: str, value: Any) -> Any:
        """Optuna knows choices by their place: a choice may be a mapping."""
        dimension = self._space[path]
        return dimension.values.index(value) if isinstance(dimension, Choice) else value

    def _outer(self, path: str, value: Any) -> Any:
        dimension = self._space[path]
        return dimension.values[value] if isinstance(dimension, Choice) else value


def _distribution(dimension: DimensionConfig) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(range(len(dimension.values)))
    if isinstance(dimension, RandInt | LogRandInt):
        return IntDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogRandInt))
    return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))


def searcher(suggester: Suggester, run: Storage) -> "Searcher":
    """A suggester as Tune's searcher; the trials' records stand in the search's folder."""
    from ray.tune.search import Searcher

    class FromSuggester(_StaysHere, Searcher):
        """Asks the suggester, and writes a trial's record before Tune hears of it."""

        def __init__(self) -> None:
            super().__init__(metric=GOAL, mode="max")
            self._numbers: dict[str, int] = {}

        def suggest(self, trial_id: str) -> Any:
            record = suggester.suggest(trial_id)
            if record is None:
                return Searcher.FINISHED
            if read_record(run, record.number) is None:
                write_record(run, record)
            self._numbers[trial_id] = record.number
            return {"number": record.number, "sample": dict(record.sample)}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            record = None if error else read_record(run, self._numbers[trial_id])
            suggester.tell(trial_id, record, (result or {}).get(GOAL))

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what matters stands in the records."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return FromSuggester()


def scheduler(tuning: TuningConfig) -> "TrialScheduler":
    """Tune's scheduler of that name, with reports as its time."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    chosen = tuning.scheduler
    if isinstance(chosen, ASHA):
        return ASHAScheduler(
            time_attr=REPORT,
            max_t=max(tuning.reports, chosen.grace_reports),
            grace_period=chosen.grace_reports,
            reduction_factor=chosen.reduction_factor,
        )
    if isinstance(chosen, MedianStopping):
        return MedianStoppingRule(
            time_attr=REPORT,
            grace_period=chosen.grace_reports,
            min_samples_required=chosen.min_trials,
        )
    return FIFOScheduler()


def cooperative(inner: "TrialScheduler", board: BoardHandle, reports: int) -> "TrialScheduler":
    """A scheduler that asks a trial to stop, through the board, and lets it end by itself."""
    from ray.tune.schedulers import TrialScheduler

    class Cooperative(_StaysHere, TrialScheduler):
        """Hands everything on, but for what becomes of a stop."""

        _supports_buffered_results = False

        def __init__(self) -> None:
            super().__init__()
            self._asked: set[str] = set()

        def set_search_properties(self, metric: Any, mode: Any, **spec: Any) -> bool:
            return inner.set_search_properties(metric, mode, **spec)

        def on_trial_add(self, tune_controller: Any, trial: "Trial") -> None:
            inner.on_trial_add(tune_controller, trial)

        def on_trial_error(self, tune_controller: Any, trial: "Trial") -> None:
            inner.on_trial_error(tune_controller, trial)

        def on_trial_result(
            self, tune_controller: Any, trial: "Trial", result: dict[str, Any]
        ) -> str:
            if trial.trial_id in self._asked:
                return TrialScheduler.CONTINUE  # what it found before it heard of it
            decision = inner.on_trial_result(tune_controller, trial, result)
            at_the_end = result.get(REPORT, 0) >= reports
            if decision == TrialScheduler.STOP:
                self._asked.add(trial.trial_id)
            if decision == TrialScheduler.STOP and not at_the_end:
                board.hold(stop_key(trial.config["number"]), True)
            return TrialScheduler.CONTINUE

        def on_trial_complete(
            self, tune_controller: Any, trial: "Trial", result: dict[str, Any]
        ) -> None:
            if GOAL in result and REPORT in result:  # else it failed before its first report
                inner.on_trial_complete(tune_controller, trial, result)

        def on_trial_remove(self, tune_controller: Any, trial: "Trial") -> None:
            inner.on_trial_remove(tune_controller, trial)

        def choose_trial_to_run(self, tune_controller: Any) -> "Trial | None":
            return inner.choose_trial_to_run(tune_controller)

        def debug_string(self) -> str:
            return inner.debug_string()

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what matters stands in the records."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Cooperative()
