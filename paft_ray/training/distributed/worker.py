"""One rank in a Ray Train worker, of one training after another.

It makes an engine and checkpoints around what `build` builds, trains with `loop.fit`, and saves and
verifies the result. Imports that need torch are inside functions, because the driver imports this
module.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from paft_ray.cluster.control import Control, Heartbeat
from paft_ray.config import GRPO
from paft_ray.config.errors import PaftError
from paft_ray.serving.record import Validated
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.training.distributed.failures import comes_again, program_error
from paft_ray.training.distributed.heartbeat import ATTEMPT, HeartbeatSender
from paft_ray.training.job import Done, Job
from paft_ray.training.state.retries import retry_storage

if TYPE_CHECKING:
    from paft_ray.models.kept import KeptBase
    from paft_ray.tracking import Tracker
    from paft_ray.training.batch_plan import Planner, StepPlan
    from paft_ray.training.distributed.reading import Reading
    from paft_ray.training.engine import Engine
    from paft_ray.training.loop import Recipe
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.reinforcement.backends import Backend
    from paft_ray.training.state.checkpoint import Progress, Restored

logger = logging.getLogger(__name__)


def run_ranks(payload: dict[str, Any]) -> Done | None:
    """Run one rank of the trainings that the control actor names, in a Ray Train worker.

    Returns:
        How far the last one came; it is not complete where the ranks had to stop. None where it was
        refused, for a reason that the control actor keeps.
    """
    import ray

    from paft_ray.models.kept import KeptBase, drop_unused_models

    control: Control = payload["control"]
    kept, done = KeptBase(), None
    for reference in control.jobs():
        job: Job = ray.get(reference)
        heartbeat = _heartbeat_sender(control)
        done = _run_rank(job, heartbeat, kept)
        if done is None or not done.complete or not job.shares_workers:
            break
        drop_unused_models()  # the one that verified, on a GPU beside the next one
        rank = heartbeat.heartbeat
        control.report_finished(rank.attempt, rank.rank, rank.ranks)
    return done


def _run_rank(job: Job, heartbeat: HeartbeatSender, kept: "KeptBase") -> Done | None:
    """Run one rank of one training; see `run_ranks`."""
    try:
        with heartbeat.sending():
            return _train_tracked(job, heartbeat, kept)
    except Exception as error:
        first = heartbeat.heartbeat
        if not comes_again(error, first.ranks):
            raise
        # another attempt would end the same way: report why, and end without a failure
        logger.exception("training refused")
        job.control.refuse(program_error(error, first.rank))
        if first.ranks > 1 and not isinstance(error, PaftError):
            raise  # the other ranks wait for this one, and are ended with it
        return None


def _heartbeat_sender(control: Control) -> HeartbeatSender:
    """This rank's heartbeat; also gives the control this rank's actor, for the driver to end."""
    import ray
    import ray.train

    context, runtime = ray.train.get_context(), ray.get_runtime_context()
    rank, attempt = context.get_world_rank(), int(os.environ[ATTEMPT])
    control.keep_worker(attempt, rank, runtime.current_actor)
    node = ray.util.get_node_ip_address()
    first = Heartbeat(attempt, rank, context.get_world_size(), node, os.getpid())
    answers: list[Any] = []

    def send(heartbeat: Heartbeat) -> bool:
        if answers and not ray.wait(answers, timeout=0)[0]:
            control.report_heartbeat(heartbeat)  # the actor is slow, but heartbeats go on
            return False
        stop_requested = bool(ray.get(answers.pop())) if answers else False
        answers.append(control.report_heartbeat(heartbeat))
        return stop_requested

    return HeartbeatSender(first, send)


def _train_tracked(job: Job, heartbeat: HeartbeatSender, kept: "KeptBase") -> Done:
    """Train as one rank, tracked; returns how far it came."""
    import ray.train

    from paft_ray.tracking import open_tracker

    tracker = open_tracker(
        job.tracking,
        job.tracked,
        tags=job.tags,
        rank=ray.train.get_context().get_world_rank(),
        measured=True,
    )
    status = "FAILED"
    try:
        done = _train(job, heartbeat, tracker, kept)
        status = "FINISHED" if done.complete else "KILLED"
        return done
    finally:
        tracker.finish(status)


def _train(job: Job, heartbeat: HeartbeatSender, tracker: "Tracker", kept: "KeptBase") -> Done:
    """Train as one rank, and save and verify the result; returns how far it came."""
    import torch
    from ray.train.torch import get_device

    from paft_ray.models.gpu import compute_deterministically
    from paft_ray.models.watch import watch_models
    from paft_ray.training.deepspeed_engine import prepare_process
    from paft_ray.training.distributed.build import build_model, build_planner, require_files
    from paft_ray.training.distributed.reading import check_reading
    from paft_ray.training.engine import Engine
    from paft_ray.training.output.save import (
        complete_training,
        first_batch,
        save_and_verify,
        trainable_copy,
        training_record,
    )
    from paft_ray.training.output.verify import Base
    from paft_ray.training.zero import gathering

    torch.set_num_threads(job.threads)
    prepare_process(get_device().type)
    if job.config.train.deterministic and get_device().type == "cuda":
        compute_deterministically()
    with watch_models(heartbeat.work):
        model = build_model(job, get_device(), kept)
        with gathering(model):
            reading = check_reading(job, model, build_planner(job, model), kept)
        require_files(job, model)
    beginning = trainable_copy(model)
    engine = Engine(model, job.config.train, job.dtype, work=heartbeat.work)
    fitted = _fit(job, engine, reading, heartbeat, tracker)
    progress = fitted.progress
    speed = engine.meter.speed()  # before saving, which takes memory too
    if not fitted.complete:
        logger.info("rank %d stops after step %d", engine.rank, progress.step)
        return Done(progress.step)
    heartbeat.move("saving")
    settings, writer = job.config.model, ArtifactWriter(job.folder)
    base = Base(
        job.base,
        settings.revision,
        settings.path,
        job.dtype,
        settings.quantization,
        settings.trust_remote_code,
        bool(reading.together.rows),
    )
    verified = save_and_verify(engine, base, first_batch(reading.planner), beginning, writer)
    if verified is not None:  # on rank 0
        record = replace(
            training_record(job, progress, engine.ranks, verified),
            packing=reading.packing,
            validated=fitted.validated,
            speed=speed,
        )
        complete_training(job, writer, record, tracker)
    if job.shares_workers:
        engine.release()
    return Done(progress.step, complete=True)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """The end of a training loop."""

    progress: "Progress"
    complete: bool
    """Whether it has trained all that it was to; else the ranks had to stop."""
    validated: Validated | None = None
    """None where scores choose nothing."""


def _fit(
    job: Job,
    engine: "Engine",
    reading: "Reading",
    heartbeat: HeartbeatSender,
    tracker: "Tracker",
) -> _Fitted:
    """Train from the newest checkpoint to the end, or until the ranks must stop.

    The end is the last step, or an earlier one where scores end the training; the engine then has
    the weights that are to be saved.
    """
    from paft_ray.training.distributed.rank_group import stop_notice
    from paft_ray.training.distributed.scoring import follow_scores, scorer, select, validated
    from paft_ray.training.ledger import Ledger
    from paft_ray.training.loop import LoopHooks, fit
    from paft_ray.training.profiling import recording
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.state.checkpoint import KINDS, Checkpoints

    train, folder = job.config.train, job.folder.child("checkpoints")
    checkpoints = Checkpoints(folder, job.identity, train.checkpoint.keep, engine.rank_group())
    weights = PromptWeights(len(job.prompts), train.sampling, train.objective)
    selection = select(job, checkpoints)
    restored = checkpoints.load() if selection is None else selection.load()
    progress = _continue(restored, engine, weights)
    planner = reading.planner
    varied = planner.describe if planner.varying is not None else None
    ledger = Ledger(job.folder, progress.step, [id for id, _ in job.prompts], varied)
    if engine.rank == 0:
        retry_storage(ledger.prune, "clearing the ledger", job.folder.path())
    bytes_each = engine.weight_bytes
    checkpoints.require_space(len(KINDS) * bytes_each, bytes_each, train.extra_checkpoints)
    until = job.steps if selection is None else selection.until(progress.step, job.steps)
    profiled = train.profile if engine.rank == 0 else None
    with recording(profiled, job.folder, heartbeat.move) as record:
        progress = fit(
            engine,
            _plans(job, engine, planner, (progress.step, until), weights, heartbeat),
            progress,
            _recipe(job),
            LoopHooks(
                tracker,
                checkpoints,
                ledger,
                weights,
                partial(_report, job, engine.rank),
                heartbeat.move,
                follow_scores(job, scorer(job, engine, reading, heartbeat), tracker, selection),
                stop_notice(heartbeat),
                recording=record,
            ),
        )
    until = job.steps if selection is None else selection.until(progress.step, job.steps)
    if selection is None or progress.step < until:
        return _Fitted(progress, progress.step == until)
    selection.restore_best(engine, progress.step)
    return _Fitted(progress, True, validated(job, selection))


def _plans(
    job: Job,
    engine: "Engine",
    planner: "Planner",
    steps: tuple[int, int],
    weights: "PromptWeights",
    heartbeat: HeartbeatSender,
) -> "Iterator[StepPlan]":
    """The plans of the steps from the first on to before the last."""
    from paft_ray.training.batch_plan import plans
    from paft_ray.training.reinforcement.backends import open_backend
    from paft_ray.training.reinforcement.labellers import open_labeller
    from paft_ray.training.reinforcement.own_labels import labelled_plans
    from paft_ray.training.reinforcement.steps import Writer, rollout_plans

    objective = job.config.train.objective
    stop = job.config.task.stop
    labeller = open_labeller(objective, planner, engine, heartbeat.move, stop)
    if labeller is not None:
        return labelled_plans(labeller, *steps, weights.for_step)
    if not isinstance(objective, GRPO):
        return plans(planner, *steps, engine.plan_ranks(), weights.for_step)
    assert job.rewards is not None
    tokenizer = planner.encoder.tokenizer
    backend = open_backend(job.config, engine, tokenizer, job.base, job.threads)
    writer = Writer(planner, objective, job.rewards, engine, stop, heartbeat.move, backend)
    return _closing(backend, rollout_plans(writer, *steps, weights.for_step))


def _closing(backend: "Backend", plans: "Iterator[StepPlan]") -> "Iterator[StepPlan]":
    """Yield all plans, then free the memory of what wrote their rollouts."""
    try:
        yield from plans
    finally:
        backend.close()


def _recipe(job: Job) -> "Recipe":
    from paft_ray.training.loop import Recipe
    from paft_ray.training.schedule import learning_rate

    train = job.config.train
    return Recipe(
        job.steps,
        lambda step: learning_rate(train.learning_rate, train.schedule, step, job.steps),
        train.checkpoint.every_steps,
        job.config.seed,
        train.objective,
    )


def _continue(
    restored: "Restored | None", engine: "Engine", weights: "PromptWeights"
) -> "Progress":
    """Restore a checkpoint, if there is one; collective."""
    from paft_ray.training.state.checkpoint import Progress

    if restored is None:
        return Progress()
    engine.restore(restored.state, restored.progress.step)
    weights.restore(restored.other)
    logger.info("rank %d continues after step %d", engine.rank, restored.progress.step)
    return restored.progress


def _report(job: Job, rank: int, metrics: Mapping[str, float]) -> None:
    import ray.train

    step = int(metrics["step"])
    if rank == 0:
        job.control.report_progress(step)
    # a barrier of all ranks, and Ray Train takes one report in two seconds
    if step % job.config.train.checkpoint.every_steps == 0 or step == job.steps:
        ray.train.report(dict(metrics))
