"""Attention inside the sequences of a packed row by kernels of GPUs that read where each begins.

torch's `varlen_attn` (a row is one call, forward and backward, with grouped queries and windows),
registered beside `blocks`; rows whose sequences share parts, and texts that are generated, are read
as with `blocks`. It computes in 16 bits. Not covered: dropout of attention weights, capped scores,
sinks, biases by position.

transformers' flash attention gets the same numbers from here: without them it looks for them in the
positions, and waits for the GPU in every layer.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from paft_ray.config.errors import ConfigError
from paft_ray.models.attention import (
    VARLEN_ATTENTION,
    Blocks,
    Spans,
    block_attention,
    find_spans,
    takes_blocks,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDEST = 256
"""Most numbers of a head in flash attention, which also wants a multiple of 8."""
_DROPOUT = re.compile(r"att\w*_(dropout|pdrop)")
_NOT_COVERED = ("position_bias", "softcap", "s_aux", "dropout")


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    blocks: Spans | Blocks | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers: [1, heads, T, D] each to [1, T, heads, D].

    Raises:
        ConfigError: The model's attention has what the kernel leaves out.
    """
    if not isinstance(blocks, Spans):
        return block_attention(module, query, key, value, attention_mask, blocks, **kwargs)
    # without a dropout's 0.0
    if left_out := [name for name in _NOT_COVERED if kwargs.get(name) not in (None, 0.0)]:
        raise ConfigError(
            f"model.attention: varlen, which leaves out this model's {left_out[0]}; use blocks"
        )
    states = (_narrowed(state[0].transpose(0, 1)) for state in (query, key, value))
    query_THD, key_THD, value_THD = states
    width, value_width = query.shape[-1], value.shape[-1]
    if value_width < width:  # latent attention
        value_THD = torch.nn.functional.pad(value_THD, (0, width - value_width))
    window = kwargs.get("sliding_window")
    attended = _kernel()(
        query_THD,
        key_THD,
        value_THD,
        blocks.bounds,
        blocks.bounds,
        blocks.longest,
        blocks.longest,
        scale=kwargs.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),  # tokens before one's own
    )
    return attended[None, ..., :value_width], None


def _narrowed(state: torch.Tensor) -> torch.Tensor:
    """Convert to autocast's dtype, which autocast does not do for this kernel."""
    kind = state.device.type
    return state.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else state


@cache
def _kernel() -> Callable[..., torch.Tensor]:
    """Return torch's kernel with fewer heads of keys than of queries allowed.

    Raises:
        ConfigError: This torch has none with windows.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        known: Mapping[str, Any] = {}
    else:
        known = inspect.signature(varlen_attn).parameters
        if "window_size" in known:
            grouped = {"enable_gqa": True} if "enable_gqa" in known else {}
            return lambda *states, **more: varlen_attn(*states, **grouped, **more)  # pyright: ignore
    raise ConfigError(f"model.attention: varlen needs a later torch than {torch.__version__}")


def reason_against_varlen(model: "PreTrainedModel", arithmetic: str, device: str | None) -> str:
    """Return why a model's rows cannot be read by torch's kernel; empty where they may be.

    The check of rows tries the kernel itself, and goes back to blocks where it fails.

    Args:
        model: The model, anywhere.
        arithmetic: `float32` or `bfloat16`.
        device: Where it is going to be.
    """
    if not takes_blocks(model):
        return f"{type(model).__name__} does not call its attention through transformers' interface"
    if device is None or not device.startswith("cuda"):
        return "it runs on GPUs alone"
    if arithmetic != "bfloat16":
        return f"it computes in bfloat16, and the arithmetic is {arithmetic}"
    if torch.cuda.get_device_capability(torch.device(device)) < (8, 0):
        return "it needs a GPU of compute capability 8.0"
    return _reason_in_config(model.config.get_text_config().to_dict())


def _reason_in_config(config: Mapping[str, Any]) -> str:
    heads = config.get("num_attention_heads") or 1
    widths = [value for key, value in config.items() if key.endswith("head_dim") and value]
    width = max(widths, default=(config.get("hidden_size") or 0) // heads)
    if width > _WIDEST or width % 8:
        return f"it reads heads of at most {_WIDEST} numbers, in eights, and a head has {width}"
    for name, value in config.items():
        if value and (_DROPOUT.fullmatch(name) or name == "attn_logit_softcapping"):
            return f"it leaves out the model's {name}"
    return ""


def uses_flash(model: Any) -> bool:
    """Return whether a model uses transformers' flash attention, and gives it what it is given."""
    inner = getattr(model, "module", model)
    name = str(getattr(getattr(inner, "config", None), "_attn_implementation", ""))
    return "flash" in name and bool(getattr(inner, "_supports_attention_backend", False))


def flash_arguments(position_ids_T: np.ndarray) -> Mapping[str, Any]:
    """Return the arguments of a model's forward by which flash attention need not look for them."""
    spans = find_spans(position_ids_T)
    longest = dict.fromkeys(("max_length_q", "max_length_k"), spans.longest)
    return {"cu_seq_lens_q": spans.bounds, "cu_seq_lens_k": spans.bounds, **longest}


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)
AttentionMaskInterface.register(VARLEN_ATTENTION, sdpa_mask)
