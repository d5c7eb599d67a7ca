"""The prompts that an evaluation asks through: the pool's test prompts, or those of files."""

from dataclasses import replace

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.prompts.candidates import lint_candidate
from paft_ray.prompts.files import read_templates
from paft_ray.prompts.pool import Candidate, Origin, Prompt, PromptPool, Rejected, piece_of
from paft_ray.runs.context import RunContext
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

FIELD = "evaluation.prompt_files"
_SHOWN = 60


def tested_pool(context: RunContext, pool: PromptPool) -> PromptPool:
    """The pool with what an evaluation may ask through as its test prompts.

    Raises:
        ConfigError: See `prompts_of_files`.
    """
    own = prompts_of_files(context.config, context.task)
    return replace(pool, test=own) if own else pool


def tested_prompts(context: RunContext, pool: PromptPool) -> tuple[Prompt, ...]:
    """The prompts that an evaluation asks through: at most `evaluation.prompts` of `tested_pool`.

    Raises:
        ConfigError: See `prompts_of_files`.
    """
    return tested_pool(context, pool).test[: context.config.evaluation.prompts]


def tested_count(config: Config, task: Task) -> int:
    """How many prompts an evaluation asks through, as far as known before there is a pool.

    Raises:
        ConfigError: See `prompts_of_files`.
    """
    count = len(prompts_of_files(config, task)) or config.prompts.split.test
    return min(count, config.evaluation.prompts or count)


def content_of_files(context: RunContext) -> dict[str, str]:
    """What of a result's content is in `evaluation.prompt_files`: a fingerprint, if there are any.

    Raises:
        ConfigError: See `prompts_of_files`.
    """
    own = prompts_of_files(context.config, context.task)
    return {FIELD: fingerprint([prompt.id for prompt in own])} if own else {}


def prompts_of_files(config: Config, task: Task) -> tuple[Prompt, ...]:
    """The prompts of `evaluation.prompt_files` in their order; all of them, or an error.

    Raises:
        ConfigError: A file cannot be read, a template of it not be used, or one is there twice.
    """
    found: dict[str, Prompt] = {}
    for path in config.evaluation.prompt_files:
        try:
            texts = read_templates(path, task)
        except PaftError as error:
            raise ConfigError(f"{FIELD}: {error}") from error
        for number, text in enumerate(texts, 1):
            candidate = Candidate(text, "template", Origin(file=path))
            linted = lint_candidate(candidate, task, config.prompts.lint)
            where = f"{FIELD}: template {number} of {path}"
            if isinstance(linted, Rejected):
                reason = " ".join(f"{linted.reason}: {linted.detail}".split())
                raise ConfigError(
                    f"{where} cannot be used ({reason}): {_start(text)!r}; mend it, or take it out"
                )
            prompt = _prompt(linted, task)
            if prompt.id in found:
                raise ConfigError(
                    f"{where} is there before, in {found[prompt.id].origin.file}: "
                    f"{_start(text)!r}; take one of them out"
                )
            found[prompt.id] = prompt
    return tuple(found.values())


def _prompt(candidate: Candidate, task: Task) -> Prompt:
    piece = piece_of(candidate, task)
    assert piece.layout is not None  # a template has one
    return Prompt(
        id=fingerprint(candidate.text),
        text=candidate.text,
        instruction=piece.instruction,
        layout=piece.layout,
        split="test",
        cluster=fingerprint(candidate.text),
        origin=candidate.origin,
    )


def _start(text: str) -> str:
    start = " ".join(text[:200].split())
    return start if len(start) <= _SHOWN else f"{start[: _SHOWN - 3]}..."
