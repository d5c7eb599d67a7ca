"""Activation checkpointing and compilation: the same training in less memory or time."""

from functools import partial
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError, one_line

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def checkpoint_activations(model: "PeftModel | PreTrainedModel") -> None:
    """Recompute the activations of each layer in the backward pass, with the same dropout masks.

    Checkpoints are non-reentrant, so that a frozen input needs no gradient.

    Raises:
        ConfigError: The model's layers cannot be checkpointed.
    """
    inner: Any = model
    try:
        # its older name, up to transformers 5.19
        enable = getattr(inner, "activation_checkpointing_enable", None)
        (enable or inner.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"train.activation_checkpointing: {one_line(error)}; set it to false"
        ) from error


def turn_off_dropout(model: "torch.nn.Module") -> None:
    """Let a model compute without dropout also while it is trained."""
    for module in model.modules():
        if type(module).__name__.startswith("Dropout"):
            module.p = 0.0  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def compile_layers(model: "torch.nn.Module", backend: str = "inductor") -> int:
    """Compile each layer with torch.compile, once for rows of any length.

    Attention inside sequences is not compiled: every cut of a row would need its own compilation,
    and a kernel for whole rows gains nothing by it. Call `checkpoint_activations` before: torch
    does not compile a layer that holds a checkpoint, so that is compiled inside its checkpoint.

    Returns:
        The number of layers.

    Raises:
        ConfigError: The model has no layers of the kind that transformers marks.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.modeling_layers import GradientCheckpointingLayer

    from paft_ray.models.attention import BLOCK_ATTENTION, VARLEN_ATTENTION, block_attention
    from paft_ray.models.varlen import varlen_attention

    for name, attention in (
        (BLOCK_ATTENTION, block_attention),
        (VARLEN_ATTENTION, varlen_attention),
    ):
        outside: Any = torch.compiler.disable(attention)
        AttentionInterface.register(name, outside)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            "train.compile: true, but this model has no layers to fuse; set it to false"
        )
    for layer in layers:
        if layer.gradient_checkpointing:
            plain = type(layer).forward.__wrapped__
            compiled = torch.compile(plain, dynamic=True, backend=backend)
            layer._gradient_checkpointing_func = partial(_checkpoint, compiled)
        else:
            layer.compile(dynamic=True, backend=backend)
    return len(layers)


def _checkpoint(compiled: Any, layer_forward: Any, *args: Any) -> Any:
    """Replace transformers' checkpoint of a layer's forward by one of the compiled forward."""
    from torch.utils.checkpoint import checkpoint

    call = partial(compiled, *layer_forward.args, **layer_forward.keywords)
    return checkpoint(call, *args, use_reentrant=False)
