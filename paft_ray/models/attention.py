"""Attention that stays inside each sequence of a packed row.

A row of T tokens that holds many short sequences needs sum(L^2) products; a masked product of T^2
wastes most of its work. The row is cut into its sequences, which attend as a padded batch under a
causal mask, and is put together again. Every model that uses transformers' attention interface can
use it; without `blocks` it is transformers' sdpa. On CPUs sequences up to 512 tokens use
`cpu/kernels.py`: torch's fused kernel took 40% of a training step at 100 tokens, mostly for set-up,
and takes twice the time at 512 tokens.
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
VARLEN_ATTENTION = "paft_varlen"
"""Name of the other attention inside sequences, see `varlen`."""
_PLAIN_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Blocks:
    """The sequences of a packed row or, where these share tokens, its parts.

    Sequences of similar length form a group, computed as a batch of N times L tokens. All fields
    are arrays where a row is cut, and tensors on the device where it is read, see `transfer`.
    """

    gather_NL: tuple[Any, ...]
    """For each group the indices of its sequences' tokens; the last one is repeated as padding."""
    back_T: Any
    """Index of each token of the row in the concatenated flattened groups."""
    keys_NK: tuple[Any, ...] = ()
    """With shared parts, for each group the indices of the tokens that every part attends to."""
    distance_NLK: tuple[Any, ...] = ()
    """For each group how far each token stands behind each of `keys_NK`; negative where it stands
    before it. N is 1 where all parts of the group agree."""


def cut_blocks(position_ids_T: np.ndarray) -> Blocks:
    """Cut a row into its sequences, which begin where `position_ids_T` is 0."""
    starts = np.flatnonzero(position_ids_T == 0)
    lengths = np.diff(starts, append=len(position_ids_T))
    classes = np.asarray([_length_class(length) for length in lengths.tolist()])
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
        gathers.append(gather_NL)
    return Blocks(tuple(gathers), back_T)


@dataclass(frozen=True, slots=True)
class Spans:
    """The sequences of a packed row, for kernels that read where each begins."""

    bounds: Any
    """int32 [N + 1]: the first token of every sequence, and the row's length."""
    longest: int
    """Tokens of the longest sequence."""


def find_spans(position_ids_T: np.ndarray) -> Spans:
    """Find the sequences of a row, which begin where `position_ids_T` is 0."""
    starts = np.flatnonzero(position_ids_T == 0)
    bounds = np.append(starts, len(position_ids_T)).astype(np.int32)
    return Spans(bounds, int(np.diff(bounds).max()))


def cut_parts(parts: Sequence[Part]) -> Blocks:
    """Cut a row in which sequences share parts; every part attends to those it follows."""
    paths: list[np.ndarray] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for index, part in enumerate(parts):
        own = np.arange(part.start, part.stop)
        paths.append(own if part.parent < 0 else np.concatenate([paths[part.parent], own]))
        classes = (_length_class(len(own)), _length_class(len(paths[-1])))
        groups.setdefault(classes, []).append(index)
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
        distances.append(at_NL[..., None] - np.arange(keys_NK.shape[1]))
        gathers.append(gather_NL)
        keys.append(keys_NK)
        offset += gather_NL.size
    return Blocks(tuple(gathers), back_T, tuple(keys), tuple(distances))


def _length_class(length: int) -> int:
    """A number that is equal for lengths that share a batch."""
    return (length - 1).bit_length()


def _padded(indices: Sequence[np.ndarray]) -> np.ndarray:
    """Stack to [N, L], padded by the last index: such queries are dropped, such keys are masked."""
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
    """Compute attention for transformers: [1, heads, T, D] each to [1, T, heads, D].

    Raises:
        ConfigError: The model adds a position bias, and the row has several sequences.
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
    """Compute attention of a row of shared parts: [1, T, heads, D]."""
    window, outputs = kwargs.get("sliding_window"), []
    scaling = _scaling(query, kwargs.get("scaling"))
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
            mask = ~hidden_NLK[:, None].expand(len(gather_NL), -1, -1, -1)
            output, _ = sdpa_attention_forward(module, *cut, mask, **kwargs)
            outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, blocks.back_T)[None]


def _as_autocast(*states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Convert to autocast's dtype, which autocast does not do for our kernels."""
    if not torch.is_autocast_enabled("cpu"):
        return states
    return tuple(state.to(torch.get_autocast_dtype("cpu")) for state in states)


