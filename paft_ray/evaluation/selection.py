"""The single prompt that a careful user would have picked: the paper's TopAccuracy.

The base model scores training prompts on validation examples; the most accurate one wins, the
higher log-likelihood of the right answers where accuracies are equal.
"""

import pyarrow as pa

from paft_ray.config import BASE
from paft_ray.evaluation.grid import by_transformers, score_grid
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.runs.context import RunContext


def choose_single_prompt(context: RunContext, pool: PromptPool) -> Prompt:
    """The training prompt under which the base model does best on validation examples.

    transformers scores it, whatever the backend: what is trained does not depend on that.
    """
    evaluation, task = context.config.evaluation, context.task
    prompts = pool.train[: evaluation.selection_prompts]
    examples = task.validation[: evaluation.selection_examples]
    with context.screen.stage("choose single prompt") as stage:
        base = Subject(BASE, context.config.seed, "")
        scores = score_grid(by_transformers(context), Grid([base], prompts, examples), stage)
        quality = prompt_quality(scores.table, {e.id: e.answer for e in examples}, task.choices)
        best = max(prompts, key=lambda prompt: (*quality[prompt.id], prompt.id))
        accuracy = quality[best.id][0]
        stage.finish(
            f"best of {len(prompts)} prompts on {len(examples)} validation examples: {accuracy:.0%}"
        )
    return best


def prompt_quality(
    scores: pa.Table, answers: dict[str, str], choices: tuple[str, ...] | None
) -> dict[str, tuple[float, float]]:
    """The accuracy of every prompt, and the mean log-likelihood of the right answers.

    Args:
        scores: Table of `score_grid`.
        answers: Example id to the right answer.
        choices: The task's choices; without any, the second figure is 0.
    """
    totals: dict[str, tuple[int, int, float]] = {}
    for row in scores.select(["prompt_id", "example_id", "correct", "choice_logprobs"]).to_pylist():
        count, right, likelihood = totals.get(row["prompt_id"], (0, 0, 0.0))
        if choices is not None:
            likelihood += row["choice_logprobs"][choices.index(answers[row["example_id"]])]
        totals[row["prompt_id"]] = (count + 1, right + row["correct"], likelihood)
    return {id: (right / count, sum_ / count) for id, (count, right, sum_) in totals.items()}
