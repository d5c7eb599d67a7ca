"""What a user can load of a trained engine: written, verified, with its card and pyfunc."""

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

_SMALLEST_TENSORS = 16


def first_batch(planner: Planner) -> Probe:
    """The first sequences of a training, which every rank can read."""
    return Probe(planner.first_sequences(), planner.row_tokens, planner.packing)


def trainable_copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of trainable parameters, on the CPU: what `save_and_verify` compares the end with.

    Of a model whose weights are all trained, the smallest tensors: a copy of all would be another
    model in memory.
    """
    from peft import PeftModel

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not isinstance(model, PeftModel):
        named = sorted(named, key=lambda item: (item[1].numel(), item[0]))[:_SMALLEST_TENSORS]
    return {name: p.detach().float().cpu().clone() for name, p in named}


def save_and_verify(
    engine: Engine,
    base: Base,
    probe: Probe,
    beginning: Mapping[str, torch.Tensor],
    writer: ArtifactWriter,
) -> Verified | None:
    """Write `adapter/` or `model/` and verify it; collective, the other ranks return None early.

    Args:
        engine: The trained engine.
        base: What was adapted, or trained.
        probe: Read by the model in memory and by the one loaded; the same on every rank.
        beginning: From `trainable_copy`, before training; needed on rank 0.
        writer: Of the training's artifact, which its caller commits.

    Raises:
        TrainingError: The adapter did not move, or what was written is not what was trained.
    """
    from peft import PeftModel

    model, weights = engine.model, engine.gather_weights()
    files: dict[str, bytes] = {}
    if isinstance(model, PeftModel):
        with engine.whole_adapter():
            # prompt learning computes what it saves: on all ranks, then
            if engine.rank == 0 or not reads_positions(model):
                files = adapter_files(model, weights, base.path)
    loss = probe.mean_loss_in(engine)
    if engine.rank != 0:
        return None
    change = relative_change(beginning, weights)
    if not isinstance(model, PeftModel):
        tokenizer = load_tokenizer(base.location, base.revision)
        for name, data in full_model_files(model, weights, tokenizer):
            _write(writer, f"{MODEL_FOLDER}/{name}", data)
        trained = Trained(probe, weights, change, loss)
        return verify_model(writer.folder.child(MODEL_FOLDER), base, trained)
    for name, data in files.items():
        _write(writer, f"{ADAPTER_FOLDER}/{name}", data)
    trained = Trained(probe, safetensors.torch.load(files[ADAPTER_WEIGHTS]), change, loss)
    return verify_adapter(writer.folder.child(ADAPTER_FOLDER), base, trained)


def _write(writer: ArtifactWriter, name: str, data: bytes) -> None:
    retry_storage(partial(writer.add, name, data), "writing the result", writer.folder.path())


def training_record(job: Job, progress: Progress, ranks: int, verified: Verified) -> TrainingRecord:
    """Return what the manifest says of a training that is written and verified."""
    prompt_id, text = job.prompts[0]
    return TrainingRecord(
        variant=job.label,
        seed=job.config.seed,
        steps=progress.step,
        tokens=progress.tokens,
        answer_tokens=progress.answer_tokens,
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
    """Write card and manifest, which makes the training complete, and track what there is.

    The card is no part of the manifest: figures of an evaluation come into it later.
    """
    config, about = job.config, record.to_json()
    whole = config.model.peft is None
    card = render_card(
        config, job.task, job.identity, record, form="model" if whole else "adapter"
    ).encode()
    folder, place = writer.folder, f"{MODEL_FOLDER if whole else ADAPTER_FOLDER}/{CARD}"
    retry_storage(partial(folder.write_bytes, place, card), "writing the card", folder.path())
    tracker.log_artifact(place, card)
    if not whole and job.tracking is not None:  # MLflow keeps adapters, not copies of models
        for name in writer.files:
            tracker.log_artifact(name, folder.path(name))
        settings = model_config(config, job.task, job.prompts[0][1])
        adapter = {Path(n).name: writer.folder.read_bytes(n) for n in writer.files}
        files = pyfunc_files(settings, adapter, record.versions)
        for name, data in files.items():
            tracker.log_artifact(f"{PYFUNC_FOLDER}/{name}", data)
    tracker.log_params({"training": about})
    commit = partial(writer.commit, job.identity, about)
    retry_storage(commit, "writing the manifest", folder.path())
