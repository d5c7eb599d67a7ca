"""Attention inside the sequences of a packed row, and nowhere else.

A row of T tokens that holds many short sequences wants sum(L^2) products, not T^2 with most of
them masked. Here the row is cut into its sequences, which attend as a padded batch under a plain
causal mask (padding stands behind, where causal attention never looks), and put together again.
Registered with transformers' attention interface, so that it serves every model that uses it;
without `blocks` it is transformers' sdpa. On CPUs sequences up to 512 tokens are multiplied plainly
(`kernels.py`): torch's fused CPU kernel took 40% of a training step at 100 tokens, mostly for its
set-up, and at 512 tokens it takes twice the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from paft_ray.config.errors import ConfigError
from paft_ray.models.cpu.kernels import BlockAttention, attend_to_paths
from paft_ray.models.packing import Part

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
    keys_NK: tuple[torch.Tensor, ...] = ()
    """Where parts are shared, for each group the tokens that every part follows, and its own."""
    distance_NLK: tuple[torch.Tensor, ...] = ()
    """For each group how far a token stands behind each of these; negative where it does not. One
    for all parts (N of 1) where it is the same."""


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


def cut_parts(parts: Sequence[Part], device: torch.device) -> Blocks:
    """Cut a row in which sequences share parts; every part attends to those it follows."""
    paths: list[np.ndarray] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for index, part in enumerate(parts):
        own = np.arange(part.start, part.stop)
        paths.append(own if part.parent < 0 else np.concatenate([paths[part.parent], own]))
        groups.setdefault((_size(len(own)), _size(len(paths[-1]))), []).append(index)
    gathers, keys, distances, offset = [], [], [], 0
    back_T = np.zeros(max(part.stop for part in parts), np.int64)
    for members in groups.values():
        own = [np.arange(parts[i].start, parts[i].stop) for i in members]
        gather_NL, keys_NK = _padded(own), _padded([paths[i] for i in members])
        for number, tokens in enumerate(own):
            back_T[tokens] = offset + number * gather_NL.shape[1] + np.arange(len(tokens))
        first_N = np.array([len(paths[i]) - len(o) for i, o in zip(members, own, strict=True)])
        at_NL = first_N[:, None] + np.arange(gather_NL.shape[1])
        at_NL = at_NL[:1] if (first_N == first_N[0]).all() else at_NL
        distances.append(torch.from_numpy(at_NL[..., None] - np.arange(keys_NK.shape[1])))
        gathers.append(torch.from_numpy(gather_NL))
        keys.append(torch.from_numpy(keys_NK))
        offset += gather_NL.size
    on_device = (tuple(tensor.to(device) for tensor in own) for own in (gathers, keys, distances))
    gather, key, distance = on_device
    return Blocks(gather, torch.from_numpy(back_T).to(device), key, distance)


def _size(length: int) -> int:
    """Lengths of the same size share a batch."""
    return (length - 1).bit_length()


def _padded(indices: Sequence[np.ndarray]) -> np.ndarray:
    """[N, L], the last index repeated: such a query is dropped, such a key stands behind all."""
    longest = max(map(len, indices))
    return np.stack([np.pad(own, (0, longest - len(own)), mode="edge") for own in indices])


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
    if blocks.keys_NK:
        return _attend_parts(module, query, key, value, blocks, plain, **kwargs), None
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


def _attend_parts(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    plain: bool,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention of a row of shared parts, without gradients: [1, T, heads, D]."""
    window, scaling, outputs = kwargs.get("sliding_window"), kwargs.get("scaling"), []
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q_THD, k_THD, v_THD = (s[0].transpose(0, 1) for s in _as_autocast(query, key, value))
    for gather_NL, keys_NK, distance_NLK in zip(
        blocks.gather_NL, blocks.keys_NK, blocks.distance_NLK, strict=True
    ):
        hidden_NLK = distance_NLK < 0
        if window is not None:
            hidden_NLK |= distance_NLK >= window
        if plain and keys_NK.shape[1] <= _PLAIN_LENGTH:
            outputs.append(
                attend_to_paths(q_THD, k_THD, v_THD, gather_NL, keys_NK, hidden_NLK, scaling)
            )
        else:
            cut = (_take(query, gather_NL), _take(key, keys_NK), _take(value, keys_NK))
            seen = ~hidden_NLK[:, None].expand(len(gather_NL), -1, -1, -1)
            output, _ = sdpa_attention_forward(module, *cut, seen, **kwargs)
            outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, blocks.back_T)[None]


def _as_autocast(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Our own products are none that autocast knows."""
    if not torch.is_autocast_enabled("cpu"):
        return states
    return tuple(state.to(torch.get_autocast_dtype("cpu")) for state in states)


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
    query, key, value = _as_autocast(query, key, value)
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


def block_arguments(
    row_position_ids_T: np.ndarray, device: torch.device, parts: Sequence[Part] = ()
) -> Mapping[str, Any]:
    """What to hand to the model's forward for a packed row, besides ids and positions.

    Sequences that share parts are read without gradients only.

    The mask of one element only keeps transformers from building one that nobody reads.
    """
    return {
        "blocks": cut_parts(parts, device) if parts else cut_blocks(row_position_ids_T, device),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
    }


AttentionInterface.register(BLOCK_ATTENTION, block_attention)
AttentionMaskInterface.register(BLOCK_ATTENTION, sdpa_mask)


def takes_blocks(model: "PreTrainedModel") -> bool:
    """Whether a model calls its attention through transformers' interface, and sdpa serves it."""
    return bool(model._supports_attention_backend and model._supports_sdpa)
