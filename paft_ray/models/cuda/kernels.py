"""Layers in fewer passes over memory on GPUs, forward and backward: RMS norms, linear with LoRA.

In bf16 a norm of transformers converts to fp32 and back and reads its input six times; peft writes
what LoRA adds, scales it and adds it, each a pass over the layer's output. Here a norm is one
kernel, and what LoRA adds is accumulated by the product that computes it. Under torch.compile,
ZeRO 3, DoRA, several adapters at once or weights in 4 bits layers stay as they were.

Shapes: N tokens, I input and O output features of a layer, R rank of its adapter.
"""

import copy
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, rms_norm

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class AdaptedLinear(torch.autograd.Function):
    """A frozen linear layer with LoRA: `x W^T + bias + scale * dropped A^T B^T`."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: torch.Tensor,
        dropped_NI: torch.Tensor | None,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Compute it; `dropped_NI` is `x_NI` after dropout, None without."""
        read_NI = x_NI if dropped_NI is None else dropped_NI
        a_RI, b_OR = a_RI.to(x_NI.dtype), (b_OR * scale).to(x_NI.dtype)
        inner_NR = read_NI @ a_RI.t()
        ctx.save_for_backward(read_NI, inner_NR, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.dropped = scale, dropped_NI is not None
        return linear(x_NI, weight_OI, bias_O).addmm_(inner_NR, b_OR.t())

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_NO: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return gradients of what is trained, in fp32, and of the input."""
        read_NI, inner_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        inner_grad_NR = grad_NO @ b_OR
        a_grad = _product_in_fp32(inner_grad_NR.t(), read_NI)
        b_grad = _product_in_fp32(grad_NO.t(), inner_NR) * ctx.scale
        x_grad = grad_NO @ weight_OI if ctx.needs_input_grad[0] else None
        dropped_grad = None
        if ctx.dropped and ctx.needs_input_grad[1]:
            dropped_grad = inner_grad_NR @ a_RI
        elif x_grad is not None and not ctx.dropped:
            x_grad.addmm_(inner_grad_NR, a_RI)
        return x_grad, dropped_grad, None, None, a_grad, b_grad, None


def _product_in_fp32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def use_fused_norms(model: "PreTrainedModel") -> None:
    """Let RMS norms of a model be one kernel each where they are read in bf16 on a GPU."""
    plain: dict[type, bool] = {}
    for module in model.modules():
        kind = type(module)
        if _epsilon(module) is None:
            continue
        if kind not in plain:
            plain[kind] = _is_plain(module)
        if plain[kind]:
            module.forward = MethodType(_fused_norm, module)


def _epsilon(module: torch.nn.Module) -> float | None:
    """The epsilon of an RMS norm with weights; None for other modules."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.nn.Parameter):
        return None
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether a norm computes what torch's does: those of some models add 1 to their weights."""
    alike: Any = copy.deepcopy(module).to_empty(device="cpu").float()
    generator, shape = torch.Generator().manual_seed(0), alike.weight.shape
    with torch.no_grad():
        alike.weight.copy_(torch.randn(shape, generator=generator))
        x = torch.randn(3, *shape, generator=generator)
        found = type(module).forward(alike, x)
        wanted = rms_norm(x, shape, alike.weight, _epsilon(module))
    return isinstance(found, torch.Tensor) and torch.allclose(found, wanted, atol=1e-5)


def _fused_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = self.weight
    if (
        not _fuses(hidden_states)
        or hidden_states.dtype != weight.dtype
        or weight.requires_grad
        or hasattr(weight, "ds_id")
    ):
        return type(self).forward(self, hidden_states)
    with torch.autocast(hidden_states.device.type, enabled=False):
        return rms_norm(hidden_states, weight.shape, weight, _epsilon(self))


def use_fused_lora(model: "PeftModel") -> None:
    """Let linear layers with LoRA accumulate what it adds, where they run on a GPU in bf16."""
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is torch.nn.Linear:
            module.forward = MethodType(_fused_lora, module)


def _fused_lora(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    base, active = self.base_layer, [n for n in self.active_adapters if n in self.lora_A]
    if (
        not _fuses(x)
        or args
        or kwargs
        or self.disable_adapters
        or self.merged
        or len(active) != 1
        or active[0] in self.lora_variant
        or base.weight.requires_grad
        or base.weight.dtype != x.dtype
        or hasattr(base.weight, "ds_id")
        or self.lora_B[active[0]].bias is not None
    ):
        return type(self).forward(self, x, *args, **kwargs)
    [name] = active
    dropout, flat = self.lora_dropout[name], x.reshape(-1, x.shape[-1])
    dropped = dropout(flat) if self.training and getattr(dropout, "p", 0.0) else None
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    with torch.autocast(x.device.type, enabled=False):
        out = AdaptedLinear.apply(flat, dropped, base.weight, base.bias, a, b, self.scaling[name])
    return out.view(*x.shape[:-1], -1)  # pyright: ignore[reportAttributeAccessIssue]


def _fuses(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
