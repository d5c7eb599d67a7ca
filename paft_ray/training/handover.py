"""From a trained engine to what a user can load: written, loaded again, compared.

What is verified: training moved the weights from where they began; every tensor of the files is the
one that was trained, and finite; a fresh base model with the written adapter, or the written model
where all weights were trained, has the loss of the model in memory. The fresh one is loaded on the
CPU of rank 0, wherever training ran: it needs no room beside an engine that lets its memory go
late, and under stage 3 no one GPU may hold a whole model. It takes no more of the host than each
rank took when it began.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from paft_ray.artifacts import ArtifactWriter, Storage
from paft_ray.card import CARD, installed_versions, render_card
from paft_ray.config import Config
from paft_ray.errors import TrainingError, one_line
from paft_ray.modeling.full import full_model_files
from paft_ray.modeling.model import (
    ADAPTER_FOLDER,
    MODEL_FOLDER,
    adapter_files,
    load_base,
    load_tokenizer,
    reads_positions,
    store_frozen_in_bf16,
    virtual_tokens,
)
from paft_ray.modeling.scoring import score_sequences
from paft_ray.modeling.tokenization import TokenSequence, build_row, deal_rows
from paft_ray.serving.folder import PYFUNC_FOLDER, model_config, pyfunc_files
from paft_ray.tracking import Tracker
from paft_ray.training.checkpoint import Progress
from paft_ray.training.engine import Engine
from paft_ray.training.patience import retry_storage
from paft_ray.training.plan import Planner

if TYPE_CHECKING:
    from peft import PeftModel

    from paft_ray.training.worker import Job

logger = logging.getLogger(__name__)

LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Largest difference between the loss in memory and after loading, by arithmetic, as a share of
the loss or, where that is below 1, in nats. bf16 has room for another device's order of sums."""
SMALLEST_CHANGE = 1e-7
"""Of all tensors together, as a share of their norm at the beginning: what fp32 rounds away."""

