"""What a training is told: by whoever asks for it, and what its driver tells every rank."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paft_ray.cluster.control import Control
from paft_ray.config import Config
from paft_ray.runs.context import RUN_KEY
from paft_ray.serving.record import MadeFrom
from paft_ray.storage.paths import Storage
from paft_ray.tracking import TrackingTarget, pool_version
from paft_ray.training.validation import ValidationPlan

if TYPE_CHECKING:
    from paft_ray.models.base_model import BaseSource
    from paft_ray.tasks import Task


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A training's place among the tracked runs."""

    key: str
    name: str
    parent_key: str = RUN_KEY


@dataclass(frozen=True)
class TrainingHooks:
    """What a caller wants of a training while it runs; nothing, but for a search."""

    validation: ValidationPlan | None = None
    """What the model is scored on, and after which steps."""
    validated: Callable[[], None] = lambda: None
    """Called when there are new results in the training's folder."""
    stopped: Callable[[], bool] = lambda: False
    """Called twice a second: whether to save and leave it at that."""
    cpus: float | None = None
    """CPUs of each worker; by default as the configuration says."""
    set_aside: float = 0.0
    """CPUs of each worker that are used by others, and not asked for again."""
    tracked: TrackedRun | None = None
    """Where it is tracked; by default as a child of its run."""
    pool: str | None = None
    """Fingerprint of the pool as tracking knows it, where the one at hand is a part of it."""


@dataclass(frozen=True)
class Job:
    """What every rank of one training is told; travels to them by pickle."""

    config: Config
    """The run's, as this training sees it."""
    task: "Task"
    prompts: tuple[tuple[str, str], ...]
    """Ids and texts."""
    source: "BaseSource"
    """The prepared base model, for every node to find."""
    dtype: str
    folder: Storage
    identity: str
    label: str
    """Of the variant."""
    tracked: TrackedRun
    steps: int
    cpus: float
    """CPUs of each worker."""
    tracking: TrackingTarget | None
    control: Control
    made_from: MadeFrom
    warm_start: bytes | None = None
    """Weights of the adapter that training begins with."""
    validation: ValidationPlan | None = None
    """What the model is scored on while it is trained."""

    @property
    def base(self) -> str:
        """Location of the prepared base model on this node, fetched first where it must be."""
        return self.source.local()

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus))

    @property
    def pool(self) -> str:
        """The pool's version in MLflow's registry."""
        name, alias = pool_version(self.task.name, self.made_from.pool)
        return f"models:/{name}@{alias}"
