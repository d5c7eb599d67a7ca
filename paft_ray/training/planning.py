"""The planner that a configuration describes: examples, prompts and draws of one training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paft_ray.config import GRPO, Config
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import Varying, demonstration_pool
from paft_ray.tasks import Example, Task
from paft_ray.training.batch_plan import Planner
from paft_ray.training.objective import views
from paft_ray.training.sampler import PromptSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from paft_ray.runs.paraphrases import ParaphraseTable


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a training is made from."""

    task: Task
    """Its own examples are not read."""
    examples: Sequence[Example]
    """The training examples."""
    prompts: Sequence[tuple[str, str]]
    """Ids and texts, in the pool's order."""
    paraphrases: "ParaphraseTable | None" = None
    """The examples in other words, if they are put so."""


def planner_of(config: Config, data: TrainingData, tokenizer: "PreTrainedTokenizerBase") -> Planner:
    """Return what makes the batches of a training.

    Args:
        config: From `Config.of_training`.
        data: Of the training.
        tokenizer: Of the base model.
    """
    train, task, prompts = config.train, data.task, data.prompts
    written = train.objective if isinstance(train.objective, GRPO) else None
    return Planner(
        examples=data.examples,
        prompts=[(id, parse(text, task.slots)) for id, text in prompts],
        encoder=TextEncoder.from_config(tokenizer, config),
        sampler=PromptSampler(config.seed, len(prompts), train.sampling),
        seed=config.seed,
        batch_size=train.batch_size,
        row_tokens=train.row_tokens,
        packing=train.packing,
        answer_prefix=train.response_prefix_tokens,
        views=views(train.objective),
        choices_of=task.choices_of if train.objective.reads_choices else None,
        varying=_varying(config, data),
        rollouts=written.rollouts if written else 1,
        updates=written.updates if written else 1,
    )


def _varying(config: Config, data: TrainingData) -> Varying | None:
    """Return the further ways in which each example is put; None where nothing varies."""
    variation = config.train.variation
    if variation.is_off:
        return None
    shown, solved = variation.demonstrations, data.examples
    if config.train.objective.reads_unlabelled:
        solved = [example for example in data.examples if example.answer]
    pool = demonstration_pool(data.task, shown, solved) if shown is not None else ()
    return Varying(data.task, variation, config.seed, pool, data.paraphrases)
