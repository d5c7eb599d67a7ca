"""How texts are generated on GPUs: what is kept of past tokens, and how many fit."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from families import build_family
from paft_ray.models.generation import fitting_tokens, narrow_cache, tokens_in_memory
from paft_ray.models.logprobs import inference

pytestmark = pytest.mark.usefixtures("one_thread")


def write(model: Any, narrow: bool) -> Any:
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with inference(model, "bfloat16"), narrow_cache("cpu", also_on_cpus=narrow):
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=9,
            min_new_tokens=9,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2", "qwen3_moe"])
def test_keys_and_values_kept_in_bf16_change_no_text_under_autocast(family):
    """A window that is exceeded, layers without attention, and experts among them."""
    model = build_family(family)
    wide, narrow = write(model, narrow=False), write(model, narrow=True)
    assert torch.equal(wide.sequences, narrow.sequences)
    for expected, found in zip(wide.logits, narrow.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    kept = [layer.keys for layer in narrow.past_key_values.layers if layer_keys(layer) is not None]
    assert kept
    assert all(keys.dtype == torch.bfloat16 for keys in kept)
    before = [layer.keys for layer in wide.past_key_values.layers if layer_keys(layer) is not None]
    assert 2 * sum(keys.nbytes for keys in kept) == sum(keys.nbytes for keys in before)


def layer_keys(layer: Any) -> Any:
    return getattr(layer, "keys", None)


def test_caches_on_cpus_and_in_fp32_stay_as_they_are():
    model = build_family("llama")
    assert write(model, narrow=False).past_key_values.layers[0].keys.dtype == torch.float32
    with narrow_cache("cpu", also_on_cpus=True):  # no autocast
        output = model.generate(
            input_ids=torch.tensor([[5, 6]]), max_new_tokens=2, return_dict_in_generate=True,
            pad_token_id=0,
        )  # fmt: skip
    assert output.past_key_values.layers[0].keys.dtype == torch.float32


def test_as_many_tokens_as_memory_takes():
    config = LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    # 2 x 32 layers x 8 heads x 128 numbers x 2 bytes, and 34 x 4,096 bytes while they are read
    needed = 131_072 + 139_264
    assert fitting_tokens(config, 40_000 * needed, "bfloat16") == 32_768
    assert fitting_tokens(config, 40_000 * needed, "float32") == 16_384
    assert fitting_tokens(config, -1.0, "bfloat16") == 1024
    assert tokens_in_memory(build_family("llama"), "bfloat16") == 16_384
