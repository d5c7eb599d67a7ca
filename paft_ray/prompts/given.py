"""Prompts that people gave to a variant: an instruction of the task, or a text of their own."""

import itertools

from paft_ray.config import HumanPromptVariant, SinglePromptVariant, VariantConfig
from paft_ray.config.errors import PoolError
from paft_ray.prompts.layouts import compose, enumerate_layouts
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import Origin, Prompt, PromptPool, training_prompt
from paft_ray.prompts.template import clean
from paft_ray.runs.context import RunContext


def given_prompt(variant: VariantConfig, context: RunContext, pool: PromptPool) -> Prompt | None:
    """The one prompt that a person gave to this variant; none where its prompts are the pool's.

    Raises:
        PoolError: It is too similar to a held-out prompt.
    """
    if isinstance(variant, HumanPromptVariant):
        return human_prompt(context, pool)
    if isinstance(variant, SinglePromptVariant) and variant.prompt is not None:
        return user_prompt(variant.prompt, context, pool)
    return None


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
