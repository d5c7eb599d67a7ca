"""The context of one command: configuration, task, storage, identities, tracking."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from paft_ray.config import Config, ModelConfig
from paft_ray.config.affects import RULES, affecting, take
from paft_ray.models.chat import CHAT_RULE
from paft_ray.models.chat_files import chat_moved
from paft_ray.models.dtype import resolve_dtype
from paft_ray.models.files import is_mixture, model_identity
from paft_ray.runs.paraphrases import StoredParaphrases
from paft_ray.runs.progress import Screen, SilentScreen
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.tasks.grading import PythonGrader
from paft_ray.tracking import TrackedRun, TrackingTarget, prepare_tracking

WEIGHTS_RULE = 2
"""Number of the rule by which bf16 weights that are all trained lie in memory and in files: in the
dtype of the base model's, since 2."""
EXPERTS_RULE = 2
"""How a mixture's experts multiply where the arithmetic is bf16: 2, in bf16; before, in fp32."""
EVALUATIONS = "evaluations"
PROMPT_FILES = "evaluation.prompt_files"
"""Folder of a run that holds its further evaluations."""
REWRITTEN = ("config.json", "report.html")
"""Files that later commands write again, and that manifests of earlier versions name."""
RUN_KEY = "run"
"""Key of a run's own record in tracking; its trainings are nested below."""


class Identities:
    """Fingerprints of base model and task by their content, each computed once, when needed."""

    def __init__(self, config: Config, task: Task) -> None:
        """Keep what fingerprints are made from; nothing is read yet."""
        self._config, self._task = config, task

    @cached_property
    def model(self) -> str:
        """Fingerprint of the base model's files, and of how its chat template is rendered; empty
        without one.
        """
        if not self._config.has_base:
            return ""
        model = self._config.model
        files = model_identity(model.path, model.revision, model.trust_remote_code)
        if model.chat_template == "auto" and chat_moved(model.path):
            return fingerprint("chat", CHAT_RULE, files)
        return files

    @cached_property
    def task(self) -> str:
        """Fingerprint of all that changes weights or scores in the task."""
        task = self._task
        fields = affecting(self._config, "examples", "weights", "scores")["task"]
        limits, later = take(fields, "max_length", "overlong")
        return fingerprint(
            task.name,
            list(task.slots),
            task.answering,
            [examples_identity(split) for split in (task.train, task.validation, task.test)],
            limits,
            *([kept] if (kept := {k: v for k, v in later.items() if k != "grade"}) else []),
            *([{"rule": RULES["examples"]}] if RULES["examples"] > 1 else []),
            *([{"unlabelled": examples_identity(task.unlabelled)}] if task.unlabelled else []),
        )


