"""Ways to run the same training with less memory, or in less time."""

from functools import partial
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError, one_line

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def checkpoint_activations(model: "PeftModel | PreTrainedModel") -> None:
    """Compute the activations of each layer again in the backward pass instead of keeping them.

    Dropout masks are the same the second time. Checkpoints are non-reentrant, so that a frozen
    input needs no gradient.

    Raises:
        ConfigError: The model's layers cannot be checkpointed.
    """
    inner: Any = model
    try:
        inner.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"train.activation_checkpointing: {one_line(error)}; set it to false"
        ) from error


def compile_layers(model: "torch.nn.Module", backend: str = "inductor") -> int:
    """Let torch.compile fuse each layer; rows of any length share what was compiled.

    Attention in blocks stays outside: every cut of a row would be compiled anew. Comes after
    `checkpoint_activations`: torch leaves a layer uncompiled that holds a checkpoint, so it is
    compiled inside its checkpoint instead.

    Returns:
        The number of layers.

    Raises:
        ConfigError: The model has no layers of the kind that transformers marks.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.modeling_layers import GradientCheckpointingLayer

    from paft_ray.models.attention import BLOCK_ATTENTION, block_attention

    outside: Any = torch.compiler.disable(block_attention)
    AttentionInterface.register(BLOCK_ATTENTION, outside)
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
    """What transformers calls in place of a layer's forward, here with the compiled one in it."""
    from torch.utils.checkpoint import checkpoint

    call = partial(compiled, *layer_forward.args, **layer_forward.keywords)
    return checkpoint(call, *args, use_reentrant=False)
