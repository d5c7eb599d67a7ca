"""One rank of one training: what a Ray Train worker does.

Builds planner, model, engine and checkpoints, hands them to `loop.fit`, and what comes of it to
`handover`. Imports that need torch stay inside functions, because the driver imports this module.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from paft_ray.cluster.control import BoardHandle
from paft_ray.config import Config
from paft_ray.config.errors import PaftError, TrainingError
from paft_ray.runs.context import RUN_KEY
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage
from paft_ray.tracking import TrackingTarget, pool_version
from paft_ray.training.distributed.elastic_size import LEAVE
from paft_ray.training.distributed.heartbeat import ATTEMPT, Beat, Pulse
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.validation import ValidationPlan

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from peft import PeftModel
    from transformers import PreTrainedModel

    from paft_ray.models.base_model import BaseSource
    from paft_ray.tasks import Task
    from paft_ray.tracking import Tracker
    from paft_ray.training.batch_plan import Planner
    from paft_ray.training.engine import Engine
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.state.checkpoint import Checkpoints, Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A training's place among the tracked runs."""

    key: str
    name: str
    parent_key: str = RUN_KEY


@dataclass(frozen=True)
class Job:
    """What a worker is told; travels to it by pickle."""

    config: dict[str, Any]
    task: "Task"
    prompts: tuple[tuple[str, str], ...]
    """Ids and texts."""
    source: "BaseSource"
    """The prepared base model, for every node to find."""
    dtype: str
    folder: Storage
    identity: str
    label: str
    """Of the variant."""
    record: Record
    steps: int
    threads: int
    tracking: TrackingTarget | None
    board: BoardHandle
    made_from: dict[str, str]
    """Fingerprints of data, weights and pool, for the manifest."""
    warm_start: bytes | None = None
    """Weights of the adapter that training begins with."""
    validation: ValidationPlan | None = None
    """What the model is scored on while it is trained."""

    @property
    def base(self) -> str:
        """Location of the prepared base model on this node, fetched first where it must be."""
        return self.source.local()

    @property
    def pool(self) -> str:
        """The pool's version in MLflow's registry."""
        name, alias = pool_version(self.task.name, self.made_from["pool"])
        return f"models:/{name}@{alias}"


def run_rank(payload: dict[str, Any]) -> int | None:
    """One rank of one training; runs in a Ray Train worker.

    Returns:
        How many steps are done: all, or fewer where a notice made the ranks leave; None where the
        training was refused, which the board says.
    """
    import ray

    job: Job = ray.get(payload["job"])
    pulse = _pulse(job.board)
    try:
        with pulse.beating():
            return _train_rank(job, pulse)
    except PaftError as error:
        # trying again would end the same way: say why, and end without a failure
        logger.exception("training refused")
        job.board.post_now("refused", error)
        return None


def _pulse(board: BoardHandle) -> Pulse:
    """This rank's pulse; its actor is left on the board, for the driver to end it by."""
    import ray
    import ray.train

    context, runtime = ray.train.get_context(), ray.get_runtime_context()
    rank, attempt = context.get_world_rank(), int(os.environ[ATTEMPT])
    board.hold(actor_key(attempt, rank), runtime.current_actor)
    node = ray.util.get_node_ip_address()
    first = Beat(attempt, rank, context.get_world_size(), node, os.getpid())
    answers: list[Any] = []

    def send(beat: Beat) -> bool:
        if answers and not ray.wait(answers, timeout=0)[0]:
            board.post(f"beat/{rank}", beat)  # the board is slow, but beats go on
            return False
        asked = ray.get(answers.pop()) if answers else None
        answers.append(board.exchange(f"beat/{rank}", beat, LEAVE))
        return asked == attempt

    return Pulse(first, send)


def actor_key(attempt: int, rank: int) -> str:
    """Where the board holds the actor of a rank."""
    return f"actor/{attempt}/{rank}"


