"""Examples put in other words by an LLM: asked for once, and kept like candidates.

A text that cannot be used is asked for again, a bounded number of times. Answers are on storage by
the text, the LLM and how it is asked: whoever needs the same again finds them, and pays for none.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

import pyarrow as pa

from paft_ray.config import TransformersLLM, VLLMEngine
from paft_ray.config.errors import LLMError
from paft_ray.config.variation import ParaphrasesVariation
from paft_ray.prompts.generate.asking import Asked, Writer
from paft_ray.prompts.generate.requests import longest_answer
from paft_ray.prompts.generate.units import unit_size
from paft_ray.prompts.paraphrases import ATTEMPTS, PARAPHRASE, Paraphrases, request
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage
from paft_ray.tasks import Example

Part = Literal["evaluation", "train"]
"""The section whose `variation.paraphrases` is meant."""
TRAINING_RECORD = "training_paraphrases.json"
"""What became of requests and examples of a run's trainings, in its folder."""


def asked_for(context: RunContext, part: Part) -> ParaphrasesVariation | None:
    """What a section asks for."""
    config = context.config
    section = config.evaluation if part == "evaluation" else config.train
    return section.variation.paraphrases


def writer_of(context: RunContext, part: Part) -> Writer:
    """The LLM that writes what a section asks for."""
    config, wanted = context.config, asked_for(context, part)
    own = None if wanted is None else wanted.llm
    return Writer.of(config.author(f"{_field(part)}.llm", own), config.prompts.generation)


def seed_of(context: RunContext, part: Part) -> int:
    """The seed of what is decoded; that of training is the same for all, so that runs share it."""
    return context.config.seed if part == "evaluation" else 0


def rewrite(
    context: RunContext, part: Part, examples: Sequence[Example], stage: Stage
) -> tuple[Paraphrases, Mapping[str, Any]]:
    """Write the paraphrases of examples that a section asks for, or find them written.

    Returns:
        What is usable, and what the answers cost.

    Raises:
        LLMError: Some requests were not answered, or the budget is spent; answers are kept.
    """
    wanted, field = asked_for(context, part), _field(part)
    assert wanted is not None  # its caller has looked
    writer = writer_of(context, part)
    asked = Asked(writer, context.storage, f"{field}.budget_tokens", wanted.budget_tokens)
    found = Paraphrases(context.task, examples, wanted.per_example)
    with closing(asked):
        for attempt in range(ATTEMPTS):
            _ask(found, asked, (seed_of(context, part), attempt), stage)
        return found, asked.spent()


def nothing_usable(part: Part, what: str, found: Paraphrases) -> LLMError:
    """The error of examples of which none was put in other words."""
    refused = ", ".join(f"{count} {reason}" for reason, count in found.refused.items())
    return LLMError(
        f"{_field(part)}: no example has {what} ({refused or 'nothing to write'}): name another "
        "llm, or leave them out"
    )


def table_of(kept: Mapping[str, Mapping[int, Mapping[str, str]]]) -> pa.Table:
    """Paraphrases (`Paraphrases.kept`) as a table, a row per text."""
    rows = [
        (id, number, slot, text)
        for id, wordings in kept.items()
        for number, fields in wordings.items()
        for slot, text in fields.items()
    ]
    ids, numbers, slots, texts = zip(*rows, strict=True) if rows else ((),) * 4
    return pa.table(
        {
            "example_id": pa.array(ids, pa.large_string()),
            "paraphrase": pa.array(numbers, pa.int64()),
            "slot": pa.array(slots, pa.large_string()),
            "text": pa.array(texts, pa.large_string()),
        }
    )


def _field(part: Part) -> str:
    return f"{part}.variation.paraphrases"


def _ask(found: Paraphrases, asked: Asked, place: tuple[int, int], stage: Stage) -> None:
    """Ask once for all that is not written yet; `place` is the seed and the attempt."""
    writer, wanted = asked.writer, found.wanted()
    stage.expect(stage.done + len(wanted))
    local = isinstance(writer.llm, TransformersLLM | VLLMEngine)
    size = unit_size(writer.llm) if local else max(1, len(wanted))
    most = longest_answer(writer.llm)
    for start in range(0, len(wanted), size):
        some = wanted[start : start + size]
        requests = [request(found.task, one, writer, *place) for one in some]
        answers = asked.ask(PARAPHRASE, requests, stage.advance)
        for one, each in zip(some, requests, strict=True):
            found.add(one, answers[each.id], most)
