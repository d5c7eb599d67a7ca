"""The single prompt that a careful user would have picked: the paper's TopAccuracy.

The base model scores training prompts on validation examples; the most accurate one wins, the
higher log-likelihood of the right answers where accuracies are equal.
"""

from collections.abc import Mapping

import pyarrow as pa

from paft_ray.config import BASE
from paft_ray.evaluation.grid import by_transformers, score_grid
from paft_ray.evaluation.scores import grades_of
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import tell


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
        right = {e.id: (task.choices_of(e) or (e.answer,)).index(e.answer) for e in examples}
        quality = prompt_quality(scores.table, right)
        best = max(prompts, key=lambda prompt: (*quality[prompt.id], prompt.id))
        accuracy = quality[best.id][0]
        stage.finish(
            f"best of {len(prompts)} prompts on {len(examples)} validation examples: {accuracy:.0%}"
        )
    worst = min(prompts, key=lambda prompt: (*quality[prompt.id], prompt.id))
    for name, prompt in (("worst", worst), ("best", best)):
        found = f"the base model does {name} ({quality[prompt.id][0]:.0%}) with"
        tell(context.screen, found, [prompt.text])
    return best


def prompt_quality(
    scores: pa.Table, right_choice: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """The accuracy of every prompt, and the mean log-likelihood of the right answers.

    Args:
        scores: Table of `score_grid`.
        right_choice: Example id to the place of the right one among its choices; where none are
            ranked, the second figure is 0.
    """
    totals: dict[str, tuple[int, float, float]] = {}
    columns = ["prompt_id", "example_id", "choice_logprobs"]
    for row, grade in zip(scores.select(columns).to_pylist(), grades_of(scores), strict=True):
        count, right, likelihood = totals.get(row["prompt_id"], (0, 0.0, 0.0))
        if row["choice_logprobs"] is not None:
            likelihood += row["choice_logprobs"][right_choice[row["example_id"]]]
        totals[row["prompt_id"]] = (count + 1, right + float(grade), likelihood)
    return {id: (right / count, sum_ / count) for id, (count, right, sum_) in totals.items()}
