"""What is evaluated: the base model and what was trained."""

from collections.abc import Sequence

from paft_ray.config import BASE
from paft_ray.evaluation.grid import GridScores, Subject, score_grid, score_part
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext


def evaluate_subjects(
    context: RunContext, pool: PromptPool, trained: Sequence[Subject]
) -> GridScores:
    """Score the base model and what was trained on held-out prompts and test examples."""
    evaluation = context.config.evaluation
    prompts = pool.test[: evaluation.prompts]
    examples = context.task.test[: evaluation.examples]
    models = [Subject(BASE, context.config.seed, ""), *trained]
    with context.screen.stage("evaluate") as stage:
        part = ""
        if (estimate := evaluation.estimate) is None:
            scores = score_grid(context, models, prompts, examples, stage)
        else:
            scores = score_part(context, models, prompts, examples, stage, estimate.share)
            whole = len(models) * len(prompts) * len(examples)
            part = f", {scores.table.num_rows / whole:.0%} of them scored"
        stage.finish(
            f"{len(models)} models x {len(prompts)} held-out prompts x {len(examples)} examples"
            f"{part}"
        )
    return scores