_WEIGHTS = "adapter_model.safetensors"
_SMALLEST_TENSORS = 16


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that can be loaded afresh, and the arithmetic it is used with."""

    location: str
    """What `load_base` takes."""
    revision: str | None
    path: str
    """As the configuration names it, and so the adapter."""
    dtype: str
    """`float32` or `bfloat16`."""
    quantization: str = "none"
    """How it was stored in training."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A few sequences whose loss tells whether two models are the same."""

    sequences: tuple[TokenSequence, ...]
    row_tokens: int
    packing: bool

    def mean_loss(self, model: torch.nn.Module, dtype: str) -> float:
        """Mean negative log-likelihood of the answer tokens, in nats."""
        sums = score_sequences(
            model,
            self.sequences,
            dtype,
            self.row_tokens,
            self.packing,
            virtual_tokens(model),  # pyright: ignore[reportArgumentType]
        )
        return -sum(sum(scores.values()) for scores in sums) / self._tokens

    def mean_loss_in(self, engine: Engine) -> float:
        """The same of the model in an engine; collective under stage 3."""
        lengths = [len(sequence.input_ids) for sequence in self.sequences]
        [rows] = deal_rows(lengths, self.row_tokens, ranks=1, packing=self.packing)
        return engine.mean_loss([build_row(self.sequences, row) for row in rows if row])

    @property
    def _tokens(self) -> int:
        return sum(len(sequence.targets) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Verified:
    """What is known of weights that were written and loaded again."""

    tensors: int
    change: float
    """Norm of what training added, as a share of the norm at the beginning."""
    loss: float
    """Of the model in memory, over the probe, in nats per answer token."""
    loss_reloaded: float


def first_batch(planner: Planner) -> Probe:
    """The first sequences of a training, which every rank can read."""
    return Probe(planner.first_sequences(), planner.row_tokens, planner.packing)


def trainable_copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of trainable parameters, on the CPU: what `hand_over` compares the end with.

    Of a model whose weights are all trained, the smallest tensors: a copy of all would be another
    model in memory.
    """
    from peft import PeftModel

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not isinstance(model, PeftModel):
        named = sorted(named, key=lambda item: (item[1].numel(), item[0]))[:_SMALLEST_TENSORS]
    return {name: p.detach().float().cpu().clone() for name, p in named}


def hand_over(
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
        return verify_model(writer.folder.child(MODEL_FOLDER), base, probe, weights, change, loss)
    for name, data in files.items():
        _write(writer, f"{ADAPTER_FOLDER}/{name}", data)
    expected = safetensors.torch.load(files[_WEIGHTS])
    return verify_adapter(writer.folder.child(ADAPTER_FOLDER), base, probe, expected, change, loss)


def _write(writer: ArtifactWriter, name: str, data: bytes) -> None:
    retry_storage(partial(writer.add, name, data), "writing the result", writer.folder.path())


def relative_change(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """How far the tensors of `before` together moved, as a share of their norm at the beginning.

    Raises:
        TrainingError: A tensor is not finite or missing, or nothing moved.
    """
    if missing := sorted(before.keys() - after.keys()):
        raise TrainingError(_among("tensors were lost in training", missing))
    if wrong := [name for name, t in after.items() if not torch.isfinite(t).all()]:
        raise TrainingError(
            _among("trained tensors are not finite", wrong) + ": lower train.learning_rate"
        )
    moved = math.sqrt(sum(float((after[n] - t).double().square().sum()) for n, t in before.items()))
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in before.values()))
    change = moved / norm if norm else moved
    if change <= SMALLEST_CHANGE:
        raise TrainingError(
            f"training moved the weights by {change:.0e} of their norm, no more than fp32's own "
            "rounding: raise train.learning_rate or the number of steps"
        )
    return change


def verify_adapter(
    folder: Storage,
    base: Base,
    probe: Probe,
    expected: Mapping[str, torch.Tensor],
    change: float,
    loss: float,
) -> Verified:
    """Load an adapter's files onto a fresh base, and compare it with the model it was saved from.

    Args:
        folder: Holds the files.
        base: What they belong to.
        probe: What `loss` was measured on.
        expected: The tensors that the files should hold.
        change: For the result.
        loss: Of the model that was saved.

    Raises:
        TrainingError: The files cannot be loaded, or tensors or loss differ.
    """
    _compare_tensors(_stored_tensors(folder), expected, folder.path(_WEIGHTS))
    model = _reload(folder, base)
    _compare_tensors(_loaded_tensors(model), expected, f"{folder.path()}, loaded by peft")
    return _compare_losses(folder, base, probe, model, Verified(len(expected), change, loss, loss))


def verify_model(
    folder: Storage,
    base: Base,
    probe: Probe,
    expected: Mapping[str, torch.Tensor],
    change: float,
    loss: float,
) -> Verified:
    """The same for a model whose weights were all trained; see `verify_adapter`."""
    with folder.local() as files:
        try:
            model = load_base(files)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainingError(
                f"{folder.path()}: transformers cannot load the model: {one_line(error)}"
            ) from error
    found = {name: p.detach() for name, p in model.named_parameters()}
    _compare_tensors(found, expected, f"{folder.path()}, loaded by transformers")
    return _compare_losses(folder, base, probe, model, Verified(len(expected), change, loss, loss))


def _compare_losses(
    folder: Storage, base: Base, probe: Probe, model: torch.nn.Module, trained: Verified
) -> Verified:
    loss, reloaded = trained.loss, probe.mean_loss(model, base.dtype)
    allowed = LOSS_TOLERANCE[base.dtype] * max(1.0, abs(loss))
    if not abs(reloaded - loss) <= allowed:
        raise TrainingError(
            f"{folder.path()}: loaded on a fresh base its loss is {reloaded:.6f}, in training "
            f"{loss:.6f}, further apart than {allowed:.1e}: the files do not hold what was "
            "trained; try another model.peft, or train without packing"
        )
    verified = replace(trained, loss_reloaded=reloaded)
    logger.info("verified after writing: %s", asdict(verified))
    return verified


def complete_training(
    job: "Job",
    config: Config,
    writer: ArtifactWriter,
    verified: Verified,
    progress: Progress,
    ranks: int,
    tracker: Tracker,
) -> None:
    """Write card and manifest, which makes the training complete, and track what there is.

    The card is no part of the manifest: figures of an evaluation come into it later.
    """
    prompt_id, text = job.prompts[0]
    about = {
        "variant": job.label,
        "seed": config.seed,
        "steps": progress.step,
        "tokens": progress.tokens,
        "answer_tokens": progress.answer_tokens,
        "trimmed": progress.trimmed,
        "seconds": round(progress.seconds, 3),
        "prompts": len(job.prompts),
        "prompt": {"id": prompt_id, "text": text},
        "workers": ranks,
        "dtype": job.dtype,
        "last_loss": progress.loss,
        "made_from": job.made_from,
        "verified": asdict(verified),
        "versions": installed_versions(),
    }
    whole = config.model.peft is None
    card = render_card(
        config, job.task, job.identity, about, form="model" if whole else "adapter"
    ).encode()
    folder, place = writer.folder, f"{MODEL_FOLDER if whole else ADAPTER_FOLDER}/{CARD}"
    retry_storage(partial(folder.write_bytes, place, card), "writing the card", folder.path())
    tracker.log_artifact(place, card)
    if not whole and job.tracking is not None:  # MLflow keeps adapters, not copies of models
        for name in writer.files:
            tracker.log_artifact(name, folder.path(name))
        settings = model_config(config, job.task, text)
        adapter = {Path(n).name: writer.folder.read_bytes(n) for n in writer.files}
        files = pyfunc_files(settings, adapter, installed_versions())
        for name, data in files.items():
            tracker.log_artifact(f"{PYFUNC_FOLDER}/{name}", data)
    tracker.log_params({"training": about})
    commit = partial(writer.commit, job.identity, about)
    retry_storage(commit, "writing the manifest", folder.path())


def _reload(folder: Storage, base: Base) -> "PeftModel":
    """As a user loads it, with the storage of frozen weights that training had."""
    from peft import PeftConfig, PeftModel

    fresh = load_base(base.location, base.revision, quantization=base.quantization)
    with folder.local() as files:
        try:
            # frozen adapters would be taken for weights of the base, and stored in bf16 below;
            # what a prompt encoder was trained from is not stored, so it can only be read
            trainable = not PeftConfig.from_pretrained(files).is_prompt_learning
            model = PeftModel.from_pretrained(fresh, files, is_trainable=trainable)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainingError(f"{files}: peft cannot load the adapter: {error}") from error
    if base.dtype == "bfloat16":
        store_frozen_in_bf16(model)
    return model.eval()


def _stored_tensors(folder: Storage) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(folder.read_bytes(_WEIGHTS))
    except safetensors.SafetensorError as error:
        raise TrainingError(
            f"{folder.path(_WEIGHTS)}: cannot be read ({error}): storage may be damaged; delete "
            "the folder and run again"
        ) from error


def _loaded_tensors(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapter's tensors as peft names them in files."""
    from peft import get_peft_model_state_dict

    if not reads_positions(model):
        return get_peft_model_state_dict(model, save_embedding_layers=False)
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return get_peft_model_state_dict(model, state_dict=trainable, save_embedding_layers=False)


def _compare_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str
) -> None:
    if missing := sorted(found.keys() ^ expected.keys()):
        raise TrainingError(_among(f"{where}: tensors are missing or foreign", missing))
    same = {name: torch.equal(found[name].float(), t.float()) for name, t in expected.items()}
    if differing := [name for name, equal in same.items() if not equal]:
        raise TrainingError(
            _among(f"{where}: tensors differ from those trained", differing)
            + ": storage may be damaged; delete the folder and run again"
        )


def _among(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} ({', '.join(names[:3])}{more})"
