"""Subjects that answer through one prompt which an LLM improved, and the records of the searches.

A search is kept under `optimized/<identity>/` of the run: its scores as parts, and `found.json`
when it is over. LLM answers are kept like those of candidates. Searched again, from the same
beginning with the same seed, it asks for the same pairs and answers, so that none is made twice.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from paft_ray.config import OptimizedPromptSubject
from paft_ray.evaluation.endpoint_runner import answer_counts
from paft_ray.evaluation.grid import GridScores, score_grid
from paft_ray.evaluation.optimize import Answered, Found, Start, divide, find_prompt
from paft_ray.evaluation.pairs import PairScorer
from paft_ray.evaluation.scores import grades_of
from paft_ray.evaluation.units import Grid, Subject, scored_as
from paft_ray.prompts.generate.asking import Asked, Writer
from paft_ray.prompts.generate.reflection import REFLECTION, better_prompt, reflection_message
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import Origin, Prompt, PromptPool, Rejected, training_prompt
from paft_ray.runs.context import RunContext, examples_identity
from paft_ray.runs.progress import Stage
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage, to_json
from paft_ray.tasks import Example

FOLDER, RECORD, _SCORES = "optimized", "found.json", "scores"
FOUND = Origin(strategy=REFLECTION)
"""Where prompts come from that a search found."""
_RULE = 1
"""Number of the rule by which a search is made."""


def add_optimized(
    context: RunContext, pool: PromptPool, grid: Grid, scores: GridScores
) -> GridScores:
    """Find the optimised prompts of a run, and add the answers under them to those of a grid.

    Args:
        context: The run.
        pool: Its prompts.
        grid: What was scored.
        scores: Its scores.

    Raises:
        LLMError: The LLM cannot be used, or did not answer; what is done is kept.
    """
    for subject in context.config.evaluation.subjects:
        if isinstance(subject, OptimizedPromptSubject):
            scores = _add(context, pool, grid, scores, subject)
    return scores


def _add(
    context: RunContext,
    pool: PromptPool,
    grid: Grid,
    scores: GridScores,
    optimized: OptimizedPromptSubject,
) -> GridScores:
    label, of = optimized.label, optimized.of
    tables, records = [scores.table], []
    about: dict[str, dict[str, Any]] = {"seconds_per_example": {}, "packing": {}}
    asked_for: Counter[str] = Counter()
    for model in [subject for subject in grid.subjects if subject.label == of]:
        record = optimize(context, pool, grid, model, optimized)
        prompt = training_prompt(record["prompt"], context.task.slots, FOUND)
        records.append(record | _like_held_out(context, pool, prompt))
        one = grid.conditions[:1]
        asked = replace(grid, subjects=[model], prompts=[prompt], conditions=one)
        with context.screen.stage(f"evaluate {label}") as stage:
            found = score_grid(context, asked, stage)
            stage.finish(f"{of} under one prompt x {len(grid.examples)} examples")
        tables += _under_each(found.table, label, grid)
        if model.endpoint is not None:
            parts = Parts(search_folder(context, pool, grid, model, optimized).child(_SCORES))
            asked_for.update(answer_counts(parts.read(parts.finished())))
            asked_for.update(found.endpoints[of])
        for name, values in about.items():
            for value in getattr(found, name).values():
                values[label] = value
    return replace(
        scores,
        table=pa.concat_tables(tables, promote_options="default"),
        seconds_per_example={**scores.seconds_per_example, **about["seconds_per_example"]},
        packing={**scores.packing, **about["packing"]},
        endpoints={**scores.endpoints, **({label: asked_for} if asked_for else {})},
        prompts_per_answer={**scores.prompts_per_answer, label: 1},
        optimized={**scores.optimized, label: records},
    )


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
                closing(PairScorer(context, one, Parts(folder.child(_SCORES)))) as scorer,
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


def _under_each(table: pa.Table, label: str, grid: Grid) -> list[pa.Table]:
    """The answers of one model under its prompt as its answers under every held-out prompt."""
    shown, count = grid.conditions[0].demonstrations, table.num_rows
    found = []
    for condition in grid.conditions:
        for prompt in grid.prompts if not condition.axis else ():
            own = {
                "prompt_id": pa.array([prompt.id] * count, pa.string()),
                "variant": pa.array([label] * count, pa.string()),
                "draw": pa.array([condition.draw if shown else None] * count, pa.int64()),
            }
            placed = table
            for name, column in own.items():
                placed = placed.set_column(placed.schema.get_field_index(name), name, column)
            found.append(placed)
    return found


def _like_held_out(context: RunContext, pool: PromptPool, prompt: Prompt) -> dict[str, str]:
    """The held-out prompt that a found one is like, by chance: the search knew none of them."""
    like = first_like(prompt, pool.test, context.config.prompts.split.similarity)
    return {} if like is None else {"like_held_out": like.id}
