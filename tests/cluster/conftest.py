"""What the tests of clusters share: a head that requires a token, and a small run."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from heads import Head, running_head


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with two CPUs on loopback, which requires a token."""
    with running_head(cpus=2, token=secrets.token_hex(32)) as head:
        yield head


@pytest.fixture
def small_run(tmp_path: Path, tiny_model: Path, review_file: Path) -> dict[str, Any]:
    """The configuration of a run of half a minute; all its paths are absolute."""
    prompts = tmp_path / "prompts.jsonl"
    texts = [
        "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
        "Text: {review}\nSentiment:", "How does this feel? {review} ->", "{review} || mood ||",
        "Classify: {review} =", "<film> {review} </film>", "Say the attitude of: {review}\nAnswer:",
    ]  # fmt: skip
    prompts.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return {
        "name": "small",
        "storage": str(tmp_path / "storage"),
        "task": {
            "type": "custom", "name": "reviews", "path": str(review_file),
            "description": "Say whether a short film review is positive or negative.",
            "fields": {"review": "review"}, "answer": "label",
            "choices": ["positive", "negative"], "max_length": 200,
            "validation_share": 0.2, "test_share": 0.2,
        },
        "prompts": {"files": [str(prompts)], "split": {"validation": 2, "test": 2}},
        "model": {
            "path": str(tiny_model), "dtype": "float32",
            "peft": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        },
        "train": {
            "steps": 20, "batch_size": 4, "row_tokens": 512, "learning_rate": 1e-2,
            "checkpoint": {"every_steps": 5}, "workers": {"num": 1, "cpus": 1},
        },
        "evaluation": {"examples": 10, "workers": {"num": 1, "cpus": 1}},
        "variants": [{"type": "paft"}],
    }  # fmt: skip
