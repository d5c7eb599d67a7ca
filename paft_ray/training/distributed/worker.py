"""One rank of one training, in a Ray Train worker.

It builds model, planner, engine and checkpoints, trains with `loop.fit`, and saves and verifies the
result. Imports that need torch are inside functions, because the driver imports this module.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from paft_ray.cluster.control import Control, Heartbeat
from paft_ray.config.errors import PaftError
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.training.distributed.failures import comes_again, program_error
from paft_ray.training.distributed.heartbeat import ATTEMPT, HeartbeatSender
from paft_ray.training.job import Job
from paft_ray.training.state.retries import retry_storage

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from paft_ray.tracking import Tracker
    from paft_ray.training.batch_plan import Planner
    from paft_ray.training.distributed.reading import Reading
    from paft_ray.training.engine import Engine
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.state.checkpoint import Checkpoints, Progress

logger = logging.getLogger(__name__)


def run_rank(payload: dict[str, Any]) -> int | None:
    """Run one rank of one training, in a Ray Train worker.

    Returns:
        How many steps are done, fewer than all where the ranks had to stop; None where the training
        was refused, for a reason that the control actor keeps.
    """
    import ray

    job: Job = ray.get(payload["job"])
    heartbeat = _heartbeat_sender(job.control)
    try:
        with heartbeat.sending():
            return _train_tracked(job, heartbeat)
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


def _train_tracked(job: Job, heartbeat: HeartbeatSender) -> int:
    """Train as one rank, tracked; returns how many steps are done."""
    import ray.train

    from paft_ray.tracking import open_tracker

    tracker = open_tracker(
        job.tracking,
        job.tracked,
        tags={
            "paft.variant": job.label,
            "paft.fingerprint": job.identity,
            "paft.pool": job.pool,
        },
        rank=ray.train.get_context().get_world_rank(),
    )
    status = "FAILED"
    try:
        steps = _train(job, heartbeat, tracker)
        status = "FINISHED" if steps == job.steps else "KILLED"
        return steps
    finally:
        tracker.finish(status)


def _train(job: Job, heartbeat: HeartbeatSender, tracker: "Tracker") -> int:
    """Train as one rank, and save and verify the result; returns how many steps are done."""
    import torch
    from ray.train.torch import get_device

    from paft_ray.models.gpu import compute_deterministically
    from paft_ray.models.watch import watch_models
    from paft_ray.training.distributed.reading import check_reading
    from paft_ray.training.engine import Engine, prepare_process
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
        model = _build_model(job, get_device())
        with gathering(model):
            reading = check_reading(job, model, _build_planner(job, model))
        _require_files(job, model)
    beginning = trainable_copy(model)
    engine = Engine(model, job.config.train, job.dtype, work=heartbeat.work)
    progress = _fit(job, engine, reading, heartbeat, tracker)
    speed = engine.meter.speed()  # before saving, which takes memory too
    if progress.step < job.steps:
        logger.info("rank %d stops after step %d", engine.rank, progress.step)
        return progress.step
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
            speed=speed,
        )
        complete_training(job, writer, record, tracker)
    return progress.step


def _fit(
    job: Job,
    engine: "Engine",
    reading: "Reading",
    heartbeat: HeartbeatSender,
    tracker: "Tracker",
) -> "Progress":
    """Train from the newest checkpoint to the last step, or until the ranks must stop."""
    from paft_ray.training.batch_plan import plans
    from paft_ray.training.distributed.rank_group import stop_notice
    from paft_ray.training.ledger import Ledger
    from paft_ray.training.loop import LoopHooks, Recipe, fit
    from paft_ray.training.profiling import recording
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.schedule import learning_rate
    from paft_ray.training.state.checkpoint import KINDS, Checkpoints

    train, seed = job.config.train, job.config.seed
    checkpoints = Checkpoints(
        job.folder.child("checkpoints"),
        job.identity,
        train.checkpoint.keep,
        engine.rank_group(),
    )
    weights = PromptWeights(len(job.prompts), train.sampling, train.objective)
    progress = _continue(checkpoints, engine, weights)
    ledger = Ledger(job.folder, progress.step, [id for id, _ in job.prompts])
    if engine.rank == 0:
        retry_storage(ledger.prune, "clearing the ledger", job.folder.path())
    checkpoints.require_space(len(KINDS) * engine.weight_bytes, engine.weight_bytes)
    profiled = train.profile if engine.rank == 0 else None
    with recording(profiled, job.folder, heartbeat.move) as record:
        return fit(
            engine,
            plans(reading.planner, progress.step, job.steps, engine.plan_ranks(), weights.for_step),
            progress,
            Recipe(
                job.steps,
                lambda step: learning_rate(train.learning_rate, train.schedule, step, job.steps),
                train.checkpoint.every_steps,
                seed,
                train.objective,
            ),
            LoopHooks(
                tracker,
                checkpoints,
                ledger,
                weights,
                partial(_report, job, engine.rank),
                heartbeat.move,
                _validation(job, engine, reading, heartbeat, tracker),
                stop_notice(heartbeat),
                recording=record,
            ),
        )


def _validation(
    job: Job,
    engine: "Engine",
    reading: "Reading",
    heartbeat: HeartbeatSender,
    tracker: "Tracker",
) -> Callable[[int], None]:
    """Return a function that scores the model after the steps of the validation plan, if any."""
    from paft_ray.evaluation.figures import validation_metrics
    from paft_ray.evaluation.predictors import Predictor
    from paft_ray.training.validation import Validation

    if job.validation is None:
        return lambda step: None

    encoder, together = reading.planner.encoder, reading.together
    predictor = Predictor(job.config, job.task, encoder, job.dtype, together)
    validation = Validation(job.validation, engine, predictor, job.folder, heartbeat.move)

    def validate(step: int) -> None:
        if (correct_PE := validation.after(step)) is not None:
            tracker.log_metrics(validation_metrics(correct_PE), step)
            job.control.report_validated(step)

    return validate


def _continue(checkpoints: "Checkpoints", engine: "Engine", weights: "PromptWeights") -> "Progress":
    """Restore the newest checkpoint, if there is one; collective."""
    from paft_ray.training.state.checkpoint import Progress

    restored = checkpoints.load()
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


def _build_model(job: Job, device: "torch.device") -> "PeftModel | PreTrainedModel":
    """The model to train, before its first step, on its device or divided among ranks."""
    import torch.distributed as dist
    from peft import PeftModel

    from paft_ray.models.load import load_base, make_trainable, store_frozen_in_bf16
    from paft_ray.models.narrow import Stored
    from paft_ray.models.warm_start import begin_with
    from paft_ray.training.engine import deepspeed_config
    from paft_ray.training.zero import divide

    config = job.config
    arithmetic = "float32" if config.model.peft is None else job.dtype  # what is trained is fp32
    base = load_base(
        job.base,
        config.model.revision,
        attention=config.model.attention,
        stored=Stored.of(config.model, arithmetic, str(device)),
        trust=config.model.trust_remote_code,
    )
    model = make_trainable(base, config.model.peft, config.seed)
    if job.dtype == "bfloat16":
        store_frozen_in_bf16(model)  # what the adapter froze besides
    if job.warm_start is not None and isinstance(model, PeftModel):
        begin_with(model, job.warm_start)
    if config.train.deepspeed.stage == 3:
        divide(model, deepspeed_config(config.train, job.dtype, dist.get_world_size()), device)
    else:
        model.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return model


def _build_planner(job: Job, model: "PeftModel | PreTrainedModel") -> "Planner":
    from paft_ray.models.load import load_tokenizer, reads_positions
    from paft_ray.models.tokenization import TextEncoder
    from paft_ray.prompts.template import parse
    from paft_ray.training.batch_plan import Planner
    from paft_ray.training.objective import views
    from paft_ray.training.sampler import PromptSampler

    config, task = job.config, job.task
    train = config.train
    tokenizer = load_tokenizer(job.base, config.model.revision, config.model.trust_remote_code)
    return Planner(
        examples=job.examples.open(),
        prompts=[(id, parse(text, task.slots)) for id, text in job.prompts],
        encoder=TextEncoder.from_config(tokenizer, config),
        sampler=PromptSampler(config.seed, len(job.prompts), train.sampling),
        seed=config.seed,
        batch_size=train.batch_size,
        row_tokens=train.row_tokens,
        packing=train.packing and reads_positions(model),
        answer_prefix=train.response_prefix_tokens,
        views=views(train.objective),
        choices=task.choices if views(train.objective) > 1 else None,
    )


def _require_files(job: Job, model: "PeftModel | PreTrainedModel") -> None:
    """Check that an adapter can be saved, while it is whole."""
    from peft import PeftModel

    from paft_ray.models.load import adapter_files

    if isinstance(model, PeftModel):
        weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        adapter_files(model, weights, job.config.model.path)  # refuse now what cannot be saved
