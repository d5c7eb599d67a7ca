"""Frozen linear weights in 4 bits, as in QLoRA (arXiv 2305.14314): nf4, quantised twice.

Scoring, probing, verifying and serving store them as training does, so that a figure is that of the
model that was trained; a merged model is another one, since an adapter is merged into the weights
on disk.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def nf4_arguments(device: str | None = None) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` quantises each weight as it is read.

    `device` is where; without, transformers takes the current GPU if there is one.
    """
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # autocast decides
    )
    place = {} if device is None else {"device_map": {"": device}}
    return {"quantization_config": config, **place}


def prepare_quantized(model: "PreTrainedModel") -> None:
    """Keep a quantised model trainable after it was scored on a CPU.

    On CPUs with bf16, bitsandbytes repacks weights at the first forward pass without gradients, for
    a kernel without a backward pass: the adapter's gradients would silently be wrong.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
