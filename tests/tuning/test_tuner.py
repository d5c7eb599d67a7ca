"""Ray Tune as we use it: which sample comes next, and what becomes of a stop."""

import math
import statistics
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from paft_ray.config import Config, TuningConfig
from paft_ray.config.loading import load_config
from paft_ray.tuning.goal import TrialRecord
from paft_ray.tuning.space import sample_key
from paft_ray.tuning.trial import GOAL, REPORT, stop_key
from paft_ray.tuning.tuner import Suggester, cooperative, scheduler

SPACE = {
    "train.batch_size": {"type": "lograndint", "low": 1, "high": 64},
    "train.learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-2},
    "train.schedule": {
        "type": "choice",
        "values": [{"type": "constant"}, {"type": "linear", "warmup_share": 0.2}],
    },
}


def tuning_of(**tree: Any) -> TuningConfig:
    return TuningConfig.model_validate({"space": SPACE, "trials": 6, **tree})


def config_of(seed: int = 3) -> Config:
    return load_config(
        {
            "name": "searched",
            "seed": seed,
            "task": {"type": "builtin", "name": "sst2"},
            "prompts": {"files": ["prompts.txt"]},
            "model": {"path": "some/model", "peft": {"peft_type": "LORA", "r": 8}},
            "train": {"steps": 10},
        }
    )


def run(suggester: Suggester) -> list[TrialRecord]:
    """All suggestions, with made-up figures."""
    found: list[TrialRecord] = []
    while (record := suggester.suggest(str(len(found)))) is not None:
        goal = -abs(record.sample["train.batch_size"] - 8)
        suggester.tell(str(len(found)), replace(record, state="finished"), goal)
        found.append(record)
    return found


@pytest.mark.parametrize("kind", ["random", "optuna"])
@pytest.mark.parametrize("begun", [{0, 1, 2, 3}, {1}, {0, 4}])
def test_trials_that_have_begun_keep_their_numbers_and_samples(kind: str, begun: set[int]) -> None:
    tuning, config = tuning_of(search={"type": kind}), config_of()
    first = run(Suggester(tuning, config, {}))
    assert [record.number for record in first] == list(range(6))
    assert run(Suggester(tuning, config, {})) == first
    again = run(Suggester(tuning, config, {number: first[number] for number in begun}))
    assert [record.number for record in again] == list(range(6))
    assert all(again[number] == first[number] for number in begun)
    assert len({sample_key(record.sample) for record in again}) == 6  # none is tried twice
    for record in again:
        assert 1 <= record.sample["train.batch_size"] <= 64
        assert record.sample["train.schedule"] in SPACE["train.schedule"]["values"]


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_space_of_few_values_ends(kind: str) -> None:
    space = {"train.batch_size": {"type": "choice", "values": [2, 4, 8]}}
    tuning = tuning_of(space=space, search={"type": kind}, trials=12)
    found = run(Suggester(tuning, config_of(), {}))
    assert sorted(record.sample["train.batch_size"] for record in found) == [2, 4, 8]


def test_optuna_learns_from_what_it_is_told() -> None:
    search = {"type": "optuna", "startup_trials": 8}
    space = {"train.learning_rate": {"type": "loguniform", "low": 1e-7, "high": 1e-1}}
    distances = []
    for seed in range(4):
        suggester = Suggester(tuning_of(search=search, space=space, trials=40), config_of(seed), {})
        for number in range(40):
            record = suggester.suggest(str(number))
            assert record is not None
            distance = abs(math.log10(record.sample["train.learning_rate"]) + 4)
            suggester.tell(str(number), replace(record, state="finished"), -distance)
            distances.append((number, distance))
    early = statistics.median(d for number, d in distances if number < 8)
    late = statistics.median(d for number, d in distances if number >= 20)
    assert late < 0.7 * early


def test_failed_trial_is_told_without_a_figure() -> None:
    suggester = Suggester(tuning_of(search={"type": "optuna"}), config_of(), {})
    for number, state in enumerate(("failed", "stopped", "finished")):
        record = suggester.suggest(str(number))
        assert record is not None
        suggester.tell(str(number), replace(record, state=state), 0.5)
    suggester.tell("unknown", None, 1.0)
    assert suggester.suggest("3") is not None


@pytest.mark.parametrize("kind", ["asha", "median", "none"])
def test_trial_that_fails_before_its_first_report_disturbs_no_other(kind: str) -> None:
    tuning, board = tuning_of(scheduler={"type": kind}, reports=3), Board()
    judge = cooperative(scheduler(tuning), board, tuning.reports)
    judge.set_search_properties(GOAL, "max")
    for number in range(3):
        judge.on_trial_add(CONTROLLER, trial(number))
    judge.on_trial_complete(CONTROLLER, trial(0), {"training_iteration": 0})
    for report in (1, 2, 3):
        for number in (1, 2):
            result = {GOAL: 0.5, REPORT: report, "training_iteration": report}
            judge.on_trial_result(CONTROLLER, trial(number), result)
    assert board.kept == {}  # two equal trials: neither is worse than the other


class Board:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def hold(self, key: str, value: Any) -> None:
        self.kept[key] = value


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
    tuning, board = tuning_of(scheduler=kind, reports=4), Board()
    judge = cooperative(scheduler(tuning), board, tuning.reports)  # pyright: ignore[reportArgumentType]
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
    asked = {number for number in range(6) if stop_key(number) in board.kept}
    assert 0 not in asked
    assert 5 in asked
    for each in trials:
        judge.on_trial_complete(CONTROLLER, each, {GOAL: 0.5, REPORT: 4, "training_iteration": 4})


def test_trial_at_its_end_is_not_asked_to_stop() -> None:
    tuning, board = tuning_of(scheduler={"type": "asha"}, reports=2), Board()
    judge = cooperative(scheduler(tuning), board, tuning.reports)  # pyright: ignore[reportArgumentType]
    judge.set_search_properties(GOAL, "max")
    judge.on_trial_add(CONTROLLER, trial(0))
    for report in (1, 2):
        judge.on_trial_result(CONTROLLER, trial(0), {GOAL: 0.1, REPORT: report})
    assert board.kept == {}


def test_without_a_scheduler_nobody_is_stopped() -> None:
    tuning, board = tuning_of(scheduler={"type": "none"}), Board()
    judge = cooperative(scheduler(tuning), board, tuning.reports)  # pyright: ignore[reportArgumentType]
    judge.set_search_properties(GOAL, "max")
    for number in range(4):
        judge.on_trial_result(CONTROLLER, trial(number), {GOAL: -number, REPORT: 1})
    assert board.kept == {}
