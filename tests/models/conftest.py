"""Fixtures of the tests of models: a tokenizer, small models of several families, one thread."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from paft_ray.models.load import load_tokenizer

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "grouped queries": (LlamaForCausalLM, LlamaConfig, {}),
    "sliding window": (MistralForCausalLM, MistralConfig, {"sliding_window": 7}),
    "window in some layers": (Gemma3ForCausalLM, Gemma3TextConfig, {"sliding_window": 9}),
}


@pytest.fixture(params=FAMILIES)
def make_model(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    """Makes a small model of a family, with more settings if wanted."""
    model_class, config_class, more = FAMILIES[request.param]

    def make(**settings: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        return model_class(config_class(**SMALL, **more, **settings)).eval()

    return make


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads only wait for each other in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
