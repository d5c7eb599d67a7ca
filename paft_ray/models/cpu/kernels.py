"""CPU kernels of a decoder, forward and backward: frozen linear layers and short attention.

In fp32 torch multiplies with MKL, which reaches 100 GFLOP/s on an AMD core; oneDNN, called through
torch.compile's operator, reaches 230 with similar rounding errors. In bf16 torch uses oneDNN.
Attention keeps its weights once, in the dtype they are used in.

Tried and left out, each below 3% of a step at 135M: RMSNorm in fewer passes, a gated MLP and LoRA
as one function each, rotation inside the attention function.

Shapes: T tokens of a row, N sequences of L tokens each, K tokens that these attend to, G groups of
R query heads that share keys, D head width, I input and O output features of a layer.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def onednn_is_quicker() -> bool:
    """Return whether oneDNN computes fp32: on CPUs with AVX-512, which MKL uses on Intel only."""
    return _ONEDNN is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"


class FrozenLinear(torch.autograd.Function):
    """`x` [N, I] times the transpose of a weight [O, I] that is not trained: fp32, oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight_OI
        return _ONEDNN(x, weight_OI, None, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return _ONEDNN(grad, ctx.weight.t(), None, "none", [], ""), None


def linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """Compute `torch.nn.functional.linear`, by the quicker library where that is possible.

    It is not possible under autocast or torch.compile, for trained weights, for those of ZeRO 3,
    whose shards are together only while their module runs, and for weights with gaps between rows,
    for which oneDNN uses code that is a hundred times slower.
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight_OI.dtype != torch.float32
        or weight_OI.requires_grad
        or hasattr(weight_OI, "ds_id")
        or not weight_OI.is_contiguous()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not onednn_is_quicker()
    ):
        return torch.nn.functional.linear(x, weight_OI, bias_O)
    # flat, since more dimensions give a view, which cannot be changed in place
    flat: Any = FrozenLinear.apply(x.reshape(-1, x.shape[-1]), weight_OI)
    output = flat.view(*x.shape[:-1], -1)
    return output if bias_O is None else output + bias_O


def use_quick_products(model: torch.nn.Module) -> None:
    """Replace the forward of a model's linear layers by `linear`, also for later adapters."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = MethodType(_forward, module)


def _forward(self: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return linear(input, self.weight, self.bias)


class BlockAttention(torch.autograd.Function):
    """Causal attention inside each sequence of a row; softmax in fp32.

    Takes queries [T, G * R, D], keys and values [T, G, D], `gather_NL` and `back_T` of `Blocks`, a
    factor of the scores, and the number of tokens that a query attends to, itself included.
    Returns [T, G * R, D].
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gathers: Sequence[torch.Tensor],
        back_T: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        heads, groups = query.shape[1], key.shape[1]
        saved, outputs = [], []
        for gather_NL in gathers:
            q, k, v = (_by_group(_take(s, gather_NL), groups) for s in (query, key, value))
            mask = _causal_mask(gather_NL.shape[1], window, q).repeat(heads // groups, 1)
            weights = torch.baddbmm(mask, q, k.mT, alpha=scaling).softmax(-1)
            outputs.append(_by_token(torch.bmm(weights, v), gather_NL, heads))
            saved += [q, k, v, weights]
        ctx.save_for_backward(back_T, *saved)
        ctx.gathers, ctx.heads, ctx.groups, ctx.scaling = gathers, heads, groups, scaling
        return torch.cat(outputs).index_select(0, back_T)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_THD: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        back_T, *saved = ctx.saved_tensors
        sizes = [gather_NL.numel() for gather_NL in ctx.gathers]
        # zeros, so that padding contributes no gradient
        flat = grad_THD.new_zeros(sum(sizes), *grad_THD.shape[1:]).index_copy_(0, back_T, grad_THD)
        grads: tuple[list[torch.Tensor], ...] = ([], [], [])
        for number, gather_NL in enumerate(ctx.gathers):
            q, k, v, weights = saved[4 * number : 4 * number + 4]
            grad = flat.split(sizes)[number].unflatten(0, gather_NL.shape)
            grad = _by_group(grad, ctx.groups)
            grad_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(grad, v.mT), weights, -1, weights.dtype
            )
            grad_q = torch.bmm(grad_scores, k).mul_(ctx.scaling)
            grad_k = torch.bmm(grad_scores.mT, q).mul_(ctx.scaling)
            grads[0].append(_by_token(grad_q, gather_NL, ctx.heads))
            grads[1].append(_by_token(grad_k, gather_NL, ctx.groups))
            grads[2].append(_by_token(torch.bmm(weights.mT, grad), gather_NL, ctx.groups))
        return (
            *(torch.cat(parts).index_select(0, back_T) for parts in grads),
            None,
            None,
            None,
            None,
        )


def attend_to_paths(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gather_NL: torch.Tensor,
    keys_NK: torch.Tensor,
    hidden_NLK: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Compute attention of parts of a row to the paths that they end, as autograd can follow.

    Args:
        query: [T, G * R, D].
        key: [T, G, D].
        value: [T, G, D].
        gather_NL: The tokens of every part.
        keys_NK: The tokens of every path, which ends with the part.
        hidden_NLK: Keys that a token does not attend to; N of 1 where that is the same for all.
        scaling: Factor of the scores.

    Returns:
        [N * L, G * R, D].
    """
    heads, groups = query.shape[1], key.shape[1]
    repeats = heads // groups
    q = _by_group(_take(query, gather_NL), groups)
    k, v = (_by_group(_take(states, keys_NK), groups) for states in (key, value))
    mask = q.new_zeros(hidden_NLK.shape).masked_fill_(hidden_NLK, float("-inf"))
    mask = mask.repeat(1, repeats, 1)  # [N or 1, R * L, K]
    if len(mask) > 1:
        mask = mask.repeat_interleave(groups, 0)
    weights = torch.baddbmm(mask, q, k.mT, alpha=scaling).softmax(-1)
    return _by_token(torch.bmm(weights, v), gather_NL, heads)


def _take(states_THD: torch.Tensor, gather_NL: torch.Tensor) -> torch.Tensor:
    """Gather [T, H, D] to [N, L, H, D]."""
    return states_THD.index_select(0, gather_NL.flatten()).unflatten(0, gather_NL.shape)


def _by_group(states_NLHD: torch.Tensor, groups: int) -> torch.Tensor:
    """Reshape [N, L, G * R, D] to [N * G, R * L, D], one product for heads that share keys."""
    n, length, heads, width = states_NLHD.shape
    grouped = states_NLHD.view(n, length, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
    return grouped.reshape(n * groups, heads // groups * length, width)


def _by_token(states: torch.Tensor, gather_NL: torch.Tensor, heads: int) -> torch.Tensor:
    """Reshape [N * G, R * L, D] back to [N * L, heads, D]."""
    n, length = gather_NL.shape
    return states.view(n, heads, length, -1).transpose(1, 2).flatten(0, 1)


def _causal_mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Return what is added to scores: 0, or minus infinity for hidden keys; [L, L]."""
    at = torch.arange(length, device=like.device)
    distance = at[:, None] - at[None, :]
    hidden = (distance < 0) | (distance >= (window or length))
    return like.new_zeros(length, length).masked_fill_(hidden, float("-inf"))