@dataclass(frozen=True)
class RunContext:
    """The context of every stage of one command; can be pickled if its screen can."""

    config: Config
    task: Task
    storage: Storage
    identities: Identities
    screen: Screen
    warnings: tuple[str, ...] = ()
    tracking: TrackingTarget | None = None
    """Where to record; set by `tracked`."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know about the model's chat template; set by `perform`."""
    prompt_files: tuple[tuple[str, str], ...] = ()
    """File and template of every prompt of `evaluation.prompt_files`."""
    paraphrases: StoredParaphrases | None = None
    """The training examples in other words; set by `training.paraphrased`, where trainings draw
    from them."""

    @classmethod
    def create(
        cls,
        config: Config,
        task: Task,
        storage: Storage,
        screen: Screen | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Self:
        """The context of a configuration whose task is loaded; silent without a screen."""
        identities = Identities(config, task)
        return cls(config, task, storage, identities, screen or SilentScreen(), warnings)

    @property
    def content(self) -> dict[str, str]:
        """Fingerprints of what paths of an evaluation name beside task, models and adapters."""
        code, prompts = self.grading_code, [text for _, text in self.prompt_files]
        return {
            **({"task.grade.path": code} if code else {}),
            **({PROMPT_FILES: fingerprint(prompts)} if prompts else {}),
        }

    @property
    def run_folder(self) -> Storage:
        """`runs/<name>/` under the storage."""
        return self.storage.child("runs", self.config.name)

    @property
    def results_folder(self) -> Storage:
        """Where an evaluation is kept: the run's folder, or one below for `evaluation.name`."""
        evaluation = self.config.evaluation.name
        if evaluation is None:
            return self.run_folder
        return self.run_folder.child(EVALUATIONS, evaluation)

    @property
    def called(self) -> str:
        """The run's name, with that of its evaluation where it has one."""
        evaluation = self.config.evaluation.name
        return self.config.name if evaluation is None else f"{self.config.name}/{evaluation}"

    @property
    def tracked_run(self) -> TrackedRun:
        """The record of this command in tracking; that of a named evaluation lies below its run."""
        if (evaluation := self.config.evaluation.name) is None:
            return TrackedRun(RUN_KEY, self.called)
        return TrackedRun(f"evaluation/{evaluation}", self.called, RUN_KEY)

    @property
    def about(self) -> dict[str, str]:
        """What this run and those below it in tracking have in common."""
        return about_run(self.config, self.task)

    @property
    def tags(self) -> dict[str, str]:
        """The same as tags, by which people find the records."""
        return as_tags(self.about)

    def tracked(self) -> Self:
        """This context with tracking prepared, which may create a sqlite database."""
        return replace(self, tracking=prepare_tracking(self.config, self.storage))

    def of_config(self, config: Config, screen: Screen | None = None) -> Self:
        """This context with another configuration of the same task and base model.

        Without a screen it is silent, and can be pickled.
        """
        return replace(self, config=config, screen=screen or SilentScreen())

    def of_model(self, model: ModelConfig) -> Self:
        """This context with another base model, silent, so that it can be pickled."""
        config = self.config.model_copy(update={"model": model})
        identities = Identities(config, self.task)
        return replace(self, config=config, identities=identities, screen=SilentScreen())

    def of_task(self, task: Task) -> Self:
        """This context with other examples of its task."""
        return replace(self, task=task, identities=Identities(self.config, task))

    @property
    def model_identity(self) -> str:
        """Fingerprint of the base model's files."""
        return self.identities.model

    @property
    def task_identity(self) -> str:
        """Fingerprint of all that changes weights or scores in the task."""
        return self.identities.task

    def stored(self, dtype: str, scored: bool) -> dict[str, Any]:
        """What the weights' form in memory adds to an identity: empty where earlier versions' is.

        Args:
            dtype: Arithmetic, with `auto` resolved.
            scored: Whether the model is scored: until then `model.quantization` was of training.
        """
        model = self.config.model
        mixture = dtype == "bfloat16" and is_mixture(model.path)
        quantized = scored and model.quantization != "none"
        whole = dtype == "bfloat16" and not scored and model.peft is None
        return {
            **({"weights": WEIGHTS_RULE} if whole else {}),
            **({"experts": EXPERTS_RULE} if mixture else {}),
            **({"quantization": model.quantization} if quantized else {}),
        }

    @property
    def grading_code(self) -> str:
        """A hash of the user's code that grades answers; empty without any."""
        graders = [grader for grader in self.task.graders if isinstance(grader, PythonGrader)]
        return fingerprint([grader.code.identity for grader in graders]) if graders else ""

    @property
    def training_dtype(self) -> str:
        """Arithmetic of training, with `auto` resolved."""
        return resolve_dtype(self.config.model.dtype, self.config.train.workers.gpus)

    @property
    def scoring_dtype(self) -> str:
        """Arithmetic of evaluation, with `auto` resolved."""
        return resolve_dtype(self.config.model.dtype, self.config.evaluation.workers.gpus)


def examples_identity(examples: tuple[Example, ...]) -> str:
    """Fingerprint of examples in their order; their ids come from content."""
    return fingerprint([example.id for example in examples])


def about_run(config: Config, task: Task) -> dict[str, str]:
    """What a run and those below it in tracking have in common."""
    base = {"base_model": config.model.path} if config.has_base else {}
    return {"run": config.name, "task": task.name, **base}


def as_tags(about: Mapping[str, str]) -> dict[str, str]:
    """The tags in tracking that say this of a run."""
    return {f"paft.{name}": value for name, value in about.items()}