def _train_rank(job: Job, pulse: Pulse) -> int:
    """Train as one rank, tracked; returns how many steps are done."""
    import ray.train

    from paft_ray.tracking import open_tracker

    config = Config.model_validate(job.config)
    tracker = open_tracker(
        job.tracking,
        key=job.record.key,
        name=job.record.name,
        parent_key=job.record.parent_key,
        tags={
            "paft.variant": job.label,
            "paft.fingerprint": job.identity,
            "paft.pool": job.pool,
        },
        rank=ray.train.get_context().get_world_rank(),
    )
    status = "FAILED"
    try:
        steps = _train(job, config, pulse, tracker)
        status = "FINISHED" if steps == job.steps else "KILLED"
        return steps
    finally:
        tracker.finish(status)


def _train(job: Job, config: Config, pulse: Pulse, tracker: "Tracker") -> int:
    import torch
    from ray.train.torch import get_device

    from paft_ray.training.batch_plan import plans
    from paft_ray.training.distributed.rank_group import notice_of_leaving
    from paft_ray.training.engine import Engine, prepare_process
    from paft_ray.training.ledger import Ledger
    from paft_ray.training.loop import Outlets, Recipe, fit
    from paft_ray.training.output.save import trainable_copy
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.schedule import learning_rate
    from paft_ray.training.state.checkpoint import KINDS, Checkpoints

    train = config.train
    torch.set_num_threads(job.threads)
    prepare_process(get_device().type)
    model = _build_model(job, config, get_device())
    planner = _build_planner(job, config, model)
    _prepare_for_training(job, config, model, planner)
    beginning = trainable_copy(model)
    engine = Engine(model, train, job.dtype)
    checkpoints = Checkpoints(
        job.folder.child("checkpoints"), job.identity, train.checkpoint.keep, engine.crew()
    )
    weights = PromptWeights(len(job.prompts), train.sampling, train.objective)
    progress = _continue(checkpoints, engine, weights)
    ledger = Ledger(job.folder, progress.step, [id for id, _ in job.prompts])
    if engine.rank == 0:
        retry_storage(ledger.prune, "clearing the ledger", job.folder.path())
    checkpoints.require_space(len(KINDS) * engine.weight_bytes, engine.weight_bytes)
    progress = fit(
        engine,
        plans(planner, progress.step, job.steps, engine.ranks, weights.for_step),
        progress,
        Recipe(
            job.steps,
            lambda step: learning_rate(train.learning_rate, train.schedule, step, job.steps),
            train.checkpoint.every_steps,
            config.seed,
            train.objective,
        ),
        Outlets(
            tracker,
            checkpoints,
            ledger,
            partial(_report, job, engine.rank, train.checkpoint.every_steps),
            pulse.move,
            _validation(job, config, engine, planner, pulse, tracker),
        ),
        weights,
        notice_of_leaving(pulse),
    )
    if progress.step < job.steps:
        logger.info("rank %d leaves after step %d", engine.rank, progress.step)
        return progress.step
    pulse.move("saving")
    _hand_over(job, config, engine, planner, beginning, progress, tracker)
    return progress.step


def _validation(
    job: Job,
    config: Config,
    engine: "Engine",
    planner: "Planner",
    pulse: Pulse,
    tracker: "Tracker",
) -> Callable[[int], None]:
    """Scores the model on its way, where that is asked for."""
    from paft_ray.evaluation.figures import validation_metrics
    from paft_ray.evaluation.predictors import Predictor
    from paft_ray.training.validation import Validation

    if job.validation is None:
        return lambda step: None

    def tell(step: int, correct_PE: "NDArray[np.bool_]") -> None:
        tracker.log_metrics(validation_metrics(correct_PE), step)
        job.board.post("validated", step)

    predictor = Predictor(config, job.task, planner.encoder, job.dtype)
    return Validation(job.validation, engine, predictor, job.folder, tell, pulse.move).after


def _continue(checkpoints: "Checkpoints", engine: "Engine", weights: "PromptWeights") -> "Progress":
    """Put the newest checkpoint back, if there is one; collective."""
    from paft_ray.training.state.checkpoint import Progress

    restored = checkpoints.load()
    if restored is None:
        return Progress()
    engine.restore(restored.state, restored.progress.step)
    weights.restore(restored.other)
    logger.info("rank %d continues after step %d", engine.rank, restored.progress.step)
    return restored.progress


