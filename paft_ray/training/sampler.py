"""The example and the prompt of (step, slot): pure functions of position.

Nothing is replayed to resume, ranks agree without communication, and the number of workers changes
nothing. The draw is the paper's (PAFT, arXiv 2502.12859, section 3.2): uniform over the training
prompts, kept for K steps; `prompt_weights` makes other probabilities from past losses.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np

from paft_ray.config import GRPO, SamplingConfig, TrainConfig


def uniform(*position: int | str) -> float:
    """A number in [0, 1) that is a function of `position` alone."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@lru_cache(maxsize=4)  # plans are made one step ahead, and a batch may read small data repeatedly
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """A permutation of `range(examples)` for one pass over the data: shape [examples]."""
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)
    return order.astype(np.int32)  # one of a million examples takes 4 MB


def example_index(seed: int, position: int, examples: int) -> int:
    """The example at a position of the endless shuffled stream; every pass sees each once."""
    epoch, offset = divmod(position, examples)
    return int(epoch_order(seed, epoch, examples)[offset])


@dataclass(frozen=True, slots=True)
class Places:
    """Where in a training each example of the stream stands: at (step, place).

    Texts that the model writes to a question share its place, and the optimizer steps on a batch of
    them its first step.
    """

    steps: int
    batch: int
    """Examples of a batch."""
    updates: int = 1
    """Optimizer steps on a batch."""

    @classmethod
    def of(cls, train: TrainConfig, steps: int) -> Self:
        """Those of a training of so many steps."""
        updates = train.objective.updates if isinstance(train.objective, GRPO) else 1
        return cls(steps, train.batch_examples, updates)

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.steps // self.updates) * self.batch

    def at(self, position: int) -> tuple[int, int]:
        """Step and place of a position of the stream."""
        batch, place = divmod(position, self.batch)
        return batch * self.updates, place


@dataclass(frozen=True, slots=True)
class PromptSampler:
    """Draws from `prompts` prompts, uniformly where no probabilities are given."""

    seed: int
    prompts: int
    """Number of prompts."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Its slots are those of the global batch."""

    def index(
        self,
        step: int,
        slot: int,
        view: int = 0,
        probability_N: np.ndarray | None = None,
        example: int = 0,
    ) -> int:
        """The prompt of the example in `slot` of the global batch of `step`.

        Args:
            step: Optimizer step, from 0.
            slot: Place in the global batch.
            view: Which of several renderings of the same example.
            probability_N: Of every prompt, in float64; uniform by default.
            example: Index of the example, the only argument that matters where prompts are bound.
        """
        draw = self._draw(step, slot, view, example)
        if probability_N is None:
            return int(draw * self.prompts)
        cumulative_N = np.cumsum(probability_N)
        found = np.searchsorted(cumulative_N, draw * cumulative_N[-1], side="right")
        return min(int(found), self.prompts - 1)

    def different(
        self,
        step: int,
        slot: int,
        count: int,
        probability_N: np.ndarray | None = None,
        example: int = 0,
    ) -> list[int]:
        """Several prompts of one example, none of them twice; see `index`.

        The first is the one that `index` draws; every further one is drawn among the rest.
        """
        found = [self.index(step, slot, 0, probability_N, example)]
        left_N = np.ones(self.prompts) if probability_N is None else probability_N.copy()
        for view in range(1, count):
            left_N[found[-1]] = 0.0
            if not left_N.any():  # probabilities of the rest are 0 in float64
                left_N[[n for n in range(self.prompts) if n not in found]] = 1.0
            cumulative_N = np.cumsum(left_N)
            at = self._draw(step, slot, view, example) * cumulative_N[-1]
            # the last prompt that is left where rounding leads beyond it
            most = int(np.flatnonzero(left_N)[-1])
            found.append(min(int(np.searchsorted(cumulative_N, at, side="right")), most))
        return found

    def _draw(self, step: int, slot: int, view: int, example: int) -> float:
        block = step // self.sampling.steps_per_prompt
        place = {"example": (block, slot), "step": (block, 0), "bound": ("bound", example)}
        views = (view,) if view else ()
        return uniform("prompt", self.seed, *place[self.sampling.unit], *views)
