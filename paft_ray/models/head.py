"""The output head: fp32 logits whatever the arithmetic, and long ones a piece at a time.

On GPUs under bf16 autocast the operands of its product are bf16 and the sums fp32, which tensor
cores compute; bf16 logits would be 0.06 apart near 16. Logits that would be large are made, reduced
to log-probabilities and dropped in chunks, and made again for the backward pass. Not covered: heads
with an adapter of their own, models that change what the head returns, and ZeRO 3, under which each
rank would fetch the head as often as its own row needs it.

Shapes: N positions, A answer tokens, I inputs of the head, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput

from paft_ray.models.cpu.kernels import linear

_MOST_LOGITS = {"cpu": 2**28, "cuda": 2**26}
"""Most numbers of a chunk. On CPUs, where the rows of a product may depend on their count, it is
above what rows of the usual length reach."""


class NarrowProduct(torch.autograd.Function):
    """`x` [N, I] times the transpose of a weight [V, I]: bf16 operands, fp32 sums and result."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_VI: torch.Tensor) -> torch.Tensor:
        narrow_NI = x.to(torch.bfloat16)
        ctx.save_for_backward(narrow_NI, weight_VI)
        ctx.dtypes = x.dtype, weight_VI.dtype
        return _product(narrow_NI, weight_VI.to(torch.bfloat16).t())

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight_VI = ctx.saved_tensors
        grad, (for_x, for_weight) = grad.to(torch.bfloat16), ctx.needs_input_grad
        grad_x = _product(grad, weight_VI.to(torch.bfloat16)).to(ctx.dtypes[0]) if for_x else None
        return grad_x, _product(grad.t(), x).to(ctx.dtypes[1]) if for_weight else None


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if one.device.type == "cuda":
        return torch.mm(one, other, out_dtype=torch.float32)
    return one.float() @ other.float()


def _multiplies_in_bf16(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether to: under bf16 autocast on NVIDIA GPUs, with a weight that is whole."""
    return (
        x.device.type == "cuda"
        and torch.version.hip is None
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and not hasattr(weight, "ds_id")
    )


class FullPrecisionLinear(torch.nn.Linear):
    """A linear layer whose output is fp32 also under autocast."""

    instead: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Computes what `forward` returns, while it is set."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `input` [..., in] to fp32 [..., out]."""
        return self.compute(input) if self.instead is None else self.instead(input)

    def compute(self, input: torch.Tensor) -> torch.Tensor:
        """Map `input` [..., in] to fp32 [..., out]."""
        narrow = _multiplies_in_bf16(input, self.weight)
        with torch.autocast(input.device.type, enabled=False):
            if not narrow:
                bias = None if self.bias is None else self.bias.float()
                return linear(input.float(), self.weight.float(), bias)
            flat: Any = NarrowProduct.apply(input.reshape(-1, input.shape[-1]), self.weight)
            output = flat.view(*input.shape[:-1], -1)
            return output if self.bias is None else output + self.bias


@dataclass(frozen=True, slots=True)
class Answers:
    """Answer tokens in the order of the positions that predict them; arrays, then tensors."""

    at_A: Any
    """Index of each token's position."""
    target_A: Any
    back_A: Any
    """Where each token of the row now is."""
    chunks: tuple[tuple[int, int, int, int], ...]
    """Of each chunk its first position and token, and one after its last ones."""

    @classmethod
    def of(cls, gather_A: np.ndarray, target_A: np.ndarray, positions: int, size: int) -> Self:
        """Sort tokens, and cut positions into chunks of a size."""
        order_A = np.argsort(gather_A, kind="stable")
        at_A = gather_A[order_A]
        starts = [*range(0, positions, size), positions]
        cuts = np.searchsorted(at_A, starts).tolist()
        chunks = zip(starts, cuts, starts[1:], cuts[1:], strict=False)
        return cls(at_A, target_A[order_A], np.argsort(order_A, kind="stable"), tuple(chunks))


def chunk_size(head: FullPrecisionLinear) -> int:
    """Return how many positions have as many logits as a chunk may have."""
    weight = head.weight
    return max(1, _MOST_LOGITS.get(weight.device.type, 2**26) // max(1, len(weight)))


def chunked_logprobs(
    head: FullPrecisionLinear,
    hidden_NI: torch.Tensor,
    answers: Answers,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Compute the log-probability of every answer token of a row: shape [A].

    Args:
        head: The head.
        hidden_NI: What it reads at each position.
        answers: The tokens, on the head's device.
        temperature: What logits are divided by.
    """
    parts = []
    for first, begin, last, end in answers.chunks:
        at, target = answers.at_A[begin:end] - first, answers.target_A[begin:end]
        part = partial(_logprobs, head, at_A=at, target_A=target, temperature=temperature)
        if torch.is_grad_enabled():
            part = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False)
        parts.append(part(hidden_NI[first:last]))
    return torch.cat(parts)[answers.back_A]


def _logprobs(
    head: FullPrecisionLinear,
    hidden_NI: torch.Tensor,
    at_A: torch.Tensor,
    target_A: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    logits_NV = head.compute(hidden_NI)
    if temperature != 1:
        logits_NV = logits_NV / temperature
    return logits_NV[at_A, target_A] - logits_NV.logsumexp(-1)[at_A]


def long_head(model: Any, positions: int) -> FullPrecisionLinear | None:
    """Return a model's head where so many positions have to be read in chunks, and can be."""
    inner = getattr(model, "module", model)
    head = getattr(inner, "get_output_embeddings", lambda: None)()
    if type(head) is not FullPrecisionLinear or positions <= chunk_size(head):
        return None
    base = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    known = head.__dict__.get("_returns_logits")
    if known is None:
        known = head.__dict__["_returns_logits"] = _returns_what_its_head_does(base, head)
    return head if known and not hasattr(head.weight, "ds_id") else None


class _Hidden(BaseModelOutput):
    """What any decoder returns: all that a family adds to its states is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _returns_what_its_head_does(model: Any, head: FullPrecisionLinear) -> bool:
    """Try whether a model's logits are its head's, neither scaled nor capped; reads no weights."""
    given = torch.linspace(-100, 100, 2 * head.out_features).view(1, 2, -1)
    hidden = torch.zeros(1, 2, head.in_features)
    decoder, keep = model.base_model, torch.arange(2)
    decoder.forward = lambda *_, **__: _Hidden(last_hidden_state=hidden)  # pyright: ignore
    head.instead = lambda _: given
    try:
        with torch.no_grad():
            output = model(input_ids=torch.zeros_like(keep)[None], logits_to_keep=keep)
        return output.logits.shape == given.shape and torch.equal(output.logits.cpu(), given)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        head.instead = None
        del decoder.forward
