"""Floating-point operations that training a model on a row needs, and what a device can do of them.

Counted: products of linear layers and of a mixture's chosen experts, forward, backward to their
inputs where the gradient goes on from there, and backward to weights that are trained; the output
head at positions that predict an answer; attention of each token to those before it in its own
sequence and window. Not counted: what is recomputed, padding, inert rows, norms, activations,
recurrences, convolutions, virtual tokens. In the first layer that is trained all inputs count,
though some need no gradient.

Shapes: T tokens of a row, U positions whose logits are needed.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paft_ray.models.cpu.kernels import FrozenLinear, onednn_is_quicker
from paft_ray.models.narrow import full_shape, outer_layers
from paft_ray.models.packing import Row

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_WINDOWED = {"full_attention": False, "sliding_attention": True}
"""Kinds of `layer_types` that compare tokens, and whether in a window."""
_COMPARES_NO_TOKENS = ("linear_attention", "mamba", "conv", "recurrent", "moe", "mlp")
_SOME_S = 0.05
"""Seconds after which a measurement of a product is repeated no more."""


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """FLOPs of one optimizer step's forward and backward passes, by what they are spent on."""

    per_token: float
    """In linear layers and experts."""
    per_answer_token: float
    """In the output head, for each position that predicts."""
    per_pair: tuple[tuple[int | None, float], ...]
    """Window and FLOPs for each token and one that it attends to, by window; None for no window."""

    def of_row(self, row: Row) -> float:
        """FLOPs that a row needs; 0 for an inert one."""
        if not row.members:
            return 0.0
        place_T = np.asarray(row.position_ids_T) + 1
        attended = (
            each * float(np.minimum(place_T, window or place_T).sum())
            for window, each in self.per_pair
        )
        tokens, positions = len(row.input_ids_T), len(row.keep_U)
        return self.per_token * tokens + self.per_answer_token * positions + sum(attended)


def model_flops(model: "PeftModel | PreTrainedModel") -> ModelFlops | None:
    """FLOPs of training this model; None where its structure does not say."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    config, decoder = base.config.get_text_config(), base.get_decoder()
    head = set() if (found := base.get_output_embeddings()) is None else set(found.modules())
    layers = outer_layers(decoder)
    trained = _first_trained(model, layers)
    in_layers = {module for layer in layers for module in layer.modules()}
    per_token = 0.0
    for number, layer in enumerate(layers):
        each = _linear(layer, number >= trained, config)
        if each is None:
            return None
        per_token += each
    outside = set(decoder.modules()) - in_layers - head
    per_token += sum(_product(module, True) for module in outside)
    per_position = sum(_product(module, True) for module in head)
    pairs = _pairs(config, len(layers), trained)
    return None if pairs is None else ModelFlops(per_token, per_position, pairs)


def _first_trained(model: torch.nn.Module, layers: list[torch.nn.Module]) -> int:
    """The first layer that the gradient reaches; 0 where something before all is trained."""
    inside = {id(p) for layer in layers for p in layer.parameters()}
    before: Any = getattr(model, "prompt_encoder", None)  # of prompt learning
    if before is not None or any(
        p.requires_grad and id(p) not in inside and "embed" in name
        for name, p in model.named_parameters()
    ):
        return 0
    found = (n for n, each in enumerate(layers) if any(p.requires_grad for p in each.parameters()))
    return next(found, len(layers))


def _linear(layer: torch.nn.Module, flows: bool, config: Any) -> float | None:
    """FLOPs per token of a layer's products; None where it is not known how many experts work."""
    total = 0.0
    for path, module in layer.named_modules():
        if re.search(r"(^|\.)experts\.\d", path):
            return None
        if re.search(r"(^|\.)original_module(\.|$)", path):
            continue  # peft trains a copy of it
        total += _product(module, flows)
        if "Expert" not in type(module).__name__:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            shape = full_shape(parameter)
            if len(shape) == 3 and "bias" not in name:
                chosen = getattr(config, "num_experts_per_tok", None)
                if not isinstance(chosen, int):
                    return None
                share = chosen / shape[0]
                total += share * shape.numel() * _each(flows, parameter.requires_grad)
    return total


def _product(module: torch.nn.Module, flows: bool) -> float:
    """FLOPs per token of a linear layer; 0 for any other module."""
    if isinstance(module, torch.nn.Linear):  # one in 4 bits has another shape
        weights = module.in_features * module.out_features
    elif type(module).__name__ in ("Conv1D", "FalconLinear"):
        weights = full_shape(module.weight).numel()  # pyright: ignore
    else:
        return 0.0
    return weights * _each(flows, module.weight.requires_grad)  # pyright: ignore


def _each(flows: bool, trained: bool) -> float:
    """FLOPs per token and weight."""
    return 2.0 + 2.0 * flows + 2.0 * trained


def _pairs(config: Any, layers: int, trained: int) -> tuple[tuple[int | None, float], ...] | None:
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "head_dim", None)
    if not isinstance(heads, int) or not isinstance(config.hidden_size, int):
        return None
    width = width or config.hidden_size // heads
    keys = getattr(config, "qk_head_dim", None) or width
    values = getattr(config, "v_head_dim", None) or width
    window = getattr(config, "sliding_window", None)
    used = window is not None and getattr(config, "use_sliding_window", True)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if used else "full_attention"] * layers
    found: dict[int | None, float] = {}
    for number, kind in enumerate(kinds):
        if kind.startswith(_COMPARES_NO_TOKENS):
            continue
        if kind not in _WINDOWED:
            return None
        within = window if _WINDOWED[kind] else None
        each = 2.0 * heads * (keys + values) * (3 if number >= trained else 1)
        found[within] = found.get(within, 0.0) + each
    return tuple(found.items())


def matrix_rate(
    device: torch.device,
    dtype: str,
    shape: tuple[int, int, int],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure how many FLOPs a second a device does in the quickest product of two matrices.

    Args:
        device: Where.
        dtype: Arithmetic: `float32` or `bfloat16`.
        shape: Rows of the input, and the two sides of the weight.
        clock: Seconds.
    """
    rows, one, other = shape
    kind, best = torch.bfloat16 if dtype == "bfloat16" else torch.float32, 0.0
    products: list[Callable[..., torch.Tensor]] = [torch.nn.functional.linear]
    if device.type == "cpu" and dtype == "float32" and onednn_is_quicker():
        products.append(FrozenLinear.apply)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator(device).manual_seed(0)  # leaves the process's own as it is
    with torch.no_grad():
        for wide, narrow in ((one, other), (other, one)):
            x, weight = (
                torch.randn(n, narrow, generator=generator, device=device, dtype=kind)
                for n in (rows, wide)
            )
            for product in products:
                best = max(best, 2.0 * rows * wide * narrow / _seconds(product, x, weight, clock))
    return best


def _seconds(
    product: Callable[..., torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    clock: Callable[[], float],
) -> float:
    """The shortest time that a product takes, of up to 24."""

    def now() -> float:
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    product(x, weight)
    best, spent = float("inf"), 0.0
    for _ in range(6):
        started = now()
        for _ in range(4):
            product(x, weight)
        took = now() - started
        best, spent = min(best, took / 4), spent + took
        if spent > _SOME_S:
            break
    return best
