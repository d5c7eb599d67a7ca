"""What a training keeps of each token until the backward pass, counted from a model's structure."""

from typing import Any

from paft_ray.models.generation import kept_numbers


def saved_numbers(model: Any, text: Any) -> int:
    """Numbers that one token leaves for the backward pass, over all layers.

    A layer keeps what its two norms read, queries and attention's result, the gate, what passes it
    and their product's other factor; layers that are trained or adapted keep their inputs besides,
    which those of one block share. Attention keeps no matrix of scores.
    """
    hidden, heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", 0) or 0)
    width = heads * int(getattr(text, "head_dim", None) or hidden // max(1, heads))
    inputs = {
        (path.rpartition(".")[0], module.in_features)
        for path, module in model.named_modules()
        if isinstance(getattr(module, "in_features", None), int)
        and any(weight.requires_grad for weight in module.parameters())
        and "lora_" not in path
    }
    per_layer = 2 * hidden + 2 * width + 3 * _inner(text)
    read = sum(features for _, features in inputs)
    return int(text.num_hidden_layers) * per_layer + kept_numbers(text) + read


def _inner(text: Any) -> int:
    """Width of what a token passes in the middle of a layer; of all experts that it goes to."""
    narrow, chosen, shared = (
        getattr(text, name, None)
        for name in ("moe_intermediate_size", "num_experts_per_tok", "n_shared_experts")
    )
    if isinstance(narrow, int) and isinstance(chosen, int):
        return narrow * (chosen + (shared if isinstance(shared, int) else 0))
    found = getattr(text, "intermediate_size", None) or 4 * int(text.hidden_size)
    return max(found) if isinstance(found, list | tuple) else int(found)
