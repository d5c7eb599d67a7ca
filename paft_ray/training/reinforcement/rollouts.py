"""Rollouts: what a model wrote for a question under a prompt at a step, and what the loss needs.

Which question and prompts stand where in a step is a function of position, and so is the seed of
what is drawn; neither depends on the number of ranks.

Shapes: A tokens of a row, S rollouts of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from paft_ray.config import GRPO
from paft_ray.models.packing import Row
from paft_ray.models.sampling import Sampled
from paft_ray.prompts.variation import Put
from paft_ray.training.batch_plan import Planner
from paft_ray.training.prompt_weights import BlockWeights
from paft_ray.training.reinforcement.rewards import Rewarded
from paft_ray.training.sampler import example_index, uniform


@dataclass(frozen=True, slots=True)
class Asked:
    """A question under one of its prompts, which several rollouts answer."""

    first: int
    """Slot of its first rollout in the batch."""
    count: int
    example: int
    """Index of the example."""
    prompt: int
    """Index of the prompt."""
    put: Put
    """As the model is asked."""
    seed: int
    """Of what is drawn."""
    where: str
    """Its name in messages."""

    @property
    def text(self) -> str:
        """The question, rendered."""
        return self.put.render(self.put.example.fields)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One text that the model wrote, graded; ranks exchange these."""

    slot: int
    sampled: Sampled
    rewarded: Rewarded
    context: tuple[int, ...]
    """Tokens before it."""
    trimmed: bool
    """Whether a field of its question was cut."""


def prompts_each(planner: Planner, objective: GRPO) -> int:
    """Prompts of a question: as configured, or the only one that there is."""
    return 1 if len(planner.prompts) == 1 else objective.prompts_per_question


def asked_at(planner: Planner, objective: GRPO, step: int, weights: BlockWeights) -> list[Asked]:
    """The questions of the batch whose first optimizer step is `step`, under their prompts."""
    questions = planner.batch_size // objective.rollouts
    found = []
    for place in range(questions):
        position = step // objective.updates * questions + place
        example = example_index(planner.seed, position, len(planner.examples))
        prompts = planner.sampler.different(
            step, place, prompts_each(planner, objective), weights.probability_N, example
        )
        count = objective.rollouts // len(prompts)
        for number, prompt in enumerate(prompts):
            draw = uniform("rollouts", planner.seed, step, place, prompt)
            id, put = planner.prompts[prompt][0], planner.put(step, place, example, prompt)
            found.append(
                Asked(
                    place * objective.rollouts + number * count,
                    count,
                    example,
                    prompt,
                    put,
                    int(draw * 2**53),
                    put.example.under(id),
                )
            )
    return found


@dataclass(frozen=True)
class Policy:
    """What the loss of a step on rollouts needs besides log-probabilities.

    Several optimizer steps share one: the first of them leaves here what the model thought of its
    texts before any of them.
    """

    asked: tuple[Asked, ...]
    """What the model was asked."""
    rollouts: tuple[Rollout, ...]
    """Of the whole batch, by slot."""
    reward_S: NDArray[np.float64]
    per_token: float
    """What a token counts in the mean over tokens: 1, or less where the sum is divided by the most
    tokens that there could be."""
    learned: int
    """Tokens of the rollouts that are learned from."""
    metrics: Mapping[str, float]
    """Of the batch."""
    fresh: bool
    """Whether this is the first optimizer step on these rollouts."""
    last: bool
    """Whether this is the last optimizer step on these rollouts."""
    before: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    """Log-probabilities before the first update, by the members of a row."""
    reference: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    """Those of the model without its adapter; empty where they are not needed."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """Negative log-likelihood of every rollout as it was drawn, in nats: shape [S]."""
        return np.array([-sum(rollout.sampled.logprobs) for rollout in self.rollouts])

    def drawn(self, row: Row) -> NDArray[np.float64]:
        """Log-probabilities of a row's tokens as the backend drew them: shape [A]."""
        return np.concatenate([self.rollouts[slot].sampled.logprobs for slot in row.members])

    @property
    def questions(self) -> list[str]:
        """The question of every rollout, rendered."""
        return [text for one in self.asked for text in [one.text] * one.count]

    @property
    def new_tokens(self) -> int:
        """Tokens that were drawn for this step."""
        return sum(len(r.sampled.token_ids) for r in self.rollouts) if self.fresh else 0
