"""Full fine-tuning: everything is trained, and what is stored is the model that was trained."""

import json
from pathlib import Path

import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from paft_ray.config.errors import ConfigError
from paft_ray.models import full
from paft_ray.models.full import full_model_files
from paft_ray.models.load import (
    MODEL_FOLDER,
    load_base,
    load_tokenizer,
    make_trainable,
    reads_positions,
    store_frozen_in_bf16,
    virtual_tokens,
)
from paft_ray.models.meta import check_adapters


@pytest.fixture(scope="module")
def tied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one matrix for input and output."""
    folder = tmp_path_factory.mktemp("tied")
    config = LlamaConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


def train_a_little(location: Path) -> LlamaForCausalLM:
    model = make_trainable(load_base(str(location)), None, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def store(model: LlamaForCausalLM, tokenizer_of: Path, folder: Path) -> None:
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    tokenizer = load_tokenizer(str(tokenizer_of))
    (folder / MODEL_FOLDER).mkdir(exist_ok=True)
    for name, data in full_model_files(model, weights, tokenizer):
        (folder / MODEL_FOLDER / name).write_bytes(data)


def test_all_weights_of_a_model_are_trainable_and_packed_and_stay_in_fp32(tied_model):
    model = make_trainable(load_base(str(tied_model)), None, seed=0)
    assert all(p.requires_grad for p in model.parameters())
    assert reads_positions(model)
    assert virtual_tokens(model) == 0
    store_frozen_in_bf16(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("tied", [False, True])
def test_model_stored_is_loaded_by_transformers_with_the_same_weights(
    tied, tiny_model, tied_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(full, "SHARD", "60KB")
    location = tied_model if tied else tiny_model
    model = train_a_little(location)
    store(model, location, tmp_path)
    folder = tmp_path / "model"
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {path.name for path in shards} == set(index["weight_map"].values())
    stored = set()
    for path in shards:
        with safetensors.safe_open(path, "pt") as file:
            stored.update(file.keys())
    assert ("lm_head.weight" in stored) is not tied
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.tie_word_embeddings is tied
    parameters = dict(loaded.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameters[name], parameter), name
    text = "the film was good"
    ids = load_tokenizer(str(location))(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids


def test_model_is_checked_without_an_adapter_and_refused_where_it_cannot_be_built(
    tiny_model, tmp_path
):
    check_adapters(str(tiny_model), None, [None], 0)
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ConfigError, match="no causal language model can be built"):
        check_adapters(str(tmp_path), None, [None], 0)
