"""Checks of a run's or trial's settings against each other, the task and this machine."""

from collections.abc import Iterator

from paft_ray.cluster.access import named_cluster
from paft_ray.config import (
    BestPromptSubject,
    Config,
    HumanPromptVariant,
    OptimizedPromptSubject,
    SinglePromptVariant,
    total_steps,
)
from paft_ray.config.errors import ConfigError
from paft_ray.config.variation import ChoicesVariation
from paft_ray.models.dtype import cpu_has_bfloat16, resolve_dtype
from paft_ray.models.peft_check import check_peft
from paft_ray.models.switch_check import check_switches
from paft_ray.models.vllm_limits import refuse_unserved, refuse_unwritten
from paft_ray.models.warm_start import check_adapter, read_adapter
from paft_ray.tasks import Task
from paft_ray.tasks.demonstrations import demonstration_pool


def check_settings(config: Config, task: Task, trainable: bool = True) -> list[str]:
    """Check the settings that a search may change, also against the task; returns warnings.

    Args:
        config: The configuration.
        task: Its task.
        trainable: The model has weights. Without, it can only be planned with, for which the task's
            data may be a small sample.

    Raises:
        ConfigError: They cannot work together, or not on this machine.
    """
    dtype = resolve_dtype(config.model.dtype, config.train.workers.gpus)
    warnings = [*_check_bfloat16(config)] if dtype == "bfloat16" else []
    if config.model.peft is not None:
        check_peft(config.model.peft)
    refuse_unserved(config)
    refuse_unwritten(config)
    warnings += check_switches(config, dtype, cluster=named_cluster() is not None)
    if (adapter := config.train.warm_start) is not None:
        warnings += check_adapter(
            read_adapter(adapter), config.model.peft or {}, config.model.path, config.model.revision
        )
    warnings += _check_batches(config, task, trainable)
    warnings += _check_task(config, task)
    return warnings


def _check_bfloat16(config: Config) -> Iterator[str]:
    if config.train.deepspeed.stage == 0:
        raise ConfigError(
            f"train.deepspeed.stage: 0 gives wrong losses in bfloat16, which model.dtype "
            f"{config.model.dtype!r} is here; use stage 1, or model.dtype float32"
        )
    if config.train.workers.gpus == 0 and not cpu_has_bfloat16():
        yield (
            "model.dtype: bfloat16 is not known to be faster than float32 on this processor, and "
            "may be slower"
        )


def _check_batches(config: Config, task: Task, trainable: bool) -> Iterator[str]:
    """Check that each variant finds as many examples as are in one of its batches."""
    for train in config.train_sections:
        if train.batch_examples <= (count := len(task.learned_by(train.objective))):
            continue
        several = train.batch_examples < train.batch_size
        questions = f" ({train.batch_examples} questions)" if several else ""
        text = (
            f"train.batch_size: {train.batch_size}{questions} is more than the {count} training "
            f"examples of {task.name} that {train.objective.type} learns from; lower it, or add "
            "examples"
        )
        if trainable:
            raise ConfigError(text)
        yield f"this can be planned and not trained: {text}"


def _check_task(config: Config, task: Task) -> Iterator[str]:
    steps = total_steps(config.train, len(task.learned_by(config.train.objective)))
    _check_profile(config, steps)
    yield from _check_ends(config, task)
    _check_variation(config, task)
    yield from _check_validation(config, task, steps)
    wanted = config.evaluation.examples
    if wanted is not None and task.test and wanted > len(task.test):
        yield f"evaluation.examples: {wanted}, of {len(task.test)} test examples; all are used"
    for index, variant in enumerate(config.variants):
        if isinstance(variant, HumanPromptVariant) and not task.instructions:
            raise ConfigError(
                f"variants.{index}: human_prompt takes one of the task's instructions, and "
                f"{task.name} has none: give task.instructions, or a single_prompt with its prompt"
            )
    single = any(isinstance(v, SinglePromptVariant) and not v.prompt for v in config.variants)
    subjects = config.evaluation.subjects
    best = any(isinstance(s, BestPromptSubject) for s in subjects)
    found = [s.type for s in subjects if isinstance(s, BestPromptSubject | OptimizedPromptSubject)]
    chosen, wanted = single or best, config.evaluation.selection_examples
    if (single or found) and not task.validation:
        which = "variants: single_prompt" if single else f"evaluation.subjects: {found[0]}"
        remedy = "name its prompt" if single else "leave it out"
        raise ConfigError(
            f"{which} is chosen on validation examples, and {task.name} has none: {remedy}, or add "
            "rows with answers"
        )
    if config.prompts.probe is not None and not task.train:
        raise ConfigError(
            f"prompts.probe tries prompts on training examples with answers, and {task.name} has "
            "none: leave it out, or add some"
        )
    is_set = "selection_examples" in config.evaluation.model_fields_set
    if chosen and is_set and wanted > len(task.validation):
        yield (
            f"evaluation.selection_examples: {wanted}, of {len(task.validation)} validation "
            "examples; all are used"
        )


