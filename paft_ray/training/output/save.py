"""Saving a trained engine as a verified adapter or model, with its card and pyfunc."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from paft_ray.models.files import ADAPTER_WEIGHTS
from paft_ray.models.full import full_model_files
from paft_ray.models.load import (
    ADAPTER_FOLDER,
    MODEL_FOLDER,
    adapter_files,
    load_tokenizer,
    reads_positions,
)
from paft_ray.models.narrow import full_shape
from paft_ray.models.watch import watch_models
from paft_ray.serving.card import CARD, installed_versions, render_card
from paft_ray.serving.folder import PYFUNC_FOLDER, model_config, pyfunc_files
from paft_ray.serving.record import TrainedPrompt, TrainingRecord, Verified
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.tracking import Tracker
from paft_ray.training.batch_plan import Planner
from paft_ray.training.engine import Engine
from paft_ray.training.job import Job
from paft_ray.training.output.verify import (
    Base,
    Probe,
    Trained,
    relative_change,
    verify_adapter,
    verify_model,
)
from paft_ray.training.state.checkpoint import Progress
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.zero import whole

_SMALLEST_TENSORS = 16


def first_batch(planner: Planner) -> Probe:
    """The probe of a training: its first sequences, the same on every rank."""
    return Probe(planner.first_sequences(), planner.row_tokens, planner.packing)


def trainable_copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of trainable parameters on the CPU, for `save_and_verify` to compare the end with.

    Collective where ZeRO 3 divided them.

    Where all weights of a model are trained only the smallest tensors are copied: all of them would
    be a second model in memory.
    """
    from peft import PeftModel

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not isinstance(model, PeftModel):
        by_size = sorted(named, key=lambda item: (full_shape(item[1]).numel(), item[0]))
        named = by_size[:_SMALLEST_TENSORS]
    with whole([p for _, p in named]):
        return {name: p.detach().float().cpu().clone() for name, p in named}


def save_and_verify(
    engine: Engine,
    base: Base,
    probe: Probe,
    beginning: Mapping[str, torch.Tensor],
    writer: ArtifactWriter,
) -> Verified | None:
    """Write `adapter/` or `model/` and verify it; collective, ranks other than 0 return None.

    Args:
        engine: The trained engine.
        base: The base model that was adapted or trained.
        probe: Sequences for comparing losses; the same on every rank.
        beginning: From `trainable_copy`, before training; needed on rank 0.
        writer: Writer of the training's artifact, which the caller commits.

    On a GPU rank 0's engine is released before the files are verified.

    Raises:
        TrainingError: The weights did not move, or the files differ from the trained weights.
    """
    from peft import PeftModel

    model, weights = engine.model, engine.gather_weights()
    files: dict[str, bytes] = {}
    if isinstance(model, PeftModel):
        with engine.whole_adapter():
            # prompt learning computes what it saves, which takes all ranks
            if engine.rank == 0 or not reads_positions(model):
                files = adapter_files(model, weights, base.path)
    loss = probe.mean_loss_in(engine)
    if engine.rank != 0:
        return None
    change = relative_change(beginning, weights)
    if not isinstance(model, PeftModel):
        stored = {name: parameter.dtype for name, parameter in model.named_parameters()}
        weights = {name: weight.to(stored[name]) for name, weight in weights.items()}
        tokenizer = load_tokenizer(base.location, base.revision, base.trust)
        for name, data in full_model_files(model, weights, tokenizer):
            _write(writer, f"{MODEL_FOLDER}/{name}", data)
            engine.work()
        trained, verify = Trained(probe, weights, change, loss), verify_model
        folder = writer.folder.child(MODEL_FOLDER)
    else:
        for name, data in files.items():
            _write(writer, f"{ADAPTER_FOLDER}/{name}", data)
            engine.work()
        tensors = safetensors.torch.load(files[ADAPTER_WEIGHTS])
        trained, verify = Trained(probe, tensors, change, loss), verify_adapter
        folder = writer.folder.child(ADAPTER_FOLDER)
    if engine.device.type != "cpu":
        engine.release()  # a second model beside the trained one may not fit
    with watch_models(engine.work):
        return verify(folder, base, trained, engine.device)


def _write(writer: ArtifactWriter, name: str, data: bytes) -> None:
    retry_storage(partial(writer.add, name, data), "writing the result", writer.folder.path())


def training_record(job: Job, progress: Progress, ranks: int, verified: Verified) -> TrainingRecord:
    """The record of a written and verified training, for its manifest."""
    prompt_id, text = job.prompts[0]
    return TrainingRecord(
        variant=job.label,
        seed=job.config.seed,
        steps=progress.step,
        tokens=progress.tokens,
        answer_tokens=progress.answer_tokens,
        rollout_tokens=progress.rollout_tokens or None,
        trimmed=progress.trimmed,
        seconds=round(progress.seconds, 3),
        prompts=len(job.prompts),
        prompt=TrainedPrompt(prompt_id, text),
        workers=ranks,
        dtype=job.dtype,
        last_loss=progress.loss,
        made_from=job.made_from,
        verified=verified,
        versions=installed_versions(),
    )


def complete_training(
    job: Job, writer: ArtifactWriter, record: TrainingRecord, tracker: Tracker
) -> None:
    """Write card and manifest, which completes the training, and track its files.

    The card is not in the manifest, because an evaluation adds its figures later.
    """
    config, about, folder = job.config, record.to_json(), writer.folder
    whole = config.model.peft is None
    form = "model" if whole else "adapter"
    card = render_card(config, job.task, job.identity, record, form=form).encode()
    place = f"{MODEL_FOLDER if whole else ADAPTER_FOLDER}/{CARD}"
    retry_storage(partial(folder.write_bytes, place, card), "writing the card", folder.path())
    tracker.log_artifact(place, card)
    if not whole and job.tracking is not None:  # MLflow keeps adapters, not copies of models
        for name in writer.files:
            tracker.log_artifact(name, folder.path(name))
        settings = model_config(config, job.task, job.prompts[0][1])
        adapter = {Path(n).name: folder.read_bytes(n) for n in writer.files}
        for name, data in pyfunc_files(settings, adapter, record.versions).items():
            tracker.log_artifact(f"{PYFUNC_FOLDER}/{name}", data)
    tracker.log_params({"training": about})
    commit = partial(writer.commit, job.identity, about)
    retry_storage(commit, "writing the manifest", folder.path())
