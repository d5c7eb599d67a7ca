"""Evaluation of the base model and of trained models on test prompts and test examples."""

from collections.abc import Sequence

from paft_ray.config import BASE
from paft_ray.evaluation.grid import GridScores, score_grid, score_part
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext


def evaluate_subjects(
    context: RunContext, pool: PromptPool, trained: Sequence[Subject]
) -> GridScores:
    """Score the base model and trained models on test prompts and test examples."""
    evaluation = context.config.evaluation
    grid = Grid(
        [Subject(BASE, context.config.seed, ""), *trained],
        pool.test[: evaluation.prompts],
        context.task.test[: evaluation.examples],
    )
    subjects, (prompts, examples) = len(grid.subjects), grid.shape
    with context.screen.stage("evaluate") as stage:
        done = f"{subjects} models x {prompts} held-out prompts x {examples} examples"
        if evaluation.estimate is None:
            scores = score_grid(context, grid, stage)
        else:
            scores = score_part(context, grid, evaluation.estimate.share, stage)
            share = scores.table.num_rows / (subjects * prompts * examples)
            done = f"{done}, {share:.0%} of them scored"
        stage.finish(done)
    return scores
