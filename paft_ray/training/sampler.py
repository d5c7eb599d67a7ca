"""Which example and which prompt for (step, slot): pure functions of position.

Nothing is replayed to resume, ranks agree without talking, and the number of workers changes
nothing. The draw is the paper's (PAFT, arXiv 2502.12859, section 3.2): uniform over the training
prompts, kept for K steps.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np


def uniform(*position: int | str) -> float:
    """A number in [0, 1) that is a function of `position` alone."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """A permutation of `range(examples)` for one pass over the data: shape [examples]."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)


def example_index(seed: int, position: int, examples: int) -> int:
    """The example at a position of the endless shuffled stream; every pass sees each once."""
    epoch, offset = divmod(position, examples)
    return int(epoch_order(seed, epoch, examples)[offset])


@dataclass(frozen=True, slots=True)
class PromptSampler:
    """Uniform draws from `prompts` prompts."""

    seed: int
    prompts: int
    """How many there are to draw from."""
    unit: Literal["example", "step"] = "example"
    """A draw per slot of the global batch, or one that the whole step shares."""
    steps_per_prompt: int = 1
    """The paper's K: a draw is kept for this many steps."""

    def index(self, step: int, slot: int) -> int:
        """The prompt of the example in `slot` of the global batch of `step`."""
        block = step // self.steps_per_prompt
        draw = uniform("prompt", self.seed, block, slot if self.unit == "example" else 0)
        return int(draw * self.prompts)
