"""What LLMs write besides candidates: checks before anything begins, and what `paft plan` says."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray.config import Config, OptimizedPromptSubject
from paft_ray.config.errors import ConfigError
from paft_ray.evaluation.optimize import TOGETHER, divide, most_reflections
from paft_ray.prompts.generate.asking import Writer
from paft_ray.prompts.generate.reflection import reflection_message
from paft_ray.prompts.generate.requests import longest_answer
from paft_ray.prompts.generate.results import cost
from paft_ray.prompts.paraphrases import ATTEMPTS, Paraphrases, request
from paft_ray.prompts.rewrite import Part, asked_for, writer_of
from paft_ray.runs.context import RunContext
from paft_ray.tasks import Example

_CHARACTERS_PER_TOKEN = 4
_TEMPLATE = "x" * 300
"""As long as a prompt that is not known yet."""


def check_optimized(config: Config) -> None:
    """Check that prompts can be optimised.

    Raises:
        ConfigError: A package is missing.
    """
    for field in _optimized(config):
        if importlib.util.find_spec("gepa") is None:
            raise ConfigError(
                f"{field}: optimized_prompt needs the package gepa, which is not installed: "
                "pip install 'paft_ray[optimize]'"
            )


def plan_optimized(context: RunContext) -> list[dict[str, Any]]:
    """Pairs, requests, tokens and cost of optimised prompts at most, kept answers among them.

    What is scored is counted once for every seed of a variant.
    """
    config, task = context.config, context.task
    rows = []
    for subject in _optimized(config).values():
        writer = Writer.of(config.author("", subject.llm), config.prompts.generation)
        variants = [variant.label for variant in config.variants]
        times = len(config.training_seeds) if subject.of in variants else 1
        tracked, shown = divide(task.validation, subject.budget)
        requests = times * most_reflections(subject.budget)
        sample = [(example, example.answer, 0.0) for example in shown[:TOGETHER]]
        message = len(reflection_message(task, _TEMPLATE, sample))
        read = round(requests * message / _CHARACTERS_PER_TOKEN)
        written = requests * longest_answer(writer.llm)
        if subject.budget_tokens is not None:
            written = min(written, times * subject.budget_tokens)
        price = writer.llm.price
        rows.append(
            {
                "subject": subject.label,
                "pairs_at_most": times * subject.budget,
                "validation_examples": len(tracked),
                "llm": writer.llm.label,
                "requests_at_most": requests,
                "prompt_tokens_about": read,
                "completion_tokens_at_most": written,
                "cost_at_most": price and round(cost(price, read, written), 4),
            }
        )
    return rows


def plan_paraphrases(
    context: RunContext, part: Part, examples: Sequence[Example]
) -> dict[str, Any]:
    """Requests, tokens and cost of paraphrases, kept answers among them; empty without any.

    A text that cannot be used is asked for again, up to `ATTEMPTS` times in all.
    """
    wanted_of = asked_for(context, part)
    if wanted_of is None or not examples:
        return {}
    writer, task = writer_of(context, part), context.task
    wanted = Paraphrases(task, examples, wanted_of.per_example).wanted()
    messages = [text for one in wanted for _, text in request(task, one, writer, 0, 0).messages]
    read = round(sum(map(len, messages)) / _CHARACTERS_PER_TOKEN)
    written = ATTEMPTS * len(wanted) * longest_answer(writer.llm)
    if wanted_of.budget_tokens is not None:
        written = min(written, wanted_of.budget_tokens)
    price = writer.llm.price
    return {
        "llm": writer.llm.label,
        "examples": len(examples),
        "requests": len(wanted),
        "requests_at_most": ATTEMPTS * len(wanted),
        "prompt_tokens_about": read,
        "completion_tokens_at_most": written,
        "cost_at_most": price and round(cost(price, ATTEMPTS * read, written), 4),
    }


def _optimized(config: Config) -> Mapping[str, OptimizedPromptSubject]:
    return {
        f"evaluation.subjects.{index}": subject
        for index, subject in enumerate(config.evaluation.subjects)
        if isinstance(subject, OptimizedPromptSubject)
    }