def _scaling(query: torch.Tensor, scaling: float | None) -> float:
    return query.shape[-1] ** -0.5 if scaling is None else scaling


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Compute attention of a row with the CPU kernels, in autocast's precision.

    Args:
        query: [T, heads, D].
        key: [T, groups, D]: the heads of a group read the same keys (grouped-query attention).
        value: [T, groups, D].
        blocks: The cut row.
        scaling: Factor of the scores; one over the root of D by default.
        sliding_window: Number of tokens that a query attends to, itself included.

    Returns:
        [T, heads, D].
    """
    attended: Any = BlockAttention.apply(
        *_as_autocast(query, key, value),
        blocks.gather_NL,
        blocks.back_T,
        _scaling(query, scaling),
        sliding_window,
    )
    return attended


def _one_group(gather_NL: torch.Tensor) -> Blocks:
    """Return the blocks of one group that was taken out of its row with its padding."""
    back_T = torch.arange(gather_NL.numel(), device=gather_NL.device)
    return Blocks((back_T.view(gather_NL.shape),), back_T)


def _take(states: torch.Tensor, gather_NL: torch.Tensor) -> torch.Tensor:
    """Gather [1, heads, T, D] to [N, heads, L, D]."""
    taken = states[0].index_select(1, gather_NL.flatten())
    return taken.unflatten(1, gather_NL.shape).transpose(0, 1)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask of a sliding window, or None where no sequence is longer than it."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def inner_attention(model: Any) -> str:
    """Return which attention inside sequences a model uses now: a name of this file, or none.

    The model may be adapted, or inside an engine. With a prompt-learning adapter it uses none: its
    virtual tokens add keys before those of a row.
    """
    inner = getattr(model, "module", model)
    adapter, config = getattr(inner, "active_peft_config", None), getattr(inner, "config", None)
    if adapter is not None and adapter.is_prompt_learning and inner.has_active_enabled_adapter:
        return ""
    name = getattr(config, "_attn_implementation", None)
    return name if name in (BLOCK_ATTENTION, VARLEN_ATTENTION) else ""


def attends_in_blocks(model: Any) -> bool:
    """Return whether a model uses an attention inside sequences now, see `inner_attention`."""
    return bool(inner_attention(model))


def block_arguments(
    position_ids_T: np.ndarray, parts: Sequence[Part] = (), kind: str = BLOCK_ATTENTION
) -> Mapping[str, Any]:
    """Return the arguments of a model's forward for a packed row, besides ids and positions.

    Rows with shared parts are cut into blocks by either attention. The mask of one element keeps
    transformers from building one that is not used.

    Args:
        position_ids_T: Positions of the row's tokens.
        parts: See `Row`.
        kind: `inner_attention` of the model.
    """
    if parts:
        blocks: Any = cut_parts(parts)
    elif kind == VARLEN_ATTENTION:
        blocks = find_spans(position_ids_T)
    else:
        blocks = cut_blocks(position_ids_T)
    return {"blocks": blocks, "attention_mask": np.ones((1, 1, 1, 1), bool)}


AttentionInterface.register(BLOCK_ATTENTION, block_attention)
AttentionMaskInterface.register(BLOCK_ATTENTION, sdpa_mask)


def takes_blocks(model: "PreTrainedModel") -> bool:
    """Return whether a model uses transformers' attention interface and supports sdpa."""
    return bool(model._supports_attention_backend and model._supports_sdpa)
