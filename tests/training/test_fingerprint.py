"""What moves weights is in a training's fingerprint, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from factories import run_config
from paft_ray.config.loading import load_config
from paft_ray.config.variants import PaftVariant, Training
from paft_ray.runs.context import RunContext
from paft_ray.serving.record import MadeFrom, TrainingRecord
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.training.identity import find_trained, training_fingerprint, training_folder


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
        context = RunContext.create(config, load_task(config.task, 0), Storage.open(str(tmp_path)))
        return training_fingerprint(context, context.config, ())

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


def test_form_of_weights_is_in_identities_only_where_it_moves_what_earlier_versions_made(
    tiny_model: Path, review_file: Path, tmp_path: Path
) -> None:
    """Experts multiply in bf16 since, and 4 bits hold in scoring since."""
    mixture = tmp_path / "mixture"
    shutil.copytree(tiny_model, mixture)
    config = json.loads((mixture / "config.json").read_text())
    (mixture / "config.json").write_text(json.dumps({**config, "num_experts": 4}))

    def stored(model: Path, dtype: str, scored: bool, quantization: str = "none") -> dict:
        tree = run_config(model, review_file, tmp_path, model={"quantization": quantization})
        config = load_config(tree)
        task = load_task(config.task, 0)
        context = RunContext.create(config, task, Storage.open(str(tmp_path)))
        return context.stored(dtype, scored)

    assert stored(tiny_model, "bfloat16", True) == stored(mixture, "float32", True) == {}
    assert stored(mixture, "bfloat16", True) == stored(mixture, "bfloat16", False) != {}
    assert stored(tiny_model, "bfloat16", False, "nf4") == {}
    assert stored(tiny_model, "bfloat16", True, "nf4") == {"quantization": "nf4"}


def test_warm_start_counts_by_its_content_and_not_by_its_place(name_of, tmp_path):
    one, same = store(tmp_path / "one", 1.0), store(tmp_path / "same", 1.0)
    other = store(tmp_path / "other", 2.0)
    names = [name_of(f"train.warm_start={folder}") for folder in (one, same, other)]
    assert names[0] == names[1] != names[2]
    assert name_of() not in names


RECORD = TrainingRecord(
    variant="paft",
    seed=0,
    steps=1,
    tokens=1,
    answer_tokens=1,
    trimmed=0,
    seconds=1.0,
    prompts=1,
    workers=1,
    dtype="float32",
    last_loss=1.0,
    made_from=MadeFrom("task", "model", "pool"),
)


def test_trained_again_is_the_same_training_with_weights_of_its_own(tmp_path: Path) -> None:
    """What is kept of the first weights, scores and a node's copy, is not for the second."""
    training = Training(PaftVariant(type="paft"), seed=0)
    run = Storage.open(str(tmp_path))
    found = []
    for weights in (b"once", b"again"):
        writer = ArtifactWriter(training_folder(run, training))
        writer.add("adapter/adapter_model.safetensors", weights)
        writer.commit("same", RECORD.to_json())
        found.append(find_trained(run, training))
    first, second = found
    assert first is not None
    assert second is not None
    assert first.fingerprint == second.fingerprint == "same"
    assert first.content != second.content
