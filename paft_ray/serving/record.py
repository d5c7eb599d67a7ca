"""What is known of a finished training: what it was made from, how it went, how it was verified.

The training's manifest, the model card and the tracked run hold the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from paft_ray.config import Training
from paft_ray.storage.paths import Storage


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """Fingerprints of what a training was made from."""

    task: str
    model: str
    pool: str


@dataclass(frozen=True, slots=True)
class TrainedPrompt:
    """The first prompt that was trained on: the one to use the model with."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What is known of weights that were written and loaded again."""

    tensors: int
    change: float
    """Norm of what training added, as a share of the norm at the beginning."""
    loss: float
    """Of the model in memory, over the probe, in nats per answer token."""
    loss_reloaded: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a training's manifest says about it."""

    variant: str
    seed: int
    steps: int
    tokens: int
    """Tokens read."""
    answer_tokens: int
    """Answer tokens trained on."""
    trimmed: int
    """Examples that had a field cut."""
    seconds: float
    """Time spent in the loop, over all attempts."""
    prompts: int
    """How many prompts were drawn from."""
    prompt: TrainedPrompt | None = None
    """None where the training is older than model cards."""
    workers: int
    dtype: str
    last_loss: float
    """Mean loss per answer token of the last step, in nats."""
    made_from: MadeFrom
    verified: Verified | None = None
    """None where the training is older than verification."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages it rests on; empty where the training is older than model cards."""

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest holds."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> Self:
        """Read what a manifest holds, also one that an earlier version wrote."""
        types = {"prompt": TrainedPrompt, "made_from": MadeFrom, "verified": Verified}
        known = {f.name: about[f.name] for f in fields(cls) if f.name in about}
        return cls(**known | {k: t(**about[k]) for k, t in types.items() if k in about})


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
    record: TrainingRecord
    reused: bool
    """Whether it was found complete."""
