"""Prefixes: the first tokens that the model without its adapter writes, as labels (UPFT).

The seed is a function of example and prompt, so that an example has one text under each prompt in
all passes, as if they had been written before the training (arXiv 2503.02875, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from paft_ray.config import Prefix
from paft_ray.models.generation import Ending
from paft_ray.models.logprobs import inference
from paft_ray.models.sampling import Sampled, Sampling, sample_texts
from paft_ray.models.tokenization import Encoded
from paft_ray.tracking import Metric
from paft_ray.training.prompt_weights import BlockWeights
from paft_ray.training.reinforcement.dealing import OwnText
from paft_ray.training.reinforcement.own_labels import Labeller, OwnLabel, OwnLabels
from paft_ray.training.sampler import uniform

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Written(OwnLabel):
    """A label that the model wrote, which nothing grades."""

    sampled: Sampled
    question: str
    """Rendered."""
    rewarded: None = None


@dataclass(frozen=True)
class PrefixWriter(Labeller):
    """Writes the beginning of a text for each example."""

    objective: Prefix
    stop: tuple[str, ...]
    """`task.stop`."""

    def label(
        self,
        model: "PeftModel | PreTrainedModel",
        step: int,
        slot: int,
        example: int,
        weights: BlockWeights,
    ) -> Written:
        """The text for the example of one slot under its prompt."""
        planner, engine = self.planner, self.engine
        prompt = planner.sampler.index(step, slot, 0, weights.probability_N, example)
        put = planner.put(step, slot, example, prompt)
        where = put.example.under(planner.prompts[prompt][0])
        [encoded] = planner.encoder.encode(
            put.render, put.example.fields, [put.example.some_answer], where
        )
        sampling = Sampling(
            self.objective.tokens,
            self.objective.decoding_temperature,
            Ending(planner.encoder.end_ids, self.stop),
        )
        seed = int(uniform("prefix", planner.seed, example, prompt) * 2**53)
        adapted: Any = model
        with adapted.disable_adapter(), inference(model, engine.dtype):
            [sampled] = sample_texts(
                cast("PreTrainedModel", model),
                planner.encoder.tokenizer,
                encoded.context_ids,
                1,
                sampling,
                seed,
                engine.work,
            )
        own = Encoded(encoded.context_ids, sampled.token_ids, encoded.trimmed)
        question = put.render(put.example.fields)
        return Written(slot, OwnText(example, prompt, own), 1.0, sampled, question)

    def describe(self, labels: Sequence[OwnLabel], seconds: float) -> OwnLabels:
        """Describe a step's texts."""
        written = tuple(label for label in labels if isinstance(label, Written))
        tokens = sum(len(one.sampled.token_ids) for one in written)
        metrics: dict[str, float] = {
            Metric.ROLLOUT_TOKENS: tokens / len(written),
            Metric.ROLLOUT_TOKENS_PER_SECOND: tokens / seconds,
        }
        return OwnLabels(metrics, {}, written)
