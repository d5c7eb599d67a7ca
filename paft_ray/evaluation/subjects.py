"""What is evaluated: the base model and what was trained."""

from collections.abc import Sequence

from paft_ray.config import BASE
from paft_ray.evaluation.grid import GridScores, Subject, score_grid, score_part
from paft_ray.models.load import result_folder
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.training.distributed.trainer import TrainedAdapter


def evaluate_models(
    context: RunContext, pool: PromptPool, trained: Sequence[TrainedAdapter]
) -> GridScores:
    """Score the base model and the trained variants on held-out prompts and test examples."""
    evaluation = context.config.evaluation
    prompts = pool.test[: evaluation.prompts]
    examples = context.task.test[: evaluation.examples]
    weights = result_folder(context.config.model.peft)
    models = [
        Subject(BASE, context.config.seed, ""),
        *(
            Subject(t.training.label, t.training.seed, t.content, t.folder.child(weights))
            for t in trained
        ),
    ]
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
