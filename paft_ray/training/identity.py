"""Fingerprint and folder of a training, and finding one that is complete."""

from collections.abc import Sequence
from typing import Any

from paft_ray.config import Config, ModelConfig, Training
from paft_ray.config.affects import affecting, take
from paft_ray.config.errors import ArtifactError
from paft_ray.evaluation.units import Subject
from paft_ray.models.load import result_folder
from paft_ray.models.warm_start import read_adapter
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.runs.context import Identities, RunContext
from paft_ray.serving.record import MadeFrom, TrainedAdapter, TrainingRecord
from paft_ray.storage.artifacts import Manifest, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.training.paraphrased import texts_of
from paft_ray.training.reinforcement.rewards import rewards_of


def training_fingerprint(
    context: RunContext,
    config: Config,
    prompts: Sequence[Prompt],
    validation: Sequence[Prompt] = (),
) -> str:
    """Fingerprint of everything that moves weights, and of the task with its test split.

    `validation` are the prompts of `train.validation`, by whose scores weights are chosen; what
    moves scores is then in the fingerprint too. The task's identity has the examples.

    `config` comes from `Config.of_training`. Activation checkpointing and the kind of attention are
    left out, so that both may change before a training is continued: the first changes no bit, the
    second less than the number of workers does.
    """
    warm_start = config.train.warm_start
    (_, model, train, seed, _), later = take(
        affecting(config, "weights"), "model.dtype", "model", "train", "seed", "task"
    )
    stored = context.stored(context.training_dtype, scored=False)
    train["warm_start"] = None if warm_start is None else read_adapter(warm_start).identity
    return fingerprint(
        "training",
        context.task_identity,
        context.model_identity,
        model,
        context.training_dtype,
        train,
        seed,
        [[prompt.id, prompt.text] for prompt in prompts],
        *([later] if later else []),
        *([stored] if stored else []),
        *_chosen_by(config, validation, context.grading_code),
        *_rewarded_by(context, config),
        *(["paraphrases", texts] if (texts := texts_of(context, config)) else []),
    )


def _chosen_by(config: Config, validation: Sequence[Prompt], code: str) -> list[Any]:
    """What a choice among checkpoints depends on, beside what moves the weights of each."""
    if config.train.validation is None:
        return []
    prompts = [[prompt.id, prompt.text] for prompt in validation]
    return ["chosen", prompts, affecting(config, "scores"), *filter(None, [code])]


def _rewarded_by(context: RunContext, config: Config) -> list[Any]:
    """What rewards depend on, beside their settings: the task's own grade, and the user's code."""
    if (rewards := rewards_of(config, context.task)) is None:
        return []
    return ["rewarded", affecting(config.task, "scores"), *filter(None, [rewards.code])]


def provenance(identities: Identities, pool: PromptPool) -> MadeFrom:
    """Fingerprints of what a training is made from, to compare when it is evaluated."""
    return MadeFrom(identities.task, identities.model, pool.fingerprint)


def training_folder(run: Storage, training: Training) -> Storage:
    """Folder of a training below that of its run."""
    return run.child("training", training.name)


def find_trained(run: Storage, training: Training) -> TrainedAdapter | None:
    """A training in this folder of a run, or None where it is not complete."""
    folder = training_folder(run, training)
    manifest = load_manifest(folder)
    return manifest and finished_training(training, manifest, folder, True)


def finished_training(
    training: Training, manifest: Manifest, folder: Storage, reused: bool
) -> TrainedAdapter:
    """The result of a training from its manifest."""
    content = fingerprint("weights", manifest.files)
    record = TrainingRecord.from_json(manifest.about)
    return TrainedAdapter(training, manifest.fingerprint, content, folder, record, reused)


def own_prompts(config: Config, trained: Sequence[TrainedAdapter]) -> dict[str, str]:
    """Label of each variant that was trained on one prompt to the text of that prompt.

    Empty unless `evaluation.trained_prompts` asks for them.

    Raises:
        ArtifactError: A training is older than the record of its prompt.
    """
    labels = config.of_one_prompt if config.evaluation.trained_prompts else []
    found = {}
    for each in trained:
        if (label := each.training.label) in labels:
            if each.record.prompt is None:
                raise ArtifactError(
                    f"{each.folder.path()} does not say which prompt it was trained on, as an "
                    "earlier version wrote it: leave evaluation.trained_prompts out"
                )
            found[label] = each.record.prompt.text
    return found


def subjects(model: ModelConfig, trained: Sequence[TrainedAdapter]) -> list[Subject]:
    """Finished trainings as subjects of an evaluation."""
    weights = result_folder(model.peft)
    return [
        Subject(t.training.label, t.training.seed, t.content, t.folder.child(weights))
        for t in trained
    ]