def _report(job: Job, rank: int, every_steps: int, metrics: Mapping[str, float]) -> None:
    import ray.train

    step = int(metrics["step"])
    if rank == 0:
        job.board.post("step", step)
    # a barrier of all ranks, and Ray Train takes one report in two seconds
    if step % every_steps == 0 or step == job.steps:
        ray.train.report(dict(metrics))


def _hand_over(
    job: Job,
    config: Config,
    engine: "Engine",
    planner: "Planner",
    beginning: "Mapping[str, torch.Tensor]",
    progress: "Progress",
    tracker: "Tracker",
) -> None:
    """Write what was trained, verify it, and make the training complete; collective."""
    from paft_ray.training.output.save import complete_training, first_batch, hand_over
    from paft_ray.training.output.verify import Base

    model = config.model
    base = Base(job.base, model.revision, model.path, job.dtype, model.quantization)
    writer = ArtifactWriter(job.folder)
    verified = hand_over(engine, base, first_batch(planner), beginning, writer)
    if verified is not None:
        complete_training(job, config, writer, verified, progress, engine.ranks, tracker)


def _build_model(job: Job, config: Config, device: "torch.device") -> "PeftModel | PreTrainedModel":
    """What is trained, at its beginning."""
    from peft import PeftModel

    from paft_ray.models.load import load_base, make_trainable
    from paft_ray.models.warm_start import begin_with

    base = load_base(
        job.base,
        config.model.revision,
        attention=config.model.attention,
        quantization=config.model.quantization,
    )
    model = make_trainable(base, config.model.peft, config.seed)
    model.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if job.warm_start is not None and isinstance(model, PeftModel):
        begin_with(model, job.warm_start)
    return model


def _build_planner(job: Job, config: Config, model: "PeftModel | PreTrainedModel") -> "Planner":
    from paft_ray.models.load import load_tokenizer, reads_positions
    from paft_ray.models.tokenization import TextEncoder
    from paft_ray.prompts.template import parse
    from paft_ray.training.batch_plan import Planner
    from paft_ray.training.objective import views
    from paft_ray.training.sampler import PromptSampler

    train, task = config.train, job.task
    tokenizer = load_tokenizer(job.base, config.model.revision)
    return Planner(
        examples=task.train,
        prompts=[(id, parse(text, task.slots)) for id, text in job.prompts],
        encoder=TextEncoder.from_config(tokenizer, config),
        sampler=PromptSampler(
            config.seed, len(job.prompts), train.sampling.unit, train.sampling.steps_per_prompt
        ),
        seed=config.seed,
        batch_size=train.batch_size,
        row_tokens=train.row_tokens,
        packing=train.packing and reads_positions(model),
        end_token=task.choices is None,
        answer_prefix=train.response_prefix_tokens,
        views=views(train.objective),
        choices=task.choices if views(train.objective) > 1 else None,
    )


def _prepare_for_training(
    job: Job, config: Config, model: "PeftModel | PreTrainedModel", planner: "Planner"
) -> None:
    """Try packing and saving while the model is whole, then store frozen weights as they are used.

    Raises:
        TrainingError: Packing moves the loss.
    """
    from peft import PeftModel

    from paft_ray.models.load import adapter_files, store_frozen_in_bf16
    from paft_ray.training.loop import PACKING_TOLERANCE, packing_error

    if planner.packing:
        error = packing_error(model, planner.first_sequences(), planner.row_tokens)
        if error > PACKING_TOLERANCE:
            method = config.model.peft and f"peft's {config.model.peft['peft_type']}"
            raise TrainingError(
                f"packing moves the loss by {error:.1e} under {method or 'this model'}, more than "
                f"{PACKING_TOLERANCE:.0e}: set train.packing: false"
            )
    if isinstance(model, PeftModel):
        weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        adapter_files(model, weights, config.model.path)  # what cannot be saved is not trained
    if job.dtype == "bfloat16":
        store_frozen_in_bf16(model)
