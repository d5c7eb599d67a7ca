"""Attention inside the sequences of a packed row, and nowhere else.

A row of T tokens that holds many short sequences wants sum(L^2) products, not T^2 with most of
them masked. Here the row is cut into its sequences, which attend as a padded batch under a plain
causal mask (padding stands behind, where causal attention never looks), and put together again.
Registered with transformers' attention interface, so that it serves every model that uses it;
without `blocks` it is transformers' sdpa. On CPUs short sequences are multiplied plainly: torch's
fused CPU kernel took 40% of a training step, with these sizes mostly for its set-up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from paft_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK_ATTENTION = "paft_block_sdpa"
"""Name of this attention in `attn_implementation`."""
_PLAIN_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a row falls apart into sequences.

    Sequences of like length share a batch; N sequences and L tokens of the longest differ by group.
    """

    gather_NL: tuple[torch.Tensor, ...]
    """For each group the row's tokens in every sequence, the last one repeated as padding."""
    back_T: torch.Tensor
    """Where each token of the row stands in the flattened groups, one after the other."""


def cut_blocks(position_ids_T: np.ndarray, device: torch.device) -> Blocks:
    """Cut a row where its positions restart.

    Args:
        position_ids_T: Positions, 0 at the first token of every sequence.
        device: Where the row will be read.
    """
    starts = np.flatnonzero(position_ids_T == 0)
    lengths = np.diff(starts, append=len(position_ids_T))
    classes = np.ceil(np.log2(lengths)).astype(int)
    gathers, back_T, offset = [], np.zeros(len(position_ids_T), np.int64), 0
    for size in np.unique(classes):
        members = np.flatnonzero(classes == size)
        longest = int(lengths[members].max())
        inside_L = np.arange(longest)
        valid_NL = inside_L[None] < lengths[members, None]
        gather_NL = starts[members, None] + np.minimum(inside_L[None], lengths[members, None] - 1)
        flat = offset + np.arange(gather_NL.size).reshape(gather_NL.shape)
        back_T[gather_NL[valid_NL]] = flat[valid_NL]
        offset += gather_NL.size
        gathers.append(torch.from_numpy(gather_NL).to(device))
    return Blocks(tuple(gathers), torch.from_numpy(back_T).to(device))


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: [1, heads, T, D] each to [1, T, heads, D].

    Raises:
        ConfigError: The model adds a bias by position, and the row has several sequences.
    """
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("position_bias") is not None:
        if sum(len(gather_NL) for gather_NL in blocks.gather_NL) > 1:
            raise ConfigError(
                "train.packing: true, but this model adds a bias by position to its attention, "
                "which a packed row cannot carry: set it to false"
            )
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    outputs = []
    for gather_NL in blocks.gather_NL:
        cut = (_take(query, gather_NL), _take(key, gather_NL), _take(value, gather_NL))
        length = gather_NL.shape[1]
        if query.device.type == "cpu" and length <= _PLAIN_LENGTH and not kwargs.get("dropout"):
            output = _plain_attention(*cut, **kwargs)
        else:
            mask = _window_mask(length, kwargs.get("sliding_window"), gather_NL.device)
            output, _ = sdpa_attention_forward(module, *cut, mask, **kwargs)
        outputs.append(output.flatten(0, 1))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return flat.index_select(0, blocks.back_T)[None], None


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Causal attention, [N, heads, L, D] each to [N, L, heads, D]; softmax in fp32.

    The heads of a group read the same keys in one product (grouped-query attention).
    """
    n, heads, length, width = query.shape
    groups = key.shape[1]
    grouped = query.reshape(n * groups, heads // groups * length, width)
    grouped = grouped * (width**-0.5 if scaling is None else scaling)
    scores = torch.bmm(grouped, key.reshape(n * groups, length, width).transpose(1, 2))
    scores = scores.view(n, heads, length, length).float()
    at = torch.arange(length, device=query.device)
    distance = at[:, None] - at[None, :]
    hidden = (distance < 0) | (distance >= (sliding_window or length))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(value.dtype)
    output = torch.bmm(
        weights.view(n * groups, heads // groups * length, length),
        value.reshape(n * groups, length, value.shape[-1]),
    )
    return output.view(n, heads, length, -1).transpose(1, 2)


def _take(states: torch.Tensor, gather_NL: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, D] to [N, heads, L, D]."""
    taken = states[0].index_select(1, gather_NL.flatten())
    return taken.unflatten(1, gather_NL.shape).transpose(0, 1)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """The causal mask of a sliding window where sequences are longer than it, else none."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def attends_in_blocks(model: Any) -> bool:
    """Whether a model was loaded with this attention; it may be adapted, or inside an engine.

    With a prompt-learning adapter it does not: keys of virtual tokens stand before those of a row.
    """
    inner = getattr(model, "module", model)
    adapter, config = getattr(inner, "active_peft_config", None), getattr(inner, "config", None)
    if adapter is not None and adapter.is_prompt_learning and inner.has_active_enabled_adapter:
        return False
    return getattr(config, "_attn_implementation", None) == BLOCK_ATTENTION


def block_arguments(row_position_ids_T: np.ndarray, device: torch.device) -> Mapping[str, Any]:
    """What to hand to the model's forward for a packed row, besides ids and positions.

    The mask of one element only keeps transformers from building one that nobody reads.
    """
    return {
        "blocks": cut_blocks(row_position_ids_T, device),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
    }


AttentionInterface.register(BLOCK_ATTENTION, block_attention)
AttentionMaskInterface.register(BLOCK_ATTENTION, sdpa_mask)


def takes_blocks(model: "PreTrainedModel") -> bool:
    """Whether a model calls its attention through transformers' interface, and sdpa serves it."""
    return bool(model._supports_attention_backend and model._supports_sdpa)
