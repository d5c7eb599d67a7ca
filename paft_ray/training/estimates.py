"""Estimates of the memory of a training's worker, and of the training's storage; pure.

Sizes follow from counts of weights; activations from the length of a row and what layers keep of a
token: on a GPU in bf16 within 5% of what was measured, elsewhere within a factor of about 1.5. The
memory of a process without a model is measured.
"""

from dataclasses import dataclass

from paft_ray.config import TrainConfig
from paft_ray.training.state.shards import bytes_needed

_FP32, _BF16, _MOMENTS = 4, 2, 8
_NF4 = 0.57
"""Bytes per weight in blocks of 64 with their scales in 8 bits."""
_RUNTIME = 0.9e9
"""Bytes of a Ray Train worker with torch, transformers and DeepSpeed but no model, measured."""
_SAVED_PER_LAYER = 17
"""Numbers per token and hidden unit that a layer keeps for the backward pass, in general, attention
without a score matrix: half of the bytes in Korthikanti et al.,
arXiv 2205.05198, equation 2 less its last term."""
_LEDGER = 30
"""Bytes per slot of a step."""


@dataclass(frozen=True)
class ModelSizes:
    """Counts of a model with its adapter."""

    parameters: int
    trainable: int
    linear: int
    """Frozen weights of linear layers, which are stored as the arithmetic is, or quantized."""
    layers: int
    hidden: int
    experts: int = 0
    """Frozen weights of a mixture's experts, which are stored as the arithmetic is."""
    kept: int = 0
    """Numbers that attention keeps of a token, over all layers: its keys and values."""
    saved: int = 0
    """Numbers that all layers keep of a token for the backward pass; 0 where that is not known."""
    vocabulary: int = 0
    in_bf16: int = 0
    """1 where its files are in bf16: trained as a whole in bf16 its weights are too."""


def worker_memory(
    sizes: ModelSizes, train: TrainConfig, quantization: str, dtype: str, ranks: int
) -> dict[str, float]:
    """Bytes that one worker needs, by purpose.

    Args:
        sizes: Of the model.
        train: The section `train`.
        quantization: `model.quantization`.
        dtype: Arithmetic, resolved.
        ranks: Number of workers.
    """
    stage, offload = train.deepspeed.stage, train.deepspeed.offload
    frozen = _BF16 if dtype == "bfloat16" else _FP32
    whole = sizes.in_bf16 and sizes.trainable == sizes.parameters
    others = sizes.parameters - sizes.trainable - sizes.linear - sizes.experts
    weights = (
        (frozen if whole else _FP32) * sizes.trainable
        + (frozen if train.workers.gpus else _FP32) * others  # see `models.narrow`
        + (_NF4 if quantization == "nf4" else frozen) * sizes.linear
        + frozen * sizes.experts
    )
    masters = _FP32 * sizes.trainable if stage > 0 else 0
    optimizer = (_MOMENTS * sizes.trainable + masters) / (ranks if stage >= 1 else 1)
    measured = sizes.saved and train.workers.gpus and dtype == "bfloat16"
    saved = sizes.saved / sizes.layers if measured else _SAVED_PER_LAYER * sizes.hidden
    per_layer = saved * (_BF16 if dtype == "bfloat16" else _FP32) * train.row_tokens
    kept = _FP32 * train.row_tokens * sizes.hidden if train.activation_checkpointing else per_layer
    return {
        "weights": 0.0 if offload == "parameters" else weights / (ranks if stage == 3 else 1),
        "gradients": _FP32 * sizes.trainable / (ranks if stage >= 2 else 1),
        "optimizer": optimizer if offload == "none" else 0.0,
        "activations": float(sizes.layers * kept + per_layer),
        "runtime": _RUNTIME,
    }


def training_storage(sizes: ModelSizes, train: TrainConfig, steps: int) -> float:
    """Most bytes that one training writes."""
    result = _FP32 * sizes.trainable
    state = (_FP32 + _MOMENTS) * sizes.trainable
    ledger = _LEDGER * steps * train.batch_size
    keep = train.checkpoint.keep + train.extra_checkpoints
    return bytes_needed(state, result, keep, there=0) + ledger
