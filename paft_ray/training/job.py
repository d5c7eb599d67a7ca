"""The data that describes a training: its caller's hooks, and the job that every rank receives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paft_ray.cluster.control import Control
from paft_ray.config import Config
from paft_ray.runs.context import about_run, as_tags
from paft_ray.serving.record import MadeFrom
from paft_ray.storage.paths import Storage
from paft_ray.tracking import TrackedRun, TrackingTarget, pool_version
from paft_ray.training.validation import ValidationPlan

if TYPE_CHECKING:
    from paft_ray.models.base_model import BaseSource
    from paft_ray.runs.examples import StoredExamples
    from paft_ray.runs.paraphrases import StoredParaphrases
    from paft_ray.tasks import Task
    from paft_ray.training.distributed.launch import Workers
    from paft_ray.training.reinforcement.rewards import Rewards


@dataclass(frozen=True)
class TrainingHooks:
    """A caller's requests to a training while it runs; used by searches."""

    validation: ValidationPlan | None = None
    """Validation data, and the steps after which the model is scored."""
    validated: Callable[[], None] = lambda: None
    """Called when there are new results in the training's folder."""
    stopped: Callable[[], bool] = lambda: False
    """Called twice a second; returns whether the training must save and stop."""
    cpus: float | None = None
    """CPUs of each worker; by default those of the configuration."""
    set_aside: float = 0.0
    """CPUs of each worker that a caller has reserved, and that are not requested again."""
    tracked: TrackedRun | None = None
    """By default a child of its run."""
    pool: str | None = None
    """Fingerprint of the tracked pool, where the training's is only a part of it."""
    workers: "Workers | None" = None
    """Workers that do other trainings too; by default they are started for this one."""


@dataclass(frozen=True, slots=True)
class Done:
    """How far the ranks of a training came; pickles."""

    steps: int = 0
    """Steps that are saved."""
    complete: bool = False
    """Whether the training is over and its result is saved: all steps are done, or scores ended
    it."""


@dataclass(frozen=True)
class Job:
    """The data that every rank of one training receives; pickles."""

    config: Config
    """From `Config.of_training`."""
    task: "Task"
    """Without its examples."""
    examples: "StoredExamples"
    """Its training examples."""
    prompts: tuple[tuple[str, str], ...]
    """Ids and texts."""
    source: "BaseSource"
    """The prepared base model, on any node."""
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
    rewards: "Rewards | None" = None
    """What texts that the model writes are graded by; None where it writes none."""
    paraphrases: "StoredParaphrases | None" = None
    """Its training examples in other words, where it draws from them."""
    shares_workers: bool = False
    """Whether its workers may do another training after it."""

    @property
    def base(self) -> str:
        """Location of the prepared base model on this node; fetches it if needed."""
        return self.source.local()

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus))

    @property
    def tags(self) -> dict[str, str]:
        """What its record in tracking is found by."""
        only = {"paft.prompt": self.prompts[0][1]} if len(self.prompts) == 1 else {}
        return {
            "paft.kind": "training",
            **as_tags(about_run(self.config, self.task)),
            "paft.variant": self.label,
            "paft.seed": str(self.config.seed),
            "paft.fingerprint": self.identity,
            "paft.pool": self.pool,
            **only,
        }

    @property
    def pool(self) -> str:
        """URI of the pool's version in MLflow's registry."""
        name, alias = pool_version(self.task.name, self.made_from.pool)
        return f"models:/{name}@{alias}"
