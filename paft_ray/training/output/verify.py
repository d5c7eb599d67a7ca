"""Verifying that written files hold the trained weights: they are loaded again and compared.

Verified: training moved the weights; every tensor of the files is finite and equals the trained
one; a fresh base model with the written adapter, or the written model where all weights were
trained, has the loss of the model in memory. The fresh model is loaded on the CPU of rank 0, where
it takes as much memory as each rank took when it began, and computes on rank 0's GPU if that has
room: under ZeRO 3 one GPU may not hold a whole model.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from paft_ray.config.errors import TrainingError, one_line
from paft_ray.models.files import ADAPTER_WEIGHTS
from paft_ray.models.load import (
    load_adapter,
    load_base,
    reads_positions,
    store_frozen_in_bf16,
    virtual_tokens,
)
from paft_ray.models.logprobs import ForwardPass, score_sequences
from paft_ray.models.narrow import Stored, kept_modules
from paft_ray.models.packing import TokenSequence, build_row, deal_rows
from paft_ray.models.row_check import read_apart
from paft_ray.serving.record import Verified
from paft_ray.storage.paths import Storage
from paft_ray.training.engine import Engine

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Largest difference between the loss in memory and after loading, by arithmetic, as a share of
the loss or, where that is below 1, in nats. In bf16 devices may add in different sequences."""
SMALLEST_CHANGE = 1e-7
"""Of all tensors together, as a share of their norm at the beginning: the rounding of fp32."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that can be loaded afresh, and the arithmetic it is used with."""

    location: str
    """Argument of `load_base`."""
    revision: str | None
    path: str
    """The model's name in the configuration and in the adapter."""
    dtype: str
    """`float32` or `bfloat16`."""
    quantization: str = "none"
    """How it was stored in training."""
    trust: bool = False
    """`model.trust_remote_code`."""
    apart: bool = False
    """Whether it reads with its own attention, see `row_check`."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A few sequences whose loss shows whether two models are the same."""

    sequences: tuple[TokenSequence, ...]
    row_tokens: int
    packing: bool

    def mean_loss(self, model: torch.nn.Module, dtype: str) -> float:
        """Mean negative log-likelihood of the answer tokens, in nats."""
        virtual = virtual_tokens(model)  # pyright: ignore[reportArgumentType]
        reading = ForwardPass(dtype, self.row_tokens, self.packing, virtual)
        sums = score_sequences(model, self.sequences, reading)
        tokens = sum(len(sequence.targets) for sequence in self.sequences)
        return -sum(sum(scores.values()) for scores in sums) / tokens

    def mean_loss_in(self, engine: Engine) -> float:
        """The same for the model in an engine; collective under stage 3."""
        lengths = [len(sequence.input_ids) for sequence in self.sequences]
        [rows] = deal_rows(lengths, self.row_tokens, ranks=1, packing=self.packing)
        return engine.mean_loss([build_row(self.sequences, row) for row in rows if row])


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in memory, for comparison with the files that were written."""

    probe: Probe
    tensors: Mapping[str, torch.Tensor]
    """Tensors that the files should hold."""
    change: float
    """See `relative_change`."""
    loss: float
    """Mean loss over the probe."""


def relative_change(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """The change of the tensors of `before` together, as a share of their norm at the beginning.

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
            "rounding: raise train.learning_rate or the number of steps; with objective grpo look "
            "into rollouts/: texts of a question that all got the same reward teach nothing"
        )
    return change


def verify_adapter(
    folder: Storage, base: Base, trained: Trained, device: torch.device = CPU
) -> Verified:
    """Load an adapter's files onto a fresh base, and compare it with the model it was saved from.

    Args:
        folder: Holds the files.
        base: The base model that was adapted.
        trained: The model in memory.
        device: Computes the loss of the fresh model where it has room, else the CPU does.

    Raises:
        TrainingError: The files cannot be loaded, or tensors or loss differ.
    """
    _compare_tensors(_stored_tensors(folder), trained.tensors, folder.path(ADAPTER_WEIGHTS))
    model = _reload(folder, base)
    _compare_tensors(_loaded_tensors(model), trained.tensors, f"{folder.path()}, loaded by peft")
    return _compare_losses(folder, base, trained, model, device)


def verify_model(
    folder: Storage, base: Base, trained: Trained, device: torch.device = CPU
) -> Verified:
    """Verify like `verify_adapter` a model whose weights were all trained."""
    with folder.local() as files:
        try:
            model = load_base(files, trust=base.trust)
            if base.apart:
                read_apart(model)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainingError(
                f"{folder.path()}: transformers cannot load the model: {one_line(error)}"
            ) from error
    found = {name: p.detach() for name, p in model.named_parameters()}
    _compare_tensors(found, trained.tensors, f"{folder.path()}, loaded by transformers")
    return _compare_losses(folder, base, trained, model, device)


def _compare_losses(
    folder: Storage, base: Base, trained: Trained, model: torch.nn.Module, device: torch.device
) -> Verified:
    loss, reloaded = trained.loss, _mean_loss_on(device, trained.probe, model, base.dtype)
    allowed = LOSS_TOLERANCE[base.dtype] * max(1.0, abs(loss))
    if not abs(reloaded - loss) <= allowed:
        raise TrainingError(
            f"{folder.path()}: loaded on a fresh base its loss is {reloaded:.6f}, in training "
            f"{loss:.6f}, further apart than {allowed:.1e}: the files do not hold what was "
            "trained; try another model.peft, or train without packing"
        )
    verified = Verified(len(trained.tensors), trained.change, loss, reloaded)
    logger.info("verified after writing: %s", asdict(verified))
    return verified


def _mean_loss_on(device: torch.device, probe: Probe, model: torch.nn.Module, dtype: str) -> float:
    if device.type != "cpu":
        try:
            return probe.mean_loss(model.to(device), dtype)
        except torch.OutOfMemoryError:
            logger.info("%s has no room for a whole model: it is verified on the CPU", device)
        model.to(CPU)
    return probe.mean_loss(model, dtype)


def _reload(folder: Storage, base: Base) -> "PeftModel":
    """Load the adapter as a user does, with frozen weights stored as in training."""
    from peft import PeftConfig

    with folder.local() as files:
        try:
            config = PeftConfig.from_pretrained(files)
            kept = kept_modules(config.to_dict())
            stored = Stored(base.dtype, base.quantization, "cpu", kept)
            fresh = load_base(base.location, base.revision, stored=stored, trust=base.trust)
            if base.apart:
                read_apart(fresh)
            # a frozen adapter would be stored in bf16 below, like weights of the base; weights
            # behind a prompt encoder are not saved, so that it cannot be loaded as trainable
            trainable = not config.is_prompt_learning
            model = load_adapter(fresh, files, "default", trainable)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainingError(f"{files}: peft cannot load the adapter: {error}") from error
    if base.dtype == "bfloat16":
        store_frozen_in_bf16(model)  # what it froze besides
    return model.eval()


def _stored_tensors(folder: Storage) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(folder.read_bytes(ADAPTER_WEIGHTS))
    except safetensors.SafetensorError as error:
        raise TrainingError(
            f"{folder.path(ADAPTER_WEIGHTS)}: cannot be read ({error}): storage may be damaged; "
            "delete the folder and run again"
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
