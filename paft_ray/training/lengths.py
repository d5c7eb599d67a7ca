"""Refusal of examples that are too long, before a training begins."""

from collections.abc import Sequence

from paft_ray.config import Config
from paft_ray.models.base_model import BaseSource, locate_base
from paft_ray.models.meta import ModelCheckProcess, refuse_overlong
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.prompts.template import parse
from paft_ray.runs.context import RunContext
from paft_ray.tasks import Example


def check_lengths(
    context: RunContext,
    pool: PromptPool,
    checks: ModelCheckProcess,
    validation: tuple[Sequence[Prompt], Sequence[Example]] = ((), ()),
) -> None:
    """Refuse examples that do not fit `task.max_length` under training or held-out prompts.

    Args:
        context: The run.
        pool: Its prompts.
        checks: Process that tokenises texts; closed afterwards, which frees its memory.
        validation: Prompts and examples that models are scored on while they are trained.

    Raises:
        DataError: An example is too long under a prompt, and `task.overlong` is `refuse`.
    """
    config, task = context.config, context.task
    try:
        if config.task.overlong == "trim":
            return
        base = locate_base(config.model.path, config.model.revision, context.storage)
        pairs = (
            (pool.train, task.train),
            (pool.test[: config.evaluation.prompts], task.test[: config.evaluation.examples]),
            validation,
        )
        texts = [
            ([(p.id, p.text) for p in prompts], examples)
            for prompts, examples in pairs
            if prompts and examples
        ]
        checks.begin(_read_longest, config, base, task.slots, task.choices, texts)
        checks.finish()
    finally:
        checks.close()


def _read_longest(
    config: Config,
    base: BaseSource,
    slots: Sequence[str],
    choices: Sequence[str] | None,
    texts: Sequence[tuple[Sequence[tuple[str, str]], Sequence[Example]]],
) -> None:
    """Check lengths, in the process of model checks."""
    from paft_ray.models.load import load_tokenizer
    from paft_ray.models.tokenization import TextEncoder

    model = config.model
    tokenizer = load_tokenizer(base.local(), model.revision, model.trust_remote_code)
    encoder = TextEncoder.from_config(tokenizer, config)
    for prompts, examples in texts:
        rendered = [(id, text, parse(text, slots).render) for id, text in prompts]
        refuse_overlong(encoder, rendered, examples, choices)
