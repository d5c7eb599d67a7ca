"""Samples: the same for the same seed, in their space, valid configurations, never two alike."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config import Config, TuningConfig
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import dump_config, load_config
from paft_ray.tuning.space import apply, describe, edge_configs, sample_key, samples

SPACE = {
    "prompts.pool_size": {"type": "lograndint", "low": 1, "high": 400},
    "train.sampling.temperature": {"type": "choice", "values": [0.3, 1, math.inf]},
    "train.learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-3},
    "train.batch_size": {"type": "randint", "low": 2, "high": 4},
    "train.schedule.final_share": {"type": "uniform", "low": 0.0, "high": 0.5},
    "model.peft.r": {"type": "choice", "values": [4, 8]},
}


def config_of(**tuning: object) -> Config:
    tree = {
        "name": "searched",
        "task": {"type": "builtin", "name": "sst2"},
        "prompts": {"files": ["prompts.txt"]},
        "model": {"path": "some/model", "peft": {"peft_type": "LORA", "r": 8}},
        "train": {"steps": 10},
        "tuning": {"space": SPACE, **tuning},
    }
    return load_config(tree)


def tuning_of(**tuning: object) -> TuningConfig:
    found = config_of(**tuning).tuning
    assert found is not None
    return found


@given(seed=st.integers(0, 2**63 - 1), trials=st.integers(1, 30), more=st.integers(0, 10))
def test_samples_are_a_function_of_the_seed_and_lie_in_their_space(
    seed: int, trials: int, more: int
) -> None:
    drawn = samples(tuning_of(trials=trials), seed)
    assert samples(tuning_of(trials=trials + more), seed)[:trials] == drawn
    assert len({sample_key(sample) for sample in drawn}) == len(drawn) == trials
    for sample in drawn:
        assert list(sample) == sorted(SPACE)  # however the configuration was written
        assert 1 <= sample["prompts.pool_size"] <= 400
        assert sample["train.sampling.temperature"] in (0.3, 1, "inf")
        assert 1e-5 <= sample["train.learning_rate"] <= 1e-3
        assert sample["train.batch_size"] in (2, 3, 4)
        assert 0 <= sample["train.schedule.final_share"] <= 0.5


def test_every_order_of_magnitude_is_drawn_alike_and_both_ends_are_drawn() -> None:
    space = {"prompts.pool_size": {"type": "lograndint", "low": 1, "high": 3}}
    assert {s["prompts.pool_size"] for s in samples(tuning_of(space=space), 0)} == {1, 2, 3}
    space = {"prompts.pool_size": {"type": "lograndint", "low": 1, "high": 9999}}
    sizes = [s["prompts.pool_size"] for s in samples(tuning_of(space=space, trials=400), 0)]
    assert 0.2 < sum(size >= 1000 for size in sizes) / len(sizes) < 0.55  # small ones run out


def test_sample_is_a_configuration_of_one_training() -> None:
    config = config_of()
    sample = samples(tuning_of(), 3)[0]
    found = apply(config, sample)
    assert found.tuning is None
    assert found.prompts.pool_size == sample["prompts.pool_size"]
    assert found.train.sampling.temperature == float(sample["train.sampling.temperature"])
    assert found.train.learning_rate == sample["train.learning_rate"]
    assert found.model.peft == {"peft_type": "LORA", "r": sample["model.peft.r"]}
    assert apply(config, json.loads(json.dumps(sample))) == found  # as its record holds it
    assert "pool_size" in describe(sample)


def test_infinity_survives_the_record_of_a_configuration() -> None:
    config = config_of()
    assert load_config(json.loads(json.dumps(dump_config(config)))) == config


def test_grid_is_every_combination_and_a_small_space_ends() -> None:
    space = {
        "train.batch_size": {"type": "randint", "low": 2, "high": 4},
        "model.peft.r": {"type": "choice", "values": [4, 8]},
    }
    grid = samples(tuning_of(space=space, search={"type": "grid"}), 0)
    assert [tuple(sample.values()) for sample in grid] == [
        (4, 2), (4, 3), (4, 4), (8, 2), (8, 3), (8, 4)
    ]  # fmt: skip
    assert samples(tuning_of(space=space, search={"type": "grid"}, trials=4), 0) == grid[:4]
    drawn = samples(tuning_of(space=space, trials=100), 0)
    assert sorted(map(sample_key, drawn)) == sorted(map(sample_key, grid))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.samplin.temperature": {"type": "choice", "values": [1]}}, "did you mean 'samplin"),
        ({"train.batch_size": {"type": "randint", "low": 0, "high": 4}}, r"train\.batch_size: 0"),
        ({"train.row_tokens": {"type": "randint", "low": 16, "high": 4096}}, "task.max_length"),
        ({"train.sampling.temperature": {"type": "choice", "values": [-1]}}, "temperature: -1"),
    ],
)
def test_space_with_an_unknown_field_or_an_impossible_value_is_refused(space, said) -> None:
    config = config_of(space=space)
    assert config.tuning is not None
    with pytest.raises(ConfigError, match=rf"tuning\.space: .*{said}"):
        edge_configs(config, config.tuning)


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"space": {}}, "at least 1"),
        ({"space": {"seed": {"type": "choice", "values": [1]}}}, "a best seed is luck"),
        ({"space": {"task.max_length": {"type": "choice", "values": [1]}}}, "cannot be compared"),
        ({"space": {"train.steps": {"type": "randint", "low": 5, "high": 5}}}, "not below"),
        ({"space": {"train.steps": {"type": "lograndint", "low": 0, "high": 5}}}, "logarithm"),
        ({"space": {"train.steps": {"type": "choice", "values": []}}}, "at least 1"),
        ({"search": {"type": "grid"}}, "too many values for a grid"),
        ({"seeds": [1, 1]}, "named twice"),
        (
            {
                "space": {
                    "prompts.generation.temperature": {"type": "uniform", "low": 0.1, "high": 1}
                }
            },
            "pool of its own for every trial",
        ),
    ],
)
def test_search_that_makes_no_sense_is_refused(tuning, said) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(**tuning)
