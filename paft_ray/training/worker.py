"""One rank of one training: what a Ray Train worker does.

Builds planner, model, engine and checkpoints and hands them to `loop.fit`; rank 0 then writes the
adapter. Imports that need torch stay inside functions, because the driver imports this module.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_ray.artifacts import ArtifactWriter, Storage
from paft_ray.cluster import BoardHandle
from paft_ray.config import Config
from paft_ray.errors import PaftError, TrainingError
from paft_ray.session import RUN_KEY
from paft_ray.tracking import TrackingTarget, pool_version
from paft_ray.training.growth import LEAVE
from paft_ray.training.heartbeat import ATTEMPT, Beat, Pulse

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from paft_ray.modeling.base import BaseSource
    from paft_ray.tasks import Task
    from paft_ray.tracking import Tracker
    from paft_ray.training.checkpoint import Progress
    from paft_ray.training.plan import Planner

logger = logging.getLogger(__name__)


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
    steps: int
    threads: int
    tracking: TrackingTarget | None
    board: BoardHandle
    made_from: dict[str, str]
    """Fingerprints of data, weights and pool, for the manifest."""

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
    import ray.train
    import torch
    from ray.train.torch import get_device

    from paft_ray.tracking import open_tracker
    from paft_ray.training.checkpoint import Checkpoints, Progress
    from paft_ray.training.engine import prepare_process
    from paft_ray.training.loop import Ledger, fit
    from paft_ray.training.plan import plans
    from paft_ray.training.ranks import notice_of_leaving
    from paft_ray.training.schedule import learning_rate
    from paft_ray.training.watched import WatchedEngine, watched_plans

    config = Config.model_validate(job.config)
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    tracker = open_tracker(
        job.tracking,
        key=f"training/{job.label}-s{config.seed}",
        name=f"{config.name}/{job.label}",
        parent_key=RUN_KEY,
        tags={
            "paft.variant": job.label,
            "paft.fingerprint": job.identity,
            "paft.pool": job.pool,
        },
        rank=rank,
    )
    status = "FAILED"
    try:
        torch.set_num_threads(job.threads)
        prepare_process("cuda" if get_device().type == "cuda" else "cpu")
        planner, model = _build(config, job, get_device())
        engine = WatchedEngine(pulse, model, config.train, job.dtype)
        checkpoints = Checkpoints(
            job.folder.child("checkpoints"), job.identity, config.train.checkpoint.keep
        )
        progress = Progress()
        if (restored := checkpoints.load()) is not None:
            progress, state = restored
            engine.restore(state, progress.step)
            logger.info("rank %d continues after step %d", rank, progress.step)

        def report(metrics: Mapping[str, float]) -> None:
            step = int(metrics["step"])
            if rank == 0:
                job.board.post("step", step)
            # a barrier of all ranks, and Ray Train takes one report in two seconds
            if step % config.train.checkpoint.every_steps == 0 or step == job.steps:
                ray.train.report(dict(metrics))

        progress = fit(
            engine,
            watched_plans(plans(planner, progress.step, job.steps, ranks), pulse),
            progress,
            steps=job.steps,
            learning_rate=lambda step: learning_rate(
                config.train.learning_rate, config.train.schedule, step, job.steps
            ),
            tracker=tracker,
            checkpoints=checkpoints,
            every_steps=config.train.checkpoint.every_steps,
            ledger=Ledger(job.folder.child("ledger"), progress.step),
            report=report,
            seed=config.seed,
            leave=notice_of_leaving(pulse),
        )
        if progress.step < job.steps:
            logger.info("rank %d leaves after step %d", rank, progress.step)
            status = "KILLED"
            return progress.step
        pulse.move("saving")
        weights = engine.gather_weights()
        if rank == 0:
            _save_adapter(job, config, engine.model, weights, progress, ranks, tracker)
        status = "FINISHED"
        return progress.step
    finally:
        tracker.finish(status)


def _build(config: Config, job: Job, device: "torch.device") -> "tuple[Planner, PeftModel]":
    """The planner, and the adapted model after packing was tried on it."""
    from paft_ray.modeling.model import (
        adapter_files,
        add_adapter,
        load_base,
        load_tokenizer,
        reads_positions,
        store_frozen_in_bf16,
    )
    from paft_ray.modeling.tokenization import TextEncoder
    from paft_ray.prompts.template import parse
    from paft_ray.training.loop import PACKING_TOLERANCE, packing_error
    from paft_ray.training.plan import Planner
    from paft_ray.training.sampler import PromptSampler

    train, task = config.train, job.task
    tokenizer = load_tokenizer(job.base, config.model.revision)
    model = add_adapter(
        load_base(job.base, config.model.revision), config.model.peft or {}, config.seed
    ).to(device)
    packing = train.packing and reads_positions(model)
    planner = Planner(
        examples=task.train,
        prompts=[(id, parse(text, task.slots)) for id, text in job.prompts],
        encoder=TextEncoder(
            tokenizer, config.model.chat_template, config.task.max_length, config.task.overlong
        ),
        sampler=PromptSampler(
            config.seed, len(job.prompts), train.sampling.unit, train.sampling.steps_per_prompt
        ),
        seed=config.seed,
        batch_size=train.batch_size,
        row_tokens=train.row_tokens,
        packing=packing,
        end_token=task.choices is None,
    )
    if packing:
        sequences = [planner.draw(0, slot)[0] for slot in range(min(4, train.batch_size))]
        if (error := packing_error(model, sequences, train.row_tokens)) > PACKING_TOLERANCE:
            raise TrainingError(
                f"packing moves the loss by {error:.1e} under peft's "
                f"{(config.model.peft or {})['peft_type']}, more than {PACKING_TOLERANCE:.0e}: "
                "set train.packing: false"
            )
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    adapter_files(model, weights, config.model.path)  # what cannot be saved is not trained
    if job.dtype == "bfloat16":
        store_frozen_in_bf16(model)
    return planner, model


def _save_adapter(
    job: Job,
    config: Config,
    model: "PeftModel",
    weights: Mapping[str, Any],
    progress: "Progress",
    ranks: int,
    tracker: "Tracker",
) -> None:
    """Write `adapter/` and then the training's manifest, which makes it complete."""
    from paft_ray.modeling.model import adapter_files

    writer = ArtifactWriter(job.folder)
    files = adapter_files(model, dict(weights), config.model.path)
    for name, data in files.items():
        writer.add(f"adapter/{name}", data)
        tracker.log_artifact(f"adapter/{name}", job.folder.path(f"adapter/{name}"))
    about = {
        "variant": job.label,
        "seed": config.seed,
        "steps": progress.step,
        "tokens": progress.tokens,
        "answer_tokens": progress.answer_tokens,
        "trimmed": progress.trimmed,
        "seconds": round(progress.seconds, 3),
        "prompts": len(job.prompts),
        "workers": ranks,
        "dtype": job.dtype,
        "last_loss": progress.loss,
        "made_from": job.made_from,
    }
    tracker.log_params({"training": about})
    writer.commit(job.identity, about)
