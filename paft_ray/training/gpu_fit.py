"""Whether a training fits a GPU's memory, and the settings with which it does; pure.

The memory that settings need comes from the caller, see `estimates`. Not covered: which of the
settings is fastest; they come in the order of what they usually cost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from paft_ray.config import GRPO, Config, Prefix, TrainConfig, VLLMRollouts

_USABLE = 0.9
"""Share of a GPU's memory that tensors can have: the rest is CUDA's own, and gaps between them."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A way to need less memory."""

    text: str
    """The settings, as a user writes them."""
    train: TrainConfig
    quantization: str


Needs = Callable[[TrainConfig, str], float]
"""Memory that a worker needs with `train` and `model.quantization`, in 1e9 bytes."""


def advise(config: Config, needs_gb: Needs, gpu_gb: float) -> list[str]:
    """Recommend settings for a GPU of this memory; empty where those of the configuration do well.

    Args:
        config: The configuration.
        needs_gb: Of any settings.
        gpu_gb: Memory of the smallest GPU, in 1e9 bytes.
    """
    train, quantization = config.train, config.model.quantization
    room = (_USABLE - _vllm_share(train)) * gpu_gb
    if needs_gb(train, quantization) <= room:
        quick = train.model_copy(update={"activation_checkpointing": False})
        if not train.activation_checkpointing or needs_gb(quick, quantization) > room:
            return []
        needs = needs_gb(quick, quantization)
        return [
            f"train.activation_checkpointing: false needs {needs:.1f} GB, which fits and is faster"
        ]
    single = [change for kind in _KINDS for change in kind(config, train, quantization)]
    fitting = _first_of_each_kind(single, needs_gb, room)
    return [_fits(change, needs_gb) for change in fitting] or [
        _together(config, needs_gb, room) or "no setting makes it fit: take more or larger GPUs"
    ]


def _vllm_share(train: TrainConfig) -> float:
    """Share of the GPU's memory that vLLM takes beside the training; 0 without it."""
    objective = train.objective
    if isinstance(objective, GRPO) and isinstance(objective.backend, VLLMRollouts):
        return objective.backend.memory
    return 0.0


def _fits(change: _Change, needs_gb: Needs) -> str:
    return f"{change.text} needs {needs_gb(change.train, change.quantization):.1f} GB, which fits"


def _first_of_each_kind(changes: list[_Change], needs_gb: Needs, room: float) -> list[_Change]:
    found: dict[str, _Change] = {}
    for change in changes:
        if needs_gb(change.train, change.quantization) <= room:
            found.setdefault(change.text.partition(":")[0], change)
    return list(found.values())


def _together(config: Config, needs_gb: Needs, room: float) -> str | None:
    """The first changes that fit together where none does alone."""
    texts: list[str] = []
    train, quantization = config.train, config.model.quantization
    for kind in _KINDS:
        changes = list(kind(config, train, quantization))
        if not changes:
            continue
        last = changes[-1]
        for change in changes:
            if needs_gb(change.train, change.quantization) <= room:
                text = ", ".join([*texts, change.text])
                return _fits(_Change(text, change.train, change.quantization), needs_gb)
        texts.append(last.text)
        train, quantization = last.train, last.quantization
    return None


def _shortest_row(max_length: int, train: TrainConfig) -> int:
    """The fewest tokens of a row that an objective allows."""
    objective = train.objective
    if isinstance(objective, GRPO):
        return max_length + objective.max_new_tokens
    if isinstance(objective, Prefix):
        return max_length + objective.tokens
    return max_length * (2 if objective.type == "consistency" else 1)


def _shorter_rows(config: Config, train: TrainConfig, quantization: str) -> Iterator[_Change]:
    shortest = max(map(partial(_shortest_row, config.task.max_length), config.train_sections))
    tokens = train.row_tokens
    while tokens > shortest:
        tokens = max(shortest, tokens // 2)
        changed = train.model_copy(update={"row_tokens": tokens})
        yield _Change(f"train.row_tokens: {tokens}", changed, quantization)


def _checkpointing(config: Config, train: TrainConfig, quantization: str) -> Iterator[_Change]:
    method = (config.model.peft or {}).get("peft_type")
    if not train.activation_checkpointing and method not in ("PREFIX_TUNING", "CARTRIDGE"):
        changed = train.model_copy(update={"activation_checkpointing": True})
        yield _Change("train.activation_checkpointing: true", changed, quantization)


def _higher_stage(config: Config, train: TrainConfig, quantization: str) -> Iterator[_Change]:
    writes = any(isinstance(own.objective, GRPO) for own in config.train_sections)
    whole = quantization != "none" or train.compile or writes  # none of them goes with stage 3
    for stage in range(train.deepspeed.stage + 1, 3 if whole else 4):
        if stage > 1 and train.workers.most > 1:
            deepspeed = train.deepspeed.model_copy(update={"stage": stage})
            changed = train.model_copy(update={"deepspeed": deepspeed})
            yield _Change(f"train.deepspeed.stage: {stage}", changed, quantization)


def _in_4_bits(config: Config, train: TrainConfig, quantization: str) -> Iterator[_Change]:
    plain = quantization == "none" and not _vllm_share(train)  # which reads no other weights
    if plain and config.model.peft is not None and train.deepspeed.stage < 3:
        yield _Change("model.quantization: nf4", train, "nf4")


_KINDS = (_shorter_rows, _checkpointing, _higher_stage, _in_4_bits)
