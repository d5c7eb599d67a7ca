"""What the trainings of a run need: a worker's memory, storage, and the time to write rollouts.

Variants may train in ways of their own. Not covered: what a GPU has, see `gpus`.
"""

from paft_ray.config import (
    GRPO,
    BoundPromptsVariant,
    PaftVariant,
    TrainConfig,
    Training,
    VariantConfig,
    VLLMRollouts,
    total_steps,
)
from paft_ray.runs.context import RunContext
from paft_ray.training.estimates import ModelSizes, training_storage, worker_memory
from paft_ray.training.reinforcement.estimates import (
    Writing,
    least_hours,
    sampling_memory,
    together,
    writing,
)


def worker_needs(
    context: RunContext, sizes: ModelSizes, train: TrainConfig, quantization: str
) -> dict[str, float]:
    """Bytes that a worker needs by purpose, and in `all`, in the training that needs the most.

    Args:
        context: The run.
        sizes: Of the model.
        train: The section `train`, of which variants may replace fields.
        quantization: `model.quantization`.
    """
    variants = context.config.variants
    needs = [_variant_needs(context, sizes, v, v.train.over(train), quantization) for v in variants]
    return max(needs, key=lambda memory: memory["all"])


def _variant_needs(
    context: RunContext,
    sizes: ModelSizes,
    variant: VariantConfig,
    train: TrainConfig,
    quantization: str,
) -> dict[str, float]:
    """What `worker_needs` says, of one variant."""
    dtype, objective = context.training_dtype, train.objective
    memory = worker_memory(sizes, train, quantization, dtype, train.workers.most)
    unused = 0.0
    if isinstance(objective, GRPO) and isinstance(objective.backend, VLLMRollouts):
        if not train.workers.gpus:  # on GPUs it has a share of its own
            size = 2 if dtype == "bfloat16" else 4
            memory["vllm"] = size * sizes.parameters + 1e9 * objective.backend.cache_gb
    elif isinstance(objective, GRPO):
        texts = together(objective, _prompts(variant))
        narrow = dtype == "bfloat16" and train.workers.gpus > 0  # see `generation.narrow_cache`
        longest = context.config.task.max_length, objective.max_new_tokens
        memory["sampling"] = sampling_memory(sizes, texts, *longest, narrow)
        unused = min(memory["sampling"], memory["activations"])  # they are never there together
    return {**memory, "all": sum(memory.values()) - unused}


def _prompts(variant: VariantConfig) -> int | None:
    """1 where a variant has a single prompt, None where it has those of a pool."""
    return None if isinstance(variant, PaftVariant | BoundPromptsVariant) else 1


def storage_needs(context: RunContext, sizes: ModelSizes) -> float:
    """Most bytes that all trainings write."""
    found = 0.0
    for training in context.config.trainings:
        train = context.config.of_training(training).train
        steps = total_steps(train, len(context.task.learned_by(train.objective)))
        written = rollouts_of(context, training)
        found += training_storage(sizes, train, steps) + (written.storage if written else 0.0)
    return found


def rollouts_of(context: RunContext, training: Training, fewest: bool = True) -> Writing | None:
    """What a training writes at most, on the fewest or the most workers that it may have."""
    train = context.config.of_training(training).train
    steps = total_steps(train, len(context.task.learned_by(train.objective)))
    workers = train.workers.fewest if fewest else train.workers.most
    return writing(train, steps, _prompts(training.variant), workers)


def least_sampling_hours(
    context: RunContext, sizes: ModelSizes, weights: float, gpu: str | None
) -> dict[str, float]:
    """Hours by variant below which its rollouts are not written if all are as long as they may be.

    Only for GPUs whose memory's speed is known.
    """
    config, dtype = context.config, context.training_dtype
    hours: dict[str, float] = {}
    for training in config.trainings:
        written = rollouts_of(context, training, fewest=False)
        if written is not None:
            least = least_hours(sizes, weights, dtype, written.passes, gpu)
            if least is not None:
                hours[training.label] = round(least, 2)
    return hours
