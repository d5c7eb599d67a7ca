"""Which sample comes next."""

import math
import statistics
from typing import Any

import pytest

from paft_ray.config import Config, TuningConfig
from paft_ray.config.loading import load_config
from paft_ray.tuning.space import Sample, sample_key
from paft_ray.tuning.suggest import Suggester
from paft_ray.tuning.trial import State

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


def run(suggester: Suggester) -> list[Sample]:
    """All samples by number, each told a made-up figure."""
    found: list[Sample] = []
    while (suggested := suggester.suggest()) is not None:
        number, sample = suggested
        assert number == len(found)
        suggester.ended(number, "finished", -abs(sample["train.batch_size"] - 8))
        found.append(sample)
    return found


@pytest.mark.parametrize("kind", ["random", "optuna"])
@pytest.mark.parametrize("begun", [{0, 1, 2, 3}, {1}, {0, 4}])
def test_trials_that_have_begun_keep_their_numbers_and_samples(kind: str, begun: set[int]) -> None:
    tuning, config = tuning_of(search={"type": kind}), config_of()
    first = run(Suggester(tuning, config, {}))
    assert len(first) == 6
    assert run(Suggester(tuning, config, {})) == first
    again = run(Suggester(tuning, config, {number: first[number] for number in begun}))
    assert all(again[number] == first[number] for number in begun)
    assert len(set(map(sample_key, again))) == 6  # none is tried twice
    for sample in again:
        assert 1 <= sample["train.batch_size"] <= 64
        assert sample["train.schedule"] in SPACE["train.schedule"]["values"]


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_space_of_few_values_ends(kind: str) -> None:
    space = {"train.batch_size": {"type": "choice", "values": [2, 4, 8]}}
    tuning = tuning_of(space=space, search={"type": kind}, trials=12)
    found = run(Suggester(tuning, config_of(), {}))
    assert sorted(sample["train.batch_size"] for sample in found) == [2, 4, 8]


def test_optuna_learns_from_what_it_is_told() -> None:
    search = {"type": "optuna", "startup_trials": 8}
    space = {"train.learning_rate": {"type": "loguniform", "low": 1e-7, "high": 1e-1}}
    distances = []
    for seed in range(4):
        suggester = Suggester(tuning_of(search=search, space=space, trials=40), config_of(seed), {})
        while (suggested := suggester.suggest()) is not None:
            number, sample = suggested
            distance = abs(math.log10(sample["train.learning_rate"]) + 4)
            suggester.ended(number, "finished", -distance)
            distances.append((number, distance))
    early = statistics.median(d for number, d in distances if number < 8)
    late = statistics.median(d for number, d in distances if number >= 20)
    assert late < 0.7 * early


def test_failed_trial_is_told_without_a_figure() -> None:
    suggester = Suggester(tuning_of(search={"type": "optuna"}), config_of(), {})
    states: list[State] = ["failed", "stopped", "finished"]
    for number, state in enumerate(states):
        assert suggester.suggest() is not None
        suggester.ended(number, state, 0.5)
    suggester.ended(7, "failed", 1.0)  # not suggested
    assert suggester.suggest() is not None
