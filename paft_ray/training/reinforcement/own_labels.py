"""Batch plans of steps that learn, in the place of answers, what the model says itself.

What is said for a slot is a function of position and of the weights at its step; all ranks exchange
it, so that each plan is made from the whole batch, as every other batch plan is.

Shapes: S slots of the global batch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from paft_ray.training.batch_plan import Planner, StepPlan
from paft_ray.training.engine import Engine
from paft_ray.training.prompt_weights import BlockWeights
from paft_ray.training.reinforcement.dealing import OwnText, deal_texts
from paft_ray.training.sampler import example_index

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from paft_ray.training.reinforcement.prefix import Written


@dataclass(frozen=True, slots=True)
class OwnLabel:
    """What the model said for one slot; ranks exchange these."""

    slot: int
    text: OwnText
    weight: float
    """What its tokens count in the loss."""


@dataclass(frozen=True)
class OwnLabels:
    """What is said of a step's labels besides the texts."""

    metrics: Mapping[str, float]
    columns: Mapping[str, Sequence[object]]
    """Columns of the ledger, a value per slot."""
    rollouts: "tuple[Written, ...]" = ()
    """Those that are texts of its own, for `rollouts/`."""

    @property
    def questions(self) -> list[str]:
        """The question of each text, rendered."""
        return [one.question for one in self.rollouts]

    @property
    def new_tokens(self) -> int:
        """Tokens that were drawn for this step."""
        return sum(len(one.sampled.token_ids) for one in self.rollouts)


@dataclass(frozen=True)
class Labeller(ABC):
    """Asks the model for the labels of one rank's slots."""

    planner: Planner
    engine: Engine
    at: Callable[..., None]
    """See `loop.LoopHooks`."""

    @abstractmethod
    def label(
        self,
        model: "PeftModel | PreTrainedModel",
        step: int,
        slot: int,
        example: int,
        weights: BlockWeights,
    ) -> OwnLabel:
        """The label of one slot; `model` is without dropout."""

    @abstractmethod
    def describe(self, labels: Sequence[OwnLabel], seconds: float) -> OwnLabels:
        """Describe a step's labels, by slot; `seconds` are those of the slowest rank."""

    def labels(self, step: int, weights: BlockWeights) -> list[OwnLabel]:
        """The labels of this rank's slots.

        Raises:
            DataError: A question does not fit `task.max_length`.
        """
        planner, engine, found = self.planner, self.engine, []
        with engine.evaluating() as model:
            for done, slot in enumerate(range(engine.rank, planner.batch_size, engine.ranks)):
                self.at("sampling", step + 1, done)
                position = step * planner.batch_size + slot
                example = example_index(planner.seed, position, len(planner.examples))
                found.append(self.label(model, step, slot, example, weights))
                engine.work()
        return found

    def timed(self, step: int, weights: BlockWeights) -> tuple[list[OwnLabel], float]:
        """Make this rank's labels, and wait for the others; also returns seconds."""
        started = time.perf_counter()
        try:
            return self.labels(step, weights), time.perf_counter() - started
        finally:
            self.at("waiting")


def labelled_plans(
    labeller: Labeller, first: int, last: int, weigh: Callable[[int], BlockWeights]
) -> Iterator[StepPlan]:
    """The plans of steps `first` to `last - 1`; collective.

    Args:
        labeller: Makes labels, with the weights as they are when a plan is asked for.
        first: First step.
        last: One after the last.
        weigh: Returns the weights of prompts at a step.
    """
    engine = labeller.engine
    for step in range(first, last):
        weights = weigh(step)
        everyone = engine.share(partial(labeller.timed, step, weights))
        labeller.at("forward", step + 1)
        labels = sorted((label for own, _ in everyone for label in own), key=lambda x: x.slot)
        texts = [label.text for label in labels]
        prompt_S = np.array([text.prompt for text in texts])
        weight_S = np.array([label.weight for label in labels]) * weights.weights(prompt_S)
        plan = deal_texts(labeller.planner, engine, step, texts, weight_S, weights)
        slowest = max(seconds for _, seconds in everyone)
        yield replace(plan, own=labeller.describe(labels, slowest))
