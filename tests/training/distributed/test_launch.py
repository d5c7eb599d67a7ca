"""Which trainings can share workers."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from small_training import small_config

from factories import LORA
from paft_ray.config.loading import dump_config, load_config
from paft_ray.training.distributed.launch import _needs
from paft_ray.training.job import Job, TrainingHooks


def job(tmp_path: Path, dtype: str = "float32", cpus: float = 1, **sections: Any) -> Job:
    """A job of which only what workers depend on is there."""
    tree = dump_config(small_config("model", "data.csv", str(tmp_path), 8))
    for name, changes in sections.items():
        tree[name] = {**tree[name], **changes} if isinstance(changes, dict) else changes
    others = {field.name: None for field in fields(Job)}
    known: dict[str, Any] = {"config": load_config(tree), "dtype": dtype, "cpus": cpus}
    return Job(**(others | known))


@pytest.mark.parametrize(
    "alike",
    [
        {"seed": 7},
        {"train": {"steps": 9, "learning_rate": 0.5, "sampling": {"temperature": 1}}},
        {"model": {"path": "model", "peft": {**LORA, "r": 64}}},
    ],
    ids=["seed", "train", "adapter"],
)
def test_trainings_of_one_base_share_workers(tmp_path: Path, alike: dict) -> None:
    hooks = TrainingHooks()
    assert _needs(job(tmp_path), hooks) == _needs(job(tmp_path, **alike), hooks) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"path": "another"}},
        {"model": {"attention": "sdpa"}},
        {"dtype": "bfloat16"},
        {"cpus": 2},
        {"train": {"deepspeed": {"stage": 2}}},
        {"train": {"workers": {"num": 2, "cpus": 1}}},
        {"train": {"max_failures": 9}},
    ],
    ids=["model", "attention", "dtype", "cpus", "stage", "workers", "failures"],
)
def test_training_with_other_needs_does_not_share(tmp_path: Path, other: dict) -> None:
    hooks = TrainingHooks()
    assert _needs(job(tmp_path), hooks) != _needs(job(tmp_path, **other), hooks)


@pytest.mark.parametrize(
    "alone",
    [
        {"model": {"peft": None}},
        {"model": {"quantization": "nf4"}},
        {"model": {"trust_remote_code": True}},
        {"train": {"compile": True}},
        {"train": {"deepspeed": {"stage": 3}}},
    ],
    ids=["whole model", "4 bits", "trusted code", "compiled", "divided"],
)
def test_training_that_leaves_something_behind_shares_with_none(
    tmp_path: Path, alone: dict
) -> None:
    assert _needs(job(tmp_path, **alone), TrainingHooks()) is None
