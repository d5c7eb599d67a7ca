"""One rank of one training: what a Ray Train worker does.

Builds planner, model, engine and checkpoints, hands them to `loop.fit`, and what comes of it to
`handover`. Imports that need torch stay inside functions, because the driver imports this module.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_ray.artifacts import ArtifactWriter, Storage
from paft_ray.cluster import BoardHandle
from paft_ray.config import Config
from paft_ray.errors import PaftError, TrainingError
from paft_ray.session import RUN_KEY
from paft_ray.tracking import TrackingTarget, pool_version

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from paft_ray.tasks import Task
    from paft_ray.training.plan import Planner

logger = logging.getLogger(__name__)

_REPORT_STEPS = 10
"""Ray Train's `report` is a barrier for all ranks: it is called this seldom."""


@dataclass(frozen=True)
class Job:
    """What a worker is told; travels to it by pickle."""

    config: dict[str, Any]
    task: "Task"
    prompts: tuple[tuple[str, str], ...]
    """Ids and texts."""
    base: str
    """Location of the prepared base model."""
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
    warm_start: bytes | None = None
    """Weights of the adapter that training begins with."""

    @property
    def pool(self) -> str:
        """The pool's version in MLflow's registry."""
        name, alias = pool_version(self.task.name, self.made_from["pool"])
        return f"models:/{name}@{alias}"


def run_rank(payload: dict[str, Any]) -> None:
    """One rank of one training; runs in a Ray Train worker."""
    import ray

    job: Job = ray.get(payload["job"])
    try:
        _train_rank(job)
    except PaftError as error:
        # trying again would end the same way: say why, and end without a failure
        logger.exception("training refused")
        job.board.post_now("refused", error)


def _train_rank(job: Job) -> None:
    import ray.train
    import torch
    from ray.train.torch import get_device

    from paft_ray.tracking import open_tracker
    from paft_ray.training.checkpoint import KINDS, Checkpoints, Progress
    from paft_ray.training.engine import Engine, prepare_process
    from paft_ray.training.handover import (
        Base,
        complete_training,
        first_batch,
        hand_over,
        trainable_copy,
    )
    from paft_ray.training.ledger import Ledger
    from paft_ray.training.loop import Outlets, Recipe, fit
    from paft_ray.training.plan import plans
    from paft_ray.training.schedule import learning_rate
    from paft_ray.training.weighting import PromptWeights

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
        beginning = trainable_copy(model) if rank == 0 else {}
        engine = Engine(model, config.train, job.dtype)
        checkpoints = Checkpoints(
            job.folder.child("checkpoints"),
            job.identity,
            config.train.checkpoint.keep,
            engine.crew(),
        )
        progress = Progress()
        weights = PromptWeights(len(job.prompts), config.train.sampling, config.train.objective)
        if (restored := checkpoints.load()) is not None:
            progress = restored.progress
            engine.restore(restored.state, progress.step, restored.other)
            weights.restore(restored.other)
            logger.info("rank %d continues after step %d", rank, progress.step)
        checkpoints.require_space(len(KINDS) * engine.weight_bytes, engine.weight_bytes)

        def report(metrics: Mapping[str, float]) -> None:
            step = int(metrics["step"])
            if rank == 0:
                job.board.post("step", step)
            if step % _REPORT_STEPS == 0 or step == job.steps:
                ray.train.report(dict(metrics))

        progress = fit(
            engine,
            plans(planner, progress.step, job.steps, ranks, weights.for_step),
            progress,
            Recipe(
                steps=job.steps,
                learning_rate=lambda step: learning_rate(
                    config.train.learning_rate, config.train.schedule, step, job.steps
                ),
                every_steps=config.train.checkpoint.every_steps,
                seed=config.seed,
                objective=config.train.objective,
            ),
            Outlets(
                tracker,
                checkpoints,
                Ledger(job.folder, progress.step, [id for id, _ in job.prompts]),
                report,
            ),
            weights,
        )
        writer = ArtifactWriter(job.folder)
        base = Base(
            job.base,
            config.model.revision,
            config.model.path,
            job.dtype,
            config.model.quantization,
        )
        verified = hand_over(engine, base, first_batch(planner), beginning, writer)
        if verified is not None:
            complete_training(job, config, writer, verified, progress, ranks, tracker)
        status = "FINISHED"
    finally:
        tracker.finish(status)


def _build(
    config: Config, job: Job, device: "torch.device"
) -> "tuple[Planner, PeftModel | PreTrainedModel]":
    """The planner, and what is trained, after packing was tried on it."""
    from peft import PeftModel

    from paft_ray.modeling.model import (
        adapter_files,
        load_base,
        load_tokenizer,
        make_trainable,
        reads_positions,
        store_frozen_in_bf16,
    )
    from paft_ray.modeling.peft_check import complete_peft
    from paft_ray.modeling.tokenization import TextEncoder
    from paft_ray.modeling.warm_start import begin_with
    from paft_ray.prompts.template import parse
    from paft_ray.training.loop import PACKING_TOLERANCE, packing_error
    from paft_ray.training.objective import views
    from paft_ray.training.plan import Planner
    from paft_ray.training.sampler import PromptSampler

    train, task = config.train, job.task
    tokenizer = load_tokenizer(job.base, config.model.revision)
    base = load_base(
        job.base,
        config.model.revision,
        attention=config.model.attention,
        quantization=config.model.quantization,
    )
    peft = complete_peft(config.model.peft, job.steps)
    model = make_trainable(base, peft, config.seed)
    model.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if job.warm_start is not None and isinstance(model, PeftModel):
        begin_with(model, job.warm_start)
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
        answer_prefix=train.response_prefix_tokens,
        views=views(train.objective),
        choices=task.choices if views(train.objective) > 1 else None,
    )
    if packing:
        drawn = planner.draw(0, range(min(4, train.batch_size)))
        sequences = [sequence for own, _ in drawn for sequence in own]
        if (error := packing_error(model, sequences, train.row_tokens)) > PACKING_TOLERANCE:
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
    return planner, model
