"""Advice for a GPU's memory, from needs that are given."""

import pytest

from paft_ray.config import Config, TrainConfig
from paft_ray.config.loading import dump_config, load_config
from paft_ray.training.gpu_fit import advise


def config(**train) -> Config:
    tree = {
        "name": "try",
        "task": {"type": "builtin", "name": "sst2", "max_length": 512},
        "prompts": {"files": ["p.jsonl"]},
        "model": {"path": "owner/model"},
        "train": {"steps": 2, "row_tokens": 8192, "workers": {"num": 8, "gpus": 1}, **train},
    }
    return load_config(tree)


def needs_gb(train: TrainConfig, quantization: str) -> float:
    """16 GB of weights; 1 GB of activations for every 512 tokens, a quarter if not kept."""
    weights = 4.0 if quantization == "nf4" else 16 / (8 if train.deepspeed.stage == 3 else 1)
    return weights + train.row_tokens / 512 / (4 if train.activation_checkpointing else 1)


def test_what_fits_needs_no_advice() -> None:
    assert needs_gb(config().train, "none") == 32
    assert advise(config(), needs_gb, gpu_gb=80) == []


def test_every_setting_that_makes_it_fit_alone_is_named_with_its_need() -> None:
    assert advise(config(), needs_gb, gpu_gb=24) == [
        "train.row_tokens: 2048 needs 20.0 GB, which fits",
        "train.activation_checkpointing: true needs 20.0 GB, which fits",
        "train.deepspeed.stage: 3 needs 18.0 GB, which fits",
        "model.quantization: nf4 needs 20.0 GB, which fits",
    ]


def test_settings_are_combined_where_none_is_enough() -> None:
    [advice] = advise(config(compile=True), needs_gb, gpu_gb=10)
    assert advice.startswith("train.row_tokens: 512, train.activation_checkpointing: true, ")
    assert advice.endswith("model.quantization: nf4 needs 4.2 GB, which fits")
    assert advise(config(), needs_gb, gpu_gb=1) == [
        "no setting makes it fit: take more or larger GPUs"
    ]


@pytest.mark.parametrize(("gpu_gb", "advised"), [(80, True), (32, False)])
def test_activations_are_kept_where_they_fit(gpu_gb: float, advised: bool) -> None:
    advice = advise(config(activation_checkpointing=True), needs_gb, gpu_gb)
    assert advice == (
        ["train.activation_checkpointing: false needs 32.0 GB, which fits and is faster"]
        if advised
        else []
    )


@pytest.mark.parametrize(
    ("backend", "advice"),
    [
        ({"type": "vllm", "memory": 0.5}, []),
        (
            {"type": "vllm", "memory": 0.62},
            [
                "train.row_tokens: 2048 needs 20.0 GB, which fits",
                "train.activation_checkpointing: true needs 20.0 GB, which fits",
            ],
        ),
        ({"type": "transformers"}, []),
    ],
)
def test_share_of_vllm_is_no_room_and_nothing_is_advised_that_rollouts_exclude(
    backend: dict, advice: list[str]
) -> None:
    objective = {"type": "grpo", "max_new_tokens": 512, "backend": backend}
    assert advise(config(objective=objective), needs_gb, gpu_gb=80) == advice


def test_rows_are_no_shorter_than_a_question_and_its_longest_text() -> None:
    objective = {"type": "grpo", "max_new_tokens": 512}
    [advice] = advise(config(objective=objective), needs_gb, gpu_gb=10)
    assert advice.startswith("train.row_tokens: 1024, train.activation_checkpointing: true")


def test_advice_for_a_training_that_writes_keeps_its_texts_in_rows_and_its_weights_whole() -> None:
    objective = {"type": "grpo", "rollouts": 8, "max_new_tokens": 300}
    own = {"type": "paft", "train": {"objective": objective}}
    tree = dump_config(config(batch_size=8)) | {"variants": [{"type": "paft", "name": "sft"}, own]}
    advice = advise(load_config(tree), needs_gb, gpu_gb=10)
    assert advice[0].startswith("train.row_tokens: 812, train.activation_checkpointing: true, ")
    assert "train.deepspeed.stage: 2" in advice[0]
    assert "stage: 3" not in advice[0]
