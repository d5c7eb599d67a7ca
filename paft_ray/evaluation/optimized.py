"""Searches for a prompt that an LLM improves, and their records.

A search is kept under `optimized/<identity>/` of the run: its scores as parts, and `found.json`
when it is over. LLM answers are kept like those of candidates. Searched again, from the same
beginning with the same seed, it asks for the same pairs and answers, so that none is made twice.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from paft_ray.config import OptimizedPromptSubject
from paft_ray.evaluation.optimize import Answered, Found, Start, divide, find_prompt
from paft_ray.evaluation.pairs import PairScorer
from paft_ray.evaluation.scores import grades_of
from paft_ray.evaluation.units import Grid, Subject, scored_as
from paft_ray.prompts.generate.asking import Asked, Writer
from paft_ray.prompts.generate.reflection import REFLECTION, better_prompt, reflection_message
from paft_ray.prompts.pool import Origin, PromptPool, Rejected, training_prompt
from paft_ray.runs.context import RunContext, examples_identity
from paft_ray.runs.progress import Stage
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage, to_json
from paft_ray.tasks import Example

FOLDER, RECORD, SCORES = "optimized", "found.json", "scores"
FOUND = Origin(strategy=REFLECTION)
"""Where prompts come from that a search found."""
_RULE = 1
"""Number of the rule by which a search is made."""


def search_folder(
    context: RunContext,
    pool: PromptPool,
    grid: Grid,
    model: Subject,
    optimized: OptimizedPromptSubject,
) -> Storage:
    """Where the search of a prompt for a model is kept."""
    config = context.config
    writer = Writer.of(config.author("", optimized.llm), config.prompts.generation)
    identity = fingerprint(
        "optimized prompt",
        _RULE,
        scored_as(context, grid, model),
        pool.train[0].text,
        *map(examples_identity, divide(context.task.validation, optimized.budget)),
        [optimized.budget, optimized.budget_tokens, config.seed],
        [writer.identity, config.prompts.lint.model_dump(mode="json")],
        *grid.conditions[0].identity,
    )
    return context.run_folder.child(FOLDER, identity)


def optimize(
    context: RunContext,
    pool: PromptPool,
    grid: Grid,
    model: Subject,
    optimized: OptimizedPromptSubject,
) -> dict[str, Any]:
    """Search for a prompt for a model, or read the record of the finished search.

    Only validation examples and the first training prompt are read.
    """
    config, first = context.config, pool.train[0].text
    writer = Writer.of(config.author("", optimized.llm), config.prompts.generation)
    examples = context.task.validation
    folder = search_folder(context, pool, grid, model, optimized)
    with context.screen.stage(f"optimise {optimized.label}") as stage:
        if folder.exists(RECORD):
            record = folder.read_json(RECORD)
        else:
            field = f"{optimized.label}.budget_tokens"
            one = replace(grid, subjects=[model], examples=examples, conditions=grid.conditions[:1])
            with (
                closing(Asked(writer, context.storage, field, optimized.budget_tokens)) as asked,
                closing(PairScorer(context, one, Parts(folder.child(SCORES)))) as scorer,
            ):
                start = Start(first, examples, optimized.budget, config.seed)
                found = _search(context, start, scorer, asked, stage)
            record = {
                "of": optimized.of,
                "seed": model.seed,
                "prompt": found.text,
                "first_prompt": first,
                "budget": optimized.budget,
                **{k: v for k, v in asdict(found).items() if k != "text"},
                "asked": asked.spent(),
            }
            folder.write_bytes(RECORD, to_json(record))
        stage.finish(
            f"{record['pairs']} pairs, {record['reflections']} reflections: "
            f"{record['first_accuracy']:.0%} -> {record['accuracy']:.0%} of {record['tracked']} "
            "validation examples"
        )
    return record


def _search(
    context: RunContext, start: Start, scorer: PairScorer, asked: Asked, stage: Stage
) -> Found:
    task, config, writer = context.task, context.config, asked.writer
    stage.expect(start.budget)

    def score(text: str, examples: Sequence[Example]) -> list[Answered]:
        table = scorer.score(training_prompt(text, task.slots, FOUND), examples)
        stage.advance(len(examples))
        said = _said(table)
        grades = grades_of(table).tolist()
        return [Answered(*each) for each in zip(examples, said, grades, strict=True)]

    def improve(text: str, answered: Sequence[Answered], number: int) -> tuple[str | None, str]:
        shown = [(each.example, each.said, each.grade) for each in answered]
        message = reflection_message(task, text, shown)
        request = writer.request(REFLECTION, message, start.seed, number)
        [answer] = asked.ask(REFLECTION, [request]).values()
        author = writer.llm.label
        found = better_prompt(answer, task, config.prompts.lint, author, request.max_tokens)
        return (None, found.reason) if isinstance(found, Rejected) else (found.text, "")

    return find_prompt(start, score, improve)


def _said(scores: pa.Table) -> list[str]:
    """What a model said: the whole text, or the choice."""
    rows = scores.select(["generated_text", "prediction"]).to_pylist()
    return [r["prediction"] if r["generated_text"] is None else r["generated_text"] for r in rows]
