"""Runs trials with Ray Tune: samples come from our suggester, and trials stop early by themselves.

Tune decides which trial runs when, and which stops early. It does not carry out a stop, which would
end the trial's process and could leave its workers running: the trial is asked to save and end.

Tune's own snapshots are not used: they are overwritten in place, so that a SIGKILL can leave an
empty one, which cannot be restored; and a restored search keeps its number of trials. The state of
a search is in its records and in the results of its trainings.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from paft_ray.config import ASHA, MedianStopping, TuningConfig
from paft_ray.storage.paths import Storage
from paft_ray.tuning.monitor import TrialMonitor
from paft_ray.tuning.suggest import Suggester
from paft_ray.tuning.trial import (
    GOAL,
    REPORT,
    TrialRecord,
    TrialSetup,
    read_record,
    run_trial,
    write_record,
)

_RESTARTS = 3
"""Restarts of a trial that lost its own process, as when a node fails."""
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of every trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # interrupts are ours
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed early has reported nothing
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(
    setup: TrialSetup, suggester: Suggester, concurrency: int, monitor: TrialMonitor
) -> list[str]:
    """Run all trials of the suggester; those that are over only report again.

    Returns:
        Errors of the trials that ended without a record of their end.
    """
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    limited = tune.with_parameters(run_trial, setup=setup)
    trainable = tune.with_resources(limited, tune.PlacementGroupFactory([{"CPU": setup.set_aside}]))
    with tempfile.TemporaryDirectory(prefix="paft-tune-") as disposable:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=GOAL,
                mode="max",
                search_alg=_Samples(suggester, setup.context.run_folder),
                scheduler=cooperative(
                    scheduler(setup.tuning), setup.control.request_stop, setup.tuning.reports
                ),
                num_samples=-1,
                max_concurrent_trials=concurrency,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=disposable,
                verbose=0,
                callbacks=[_Events(monitor)],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            ),
        )
        results = tuner.fit()
        return [str(error) for error in results.errors]


class _Unsaved:
    """Pickles as an empty text: Tune pickles its arguments, but does not use the copies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ()


class _Events(_Unsaved, Callback):
    """Passes Tune's events on to the monitor."""

    def __init__(self, monitor: TrialMonitor) -> None:
        self._monitor = monitor

    def on_trial_start(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._monitor.started(trial.config["number"], trial.config["sample"])

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Trial, result: Any, **info: Any
    ) -> None:
        if GOAL in result:
            self._monitor.reported(trial.config["number"], result[REPORT], result[GOAL])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._monitor.ended(trial.config["number"])

    on_trial_error = on_trial_complete


class _Samples(_Unsaved, Searcher):
    """Tune's searcher: takes samples from the suggester, and writes records before trials start."""

    def __init__(self, suggester: Suggester, run: Storage) -> None:
        super().__init__(metric=GOAL, mode="max")
        self._suggester, self._run = suggester, run
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        if (suggested := self._suggester.suggest()) is None:
            return Searcher.FINISHED
        number, sample = suggested
        if read_record(self._run, number) is None:
            write_record(self._run, TrialRecord(number, sample))
        self._numbers[trial_id] = number
        return {"number": number, "sample": dict(sample)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers[trial_id]
        record = None if error else read_record(self._run, number)
        state = "failed" if record is None else record.state
        self._suggester.ended(number, state, (result or {}).get(GOAL))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the records hold the state."""


def scheduler(tuning: TuningConfig) -> TrialScheduler:
    """The configured scheduler of Tune, with reports as its time."""
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


def cooperative(
    inner: TrialScheduler, request_stop: Callable[[int], None], reports: int
) -> TrialScheduler:
    """A scheduler that asks a trial to stop, by its number, and lets it end by itself."""

    class Cooperative(_Unsaved, TrialScheduler):
        """The inner scheduler, except for stops."""

        _supports_buffered_results = False

        def __init__(self) -> None:
            super().__init__()
            self._stopping: set[str] = set()
            self.set_search_properties = inner.set_search_properties
            self.on_trial_add = inner.on_trial_add
            self.on_trial_error = inner.on_trial_error
            self.on_trial_remove = inner.on_trial_remove
            self.choose_trial_to_run = inner.choose_trial_to_run
            self.debug_string = inner.debug_string

        def on_trial_result(
            self, tune_controller: Any, trial: Trial, result: dict[str, Any]
        ) -> str:
            if trial.trial_id in self._stopping:
                return TrialScheduler.CONTINUE  # reported before it saw the request
            decision = inner.on_trial_result(tune_controller, trial, result)
            at_the_end = result.get(REPORT, 0) >= reports
            if decision == TrialScheduler.STOP:
                self._stopping.add(trial.trial_id)
            if decision == TrialScheduler.STOP and not at_the_end:
                request_stop(trial.config["number"])
            return TrialScheduler.CONTINUE

        def on_trial_complete(
            self, tune_controller: Any, trial: Trial, result: dict[str, Any]
        ) -> None:
            if GOAL in result and REPORT in result:  # else it failed before its first report
                inner.on_trial_complete(tune_controller, trial, result)

    return Cooperative()
