"""Adapters of several peft methods: fresh, scored, stored and loaded again."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

import factories
from paft_ray.config.errors import ConfigError
from paft_ray.models.load import (
    adapter_files,
    add_adapter,
    load_adapter,
    load_base,
    load_tokenizer,
    reads_positions,
    virtual_tokens,
)
from paft_ray.models.logprobs import ForwardPass, answer_logprobs, inference, score_sequences
from paft_ray.models.packing import TokenSequence, build_row
from paft_ray.models.tokenization import TextEncoder

LORA = {**factories.LORA, "lora_alpha": 8}
METHODS = {**factories.METHODS, "LORA": LORA}
del METHODS["DORA"]
VIRTUAL_LOGITS = {"LORA": 0, "IA3": 0, "PROMPT_TUNING": 5, "PREFIX_TUNING": 0, "P_TUNING": 5}
CONTEXTS = ("the film was", "a very good story and", "is it not a bad movie? answer:")
CPU = torch.device("cpu")

each_method = pytest.mark.parametrize("method", list(METHODS))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sequences(tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    encoder = TextEncoder(tokenizer)
    encoded = [
        encoder.encode(lambda fields: fields["c"], {"c": c}, ["very bad"])[0] for c in CONTEXTS
    ]
    return [e.sequence() for e in encoded]


def make(tiny_model: Path, peft: dict, seed: int = 1) -> PeftModel:
    return add_adapter(load_base(str(tiny_model)), peft, seed).eval()


def trained(tiny_model: Path, method: str, seed: int = 1) -> PeftModel:
    """An adapted model whose adapter moves every score, as after training."""
    model = make(tiny_model, METHODS[method], seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def trainable(model: PeftModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def scores(model: torch.nn.Module, sequences: list[TokenSequence]) -> list[float]:
    virtual = virtual_tokens(model)
    packing = not isinstance(model, PeftModel) or reads_positions(model)
    found = score_sequences(model, sequences, ForwardPass("float32", 200, packing, virtual))
    return [by_owner[0] for by_owner in found]


@each_method
def test_adapter_of_each_method_is_scored_as_full_logits_are(method, tiny_model, sequences):
    model = trained(tiny_model, method)
    virtual = virtual_tokens(model)
    assert virtual == VIRTUAL_LOGITS[method]
    assert reads_positions(model) == (method in ("LORA", "IA3"))
    for index, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        assert len(logits) == len(sequence.input_ids) + virtual
        of_text = logits[virtual:].log_softmax(-1)
        expected = of_text[list(sequence.positions), list(sequence.targets)]
        with inference(model, "float32"):
            found = answer_logprobs(model, build_row(sequences, [index]), CPU, virtual)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@each_method
def test_adapter_of_each_method_moves_the_scores_of_the_base(method, tiny_model, sequences):
    base = scores(load_base(str(tiny_model)), sequences)
    moved = scores(trained(tiny_model, method), sequences)
    assert all(abs(one - other) > 1e-3 for one, other in zip(base, moved, strict=True))


@each_method
def test_adapter_is_fresh_by_its_seed_alone(method, tiny_model):
    first = trainable(make(tiny_model, METHODS[method], seed=1))
    torch.rand(11)  # randomness that somebody else used
    again = trainable(make(tiny_model, METHODS[method], seed=1))
    other = trainable(make(tiny_model, METHODS[method], seed=2))
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if not torch.equal(first[name], other[name])]
    assert drawn or method == "IA3"  # which begins with ones


def test_fresh_lora_changes_no_score_and_leaves_the_base_frozen(tiny_model, sequences):
    model = make(tiny_model, LORA)
    assert scores(model, sequences) == scores(load_base(str(tiny_model)), sequences)
    assert all("lora_" in name for name in trainable(model))
    assert len(trainable(model)) == 2 * 2 * 2  # A and B of two modules in two layers


@each_method
def test_stored_adapter_on_a_fresh_base_scores_the_same(method, tiny_model, sequences, tmp_path):
    model = trained(tiny_model, method)
    expected = scores(model, sequences)
    for name, data in adapter_files(model, trainable(model), str(tiny_model)).items():
        (tmp_path / name).write_bytes(data)
    by_peft = PeftModel.from_pretrained(load_base(str(tiny_model)), str(tmp_path)).eval()
    assert scores(by_peft, sequences) == expected
    by_us = load_adapter(load_base(str(tiny_model)), str(tmp_path), "mine")
    assert scores(by_us, sequences) == expected
    assert not by_us.training


@each_method
def test_adapter_is_stored_in_the_same_bytes_twice(method, tiny_model):
    one, other = (trained(tiny_model, method) for _ in range(2))
    backwards = dict(reversed(trainable(other).items()))
    first = adapter_files(one, trainable(one), "base")
    assert first == adapter_files(other, backwards, "base")
    assert sorted(first) == ["adapter_config.json", "adapter_model.safetensors"]


def test_stored_adapter_names_its_base_and_lists_its_modules_in_order(tiny_model):
    modules = ["v_proj", "q_proj", "o_proj", "k_proj", "up_proj", "gate_proj", "down_proj"]
    model = make(tiny_model, {**LORA, "target_modules": modules})
    config = json.loads(adapter_files(model, trainable(model), "some/base")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == sorted(modules)
    assert config["inference_mode"] is True
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)


def test_second_adapter_is_loaded_beside_the_first(tiny_model, sequences, tmp_path):
    expected = []
    for seed in (1, 2):
        model = trained(tiny_model, "LORA", seed)
        expected.append(scores(model, sequences))
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name, data in adapter_files(model, trainable(model), str(tiny_model)).items():
            (folder / name).write_bytes(data)
    both = load_adapter(load_base(str(tiny_model)), str(tmp_path / "1"), "one")
    both = load_adapter(both, str(tmp_path / "2"), "two")
    assert not both.training
    for name, wanted in [("two", expected[1]), ("one", expected[0]), ("two", expected[1])]:
        both.set_adapter(name)
        assert scores(both, sequences) == wanted


@pytest.mark.parametrize(
    ("peft", "names"),
    [
        ({**LORA, "rank": 4}, "rank"),
        ({**LORA, "target_modules": ["nowhere_proj"]}, "nowhere_proj"),
        ({**LORA, "r": 0}, "r"),
        ({"peft_type": "NO_SUCH_METHOD"}, "NO_SUCH_METHOD"),
    ],
)
def test_adapter_that_peft_refuses_is_a_config_error_in_its_words(peft, names, tiny_model):
    with pytest.raises(ConfigError, match=rf"model\.peft: peft refuses it: .*{names}"):
        make(tiny_model, peft)


def test_loaded_base_is_frozen_in_evaluation_mode_and_fp32(tiny_model):
    model = load_base(str(tiny_model))
    assert not model.training
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(False, torch.float32)}
    half = load_base(str(tiny_model), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_tokenizer_without_padding_pads_with_the_end_token(tiny_model, tmp_path):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token_id == tokenizer.eos_token_id
