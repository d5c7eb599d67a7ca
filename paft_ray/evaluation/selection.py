"""The prompt that a careful user would have picked: the paper's TopAccuracy.

A model scores training prompts on validation examples; the most accurate one wins, the higher
log-likelihood of the right answers where accuracies are equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from paft_ray.config import BASE
from paft_ray.evaluation.grid import GridScores, by_transformers, score_grid
from paft_ray.evaluation.scores import grades_of
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage, tell


@dataclass(frozen=True, slots=True)
class Selection:
    """The prompt that was selected for a model."""

    best: Prompt
    worst: Prompt
    accuracy: Mapping[str, float]
    """Prompt id to the mean grade on the validation examples."""
    examples: int
    scores: GridScores

    def __str__(self) -> str:
        return (
            f"best of {len(self.accuracy)} prompts on {self.examples} validation examples: "
            f"{self.accuracy[self.best.id]:.0%}"
        )


def choose_single_prompt(context: RunContext, pool: PromptPool) -> Prompt:
    """The training prompt under which the base model does best on validation examples.

    transformers scores it, whatever the backend: what is trained does not depend on that.
    """
    base = Subject(BASE, context.config.seed, "")
    with context.screen.stage("choose single prompt") as stage:
        prompts = pool.train[: context.config.evaluation.selection_prompts]
        grid = Grid([base], prompts, [])
        selection = select_prompt(by_transformers(context), grid, stage)
        stage.finish(str(selection))
    for name, prompt in (("worst", selection.worst), ("best", selection.best)):
        found = f"the base model does {name} ({selection.accuracy[prompt.id]:.0%}) with"
        tell(context.screen, found, [prompt.text])
    return selection.best


def select_prompt(context: RunContext, grid: Grid, stage: Stage) -> Selection:
    """Choose the prompt under which a model does best on validation examples.

    Args:
        context: The run.
        grid: The model as its only subject, the prompts to choose from, and the one way in which
            examples are put to it; its examples do not matter.
        stage: Shows how many pairs of prompt and example are done.
    """
    task, prompts = context.task, grid.prompts
    examples = task.validation[: context.config.evaluation.selection_examples]
    scores = score_grid(context, replace(grid, examples=examples), stage)
    right = {e.id: (task.choices_of(e) or (e.answer,)).index(e.answer) for e in examples}
    quality = prompt_quality(scores.table, right)
    ranked = sorted(prompts, key=lambda prompt: (*quality[prompt.id], prompt.id))
    accuracy = {id: accuracy for id, (accuracy, _) in quality.items()}
    return Selection(ranked[-1], ranked[0], accuracy, len(examples), scores)


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
