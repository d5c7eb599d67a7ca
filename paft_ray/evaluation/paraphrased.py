"""The paraphrases of an evaluation's examples: written once by an LLM, kept like candidates.

A text that cannot be used is asked for again, a bounded number of times. An example without all of
its paraphrases is named, and left out of this axis: nothing stands in their place.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from paft_ray.config import TransformersLLM, VLLMEngine
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.asking import Asked, Writer
from paft_ray.prompts.generate.requests import longest_answer
from paft_ray.prompts.generate.units import unit_size
from paft_ray.prompts.paraphrases import ATTEMPTS, PARAPHRASE, Paraphrases, request
from paft_ray.prompts.variation import Condition, paraphrased
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage
from paft_ray.storage.paths import to_parquet
from paft_ray.tasks import Example

FILE = "paraphrases.parquet"
"""The texts, in the folder of the results."""
FIELD = "evaluation.variation.paraphrases"


def write_paraphrases(
    context: RunContext, examples: Sequence[Example], main: Condition
) -> tuple[list[Condition], Mapping[str, Any] | None]:
    """Write the paraphrases of examples, or find them written.

    Returns:
        A condition for each wording, and what became of requests and examples; nothing where the
        configuration asks for none.

    Raises:
        LLMError: Some requests were not answered, the budget is spent, or no example has all of its
            paraphrases; answers are kept.
    """
    asked_for = context.config.evaluation.variation.paraphrases
    if asked_for is None:
        return [], None
    generation = context.config.prompts.generation
    writer = Writer.of(context.config.author(f"{FIELD}.llm", asked_for.llm), generation)
    asked = Asked(writer, context.storage, f"{FIELD}.budget_tokens", asked_for.budget_tokens)
    found = Paraphrases(context.task, examples, asked_for.per_example)
    with closing(asked), context.screen.stage("paraphrase examples") as stage:
        stage.expect(len(found.wanted()))
        for attempt in range(ATTEMPTS):
            _ask(context, found, asked, attempt, stage)
        written = found.complete()
        without = [example.id for example in examples if example.id not in written[0]]
        count = len(examples) - len(without)
        stage.finish(f"{count} of {len(examples)} examples in {len(written)} other wordings each")
    if not count:
        raise LLMError(
            f"{FIELD}: no example has all of its paraphrases ({_in_words(found.refused)}): name "
            "another llm, or leave them out"
        )
    context.results_folder.write_bytes(FILE, to_parquet(_table(written)))
    return paraphrased(main, written), {
        "per_example": len(written),
        "examples": count,
        "without": without,
        "refused": dict(found.refused),
        "asked": asked.spent(),
    }


def _ask(context: RunContext, found: Paraphrases, asked: Asked, attempt: int, stage: Stage) -> None:
    """Ask once for all that is not written yet."""
    writer, wanted = asked.writer, found.wanted()
    local = isinstance(writer.llm, TransformersLLM | VLLMEngine)
    size = unit_size(writer.llm) if local else max(1, len(wanted))
    most = longest_answer(writer.llm)
    for start in range(0, len(wanted), size):
        some = wanted[start : start + size]
        requests = [request(found.task, w, writer, context.config.seed, attempt) for w in some]
        answers = asked.ask(PARAPHRASE, requests)
        before = len(found.texts)
        for one, each in zip(some, requests, strict=True):
            found.add(one, answers[each.id], most)
        stage.advance(len(found.texts) - before)


def _table(written: Sequence[Mapping[str, Mapping[str, str]]]) -> pa.Table:
    rows = [
        {"example_id": id, "paraphrase": number, "slot": slot, "text": text}
        for number, texts in enumerate(written, start=1)
        for id, fields in texts.items()
        for slot, text in fields.items()
    ]
    return pa.Table.from_pylist(rows)


def _in_words(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "nothing to write"
