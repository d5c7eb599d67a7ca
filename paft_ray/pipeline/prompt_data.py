"""Data for other trainers from a configuration: its task, its pool, its draws."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paft_ray.config import SinglePromptVariant, Training, total_steps
from paft_ray.config.errors import ConfigError, PoolError
from paft_ray.models.base_model import prepare_base
from paft_ray.pipeline.api import ConfigSource, configuration
from paft_ray.pipeline.perform import open_context
from paft_ray.pipeline.variants import variant_prompts
from paft_ray.prompts.build import pool_without_work
from paft_ray.runs.context import RunContext

if TYPE_CHECKING:
    from paft_ray.training.prompt_dataset import PromptDataset


def prompt_dataset(
    config: ConfigSource, *, variant: str = "paft", overrides: Sequence[str] = ()
) -> "PromptDataset":
    """Return the training examples of a task under prompts that are drawn afresh at every step.

    They are what `paft train` would train the variant on with the first of `seeds`, position by
    position; Hugging Face's Trainer and TRL's SFTTrainer read them too. No Ray is started.

    Args:
        config: Path of a YAML file, a dict, or a `Config`, as for `run`. Of `train`, the steps,
            the batch size and what is drawn are read.
        variant: Name of one of `variants`.
        overrides: Changes as on the command line.

    Raises:
        ConfigError: It cannot be used, or draws depend on more than a position.
        PoolError: The pool has to be built first.
    """
    context = open_context(configuration(config, overrides), planning=True)
    config = context.config
    training = _training(context, variant)
    pool = pool_without_work(context)
    if pool is None:
        raise PoolError(
            f"prompts: the pool of this configuration is not in {config.storage} yet: build it "
            "first, by build_prompt_pool(config) or `paft prompts`"
        )
    prompts = variant_prompts(context, pool, training.variant)
    own = config.of_training(training)
    base = prepare_base(config.model.path, config.model.revision, context.storage)

    from paft_ray.models.load import load_tokenizer
    from paft_ray.training.planning import TrainingData, planner_of
    from paft_ray.training.prompt_dataset import PromptDataset, refuse_undrawable

    refuse_undrawable(own.train)
    tokenizer = load_tokenizer(base, config.model.revision, config.model.trust_remote_code)
    examples = context.task.train
    texts = [(prompt.id, prompt.text) for prompt in prompts]
    planner = planner_of(own, TrainingData(context.task, examples, texts), tokenizer)
    return PromptDataset(planner, own.train, total_steps(own.train, len(examples)), base)


def _training(context: RunContext, label: str) -> Training:
    """The first training of a variant whose prompts need no model to be chosen.

    Raises:
        ConfigError: There is no such variant, or the base model chooses its prompt.
    """
    trainings = {training.label: training for training in reversed(context.config.trainings)}
    if label not in trainings:
        known = ", ".join(dict.fromkeys(reversed(trainings))) or "none"
        raise ConfigError(f"variant {label!r} is not one of the configuration's: {known}")
    chosen = trainings[label].variant
    if isinstance(chosen, SinglePromptVariant) and chosen.prompt is None:
        raise ConfigError(
            f"variants: the prompt of {label} is chosen by scores of the base model: give it one "
            "by `prompt`, or use `paft train`"
        )
    return trainings[label]
