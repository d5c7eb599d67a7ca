"""Models whose sequences mix in packed rows, and texts in batches, are found by changing tokens."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from families import build_family
from paft_ray.config.errors import ConfigError
from paft_ray.models.attention import attends_in_blocks
from paft_ray.models.logprobs import ForwardPass, score_sequences
from paft_ray.models.row_check import check_batches, check_rows, read_apart


@pytest.fixture
def tokenizer() -> Any:
    from families import family_tokenizer

    return family_tokenizer()


def test_a_model_that_keeps_sequences_apart_is_packed(
    make_model: Callable[..., PreTrainedModel], one_thread: None
) -> None:
    model = make_model()
    assert check_rows(model, 2048, 512) == ""


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba", "other sequences of a row move"),  # a state that goes on
        ("lfm2", "other sequences of a row move"),  # a convolution
        ("bloom", "other sequences of a row move"),  # no positions
        ("doge", "alone differ"),  # a mask that blocks leave out
        ("llama4_text", "alone differ"),  # chunks of attention, shorter than a row
    ],
)
def test_a_model_that_mixes_them_says_so_and_scores_right_unpacked(
    family: str, reason: str, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    from paft_ray.models.row_probes import draw, predict

    model = build_family(family)
    with caplog.at_level(logging.WARNING):
        assert reason in check_rows(model, 2048, 200)
    read_apart(model)
    assert not attends_in_blocks(model)
    sequences = [predict(model, draw(model, n, n), 0, n) for n in (40, 9)]
    scores = score_sequences(model, sequences, ForwardPass("float32", 100, packing=False))
    for sequence, found in zip(sequences, scores, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([sequence.input_ids]), use_cache=False).logits[0]
        expected = logits.log_softmax(-1)[list(sequence.positions), list(sequence.targets)]
        assert list(found.values()) == pytest.approx(expected.tolist(), abs=2e-6)


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("gpt_neo", {}, "cannot read packed rows"),  # its mask has 256 places
        (
            "llama4_text",  # a temperature
            {"attention_chunk_size": 4096, "floor_scale": 200, "attn_scale": 3.0},
            "alone differ",
        ),
    ],
)
def test_rows_longer_than_the_positions_of_a_model_are_tried(
    family: str, more: dict[str, Any], reason: str, one_thread: None
) -> None:
    model = build_family(family, **more)
    assert reason in check_rows(model, 2048, 200)
    assert check_rows(model, 200, 100) == ""


def test_rows_too_short_for_a_chunk_are_packed(one_thread: None) -> None:
    assert check_rows(build_family("llama4_text", attention_chunk_size=512), 256, 64) == ""


def test_a_model_that_reads_what_follows_is_refused(one_thread: None) -> None:
    with pytest.raises(ConfigError, match="BertLMHeadModel is no causal"):
        check_rows(build_family("bert", is_decoder=False), 2048, 200)


def test_the_model_is_left_as_it_was(one_thread: None) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert check_rows(model, 64, 32) == ""  # pyright: ignore
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("family", "right"), [("llama", True), ("rwkv", False)])
def test_batches_of_generated_texts_are_tried(
    family: str, right: bool, tokenizer: Any, one_thread: None
) -> None:
    assert (check_batches(build_family(family), tokenizer) == "") == right
