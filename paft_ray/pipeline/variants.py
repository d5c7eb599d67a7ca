"""The prompts that each variant of a run trains on.

Covered: PAFT's pool, the small pool of bound prompts, and the three ways to choose a single prompt:
the task's own, named by the user, or the best one for the base model.
"""

import itertools

from paft_ray.config import BoundPromptsVariant, HumanPromptVariant, PaftVariant, VariantConfig
from paft_ray.config.errors import PoolError
from paft_ray.evaluation.selection import choose_single_prompt
from paft_ray.prompts.layouts import compose, enumerate_layouts
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import Origin, Prompt, PromptPool, training_prompt
from paft_ray.prompts.template import clean
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import tell


def prompts_by_variant(context: RunContext, pool: PromptPool) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of every variant, the same for all seeds."""
    prompts = {v.label: variant_prompts(context, pool, v) for v in context.config.variants}
    for variant in context.config.variants:
        if isinstance(variant, HumanPromptVariant):
            told = (prompt.text for prompt in prompts[variant.label])
            tell(context.screen, f"{variant.label}, written by a person", told)
    return prompts


def variant_prompts(
    context: RunContext, pool: PromptPool, variant: VariantConfig
) -> tuple[Prompt, ...]:
    """The prompts that a variant's sampler draws from.

    Raises:
        PoolError: `prompts.pool_size`, or the variant's own size, is more than the pool's training
            prompts, or the variant's prompt is like a held-out one.
    """
    if isinstance(variant, PaftVariant) and variant.pool_size is not None:
        return pool.take(variant.pool_size, f"pool_size of {variant.label}").train
    size = context.config.prompts.pool_size
    pool = pool if size is None else pool.take(size)
    if isinstance(variant, PaftVariant):
        return pool.train
    if isinstance(variant, BoundPromptsVariant):
        return pool.take(variant.prompts, f"prompts of {variant.label}").train
    if isinstance(variant, HumanPromptVariant):
        return (human_prompt(context, pool),)
    if variant.prompt is not None:
        return (user_prompt(variant.prompt, context, pool),)
    return (choose_single_prompt(context, pool),)


def human_prompt(context: RunContext, pool: PromptPool) -> Prompt:
    """The first of the task's own instructions, in the first layout, that is not held out.

    Raises:
        PoolError: All are like held-out prompts.
    """
    task = context.task
    for instruction, layout in itertools.product(task.instructions, enumerate_layouts(task)):
        prompt = training_prompt(
            compose(instruction, layout), task.slots, Origin(file="instructions of the task")
        )
        if _held_out_like(prompt, context, pool) is None:
            return prompt
    raise PoolError(
        f"variants: none of the {len(task.instructions)} instructions of task {task.name} is "
        "unlike all held-out prompts in any layout: name a single_prompt's prompt instead"
    )


def user_prompt(text: str, context: RunContext, pool: PromptPool) -> Prompt:
    """A prompt that the configuration names, in the form of a pool's prompts.

    Raises:
        PoolError: It is too similar to a held-out prompt, which would then not be held out.
    """
    prompt = training_prompt(
        clean(text, escapes=True), context.task.slots, Origin(file="configuration")
    )
    if (held_out := _held_out_like(prompt, context, pool)) is not None:
        raise PoolError(
            f"variants: prompt {prompt.text!r} has the layout or the wording of held-out prompt "
            f"{held_out.id}: choose another one, or change seed"
        )
    return prompt


def _held_out_like(prompt: Prompt, context: RunContext, pool: PromptPool) -> Prompt | None:
    """The held-out prompt whose layout or wording a training prompt has."""
    limit = context.config.prompts.split.similarity
    return first_like(prompt, (*pool.test, *pool.validation), limit)
