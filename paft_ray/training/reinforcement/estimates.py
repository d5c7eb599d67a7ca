"""Memory and time of writing rollouts, before any is written; pure.

Covered: rollouts that the trained model writes itself; of those by vLLM the fewest passes, which
read all questions together. Bounds on time say what cannot be undercut,
not what is likely: the time of a forward pass is known only once it is measured.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paft_ray.config import GRPO, TrainConfig, VLLMRollouts
from paft_ray.training.estimates import ModelSizes

_FP32, _BF16 = 4, 2
_READING = 34
"""Bytes per token and hidden unit, in 16 bits, of a layer while it reads a question."""
_DISTRIBUTIONS = 4
"""Logits of a token, in fp32, their log-probabilities, and what both are computed from."""
_ON_STORAGE = 16
"""Bytes of a token in `rollouts/`, compressed."""
_BANDWIDTHS: Mapping[str, float] = {
    r"B200\b": 8000,
    r"GH200\b": 4900,
    r"H200\b": 4800,
    r"(H100|H800) NVL": 3940,
    r"(H100|H800) PCIe": 2040,
    r"(H100|H800)\b": 3350,
    r"(A100|A800)\b": 2039,
    r"A30\b": 933,
    r"A40\b": 696,
    r"A10\b": 600,
    r"L40S\b": 864,
    r"L4\b": 300,
}
"""GPUs by name, to the GB/s of their memory, from NVIDIA's data sheets; the most where there are
several of a name."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What the rollouts of one training take at most."""

    texts: int
    tokens: int
    passes: int
    """Forward passes of one worker."""

    @property
    def storage(self) -> float:
        """Bytes that are kept of them."""
        return float(_ON_STORAGE * self.tokens)


def writing(train: TrainConfig, steps: int, prompts: int | None, ranks: int) -> Writing | None:
    """The most that a training writes; None where it writes nothing.

    Args:
        train: Its section `train`.
        steps: Its optimizer steps.
        prompts: 1 where it has a single prompt.
        ranks: Number of workers.
    """
    objective = train.objective
    if not isinstance(objective, GRPO):
        return None
    batches = -(-steps // objective.updates)
    groups = train.batch_size // together(objective, prompts)
    texts = batches * train.batch_size
    apart = 1 if isinstance(objective.backend, VLLMRollouts) else -(-groups // ranks)
    passes = batches * apart * (objective.max_new_tokens + 1)  # one reads the question
    return Writing(texts, texts * objective.max_new_tokens, passes)


def together(objective: GRPO, prompts: int | None) -> int:
    """The number of texts that are written at the same time; see `writing`."""
    return objective.rollouts // (1 if prompts == 1 else objective.prompts_per_question)


def sampling_memory(
    sizes: ModelSizes, texts: int, max_length: int, max_new_tokens: int, narrow: bool
) -> float:
    """Bytes that writing takes besides the model: keys and values, one question read, logits.

    Args:
        sizes: Of the model.
        texts: Written at the same time.
        max_length: Longest question in tokens.
        max_new_tokens: Longest text.
        narrow: Whether keys and values are kept in 16 bits.
    """
    size = _BF16 if narrow else _FP32
    one_layer = 1 + 1 / max(1, sizes.layers)  # which is copied where it grows
    kept = size * sizes.kept * texts * (max_length + max_new_tokens) * one_layer
    reading = _READING * size / 2 * sizes.hidden * max_length
    return kept + reading + _FP32 * _DISTRIBUTIONS * texts * sizes.vocabulary


def least_hours(
    sizes: ModelSizes, weights: float, dtype: str, passes: int, gpu: str | None
) -> float | None:
    """Hours below which so many forward passes cannot be: each reads the weights from memory once.

    Args:
        sizes: Of the model.
        weights: Bytes of its weights.
        dtype: Arithmetic: `float32` or `bfloat16`.
        passes: Number of passes.
        gpu: Name of the GPU; None where it is not known.

    Returns:
        None where the maker of the GPU states no bandwidth that is known here.
    """
    if gpu is None or re.search(r"\bMIG\b|Laptop", gpu):
        return None
    found = (rate for pattern, rate in _BANDWIDTHS.items() if re.search(rf"\b{pattern}", gpu))
    if (rate := next(found, None)) is None:
        return None
    # of experts and of the table of tokens a pass reads only some rows
    narrow = dtype == "bfloat16" and sizes.trainable < sizes.parameters
    size = _BF16 if narrow else _FP32
    elsewhere = size * (sizes.experts + sizes.vocabulary * sizes.hidden)
    return passes * max(0.0, weights - elsewhere) / (1e9 * rate) / 3600
