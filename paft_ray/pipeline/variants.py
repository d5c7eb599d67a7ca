"""The prompts that each variant of a run trains on.

Covered: PAFT's pool, the small pool of bound prompts, and the three ways to choose a single prompt:
the task's own, named by the user, or the best one for the base model.
"""

from paft_ray.config import BoundPromptsVariant, HumanPromptVariant, PaftVariant, VariantConfig
from paft_ray.evaluation.selection import choose_single_prompt
from paft_ray.prompts.given import given_prompt
from paft_ray.prompts.pool import Prompt, PromptPool
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
    return (given_prompt(variant, context, pool) or choose_single_prompt(context, pool),)
