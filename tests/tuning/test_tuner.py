"""Ray Tune as we use it: bad trials are asked to stop, and stop by themselves."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from paft_ray.cluster.control import ControlActor
from paft_ray.config import TuningConfig
from paft_ray.tuning.trial import GOAL, REPORT
from paft_ray.tuning.tuner import cooperative, scheduler


def tuning_of(**tree: Any) -> TuningConfig:
    space = {"train.learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-2}}
    return TuningConfig.model_validate({"space": space, "trials": 6, **tree})


@pytest.mark.parametrize("kind", ["asha", "median", "none"])
def test_trial_that_fails_before_its_first_report_disturbs_no_other(kind: str) -> None:
    tuning, control = tuning_of(scheduler={"type": kind}, reports=3), ControlActor()
    judge = cooperative(scheduler(tuning), control.request_stop, tuning.reports)
    judge.set_search_properties(GOAL, "max")
    for number in range(3):
        judge.on_trial_add(CONTROLLER, trial(number))
    judge.on_trial_complete(CONTROLLER, trial(0), {"training_iteration": 0})
    for report in (1, 2, 3):
        for number in (1, 2):
            result = {GOAL: 0.5, REPORT: report, "training_iteration": report}
            judge.on_trial_result(CONTROLLER, trial(number), result)
    assert not any(
        map(control.stop_requested, range(3))
    )  # two equal trials: neither is worse than the other


CONTROLLER: Any = SimpleNamespace(get_live_trials=list)


class FakeTrial:
    """What schedulers look at."""

    status = "RUNNING"

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"id{number}", {"number": number}


def trial(number: int) -> Any:
    return FakeTrial(number)


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "asha", "grace_reports": 1, "reduction_factor": 2},
        {"type": "median", "grace_reports": 1, "min_trials": 2},
    ],
)
def test_bad_trials_are_asked_to_stop_and_stop_by_themselves(kind: dict[str, Any]) -> None:
    tuning, control = tuning_of(scheduler=kind, reports=4), ControlActor()
    judge = cooperative(scheduler(tuning), control.request_stop, tuning.reports)
    judge.set_search_properties(GOAL, "max")
    trials = [trial(number) for number in range(6)]
    for each in trials:
        judge.on_trial_add(CONTROLLER, each)
    for report in range(1, 5):
        for number, each in enumerate(trials):
            goal = 0.9 - 0.1 * number + 0.01 * report
            result = {GOAL: goal, REPORT: report, "training_iteration": report}
            decision = judge.on_trial_result(CONTROLLER, each, result)
            assert decision == TrialScheduler.CONTINUE  # Tune itself ends nobody
    asked = {number for number in range(6) if control.stop_requested(number)}
    assert 0 not in asked
    assert 5 in asked
    for each in trials:
        judge.on_trial_complete(CONTROLLER, each, {GOAL: 0.5, REPORT: 4, "training_iteration": 4})


def test_trial_at_its_end_is_not_asked_to_stop() -> None:
    tuning, control = tuning_of(scheduler={"type": "asha"}, reports=2), ControlActor()
    judge = cooperative(scheduler(tuning), control.request_stop, tuning.reports)
    judge.set_search_properties(GOAL, "max")
    judge.on_trial_add(CONTROLLER, trial(0))
    for report in (1, 2):
        judge.on_trial_result(CONTROLLER, trial(0), {GOAL: 0.1, REPORT: report})
    assert not any(map(control.stop_requested, range(4)))


def test_without_a_scheduler_nobody_is_stopped() -> None:
    tuning, control = tuning_of(scheduler={"type": "none"}), ControlActor()
    judge = cooperative(scheduler(tuning), control.request_stop, tuning.reports)
    judge.set_search_properties(GOAL, "max")
    for number in range(4):
        judge.on_trial_result(CONTROLLER, trial(number), {GOAL: -number, REPORT: 1})
    assert not any(map(control.stop_requested, range(4)))
