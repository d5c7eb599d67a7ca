"""Consensus: the choice that most of several prompts lead the model to, as a label.

Shapes: K prompts that vote, C choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paft_ray.config import Consensus
from paft_ray.models.logprobs import ForwardPass, choice_logprobs
from paft_ray.models.tokenization import Question
from paft_ray.tasks.grading import best_choice
from paft_ray.tracking import Metric
from paft_ray.training.prompt_weights import BlockWeights
from paft_ray.training.reinforcement.dealing import OwnText
from paft_ray.training.reinforcement.own_labels import Labeller, OwnLabel, OwnLabels

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def majority(logprob_KC: NDArray[np.float64]) -> tuple[int, float]:
    """The choice that is the likeliest under most prompts, and the share of those.

    Of several with as many votes, the one with the highest mean log-likelihood.
    """
    votes = [best_choice(logprob_C) for logprob_C in logprob_KC.tolist()]
    count_C = np.bincount(votes, minlength=logprob_KC.shape[1])
    mean_C = logprob_KC.mean(axis=0)
    tied = np.flatnonzero(count_C == count_C.max())
    label = int(tied[mean_C[tied].argmax()])
    return label, float(count_C[label]) / len(logprob_KC)


@dataclass(frozen=True, slots=True)
class Vote(OwnLabel):
    """A label that prompts have voted for; its weight is the share of their votes."""

    answer: str
    right: bool | None
    """Whether it is the answer of the data; None where that has none."""


@dataclass(frozen=True)
class Voter(Labeller):
    """Lets several prompts vote on each example; `planner` reads choices."""

    objective: Consensus

    def label(
        self,
        model: "PeftModel | PreTrainedModel",
        step: int,
        slot: int,
        example: int,
        weights: BlockWeights,
    ) -> Vote:
        """The vote on the example of one slot, which is learned through the first of the prompts.

        The prompts are read by themselves, so that a vote does not depend on the number of ranks.
        """
        planner, engine = self.planner, self.engine
        count = min(self.objective.prompts, len(planner.prompts))
        prompts = planner.sampler.different(step, slot, count, weights.probability_N, example)
        put = [planner.put(step, slot, example, prompt) for prompt in prompts]
        encoded = planner.encoder.encode_all(
            [
                Question(
                    one.render,
                    one.example.fields,
                    one.choices or (),
                    one.example.under(planner.prompts[prompt][0]),
                )
                for one, prompt in zip(put, prompts, strict=True)
            ]
        )
        reading = ForwardPass(
            engine.dtype,
            planner.row_tokens,
            planner.packing,
            engine.virtual_tokens,
            planner.padded,
        )
        found = choice_logprobs(model, encoded, reading)
        place, share = majority(np.array([likelihoods.whole for likelihoods in found]))
        answer, own = (put[0].choices or ())[place], put[0].example.answer
        text = OwnText(example, prompts[0], encoded[0][place])
        return Vote(slot, text, share, answer, answer == own if own else None)

    def describe(self, labels: Sequence[OwnLabel], seconds: float) -> OwnLabels:
        """Describe a step's votes."""
        votes = [label for label in labels if isinstance(label, Vote)]
        right = [vote.right for vote in votes if vote.right is not None]
        metrics: dict[str, float] = {
            Metric.TRAIN_AGREEMENT: float(np.mean([vote.weight for vote in votes]))
        }
        if right:
            metrics[Metric.TRAIN_LABELS_RIGHT] = float(np.mean(right))
        return OwnLabels(
            metrics,
            {
                "label": [vote.answer for vote in votes],
                "agreement": [vote.weight for vote in votes],
            },
        )
