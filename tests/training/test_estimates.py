"""Memory and storage of a training, by hand where it can be."""

from dataclasses import replace

import pytest

from paft_ray.config import TrainConfig, TrainWorkersConfig
from paft_ray.training.estimates import ModelSizes, training_storage, worker_memory

SIZES = ModelSizes(parameters=1_000_000, trainable=10_000, linear=800_000, layers=4, hidden=64)


def train(**deepspeed: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {"steps": 10, "batch_size": 4, "row_tokens": 100, "deepspeed": deepspeed}
    )


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [
        (0, 4_000_000, 40_000, 80_000),  # each rank has all of it
        (1, 4_000_000, 40_000, 30_000),  # moments and their copy of the weights by four
        (2, 4_000_000, 10_000, 30_000),
        (3, 1_000_000, 10_000, 30_000),
    ],
)
def test_stages_share_more_and_more_among_ranks(stage, weights, gradients, optimizer) -> None:
    memory = worker_memory(SIZES, train(stage=stage), "none", "float32", ranks=4)
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (
        weights, gradients, optimizer,
    )  # fmt: skip


def test_activations_go_by_tokens_layers_and_arithmetic() -> None:
    in_bf16 = worker_memory(SIZES, train(), "none", "bfloat16", ranks=1)["activations"]
    assert in_bf16 == 34 * 100 * 64 * (4 + 1)
    in_fp32 = worker_memory(SIZES, train(), "none", "float32", ranks=1)["activations"]
    assert in_fp32 == 2 * in_bf16
    known = replace(SIZES, saved=4 * 1000)
    on_gpu = train().model_copy(update={"workers": TrainWorkersConfig(num=1, gpus=1)})
    there = worker_memory(known, on_gpu, "none", "bfloat16", ranks=1)["activations"]
    assert there == 2 * 100 * 1000 * (4 + 1)
    assert worker_memory(known, train(), "none", "bfloat16", 1)["activations"] == in_bf16
    again = train().model_copy(update={"activation_checkpointing": True})
    kept = worker_memory(SIZES, again, "none", "bfloat16", ranks=1)["activations"]
    assert kept == 4 * (4 * 100 * 64) + 34 * 100 * 64


def test_quantized_weights_are_small_and_offloaded_ones_elsewhere() -> None:
    small = worker_memory(SIZES, train(), "nf4", "bfloat16", ranks=1)["weights"]
    assert small == pytest.approx(4 * 200_000 + 0.57 * 800_000)
    half = worker_memory(SIZES, train(), "none", "bfloat16", ranks=1)["weights"]
    assert half == 4 * 200_000 + 2 * 800_000
    mixture = replace(SIZES, linear=100_000, experts=700_000)
    assert worker_memory(mixture, train(), "none", "bfloat16", ranks=1)["weights"] == half
    kept = worker_memory(mixture, train(), "nf4", "bfloat16", ranks=1)["weights"]
    assert kept == pytest.approx(4 * 200_000 + 0.57 * 100_000 + 2 * 700_000)
    away = worker_memory(SIZES, train(stage=3, offload="parameters"), "none", "bfloat16", 1)
    assert (away["weights"], away["optimizer"]) == (0, 0)


def test_storage_is_checkpoints_with_one_more_while_the_oldest_stays_and_the_result() -> None:
    assert training_storage(SIZES, train(), steps=10) == 3 * 120_000 + 40_000 + 30 * 10 * 4
