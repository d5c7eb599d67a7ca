"""What moves weights is in a training's fingerprint, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from paft_ray.artifacts import Storage
from paft_ray.loading import load_config
from paft_ray.session import Session
from paft_ray.tasks import load_task
from paft_ray.training.trainer import training_fingerprint


@pytest.fixture
def name_of(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., str]:
    """Overrides to the fingerprint of a training."""
    tree = {
        "name": "try",
        "task": {
            "type": "custom", "name": "t", "description": "Say what it is.",
            "path": str(review_file), "fields": {"review": "review"}, "answer": "label",
        },
        "prompts": {"files": ["p.jsonl"]},
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "train": {"steps": 2},
    }  # fmt: skip

    def fingerprint(*overrides: str) -> str:
        config = load_config(tree, overrides)
        session = Session(config, load_task(config.task, 0), Storage.open(str(tmp_path)))
        return training_fingerprint(session, session.config, ())

    return fingerprint


def store(folder: Path, value: float) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    weights = {"base_model.model.a": torch.full((2,), value)}
    safetensors.torch.save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "override", ["model.quantization=nf4", "train.compile=true", "train.deepspeed.stage=2"]
)
def test_what_moves_weights_names_another_training(override, name_of):
    assert name_of(override) != name_of()


@pytest.mark.parametrize(
    "override", ["model.attention=sdpa", "train.activation_checkpointing=true"]
)
def test_what_moves_no_weights_names_the_same_training(override, name_of):
    assert name_of(override) == name_of()


def test_warm_start_counts_by_its_content_and_not_by_its_place(name_of, tmp_path):
    one, same = store(tmp_path / "one", 1.0), store(tmp_path / "same", 1.0)
    other = store(tmp_path / "other", 2.0)
    names = [name_of(f"train.warm_start={folder}") for folder in (one, same, other)]
    assert names[0] == names[1] != names[2]
    assert name_of() not in names
