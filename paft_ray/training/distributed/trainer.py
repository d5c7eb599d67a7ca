"""Ray Train: from a pool and a variant to an adapter, or a whole model, on storage.

The driver names the training by the fingerprint of all that moves weights, returns at once where
that is complete, and else starts workers; each builds engine, plans and checkpoints and hands them
to `loop.fit`. Ray Train gets a disposable directory and no checkpoint of ours.
"""

import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from paft_ray.cluster.control import BoardHandle, follow
from paft_ray.cluster.remote import own_errors
from paft_ray.cluster.resources import cpus_per_worker, spare_workers
from paft_ray.config import Config, Training, total_steps
from paft_ray.config.errors import ArtifactError, WorkersLostError, one_line
from paft_ray.config.loading import dump_config
from paft_ray.models.base_model import locate_base
from paft_ray.models.warm_start import read_adapter
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage
from paft_ray.storage.artifacts import Manifest, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.training.distributed.elastic_size import LEAVE, Growth
from paft_ray.training.distributed.heartbeat import Beat, Verdict, Watch
from paft_ray.training.distributed.worker import Job, Record, actor_key, run_rank
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.validation import ValidationPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A finished training."""

    training: Training
    fingerprint: str
    """Of what it was made from."""
    content: str
    """Fingerprint of the weights themselves: the same training again may end a bit off."""
    folder: Storage
    """Holds `adapter/` (`model/` where all weights were trained), `ledger/` and the manifest."""
    about: Mapping[str, Any]
    """steps, tokens, answer_tokens, seconds, prompts, trimmed."""
    reused: bool
    """Whether it was found complete."""


@dataclass(frozen=True)
class Orders:
    """What whoever asks for a training wants of it on the way; nothing, but for a search."""

    validation: ValidationPlan | None = None
    """What the model is scored on, and after which steps."""
    validated: Callable[[], None] = lambda: None
    """Called when there are new results in the training's folder."""
    stopped: Callable[[], bool] = lambda: False
    """Asked twice a second: whether to save and leave it at that."""
    cpus: float | None = None
    """CPUs of each worker; by default as the configuration says."""
    set_aside: float = 0.0
    """CPUs of each worker that are used by others, and not asked for again."""
    record: Record | None = None
    """Where it is recorded; by default as a child of its run."""
    pool: str | None = None
    """Fingerprint of the pool as tracking knows it, where the one at hand is a part of it."""


def training_fingerprint(context: RunContext, config: Config, prompts: Sequence[Prompt]) -> str:
    """Fingerprint of everything that moves weights, and of nothing else.

    `config` is the run's as one training sees it (`Config.of_training`).

    Activation checkpointing changes no bit and kinds of attention less than the number of workers
    does, so that both may change before a training is continued.
    """
    settings = dump_config(config)
    train = {
        key: value
        for key, value in settings["train"].items()
        if key not in ("workers", "checkpoint", "max_failures", "activation_checkpointing")
    }
    if train["warm_start"] is not None:
        train["warm_start"] = read_adapter(train["warm_start"]).identity
    return fingerprint(
        "training",
        context.task_identity,
        context.model_identity,
        {key: settings["model"][key] for key in ("peft", "chat_template", "quantization")},
        context.training_dtype,
        train,
        config.seed,
        [[prompt.id, prompt.text] for prompt in prompts],
    )


def provenance(context: RunContext, pool: PromptPool) -> dict[str, str]:
    """Fingerprints of what a training was made from, for whoever evaluates it later."""
    return {
        "task": context.task_identity,
        "model": context.model_identity,
        "pool": pool.fingerprint,
    }


def training_folder(context: RunContext, training: Training) -> Storage:
    """Where a training lies."""
    return context.run_folder.child("training", training.name)


