"""What checkpoints hold besides tensors, and who writes and reads them."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paft_ray.training.state.retries import PAUSES_S
from paft_ray.training.state.shards import SHARD_BYTES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a training; resuming needs this and the configuration."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens read in them."""
    answer_tokens: int = 0
    """Answer tokens trained on in them."""
    trimmed: int = 0
    """Examples that had a field cut."""
    seconds: float = 0.0
    """Time spent in the loop, over all attempts."""
    loss: float = float("nan")
    """Mean loss per answer token of the last step."""
    rollout_tokens: int = 0
    """Tokens that the model wrote to learn from."""


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The ranks that write a checkpoint together, as one of them sees them; by default only one."""

    rank: int = 0
    ranks: int = 1
    attempt: str = field(default_factory=lambda: secrets.token_hex(4))
    """Token that these ranks share and no earlier attempt had, so that files which an earlier one
    left behind are never mistaken for theirs."""
    exchange: Callable[[Any], list[Any]] = lambda mine: [mine]
    """Returns every rank's value, by rank; collective, on the main thread."""
    work: Callable[[], None] = lambda: None
    """Called after each file that is written, in the thread that writes it."""


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """Bounds on how checkpoints are read and written."""

    pauses_s: Sequence[float] = PAUSES_S
    """Longest pauses before further attempts where storage fails."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes in one file."""
    peers_s: float = 600.0
    """How long rank 0, once its own files are written, waits for the next one of another rank."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint that is being read."""

    progress: Progress
    other: "dict[str, torch.Tensor]"
    """Tensors that belong to no parameter, in the dtypes they were saved in."""
    state: "Iterator[tuple[str, torch.Tensor]]"
    """Weights and moments by key, read lazily with one file in memory; collective: every rank reads
    to the end."""
