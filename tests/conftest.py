"""What tests share: a tiny real model on disk, a small task, and one Ray cluster."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# how long an example takes says how busy the machine is, not whether anything is wrong
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# read when ray is imported, which some test modules do
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

WORDS = [
    "good",
    "bad",
    "fine",
    "awful",
    "great",
    "poor",
    "the",
    "a",
    "film",
    "movie",
    "plot",
    "was",
    "is",
    "and",
    "very",
    "not",
    "it",
    "story",
    "acting",
    "sentence",
    "review",
    "label",
    "answer",
    "text",
    "input",
    "output",
    "tell",
    "whether",
    "positive",
    "negative",
    "decide",
    "how",
    "feels",
    "please",
    "read",
    "classify",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, and a byte-level tokenizer, as a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 50, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def review_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 120 short reviews with their sentiment."""
    import json
    import random

    rng = random.Random(0)
    lines = []
    for number in range(120):
        positive = number % 2 == 0
        word = rng.choice(["good", "fine", "great"] if positive else ["bad", "awful", "poor"])
        tail = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        text = f"the film {number} was {word} {tail}"
        lines.append({"review": text, "label": "positive" if positive else "negative"})
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray on this machine for all tests that need it; no test starts its own."""
    from paft_ray.cluster import ray_session

    with ray_session():
        yield
