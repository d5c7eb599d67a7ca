"""What a user could do instead of training: several prompts for one answer, chosen at test time.

Their answers need no held-out prompt, so that they are the same under each of them. They are made
of a model's choices under training prompts, which are scored like any others.

Shapes: K prompts, C choices of an example.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paft_ray.config import EnsembleSubject, InferencePromptSubject
from paft_ray.evaluation.grid import GridScores, score_grid
from paft_ray.evaluation.scores import Score, scores_table
from paft_ray.evaluation.units import Grid
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.tasks import Example, Task

Comparator = EnsembleSubject | InferencePromptSubject


def comparators_of(context: RunContext) -> list[Comparator]:
    """The comparators among `evaluation.subjects`."""
    return [s for s in context.config.evaluation.subjects if isinstance(s, Comparator)]


def add_comparators(
    context: RunContext, pool: PromptPool, grid: Grid, scores: GridScores
) -> GridScores:
    """Score the comparators of a run, and add their answers to those of a grid.

    Args:
        context: The run.
        pool: Its prompts.
        grid: What was scored.
        scores: Its scores.
    """
    for comparator in comparators_of(context):
        prompts = pool.train[: comparator.prompts]
        of = [subject for subject in grid.subjects if subject.label == comparator.of]
        asked = replace(grid, subjects=of, prompts=prompts, conditions=grid.conditions[:1])
        with context.screen.stage(f"evaluate {comparator.label}") as stage:
            found = score_grid(context, asked, stage)
            stage.finish(f"{comparator.of} under {len(prompts)} training prompts")
        counts = found.endpoints.get(comparator.of)
        seconds = found.seconds_per_example.get(comparator.of)
        if seconds is not None:
            seconds *= len(prompts)
        own = pa.concat_tables(
            _answered(context.task, comparator, subject.seed, found.table, grid) for subject in of
        )
        scores = replace(
            scores,
            table=pa.concat_tables([scores.table, own], promote_options="default"),
            seconds_per_example={
                **scores.seconds_per_example,
                **({} if seconds is None else {comparator.label: seconds}),
            },
            packing={**scores.packing, comparator.label: found.packing.get(comparator.of, "")},
            endpoints={
                **scores.endpoints,
                **({} if counts is None else {comparator.label: counts}),
            },
            prompts_per_answer={**scores.prompts_per_answer, comparator.label: len(prompts)},
        )
    return scores


def _answered(
    task: Task, comparator: Comparator, seed: int, table: pa.Table, grid: Grid
) -> pa.Table:
    """The scores of a comparator on the grid's prompts and examples, from those of one model."""
    known = {example.id: example for example in grid.examples}
    once = [
        _score(task, known[id], comparator, logprobs_KC)
        for id, logprobs_KC in _by_example(table, seed, known)
    ]
    shown = grid.conditions[0].demonstrations
    rows = [
        replace(score, prompt_id=prompt.id, draw=condition.draw if shown else None)
        for condition in grid.conditions
        if not condition.axis
        for prompt in grid.prompts
        for score in once
    ]
    count = len(rows)
    found = scores_table(rows).append_column("variant", pa.array([comparator.label] * count))
    return found.append_column("seed", pa.array([seed] * count, pa.int64()))


def _by_example(
    table: pa.Table, seed: int, known: Mapping[str, Example]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the example ids, and the log-likelihoods of the choices under every prompt: [K, C]."""
    found: dict[str, list[list[float]]] = {id: [] for id in known}
    for row in table.select(["seed", "example_id", "choice_logprobs"]).to_pylist():
        if row["seed"] == seed:
            found[row["example_id"]].append(row["choice_logprobs"])
    for id, logprobs in found.items():
        yield id, np.array(logprobs)


def _score(
    task: Task, example: Example, comparator: Comparator, logprobs_KC: NDArray[np.float64]
) -> Score:
    choices: Sequence[str] = task.choices_of(example) or ()
    probability_KC = np.exp(logprobs_KC - logprobs_KC.max(axis=1, keepdims=True))
    probability_KC /= probability_KC.sum(axis=1, keepdims=True)
    if isinstance(comparator, EnsembleSubject):
        said_C = np.log(probability_KC.mean(axis=0))
    else:
        said_C = logprobs_KC[int(probability_KC.max(axis=1).argmax())]
    prediction = choices[int(said_C.argmax())]
    return Score("", example.id, prediction, prediction == example.answer, tuple(said_C.tolist()))
