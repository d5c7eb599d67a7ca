"""A tiny model, reviews and prompts: what a training needs that has to be quick, not good."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORDS = (
    "the", "a", "film", "movie", "plot", "was", "is", "and", "very", "not", "it", "story",
    "acting", "scene", "music", "cast", "ending", "feels", "long", "short", "slow", "sharp",
    "clever", "dull", "warm", "cold", "loud", "quiet", "bright", "dark", "new", "old",
)  # fmt: skip
_OPINIONS = {"positive": ("good", "fine", "great"), "negative": ("bad", "awful", "poor")}
_WORDINGS = (
    "Decide whether the review is positive or negative", "Say how the writer feels about the film",
    "Judge the mood of this review carefully", "Is the opinion in the review good or bad",
    "Classify this short review by its tone", "Tell me what the critic thinks",
    "Read the text and name its sentiment", "Find out if the review praises the movie",
    "What attitude does the author show", "Pick the label that fits the review best",
    "Give the polarity of the review", "Weigh every word before you answer",
)  # fmt: skip
_LAYOUTS = (
    "{instruction}.\nReview: {{review}}\nAnswer:", "Text: {{review}}\n{instruction}.\nLabel:",
    "### Input\n{{review}}\n### Task\n{instruction}\n### Output\n", "{{review}}\n{instruction}:",
    "{instruction}\n\n\"{{review}}\"\n\nSentiment:", "Task: {instruction}. [{{review}}] =>",
)  # fmt: skip


def write_model(folder: Path, words: Sequence[str] = (*_WORDS, *_WORDINGS)) -> Path:
    """Write a Llama of two layers with random weights, and a byte-level tokenizer of some words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words)] * 50, trainer)
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


def write_reviews(path: Path, count: int) -> Path:
    """Write short reviews with their sentiment as JSONL."""
    rng = random.Random(0)
    lines = []
    for number in range(count):
        label = ("positive", "negative")[number % 2]
        tail = " ".join(rng.choices(_WORDS, k=rng.randint(1, 12)))
        review = f"the film {number} was {rng.choice(_OPINIONS[label])} {tail}"
        lines.append(json.dumps({"review": review, "label": label}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_prompts(path: Path) -> Path:
    """Write every wording in every layout, as JSONL."""
    texts = [layout.format(instruction=w) for w in _WORDINGS for layout in _LAYOUTS]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def training_settings(
    inputs: Path, name: str, seed: int, steps: int, every_steps: int, model: str | None
) -> dict[str, Any]:
    """Write model, reviews and prompts, and return a configuration that lacks only `storage`.

    Args:
        inputs: Where they are written.
        name: Of the run.
        seed: Of the run.
        steps: Optimizer steps.
        every_steps: Steps between two checkpoints.
        model: A base model to be used in place of the tiny one.
    """
    inputs.mkdir(exist_ok=True)
    return {
        "name": name,
        "seed": seed,
        "task": {
            "type": "custom",
            "name": "reviews",
            "description": "Say whether a short film review is positive or negative.",
            "path": str(write_reviews(inputs / "reviews.jsonl", 400)),
            "fields": {"review": "review"},
            "answer": "label",
            "choices": ["positive", "negative"],
            "max_length": 256,
        },
        "prompts": {
            "files": [str(write_prompts(inputs / "prompts.jsonl"))],
            "split": {"validation": 1, "test": 2},
        },
        "model": {
            "path": model or str(write_model(inputs / "model")),
            "dtype": "float32",
            "peft": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        },
        "train": {
            "steps": steps,
            "batch_size": 8,
            "row_tokens": 512,
            "learning_rate": 1e-3,
            "checkpoint": {"every_steps": every_steps},
            "workers": {"num": 1, "cpus": 1},
            "max_failures": 1000,
        },
        "tracking": {"type": "none"},
    }
