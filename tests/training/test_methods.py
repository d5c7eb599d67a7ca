"""Every kind of adapter through the real engine: it learns, resumes, and is what peft loads.

One launch on one rank for all methods, one on two ranks for a base in 4 bits.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import factories
from factories import LORA

Weights = dict[str, torch.Tensor]
METHODS = {**factories.METHODS, "LORA": {**LORA, "lora_dropout": 0.1}}
QUICK = {"train": {"steps": 8, "learning_rate": 0.1}}
ONE_RANK = [
    scenario
    for method, peft in METHODS.items()
    for scenario in (
        {"name": method, "peft": peft, "judged": True, **QUICK},
        {"name": f"{method}-cut", "peft": peft, "until": 5, "every": 3, **QUICK},
        {"name": f"{method}-resumed", "peft": peft, "continues": f"{method}-cut", **QUICK},
    )
] + [
    {"name": "nf4", "quantization": "nf4", "judged": True},
    {"name": "nf4-plain", "quantization": "nf4", "plain": True},
    {"name": "whole weights", "judged": True},
]
TWO_RANKS = [{"name": "nf4-two", "stage": 2, "quantization": "nf4"}]
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def folder(
    launch: Callable[..., None], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What one rank left of each method."""
    folder = tmp_path_factory.mktemp("methods")
    launch(folder, tiny_model, 1, ONE_RANK)
    return folder


@pytest.fixture(scope="module")
def on_two_ranks(
    launch: Callable[..., None], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("methods-on-two")
    launch(folder, tiny_model, 2, TWO_RANKS)
    return folder


def largest_relative_difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


def weights(folder: Path, name: str) -> Weights:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def losses(folder: Path, name: str) -> dict[str, float]:
    return json.loads((folder / f"{name}.json").read_text())


@each_method
def test_training_lowers_the_loss_and_the_stored_adapter_has_the_same(
    method: str, folder: Path
) -> None:
    found = losses(folder, method)
    assert found["after"] < 0.95 * found["before"]
    assert found["loaded"] == pytest.approx(found["after"], rel=1e-6)


@each_method
def test_training_resumed_in_its_midst_ends_with_the_same_bits(method: str, folder: Path) -> None:
    whole, resumed = weights(folder, method), weights(folder, f"{method}-resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_on_a_base_in_4_bits_agrees_with_a_plain_loop_on_it(folder: Path) -> None:
    plain = weights(folder, "nf4-plain")
    assert largest_relative_difference(weights(folder, "nf4"), plain) < 1e-3


@pytest.mark.slow
def test_training_on_two_ranks_and_a_base_in_4_bits_agrees_with_a_plain_loop_on_it(
    folder: Path, on_two_ranks: Path
) -> None:
    plain = weights(folder, "nf4-plain")
    assert largest_relative_difference(weights(on_two_ranks, "nf4-two"), plain) < 1e-3


def test_adapter_trained_in_4_bits_serves_the_base_that_is_on_disk(folder: Path) -> None:
    """Stated tolerance: half of what training gained, on a model of random weights."""
    trained, whole = losses(folder, "nf4"), losses(folder, "whole weights")
    assert trained["after"] < 0.95 * trained["before"]
    assert trained["before"] != whole["before"], "the weights are quantised indeed"
    assert trained["loaded"] == pytest.approx(trained["after"], rel=1e-6)
    gained = whole["before"] - whole["after"]
    assert whole["before"] - trained["on_disk"] > 0.5 * gained