def _check_variation(config: Config, task: Task) -> None:
    """Check that the task can be put in the ways that are asked for."""
    asked = ("evaluation", config.evaluation.variation), ("train", config.train.variation)
    for path, variation in asked:
        if reason := _refuse_choices(task, variation.choices):
            raise ConfigError(
                f"{path}.variation.choices: {reason}; leave it out, or give choices of each row "
                "(task.choices: {column: ...}, choices_as: letters)"
            )
        shown = variation.demonstrations
        if shown is None:
            continue
        source = len(demonstration_pool(task, shown, task.train))
        if shown.shots >= source:
            raise ConfigError(
                f"{path}.variation.demonstrations.shots: {shown.shots} is not less than the "
                f"{source} training examples that they are drawn from: lower it, or raise "
                "examples_per_class"
            )


def _refuse_choices(task: Task, choices: ChoicesVariation | None) -> str:
    """Why the choices of a task cannot be varied so; empty where they can."""
    if choices is None or task.choices_as == "letters":
        return ""
    if choices.names != ("letters",):
        return "the prompts of this task write the names of the choices themselves"
    if choices.order == "shuffled" and not task.option_slots:
        return "its prompts show no list of choices whose order could change"
    return ""


def _check_profile(config: Config, steps: int) -> None:
    profile = config.train.profile
    if profile is not None and profile.steps[1] > steps:
        raise ConfigError(
            f"train.profile.steps: step {profile.steps[1]} is outside of this training, which has "
            f"{steps} steps; name earlier ones"
        )


def _check_validation(config: Config, task: Task, steps: int) -> Iterator[str]:
    """Check that a training can be scored on the way as asked."""
    validation = config.train.validation
    if validation is None:
        return
    refuse_spread_generation(config, task)
    if not task.validation:
        raise ConfigError(
            f"train.validation scores on validation examples, and {task.name} has none: raise "
            "task.validation_share, or leave train.validation out"
        )
    if validation.examples > len(task.validation):
        yield (
            f"train.validation.examples: {validation.examples}, of {len(task.validation)} "
            "validation examples; all are used"
        )
    if validation.every_steps >= steps:
        yield (
            f"train.validation.every_steps: {validation.every_steps}, of {steps} steps; only the "
            "last one is scored, so that there is nothing to choose"
        )


def refuse_spread_generation(config: Config, task: Task) -> None:
    """Refuse to score a model in training that would have to write free text under ZeRO 3.

    Raises:
        ConfigError: It would.
    """
    if config.train.deepspeed.stage == 3 and task.generates:
        raise ConfigError(
            "train.deepspeed.stage: 3 spreads weights, so that free text cannot be generated while "
            "a model is trained and scored: use stage 2, or offload"
        )


def _check_ends(config: Config, task: Task) -> Iterator[str]:
    """Check that every right answer can be given, whatever ends an answer."""
    if config.task.answer_end == "ignored":
        choices = task.choices or ()
        pairs = [(a, b) for a in choices for b in choices if a != b and b.startswith(a)]
        if pairs:
            one, other = pairs[0]
            yield (
                f"task.answer_end: ignored, so that {other!r} never wins against {one!r}, which it "
                "begins with; leave it out"
            )
    for stop in config.task.stop if task.answer_pattern is None else ():
        for example in (*task.train, *task.validation, *task.test):
            if stop in example.answer:
                raise ConfigError(
                    f"task.stop: {stop!r} occurs in the answer {example.answer[:80]!r}, which "
                    "could never be right: name another text"
                )
