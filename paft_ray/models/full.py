"""Stores a model whose weights were all trained, as transformers does: tied weights once, shards.

Not covered: quantized weights.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARD = "2GB"
"""Largest file of weights; one is in memory at a time."""


def full_model_files(
    model: "PreTrainedModel",
    weights: "Mapping[str, torch.Tensor]",
    tokenizer: "PreTrainedTokenizerBase",
) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of a trained model's files.

    This node's temporary folder must have room for the whole model.

    Args:
        model: Provides configuration and buffers; its weights may be partitioned.
        weights: Gathered weights by their names in `model`.
        tokenizer: Stored with the model.
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
