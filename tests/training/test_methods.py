"""Every kind of adapter through the real engine: it learns, resumes, and is what peft loads.

One launch on one rank for all methods, one on two ranks for what a method does of its own there.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from paft_ray.config.errors import ConfigError
from paft_ray.models.peft_check import complete_peft

Weights = dict[str, torch.Tensor]
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
ADALORA = {
    "peft_type": "ADALORA", "init_r": 6, "target_r": 3, "deltaT": 2,
    "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip
METHODS = {
    "LORA": {**LORA, "lora_dropout": 0.1},
    "DORA": {**LORA, "use_dora": True},
    "ADALORA": ADALORA,
    "IA3": {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "PROMPT_TUNING": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5},
    "PREFIX_TUNING": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5},
    "P_TUNING": {"peft_type": "P_TUNING", "num_virtual_tokens": 5, "encoder_hidden_size": 16},
}
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
    {"name": "plain", "plain": True, "peft": ADALORA},
    {"name": "nf4", "quantization": "nf4", "judged": True},
    {"name": "nf4-plain", "quantization": "nf4", "plain": True},
    {"name": "whole weights", "judged": True},
]
TWO_RANKS = [
    *({"name": f"stage{stage}", "stage": stage, "peft": ADALORA} for stage in (1, 2, 3)),
    {"name": "cut", "stage": 2, "peft": ADALORA, "until": 11, "every": 4},
    {"name": "resumed", "stage": 2, "peft": ADALORA, "continues": "cut"},
    {"name": "nf4-two", "stage": 2, "quantization": "nf4"},
]
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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_adalora_on_two_ranks_agrees_with_peft_in_a_plain_loop(
    stage: int, folder: Path, on_two_ranks: Path
) -> None:
    plain, ours = weights(folder, "plain"), weights(on_two_ranks, f"stage{stage}")
    assert largest_relative_difference(ours, plain) < 1e-3
    for name in (name for name in plain if "lora_E" in name):
        assert torch.equal(ours[name] == 0, plain[name] == 0), "the same ranks are pruned"


def test_adalora_prunes_to_its_budget_and_stores_no_more(folder: Path) -> None:
    kept = sum(int((v != 0).sum()) for n, v in weights(folder, "ADALORA").items() if "lora_E" in n)
    assert kept == 3 * 4  # target_r on average over two modules of two layers
    stored = safetensors.torch.load_file(
        folder / "ADALORA" / "adapter" / "adapter_model.safetensors"
    )
    assert sum(len(tensor) for name, tensor in stored.items() if "lora_E" in name) == kept
    config = json.loads((folder / "ADALORA" / "adapter" / "adapter_config.json").read_text())
    assert sum(map(sum, config["rank_pattern"].values())) == kept


def test_adalora_on_two_ranks_resumed_while_it_prunes_ends_with_the_same_bits(
    on_two_ranks: Path,
) -> None:
    whole, resumed = weights(on_two_ranks, "stage2"), weights(on_two_ranks, "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_adalora_takes_its_schedule_from_the_training(folder: Path) -> None:
    assert complete_peft(ADALORA, 150) == {
        **ADALORA, "total_step": 150, "tinit": 15, "tfinal": 45,
    }  # fmt: skip
    given = {**ADALORA, "total_step": 100, "tinit": 3, "tfinal": 0}
    assert complete_peft(given, 150) == given
    assert complete_peft(LORA, 150) == LORA


@pytest.mark.parametrize(
    ("changed", "names"),
    [({"total_step": 151}, "total_step: 151"), ({"target_r": 6}, "target_r: 6")],
)
def test_adalora_that_could_not_prune_is_refused(changed: dict, names: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.peft\.{names} .*(leave it out|lower it)"):
        complete_peft({**ADALORA, **changed}, 150)


def test_training_on_a_base_in_4_bits_agrees_with_a_plain_loop_on_it(
    folder: Path, on_two_ranks: Path
) -> None:
    plain = weights(folder, "nf4-plain")
    assert largest_relative_difference(weights(folder, "nf4"), plain) < 1e-3
    assert largest_relative_difference(weights(on_two_ranks, "nf4-two"), plain) < 1e-3


def test_adapter_trained_in_4_bits_serves_the_base_that_is_on_disk(folder: Path) -> None:
    """Stated tolerance: half of what training gained, on a model of random weights."""
    trained, whole = losses(folder, "nf4"), losses(folder, "whole weights")
    assert trained["after"] < 0.95 * trained["before"]
    assert trained["before"] != whole["before"], "the weights are quantised indeed"
    assert trained["loaded"] == pytest.approx(trained["after"], rel=1e-6)
    gained = whole["before"] - whole["after"]
    assert whole["before"] - trained["on_disk"] > 0.5 * gained