def train(
    context: RunContext, prompts: Sequence[Prompt], training: Training, pool: PromptPool
) -> TrainedAdapter:
    """Train one variant with one seed on these prompts, or find it trained.

    Args:
        context: The run.
        prompts: What the sampler draws from.
        training: Which variant and seed.
        pool: Where the prompts come from, and whose held-out prompts it will be tested on.

    Raises:
        ArtifactError: The folder holds another training.
        TrainingError: A loss was not finite, or workers were lost too often.
    """
    adapter = train_until(context, prompts, training, pool, Orders())
    assert adapter is not None  # nobody stops it
    return adapter


def train_until(
    context: RunContext,
    prompts: Sequence[Prompt],
    training: Training,
    pool: PromptPool,
    orders: Orders,
) -> TrainedAdapter | None:
    """Like `train`, but None where the orders stopped it before its last step.

    The same call continues a training that was stopped, from where it was.
    """
    config = context.config.of_training(training)
    identity = training_fingerprint(context, config, prompts)
    folder = training_folder(context, training)
    title = f"train {context.config.called(training)}"
    with context.screen.stage(title) as stage:
        manifest = load_manifest(folder)
        if manifest is not None and manifest.fingerprint == identity:
            adapter = _finished(training, manifest, folder, True)
            stage.finish(_outcome(adapter))
            return adapter
        _claim(folder, identity)
        job = _job(context, config, prompts, training, pool, identity, orders)
        if not _launch(context, job, config, stage, title, orders):
            stage.finish("stopped")
            return None
        manifest = retry_storage(
            lambda: load_manifest(folder, check=True), "reading the result", folder.path()
        )
        if manifest is None:
            raise ArtifactError(f"{folder.path()}: the adapter is not complete; run again")
        adapter = _finished(training, manifest, folder, False)
        stage.finish(_outcome(adapter))
        return adapter


def find_trained(context: RunContext, training: Training) -> TrainedAdapter | None:
    """A training under this run's name, if it is complete."""
    folder = training_folder(context, training)
    manifest = load_manifest(folder)
    if manifest is None:
        return None
    return _finished(training, manifest, folder, True)


def _finished(
    training: Training, manifest: Manifest, folder: Storage, reused: bool
) -> TrainedAdapter:
    content = fingerprint("weights", manifest.files)
    about = manifest.about
    return TrainedAdapter(training, manifest.fingerprint, content, folder, about, reused)


def _outcome(adapter: TrainedAdapter) -> str:
    about = adapter.about
    found = ", found complete" if adapter.reused else ""
    prompts = f"{about['prompts']} prompt{'s' if about['prompts'] != 1 else ''}"
    return f"{about['steps']} steps, {prompts}, loss {about['last_loss']:.3f}{found}"


def _claim(folder: Storage, identity: str) -> None:
    """Refuse a folder in which another training was begun; begin this one there."""
    name = "identity.json"
    if folder.exists(name):
        other = folder.read_json(name)["fingerprint"]
        if other != identity:
            raise ArtifactError(
                f"{folder.path()} holds training {other}, this one is {identity}: its prompts, "
                "data or settings differ; choose another name, or pass --overwrite"
            )
        return
    folder.write_json(name, {"fingerprint": identity})


def _job(
    context: RunContext,
    config: Config,
    prompts: Sequence[Prompt],
    training: Training,
    pool: PromptPool,
    identity: str,
    orders: Orders,
) -> Job:
    """What every rank is told."""
    record = Record(f"training/{training.name}", f"{config.name}/{config.called(training)}")
    cpus = orders.cpus or cpus_per_worker(config.train.workers, "train.workers")
    warm_start = config.train.warm_start
    return Job(
        config=dump_config(config),
        task=context.task,
        prompts=tuple((prompt.id, prompt.text) for prompt in prompts),
        source=locate_base(config.model.path, config.model.revision, context.storage),
        dtype=context.training_dtype,
        folder=training_folder(context, training),
        identity=identity,
        label=training.label,
        steps=total_steps(config.train, len(context.task.train)),
        threads=max(1, int(cpus)),
        tracking=context.tracking,
        board=BoardHandle(),
        made_from=provenance(context, pool) | ({"pool": orders.pool} if orders.pool else {}),
        warm_start=None if warm_start is None else read_adapter(warm_start).weights,
        record=orders.record or record,
        validation=orders.validation,
    )


