"""Refusal of what a pool makes too long or unknown to the model, before a training begins."""

from collections.abc import Sequence

from paft_ray.config import Config, SinglePromptVariant
from paft_ray.models.base_model import BaseSource, is_prepared, locate_base
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.models.meta import check_texts, refuse_overlong
from paft_ray.prompts.build import pool_without_work
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.prompts.template import parse
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import models_of
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks import Example, Task
from paft_ray.training.validation import held_out


def check_lengths(
    context: RunContext,
    pool: PromptPool,
    checks: ModelCheckProcess,
    validation: tuple[Sequence[Prompt], Sequence[Example]] | None = None,
) -> None:
    """Refuse examples that do not fit `task.max_length` under training or held-out prompts.

    Prompts that LLMs wrote may also hold tokens for which the base model has no row.

    Args:
        context: The run.
        pool: Its prompts.
        checks: Process that tokenises texts; closed afterwards, which frees its memory.
        validation: Prompts and examples that models are scored on while they are trained; by
            default those of `train.validation`.

    Raises:
        ConfigError: A prompt has a token that the base model does not know.
        DataError: An example is too long under a prompt, and `task.overlong` is `refuse`.
    """
    config, task = context.config, context.task
    validation = validation or held_out(config, pool, task)
    if checks.unknown_tokens:
        texts = [prompt.text for prompt in (*pool.train, *pool.test, *validation[0])]
        checks.begin(check_texts, config, checks.unknown_tokens, texts)
        checks.finish()
    pairs = [
        (_named(pool.train), task.train),
        (_named(pool.test[: config.evaluation.prompts]), task.test[: config.evaluation.examples]),
        (_named(validation[0]), validation[1]),
    ]
    singles = [v for v in config.variants if isinstance(v, SinglePromptVariant)]
    if any(variant.prompt is None for variant in singles):
        selection = config.evaluation
        prompts = _named(pool.train[: selection.selection_prompts])
        pairs.append((prompts, task.validation[: selection.selection_examples]))
    given = [(variant.label, variant.prompt) for variant in singles if variant.prompt is not None]
    pairs.append((given, task.train))
    _check(context, checks, pairs)


def check_subject_lengths(context: RunContext, pool: PromptPool, checks: ModelCheckProcess) -> None:
    """Refuse test examples that are too long for the tokenizers of `evaluation.subjects`.

    Raises:
        DataError: One is, and `task.overlong` is `refuse`.
    """
    evaluation = context.config.evaluation
    prompts = _named(pool.test[: evaluation.prompts])
    pairs = [(prompts, context.task.test[: evaluation.examples])]
    for model in models_of(context.config).values():
        _check(context.of_model(model), checks, pairs)


def check_lengths_early(context: RunContext, checks: ModelCheckProcess, whole: bool) -> None:
    """Refuse what is known to be too long before Ray starts.

    Where the pool is known without work, that is all of `check_lengths`; else it is examples that
    fit under no prompt. Nothing is written: a GGUF file that has to be converted first is not read.

    Args:
        context: The run.
        checks: Process that tokenises texts.
        whole: The work is a run with one pool, not a search.

    Raises:
        DataError: See `check_lengths`.
    """
    config, task = context.config, context.task
    if config.task.overlong == "trim" or not is_prepared(config.model.path, context.storage):
        return
    pool = pool_without_work(context) if whole else None
    if pool is not None:
        check_lengths(context, pool, checks)
        return
    shortest = [("that is as short as can be", " ".join(f"{{{slot}}}" for slot in task.slots))]
    examples = (*task.train, *task.test[: config.evaluation.examples])
    _check(context, checks, [(shortest, examples)])


_Texts = tuple[Sequence[tuple[str, str]], Sequence[Example]]
"""Names and texts of prompts, and the examples that they are to render."""


def _named(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.id, prompt.text) for prompt in prompts]


def _check(context: RunContext, checks: ModelCheckProcess, pairs: Sequence[_Texts]) -> None:
    config, task = context.config, context.task
    try:
        texts = [(prompts, examples) for prompts, examples in pairs if prompts and examples]
        ids = [([*prompts], [example.id for example in examples]) for prompts, examples in texts]
        checked = fingerprint("lengths", ids, config.task.max_length, config.model.chat_template)
        unread = config.task.overlong == "trim" or not config.has_base
        if unread or checked in checks.passed:
            return
        base = locate_base(config.model.path, config.model.revision, context.storage)
        checks.begin(_read_longest, config, base, task.without_examples(), texts)
        checks.finish()
        checks.passed.add(checked)
    finally:
        checks.close()


def _read_longest(
    config: Config,
    base: BaseSource,
    task: Task,
    texts: Sequence[_Texts],
) -> None:
    """Check lengths, in the process of model checks."""
    from paft_ray.models.load import load_tokenizer
    from paft_ray.models.tokenization import TextEncoder

    model = config.model
    tokenizer = load_tokenizer(base.local(), model.revision, model.trust_remote_code)
    encoder = TextEncoder.from_config(tokenizer, config)
    for prompts, examples in texts:
        rendered = [(id, text, parse(text, task.slots).render) for id, text in prompts]
        refuse_overlong(encoder, rendered, examples, task.choices_of)
