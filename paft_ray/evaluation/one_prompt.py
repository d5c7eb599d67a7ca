"""Subjects that answer through one prompt, found for another model on validation examples.

Their answers need no held-out prompt, so that they are the same under each of them.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import pyarrow as pa

from paft_ray.config.subjects import UNDER_ONE, BestPromptSubject, OptimizedPromptSubject
from paft_ray.evaluation.endpoint_runner import answer_counts
from paft_ray.evaluation.grid import GridScores, score_grid
from paft_ray.evaluation.optimized import FOUND, SCORES, optimize, search_folder
from paft_ray.evaluation.selection import select_prompt
from paft_ray.evaluation.units import Grid
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import PromptPool, training_prompt
from paft_ray.prompts.tested import tested_pool
from paft_ray.runs.context import RunContext
from paft_ray.storage.parts import Parts

UnderOne = BestPromptSubject | OptimizedPromptSubject


def add_under_one(
    context: RunContext, pool: PromptPool, grid: Grid, scores: GridScores
) -> GridScores:
    """Find the prompts of such subjects, and add the answers under them to those of a grid.

    Args:
        context: The run.
        pool: Its prompts.
        grid: What was scored.
        scores: Its scores.

    Raises:
        LLMError: The LLM cannot be used, or did not answer; what is done is kept.
    """
    for subject in context.config.evaluation.subjects:
        if isinstance(subject, UNDER_ONE):
            scores = _add(context, pool, grid, scores, subject)
    return scores


def _add(
    context: RunContext, pool: PromptPool, grid: Grid, scores: GridScores, under_one: UnderOne
) -> GridScores:
    label, of = under_one.label, under_one.of
    tested = tested_pool(context, pool).test
    tables, records = [scores.table], []
    seconds: list[float] = []
    packing: dict[str, str] = {}
    asked_for: Counter[str] = Counter()
    for model in [subject for subject in grid.subjects if subject.label == of]:
        one = replace(grid, subjects=[model], conditions=grid.conditions[:1])
        record, asked = _find(context, pool, one, under_one)
        prompt = training_prompt(record["prompt"], context.task.slots, FOUND)
        like = first_like(prompt, tested, context.config.prompts.split.similarity)
        records.append(record | ({} if like is None else {"like_held_out": like.id}))
        with context.screen.stage(f"evaluate {label}") as stage:
            found = score_grid(context, replace(one, prompts=[prompt]), stage)
            stage.finish(f"{of} under one prompt x {len(grid.examples)} examples")
        tables += _under_each(found.table, label, grid)
        if model.endpoint is not None:
            asked_for.update(asked)
            asked_for.update(found.endpoints[of])
        seconds += found.seconds_per_example.values()
        for how in found.packing.values():
            packing[label] = max(how, packing.get(label, ""))
    timed = {label: fmean(seconds)} if seconds else {}
    return replace(
        scores,
        table=pa.concat_tables(tables, promote_options="default"),
        seconds_per_example={**scores.seconds_per_example, **timed},
        packing={**scores.packing, **packing},
        endpoints={**scores.endpoints, **({label: asked_for} if asked_for else {})},
        prompts_per_answer={**scores.prompts_per_answer, label: 1},
        under_one={**scores.under_one, label: records},
    )


def _find(
    context: RunContext, pool: PromptPool, one: Grid, under_one: UnderOne
) -> tuple[dict[str, Any], Mapping[str, int]]:
    """The record of the prompt for one model, and the counts of an endpoint's answers for it."""
    [model] = one.subjects
    if isinstance(under_one, OptimizedPromptSubject):
        record = optimize(context, pool, one, model, under_one)
        if model.endpoint is None:
            return record, {}
        parts = Parts(search_folder(context, pool, one, model, under_one).child(SCORES))
        return record, answer_counts(parts.read(parts.finished()))
    with context.screen.stage(f"choose {under_one.label}") as stage:
        among = replace(one, prompts=pool.train[: under_one.prompts])
        selection = select_prompt(context, among, stage)
        stage.finish(str(selection))
    record = {
        "type": under_one.type,
        "of": under_one.of,
        "seed": model.seed,
        "prompt": selection.best.text,
        "prompts": len(selection.accuracy),
        "pairs": len(selection.accuracy) * selection.examples,
        "accuracy": selection.accuracy[selection.best.id],
        "tracked": selection.examples,
    }
    return record, selection.scores.endpoints.get(model.label, {})


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
