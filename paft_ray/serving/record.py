"""The record of a finished training, which its manifest, model card and tracked run hold."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from paft_ray.config import Training
from paft_ray.storage.paths import Storage


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """Fingerprints of a training's inputs."""

    task: str
    model: str
    pool: str


@dataclass(frozen=True, slots=True)
class TrainedPrompt:
    """The first prompt that was trained on, which the card and exports use."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Verified:
    """Measurements of weights that were written and loaded again."""

    tensors: int
    change: float
    """Norm of the change by training, as a share of the initial norm."""
    loss: float
    """Loss of the model in memory over the probe, in nats per answer token."""
    loss_reloaded: float


@dataclass(frozen=True, slots=True)
class Validated:
    """The scores of a model while it was trained, and what they chose."""

    best: int
    """The step with the best figure, the earliest of equal ones."""
    figure: float
    """The goal's figure after it."""
    goal: str
    """The goal's name for people."""
    kept: bool
    """Whether the weights are those of the best step, else of the last one."""
    planned: int
    """Steps that the training was to have; it has fewer where it ended early."""
    prompts: int
    """Number of validation prompts."""
    examples: int
    """Number of validation examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Means over the steps of a training's last attempt, but its first one, on rank 0."""

    steps: int
    """How many steps were measured."""
    tokens_per_second: float
    """Of all ranks."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of a step, by part, see `training.speed`."""
    mfu: float | None = None
    """FLOPs that the rows need, as a share of the peak that the GPU's maker states."""
    share_of_matrix_rate: float | None = None
    """The same, as a share of `matrix_rate`."""
    matrix_rate: float | None = None
    """FLOPs a second in the product of two large matrices, measured before the first step."""
    peak_gpu_memory_gb: float | None = None
    """Most memory that tensors took at once since the first step began, in 1e9 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Facts about a training in its manifest."""

    variant: str
    seed: int
    steps: int
    tokens: int
    """Number of tokens read."""
    answer_tokens: int
    """Number of answer tokens trained on."""
    trimmed: int
    """Number of examples with a cut field."""
    seconds: float
    """Time in the loop, over all attempts."""
    prompts: int
    """Number of prompts to draw from."""
    prompt: TrainedPrompt | None = None
    """None where the training is older than model cards."""
    workers: int
    dtype: str
    last_loss: float
    """Mean loss per answer token of the last step, in nats."""
    made_from: MadeFrom
    verified: Verified | None = None
    """None where the training is older than verification."""
    packing: str | None = None
    """`packed`, or `unpacked` and why; None where the training is older than the check of rows."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of packages; empty where the training is older than model cards."""
    speed: Speed | None = None
    """None where the last attempt took no step, or the training is older than this."""
    validated: Validated | None = None
    """None where it was not scored on the way."""
    rollout_tokens: int | None = None
    """Number of tokens that the model wrote to learn from; None where it wrote nothing."""

    @property
    def saved_step(self) -> int:
        """The step after which the saved weights are those of the model."""
        validated = self.validated
        return validated.best if validated is not None and validated.kept else self.steps

    def to_json(self) -> dict[str, Any]:
        """Return the entries of the manifest."""
        return _known(asdict(self))

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> Self:
        """Read the entries of a manifest, also of one that an earlier version wrote."""
        types = {
            "prompt": TrainedPrompt,
            "made_from": MadeFrom,
            "verified": Verified,
            "validated": Validated,
            "speed": Speed,
        }
        known = {f.name: about[f.name] for f in fields(cls) if f.name in about}
        return cls(**known | {k: t(**about[k]) for k, t in types.items() if k in about})


def _known(tree: Mapping[str, Any]) -> dict[str, Any]:
    inner = {k: _known(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    return {key: value for key, value in inner.items() if value not in (None, {})}


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A finished training."""

    training: Training
    fingerprint: str
    """Fingerprint of its inputs."""
    content: str
    """Fingerprint of the weights, which may differ slightly when a training is repeated."""
    folder: Storage
    """Folder with `adapter/` (or `model/`), `ledger/` and the manifest."""
    record: TrainingRecord
    reused: bool
    """Whether an earlier run completed it."""
