"""Attention inside the sequences of a packed row, and nowhere else.

A row of T tokens that holds many short sequences wants sum(L^2) products, not T^2 with most of
them masked. Here the row is cut into its sequences, which attend as a padded batch under a plain
causal mask (padding stands behind, where causal attention never looks), and put together again.
Registered with transformers' attention interface, so that it serves every model that uses it;
without `blocks` it is transformers' sdpa. On CPUs sequences up to 512 tokens are multiplied plainly
(`kernels.py`): torch's fused CPU kernel took 40% of a training step at 100 tokens, mostly for its
set-up, and at 512 tokens it takes twice the time.
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
from paft_ray.modeling.kernels import BlockAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK_ATTENTION = "paft_block_sdpa"
"""Name of this attention in `attn_implementation`."""
_PLAIN_LENGTH = 512


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
    plain = query.device.type == "cpu" and not kwargs.get("dropout")
    if plain and max(gather_NL.shape[1] for gather_NL in blocks.gather_NL) <= _PLAIN_LENGTH:
        states = (part[0].transpose(0, 1) for part in (query, key, value))
        return attend(*states, blocks=blocks, **kwargs)[None], None
    outputs = []
    for gather_NL in blocks.gather_NL:
        cut = (_take(query, gather_NL), _take(key, gather_NL), _take(value, gather_NL))
        length = gather_NL.shape[1]
        if plain and length <= _PLAIN_LENGTH:
            flat = (part.transpose(1, 2).flatten(0, 1) for part in cut)
            outputs.append(attend(*flat, blocks=_one_group(gather_NL), **kwargs))
        else:
            mask = _window_mask(length, kwargs.get("sliding_window"), gather_NL.device)
            output, _ = sdpa_attention_forward(module, *cut, mask, **kwargs)
            outputs.append(output.flatten(0, 1))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return flat.index_select(0, blocks.back_T)[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Attention of a row on a CPU by our own products, in autocast's precision.

    Args:
        query: [T, heads, D].
        key: [T, groups, D]: the heads of a group read the same keys (grouped-query attention).
        value: [T, groups, D].
        blocks: How the row falls apart.
        scaling: Of the scores; one over the root of D by default.
        sliding_window: Tokens that a query sees, its own included.

    Returns:
        [T, heads, D].
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Any = BlockAttention.apply(
        query, key, value, blocks.gather_NL, blocks.back_T, scaling, sliding_window
    )
    return attended


def _one_group(gather_NL: torch.Tensor) -> Blocks:
    """The blocks of a group that was taken out of its row, padding and all."""
    back_T = torch.arange(gather_NL.numel(), device=gather_NL.device)
    return Blocks((back_T.view(gather_NL.shape),), back_T)


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
