"""Scores of the model on its way, as a rank uses them: made, tracked, and followed."""

from collections.abc import Callable

from paft_ray.evaluation.figures import validation_metrics
from paft_ray.evaluation.goal import goal_name
from paft_ray.evaluation.predictors import Predictor
from paft_ray.serving.record import Validated
from paft_ray.tracking import Tracker
from paft_ray.training.distributed.heartbeat import HeartbeatSender
from paft_ray.training.distributed.reading import Reading
from paft_ray.training.engine import Engine
from paft_ray.training.job import Job
from paft_ray.training.loop import Wanted
from paft_ray.training.selection import Selection
from paft_ray.training.state.checkpoint import Checkpoints
from paft_ray.training.validation import Validation


def select(job: Job, checkpoints: Checkpoints) -> Selection | None:
    """The choice of a checkpoint, where `train.validation` is given."""
    config, plan = job.config.train.validation, job.validation
    if config is None or plan is None:
        return None
    return Selection(config, plan.steps, job.folder, checkpoints)


def validated(job: Job, selection: Selection) -> Validated:
    """What the record says of a training's scores."""
    config, plan, best = job.config.train.validation, job.validation, selection.best
    assert config is not None
    assert plan is not None
    assert best is not None  # the last step is scored
    return Validated(
        best=best.step,
        figure=best.figure,
        goal=goal_name(config.goal),
        kept=config.keep_best,
        planned=job.steps,
        prompts=len(plan.prompts),
        examples=len(plan.examples),
    )


def scorer(
    job: Job, engine: Engine, reading: Reading, heartbeat: HeartbeatSender
) -> Validation | None:
    """What scores the model after the steps of the validation plan, if there is one."""
    if job.validation is None:
        return None
    encoder, together = reading.planner.encoder, reading.together
    predictor = Predictor(job.config, job.task, encoder, job.dtype, together)
    return Validation(job.validation, engine, predictor, job.folder, heartbeat.move)


def follow_scores(
    job: Job, validation: Validation | None, tracker: Tracker, selection: Selection | None
) -> Callable[[int], Wanted]:
    """Return a function that scores the model, and follows up on the result."""

    def validate(step: int) -> Wanted:
        if validation is None or (grade_PE := validation.after(step)) is None:
            return Wanted()
        metrics, wanted = validation_metrics(grade_PE), Wanted()
        if selection is not None:
            wanted = selection.add(step, grade_PE)
            metrics |= selection.metrics(step)
        tracker.log_metrics(metrics, step)
        if validation.stores:  # else the driver might read before there is something
            job.control.report_validated(step)
        return wanted

    return validate
