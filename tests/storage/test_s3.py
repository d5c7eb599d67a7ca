"""Storage on a real S3-compatible server: artifacts, the lock, checkpoints, a whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paft_ray.config.errors import ArtifactError, ConfigError, TrainingError
from paft_ray.storage import lock as lock_module
from paft_ray.storage.artifacts import MANIFEST, ArtifactWriter, load_manifest
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage
from paft_ray.training.state.checkpoint import Checkpoints, Progress, WriteLimits

PART = 5 << 20
"""Bytes from which on S3 takes an object in parts."""


@pytest.fixture
def location(s3: str, tmp_path: Path) -> str:
    """A folder of this test's own in the bucket, as `storage` names it."""
    return f"s3://paft/{tmp_path.name}/store?endpoint_override={s3}&scheme=http"


@pytest.fixture
def storage(location: str) -> Storage:
    return Storage.open(location)


def test_storage_on_s3_names_reads_replaces_and_deletes_as_on_a_disk(storage):
    assert not storage.exists()
    assert storage.names() == []
    storage.write_json("x.json", {"ü": [1, None]})
    storage.write_json("x.json", {"ü": [2]})
    storage.child("sub", "deep").write_bytes("y", b"")
    large = bytes(range(256)) * (2 * PART // 256) + b"end"
    storage.child("sub").write_bytes("large", large)
    assert storage.read_json("x.json") == {"ü": [2]}
    assert storage.child("sub").read_bytes("large") == large
    assert storage.names() == ["sub", "x.json"]
    assert storage.child("sub").names() == ["deep", "large"]
    assert storage.child("sub").sizes(["large", "deep", "none"]) == [len(large), None, None]
    with pytest.raises(ArtifactError, match="none: no such file"):
        storage.read_bytes("none")
    storage.delete("sub")
    assert not storage.exists("sub")
    storage.delete("x.json")
    storage.delete("never there")
    assert storage.names() == []


def test_artifact_on_s3_is_there_with_its_manifest_and_not_before(storage):
    writer = ArtifactWriter(storage)
    writer.add("a.bin", b"first")
    storage.write_bytes("b.bin", b"second")
    writer.note("b.bin")
    assert load_manifest(storage) is None
    writer.commit("1234", {"rows": 2})
    manifest = load_manifest(storage, check=True)
    assert manifest is not None
    assert set(manifest.files) == {"a.bin", "b.bin"}
    storage.write_bytes("b.bin", b"sEcond")
    assert load_manifest(storage) is not None
    assert load_manifest(storage, check=True) is None
    storage.delete("b.bin")
    assert load_manifest(storage) is None


def test_lock_on_s3_is_refused_to_a_second_holder_and_free_again_after(storage, monkeypatch):
    monkeypatch.setattr(lock_module, "_SETTLE_S", 0.0)
    with (
        lock(storage, "run x"),
        pytest.raises(ConfigError, match="run x is in use by process"),
        lock(storage, "run x"),
    ):
        pass
    with lock(storage, "run x"):
        assert storage.names() == ["lease.json"]
    assert storage.names() == []


def test_checkpoints_on_s3_are_saved_loaded_retained_and_passed_over_where_torn(storage):
    import torch

    def state(step: int) -> dict[str, torch.Tensor]:
        return {
            "weight/large": torch.full((PART // 2,), float(step)),
            "exp_avg/b": torch.full((7,), step / 3),
            "sampler/scores": torch.full((3,), step / 7, dtype=torch.float64),
        }

    def assert_newest_is(step: int) -> None:
        restored = Checkpoints(folder, "x", 2, limits=WriteLimits(())).load()
        assert restored is not None
        assert restored.progress.step == step
        found = {**dict(restored.state), **restored.other}
        assert found.keys() == state(step).keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in state(step).items())

    folder = storage.child("checkpoints")
    checkpoints = Checkpoints(folder, "x", 2, limits=WriteLimits((), PART))
    assert checkpoints.load() is None
    for step in (2, 4, 6):
        checkpoints.save(Progress(step=step), state(step))
        checkpoints.wait()
    assert folder.names() == ["step-000000004", "step-000000006"]
    assert_newest_is(6)
    newest = folder.child("step-000000006")
    [shard] = [name for name in newest.names() if name.endswith("00001-of-00002.safetensors")]
    data = newest.read_bytes(shard)
    newest.write_bytes(shard, data[:-1] + bytes([data[-1] ^ 1]))
    assert_newest_is(4)
    newest.delete(MANIFEST)
    assert_newest_is(4)
    assert folder.names() == ["step-000000004"]


@pytest.mark.slow  # pyarrow itself tries for six seconds
def test_server_that_is_gone_is_named_after_the_last_attempt(s3, tmp_path):
    away = f"s3://paft/{tmp_path.name}?endpoint_override=127.0.0.1:9&scheme=http"
    checkpoints = Checkpoints(Storage.open(away), "x", 2, limits=WriteLimits(()))
    with pytest.raises(TrainingError, match=f"reading checkpoints failed in paft/{tmp_path.name}"):
        checkpoints.load()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_that_trains_all_weights_with_its_storage_on_s3_leaves_a_model_that_loads(
    location, storage, tiny_model, review_file, tmp_path
):
    import torch
    from transformers import AutoModelForCausalLM

    config = {
        "name": "small",
        "seed": 1,
        "storage": location,
        "task": {
            "type": "custom", "name": "reviews", "path": str(review_file), "max_length": 200,
            "description": "Say whether a short film review is positive or negative.",
            "fields": {"review": "review"}, "answer": "label", "choices": ["positive", "negative"],
        },
        "prompts": {
            "generation": {"llms": [{"type": "fake"}], "form": "instruction", "per_llm": 30},
            "split": {"validation": 2, "test": 3},
        },
        "model": {"path": str(tiny_model), "dtype": "float32", "peft": None},
        "train": {
            "steps": 12, "batch_size": 4, "row_tokens": 256, "learning_rate": 0.001,
            "checkpoint": {"every_steps": 4}, "workers": {"num": 1, "cpus": 1},
        },
        "evaluation": {
            "examples": 10, "row_tokens": 256, "workers": {"num": 1, "cpus": 1},
        },
        "tracking": {"type": "none"},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "paft_ray.cli", "run", str(path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    models = json.loads(done.stdout)["models"]
    assert set(models) == {"base", "paft"}
    training = storage.child("runs", "small", "training", "paft-s1")
    assert load_manifest(training, check=True) is not None
    assert training.child("checkpoints").names() == ["step-000000008", "step-000000012"]
    before = AutoModelForCausalLM.from_pretrained(tiny_model)
    after = AutoModelForCausalLM.from_pretrained(training.child("model").fetch(tmp_path / "model"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert not torch.equal(old, new), name