def _launch(
    context: RunContext, job: Job, config: Config, stage: Stage, title: str, orders: Orders
) -> bool:
    """Run workers until all steps are done, as often as notices make them leave before.

    Returns:
        Whether all steps are done; else the orders stopped it.
    """
    import ray

    steps, board, name = job.steps, job.board, f"{job.label}-s{config.seed}"
    stage.expect(steps)
    cpus = orders.cpus or cpus_per_worker(config.train.workers, "train.workers")
    cpus -= orders.set_aside
    watch = Watch(
        config.train.workers.heartbeat_timeout_s,
        lambda text: context.screen.line(f"{title}: {text}"),
        partial(_end, board),
    )
    growth = Growth(
        config.train.workers.most,
        partial(spare_workers, cpus, config.train.workers.gpus),
        partial(board.hold, LEAVE),
    )

    validated = 0

    def show(said: Mapping[str, Any]) -> None:
        nonlocal validated
        stage.reach(int(said.get("step", 0)))
        watch.look(said)
        beats = [beat for beat in said.values() if isinstance(beat, Beat)]
        growth.look(beats)
        if said.get("validated", 0) > validated:
            validated = said["validated"]
            orders.validated()
        if beats and orders.stopped():
            board.hold(LEAVE, max(beat.attempt for beat in beats))

    reference = ray.put(job)
    with tempfile.TemporaryDirectory(prefix="paft-train-") as disposable, follow(board, show):
        done: int | None = 0
        for attempt in itertools.count():
            place = f"{disposable}/{attempt}"
            done = _run_workers(config, name, reference, board, cpus, place, watch, steps)
            if done is None or done >= steps or orders.stopped():
                break
            context.screen.line(f"{title}: {done} steps are saved, starting anew")
        refused = board.read().get("refused")
    if refused is not None:
        raise refused
    return done is None or done >= steps


def _run_workers(
    config: Config,
    name: str,
    job: Any,
    board: BoardHandle,
    cpus: float,
    disposable: str,
    watch: Watch,
    steps: int,
) -> int | None:
    """What rank 0 returned; Ray Train replaces workers that are lost.

    Raises:
        WorkersLostError: They were lost too often.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    from paft_ray.training.distributed.rank_group import Ranks, RanksTrainer

    workers = config.train.workers
    gpu = workers.gpus > 0
    trainer = RanksTrainer(
        run_rank,
        train_loop_config={"job": job},
        backend_config=Ranks(board, "nccl" if gpu else "gloo", workers.interface),
        scaling_config=ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.min else workers.most,
            elastic_resize_monitor_interval_s=math.inf,  # growing is ours, see `growth`
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": workers.gpus} if gpu else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=disposable,
            failure_config=FailureConfig(max_failures=config.train.max_failures),
        ),
    )
    try:
        with own_errors():
            return trainer.fit().return_value
    except TrainingFailedError as error:
        reasons = [*watch.verdicts, one_line(error, 300)]
        raise WorkersLostError(
            f"training {name} stopped after step {board.read().get('step', 0)} of {steps}, having "
            f"lost workers more than {config.train.max_failures} times (train.max_failures): "
            f"{'; '.join(reasons)}; run the same command to continue"
        ) from error


def _end(board: BoardHandle, verdict: Verdict) -> None:
    """End the workers that hold the others up; Ray Train then starts all of them anew."""
    import ray

    for rank in verdict.end:
        if (actor := board.held(actor_key(verdict.attempt, rank))) is not None:
            ray.kill(actor)
