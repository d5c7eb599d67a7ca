"""What the stages of one command share: configuration, task, storage, tracking, screen."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from paft_ray.config import Config
from paft_ray.models.dtype import resolve_dtype
from paft_ray.models.files import model_identity
from paft_ray.models.meta import ModelCheckProcess
from paft_ray.runs.progress import Screen, SilentScreen
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.tracking import TrackingTarget, prepare_tracking

RUN_KEY = "run"
"""Key of a run's own record in tracking; its trainings are nested below."""


@dataclass(frozen=True)
class RunContext:
    """One command's view of its run."""

    config: Config
    task: Task
    storage: Storage
    screen: Screen = field(default_factory=SilentScreen)
    warnings: tuple[str, ...] = ()

    @property
    def run_folder(self) -> Storage:
        """`runs/<name>/` under the storage."""
        return self.storage.child("runs", self.config.name)

    @cached_property
    def tracking(self) -> TrackingTarget | None:
        """Where to record; prepared (and a sqlite database made) at first use."""
        return prepare_tracking(self.config, self.storage)

    def of_config(self, config: Config, screen: Screen | None = None) -> Self:
        """The same command's view of another configuration of the same task and base model.

        Without a screen nobody watches, and it travels to other processes.
        """
        other = replace(self, config=config, screen=screen or SilentScreen())
        known = ("tracking", "model_identity", "task_identity")  # found out once
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k in known})
        return other

    @cached_property
    def model_check(self) -> ModelCheckProcess:
        """Where the model and its tokenizer are tried, so that this process imports no torch."""
        return ModelCheckProcess()

    @cached_property
    def model_identity(self) -> str:
        """Fingerprint of the base model's files."""
        return model_identity(self.config.model.path, self.config.model.revision)

    @property
    def training_dtype(self) -> str:
        """Arithmetic of training, with `auto` resolved."""
        return resolve_dtype(self.config.model.dtype, self.config.train.workers.gpus)

    @property
    def scoring_dtype(self) -> str:
        """Arithmetic of evaluation, with `auto` resolved."""
        return resolve_dtype(self.config.model.dtype, self.config.evaluation.workers.gpus)

    @cached_property
    def task_identity(self) -> str:
        """Fingerprint of everything about the task that can move weights or scores."""
        task, options = self.task, self.config.task
        return fingerprint(
            task.name,
            list(task.slots),
            list(task.choices or ()),
            [examples_identity(split) for split in (task.train, task.validation, task.test)],
            [options.max_length, options.overlong],
        )


def examples_identity(examples: tuple[Example, ...]) -> str:
    """Fingerprint of examples in their order; their ids come from content."""
    return fingerprint([example.id for example in examples])
