"""Full fine-tuning: all weights of a model trained, and stored as a model of its own.

Covered: tied weights (trained and stored once), models whose checkpoints name or shape weights
otherwise than the code does (transformers turns them back), shards. Not covered: quantized weights.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARD = "2GB"
"""Largest file of weights, which is also what is read into memory at a time."""


def train_all_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """Let all weights of a loaded base be trained; returns the model."""
    model.requires_grad_(True)
    return model


def full_model_files(
    model: "PreTrainedModel",
    weights: "Mapping[str, torch.Tensor]",
    tokenizer: "PreTrainedTokenizerBase",
) -> Iterator[tuple[str, bytes]]:
    """A trained model as transformers stores it: names and contents of files, one after the other.

    They pass through this node's temporary folder, which must have room for the whole model.

    Args:
        model: The model, for its configuration and buffers; its weights may be partitioned.
        weights: Gathered weights by their names in `model`.
        tokenizer: Stored beside it.
    """
    state = dict(weights)
    buffers = set(dict(model.named_buffers()))
    state.update({n: value for n, value in model.state_dict().items() if n in buffers})
    with tempfile.TemporaryDirectory(prefix="paft-model-") as temporary:
        model.save_pretrained(temporary, state_dict=state, max_shard_size=SHARD)
        tokenizer.save_pretrained(temporary)
        del state
        for path in sorted(Path(temporary).iterdir()):
            yield path.name, path.read_bytes()
