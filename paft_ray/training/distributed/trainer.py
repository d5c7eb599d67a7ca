"""Training one variant with one seed: from prompts to an adapter, or a whole model, on storage.

A training is named by the fingerprint of all that moves weights. Where it is complete it is
returned at once; else workers do it, those of the training before where they can.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from paft_ray.cluster.resources import fit_workers
from paft_ray.config import GRPO, TrainConfig, Training, total_steps
from paft_ray.config.errors import ArtifactError, PoolError
from paft_ray.models.base_model import locate_base
from paft_ray.models.warm_start import read_adapter
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.runs.context import RUN_KEY, RunContext
from paft_ray.runs.examples import store_examples
from paft_ray.serving.record import Speed, TrainedAdapter
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.paths import Storage
from paft_ray.tracking import TrackedRun
from paft_ray.training.distributed.launch import Workers
from paft_ray.training.identity import (
    finished_training,
    provenance,
    training_fingerprint,
    training_folder,
)
from paft_ray.training.job import Job, TrainingHooks
from paft_ray.training.reinforcement.rewards import rewards_of
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.validation import ValidationPlan, held_out


def train(
    context: RunContext,
    prompts: Sequence[Prompt],
    training: Training,
    pool: PromptPool,
    workers: Workers | None = None,
) -> TrainedAdapter:
    """Train one variant with one seed on these prompts, or find it trained.

    Args:
        context: The run.
        prompts: Prompts that the sampler draws from.
        training: Variant and seed.
        pool: The pool of these prompts and of the held-out prompts.
        workers: Do it, and others; by default they are started for it and end with it.

    Raises:
        ArtifactError: The folder holds another training.
        TrainingError: A loss was not finite, or workers were lost too often.
    """
    adapter = train_until(context, prompts, training, pool, TrainingHooks(workers=workers))
    assert adapter is not None  # nobody stops it
    return adapter


def train_until(
    context: RunContext,
    prompts: Sequence[Prompt],
    training: Training,
    pool: PromptPool,
    hooks: TrainingHooks,
) -> TrainedAdapter | None:
    """Do as `train`, but return None where the hooks stop it; the same call continues it."""
    config = context.config.of_training(training)
    validation = held_out(config, pool, context.task)
    identity = training_fingerprint(context, config, prompts, validation[0])
    folder = training_folder(context.run_folder, training)
    title = f"train {context.config.called(training)}"
    with context.screen.stage(title) as stage:
        manifest = load_manifest(folder)
        if manifest is not None and manifest.fingerprint == identity:
            adapter = finished_training(training, manifest, folder, True)
            stage.finish(_outcome(adapter))
            return adapter
        _refuse_few(config.train, prompts)
        _begin(folder, identity)
        examples = context.task.learned_by(config.train.objective)
        steps = total_steps(config.train, len(examples))
        if config.train.validation is not None:
            plan = ValidationPlan.of(*validation, config.train.validation.steps(steps))
            hooks = replace(hooks, validation=plan)
        with nullcontext(hooks.workers) if hooks.workers else Workers() as workers:
            job = _job(context, prompts, training, pool, replace(hooks, workers=workers), identity)
            if not workers.train(job, hooks, stage, lambda t: context.screen.line(f"{title}: {t}")):
                stage.finish("stopped")
                return None
        manifest = retry_storage(
            lambda: load_manifest(folder, check=True), "reading the result", folder.path()
        )
        if manifest is None:
            raise ArtifactError(f"{folder.path()}: the adapter is not complete; run again")
        adapter = finished_training(training, manifest, folder, False)
        stage.finish(_outcome(adapter))
        return adapter


def _outcome(adapter: TrainedAdapter) -> str:
    record, validated = adapter.record, adapter.record.validated
    reused = ", found complete" if adapter.reused else ""
    prompts = f"{record.prompts} prompt{'s' if record.prompts != 1 else ''}"
    steps, best = f"{record.steps} steps", ""
    if validated is not None:
        if record.steps < validated.planned:
            steps = f"ended after {record.steps} of {validated.planned} steps"
        kept = "" if validated.kept else ", the last one is kept"
        best = (
            f", best after step {validated.best} with {validated.goal} {validated.figure:.1%} on "
            f"{validated.prompts} validation prompts{kept}"
        )
    speed = "" if record.speed is None or adapter.reused else _describe(record.speed)
    return f"{steps}, {prompts}, loss {record.last_loss:.3f}{best}{speed}{reused}"


def _describe(speed: Speed) -> str:
    shares = {"MFU": speed.mfu, "of the matrix rate": speed.share_of_matrix_rate}
    texts = [f"{speed.tokens_per_second:,.0f} tokens/s"]
    texts += [f"{share:.0%} {of}" for of, share in shares.items() if share is not None]
    if speed.peak_gpu_memory_gb is not None:
        texts.append(f"{speed.peak_gpu_memory_gb:.1f} GB")
    return "".join(f", {text}" for text in texts)


def _refuse_few(train: TrainConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse a pool with fewer prompts than a question is asked under."""
    if isinstance(train.objective, GRPO):
        wanted, there = train.objective.prompts_per_question, len(prompts)
        if 1 < there < wanted:
            raise PoolError(
                f"train.objective.prompts_per_question ({wanted}) is more than the {there} prompts "
                "of this training: lower it, or raise prompts.generation.per_llm"
            )


def _begin(folder: Storage, identity: str) -> None:
    """Record the training in its folder; refuse a folder in which another one was begun."""
    name = "identity.json"
    if not folder.exists(name):
        folder.write_json(name, {"fingerprint": identity})
    elif (other := folder.read_json(name)["fingerprint"]) != identity:
        raise ArtifactError(
            f"{folder.path()} holds training {other}, this one is {identity}: its prompts, "
            "data or settings differ; choose another name, or pass --overwrite"
        )


def _job(
    context: RunContext,
    prompts: Sequence[Prompt],
    training: Training,
    pool: PromptPool,
    hooks: TrainingHooks,
    identity: str,
) -> Job:
    """The data for every rank."""
    config = context.config.of_training(training)
    made_from = provenance(context.identities, pool)
    name = f"{config.called(training)} trained in {config.name}"
    assert hooks.workers is not None  # its caller has some
    warm_start = config.train.warm_start
    examples = context.task.learned_by(config.train.objective)
    return Job(
        config=config,
        task=context.task.without_examples(),
        examples=store_examples(context.storage, examples),
        prompts=tuple((prompt.id, prompt.text) for prompt in prompts),
        source=locate_base(config.model.path, config.model.revision, context.storage),
        dtype=context.training_dtype,
        folder=training_folder(context.run_folder, training),
        identity=identity,
        label=training.label,
        steps=total_steps(config.train, len(examples)),
        cpus=hooks.cpus or fit_workers(config.train.workers, "train.workers"),
        tracking=context.tracking,
        control=hooks.workers.control,
        made_from=replace(made_from, pool=hooks.pool) if hooks.pool else made_from,
        warm_start=None if warm_start is None else read_adapter(warm_start).weights,
        tracked=hooks.tracked or TrackedRun(f"training/{training.name}", name, RUN_KEY),
        validation=hooks.validation,
        rewards=rewards_of(config, context.task),
        paraphrases=context.paraphrases if config.train.variation.paraphrases else None,
    )
