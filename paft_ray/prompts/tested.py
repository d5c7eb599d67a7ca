"""The prompts that an evaluation asks through: the pool's test prompts, or those of files."""

from dataclasses import replace

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.prompts.candidates import lint_candidate
from paft_ray.prompts.files import read_templates
from paft_ray.prompts.pool import Candidate, Origin, Prompt, PromptPool, Rejected, piece_of
from paft_ray.runs.context import PROMPT_FILES, RunContext
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

_SHOWN = 60


def read_prompt_files(config: Config, task: Task) -> tuple[tuple[str, str], ...]:
    """File and template of every prompt of `evaluation.prompt_files`; all of them, or an error.

    Raises:
        ConfigError: A file cannot be read, a template of it not be used, or one is there twice.
    """
    found: dict[str, str] = {}
    for path in config.evaluation.prompt_files:
        try:
            texts = read_templates(path, task)
        except PaftError as error:
            raise ConfigError(f"{PROMPT_FILES}: {error}") from error
        for number, text in enumerate(texts, 1):
            where = f"{PROMPT_FILES}: template {number} of {path}"
            candidate = Candidate(text, "template", Origin(file=path))
            linted = lint_candidate(candidate, task, config.prompts.lint)
            if isinstance(linted, Rejected):
                reason = " ".join(f"{linted.reason}: {linted.detail}".split())
                raise ConfigError(
                    f"{where} cannot be used ({reason}): {_start(text)!r}; mend it, or take it out"
                )
            if linted.text in found:
                raise ConfigError(
                    f"{where} is there before, in {found[linted.text]}: {_start(text)!r}; take one "
                    "of them out"
                )
            found[linted.text] = path
    return tuple((path, text) for text, path in found.items())


def tested_pool(context: RunContext, pool: PromptPool) -> PromptPool:
    """The pool; with prompts of files, those of them that are asked are its test prompts."""
    own = tuple(_prompt(path, text, context.task) for path, text in context.prompt_files)
    return replace(pool, test=own[: context.config.evaluation.prompts]) if own else pool


def tested_prompts(context: RunContext, pool: PromptPool) -> tuple[Prompt, ...]:
    """The prompts that an evaluation asks through: at most `evaluation.prompts`."""
    return tested_pool(context, pool).test[: context.config.evaluation.prompts]


def tested_count(context: RunContext) -> int:
    """How many prompts an evaluation asks through, as far as known before there is a pool."""
    count = len(context.prompt_files) or context.config.prompts.split.test
    return min(count, context.config.evaluation.prompts or count)


def _prompt(path: str, text: str, task: Task) -> Prompt:
    candidate = Candidate(text, "template", Origin(file=path))
    piece = piece_of(candidate, task)
    assert piece.layout is not None  # a template has one
    return Prompt(
        id=fingerprint(text),
        text=text,
        instruction=piece.instruction,
        layout=piece.layout,
        split="test",
        cluster="",
        origin=candidate.origin,
    )


def _start(text: str) -> str:
    start = " ".join(text[:200].split())
    return start if len(start) <= _SHOWN else f"{start[: _SHOWN - 3]}..."
