"""The whole configuration, and the combinations that cannot work."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from paft_ray.config.base import NOTHING, Section, Seeds, affects, folder_name
from paft_ray.config.evaluation import EvaluationConfig, TrackingConfig
from paft_ray.config.grade import BETWEEN, ChoiceGrade
from paft_ray.config.llms import LLMConfig
from paft_ray.config.model import NO_MODEL, ModelConfig
from paft_ray.config.objective_check import check_objective, check_prompts
from paft_ray.config.prompts import PromptsConfig
from paft_ray.config.subjects import (
    COMPARATORS,
    OF_CHOICES,
    EndpointSubject,
    OptimizedPromptSubject,
)
from paft_ray.config.task import CustomTaskConfig, TaskConfig
from paft_ray.config.train import TrainConfig
from paft_ray.config.tuning import TuningConfig
from paft_ray.config.variants import (
    BASE,
    BoundPromptsVariant,
    HumanPromptVariant,
    PaftVariant,
    SinglePromptVariant,
    Training,
    VariantConfig,
)
from paft_ray.config.variation import OFF, ParaphrasesVariation


def _at(tree: Any, *keys: str) -> Any:
    """The value at a path of a tree whose nodes are mappings or sections; None where it ends."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else getattr(tree, key, None)
    return tree


class Config(Section, affects="run"):
    """The configuration of one run."""

    name: Annotated[str, NOTHING]
    """Name of the run: its folder, and its name in MLflow."""
    seed: Annotated[int, affects("pool", "answers", "weights")] = Field(default=0, ge=0, lt=2**63)
    """Root of all randomness: the task's split, the pool, and the trainings."""
    seeds: Seeds | None = None
    """Train every variant once with each of these; all share the pool and the base model's
    scores. By default `seed` alone."""
    storage: Annotated[str, NOTHING] = Field(default="storage", min_length=1)
    """Folder or URI (s3://, gs://) for everything that is kept."""
    task: TaskConfig
    prompts: PromptsConfig
    model: ModelConfig
    """May be left out where nothing is trained and all subjects are endpoints: no base model is
    measured then."""
    train: TrainConfig
    variants: Annotated[tuple[VariantConfig, ...], affects("run", whole=True)] = (
        PaftVariant(type="paft"),
    )
    """The ways to train that are run and compared, at equal steps and examples; with `[]` nothing
    is trained, and `train` may be left out."""
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    tuning: Annotated[TuningConfig | None, affects("search")] = None
    """What `paft tune` searches; other commands do not read it."""

    @model_validator(mode="before")
    @classmethod
    def _gpus_of_training(cls, tree: Any) -> Any:
        """Give evaluation and probe the GPUs of training where they name none of their own.

        On CPUs they would otherwise take hours beside idle GPUs, in silence.
        """
        if not isinstance(tree, Mapping) or _at(tree, "train", "workers", "gpus") != 1:
            return tree
        probe = _at(tree, "prompts", "probe")
        sections = [("evaluation", "workers"), *([("prompts", "probe")] if probe else [])]
        for section, inner in sections:
            outer = tree.get(section) or {}
            own = _at(outer, inner) or {}
            if isinstance(outer, Mapping) and isinstance(own, Mapping) and "gpus" not in own:
                tree = {**tree, section: {**outer, inner: {**own, "gpus": 1}}}
        return tree

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_trained(cls, tree: Any) -> Any:
        """Fill in a `train` that nobody reads, and a `model` that stands for none."""
        if not isinstance(tree, Mapping) or tree.get("variants") not in ([], ()):
            return tree
        if "train" not in tree:
            longest = _at(tree, "task", "max_length")
            rows = {"row_tokens": max(2048, longest)} if isinstance(longest, int) else {}
            tree = {**tree, "train": {"steps": 1, **rows}}
        if tree.get("model") is None:
            tree = {**tree, "model": {"path": NO_MODEL, "peft": None}}
        return tree

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        return folder_name(name)

    @field_validator("variants")
    @classmethod
    def _variants_differ(cls, variants: tuple[VariantConfig, ...]) -> tuple[VariantConfig, ...]:
        labels = [variant.label for variant in variants]
        if len(set(labels)) < len(labels):
            raise ValueError(f"a variant is named twice in {labels}: remove one")
        return variants

    @model_validator(mode="after")
    def _subjects_differ(self) -> Self:
        subjects = [subject.label for subject in self.evaluation.subjects]
        labels = [*(variant.label for variant in self.variants), *subjects]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"evaluation.subjects: {labels} name a model twice: give each subject a name of "
                "its own"
            )
        self._comparators_fit()
        for field, rewritten in self._rewritten.items():
            self.author(f"{field}.llm", rewritten.llm)
        if self.tuning is not None and not self.variants:
            raise ValueError("tuning: a search trains, and variants is []: name one")
        return self

    @model_validator(mode="after")
    def _some_train_on_one_prompt(self) -> Self:
        if self.evaluation.trained_prompts and not self.of_one_prompt:
            raise ValueError(
                "evaluation.trained_prompts: no variant is a single_prompt or human_prompt: add "
                "one, or leave it out"
            )
        if self.evaluation.trained_prompts and self._bounded:
            raise ValueError(
                f"evaluation.trained_prompts: {self._bounded[0]} has budget_tokens, which hold for "
                "its answers under held-out prompts alone: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _base_is_not_needed(self) -> Self:
        """Check, where no model is named, that all subjects are endpoints or made of them."""
        if self.has_base:
            return self
        subjects, served = self.evaluation.subjects, (EndpointSubject, *COMPARATORS)
        others = self.variants or not all(isinstance(subject, served) for subject in subjects)
        if others or not subjects:
            raise ValueError(
                "model: is left out, which goes where all models that are measured are endpoints "
                "(evaluation.subjects): name one"
            )
        if self.prompts.probe is not None or self.evaluation.backend.type != "transformers":
            what = "evaluation.backend" if self.prompts.probe is None else "prompts.probe"
            raise ValueError(f"{what}: loads the model, and none is named: leave it out")
        return self

    @property
    def has_base(self) -> bool:
        """Whether there is a base model: not where all models are behind endpoints."""
        return self.model.path != NO_MODEL

    @property
    def _bounded(self) -> list[str]:
        """Labels of the endpoints whose answers have a budget."""
        subjects = self.evaluation.subjects
        return [s.label for s in subjects if isinstance(s, EndpointSubject) and s.budget_tokens]

    def _comparators_fit(self) -> None:
        """Check the subjects that are made of another model."""
        subjects = self.evaluation.subjects
        measured = [BASE] * self.has_base + [v.label for v in self.variants]
        measured += [s.label for s in subjects if not isinstance(s, COMPARATORS)]
        for index, subject in enumerate(subjects):
            if not isinstance(subject, COMPARATORS):
                continue
            field = f"evaluation.subjects.{index}"
            if subject.of not in measured:
                raise ValueError(
                    f"{field}.of: {subject.of!r} is no model that is measured; name one of "
                    f"{', '.join(measured)}"
                )
            if subject.of in self._bounded:
                raise ValueError(
                    f"{field}.of: {subject.of} has budget_tokens, which hold for its own answers "
                    f"and not for those that {subject.type} asks for: take them out"
                )
            free = not self.task.has_choices or self.task.generates or len(self.task.grade) > 1
            ranked = (grade for grade in self.task.grade if isinstance(grade, ChoiceGrade))
            divided = any(grade.length_normalised for grade in ranked)
            if isinstance(subject, OF_CHOICES) and (free or divided):
                raise ValueError(
                    f"{field}: {subject.type} compares the log-likelihoods of choices, and nothing "
                    "else may be graded, nor these divided by lengths: leave it out"
                )
            if self.evaluation.estimate is not None:
                raise ValueError(
                    f"{field}: {subject.type} is made of whole grids, and evaluation.estimate "
                    "scores a part of one: leave one of them out"
                )
            if isinstance(subject, OptimizedPromptSubject):
                self.author(f"{field}.llm", subject.llm)

    @property
    def _rewritten(self) -> Mapping[str, ParaphrasesVariation]:
        """What examples are put in other words for, by its field."""
        trained = self.train.variation if self.variants else OFF
        parts = {"evaluation": self.evaluation.variation, "train": trained}
        asked = {f"{part}.variation.paraphrases": v.paraphrases for part, v in parts.items()}
        return {field: each for field, each in asked.items() if each is not None}

    @property
    def llms(self) -> Mapping[str, LLMConfig]:
        """Every LLM that may write something, by its field."""
        generation = self.prompts.generation
        found = dict[str, LLMConfig]()
        for index, llm in enumerate(generation.llms if generation else ()):
            found[f"prompts.generation.llms.{index}"] = llm
        for index, subject in enumerate(self.evaluation.subjects):
            if isinstance(subject, OptimizedPromptSubject) and subject.llm is not None:
                found[f"evaluation.subjects.{index}.llm"] = subject.llm
        for field, rewritten in self._rewritten.items():
            if rewritten.llm is not None:
                found[f"{field}.llm"] = rewritten.llm
        return found

    def author(self, field: str, own: LLMConfig | None) -> LLMConfig:
        """The LLM of a field: its own, or the first one that writes candidates.

        Raises:
            ValueError: There is none.
        """
        if own is not None:
            return own
        if self.prompts.generation is None:
            raise ValueError(f"{field}: no LLM is named, nor in prompts.generation.llms: name one")
        return self.prompts.generation.llms[0]

    @property
    def of_one_prompt(self) -> list[str]:
        """Labels of the variants that are trained on one prompt."""
        types = SinglePromptVariant | HumanPromptVariant
        return [variant.label for variant in self.variants if isinstance(variant, types)]

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """The seeds that every variant is trained with."""
        return self.seeds or (self.seed,)

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The trainings of a run in order: every variant with the first seed, then the next."""
        return tuple(Training(v, seed) for seed in self.training_seeds for v in self.variants)

    @property
    def reads_unlabelled(self) -> bool:
        """Whether some training learns from rows without an answer, which are read only then."""
        own = [self.of_training(training).train.objective for training in self.trainings]
        return any(objective.reads_unlabelled for objective in own)

    @property
    def train_sections(self) -> tuple[TrainConfig, ...]:
        """The section `train` as each variant has it."""
        return tuple(variant.train.over(self.train) for variant in self.variants)

    def called(self, training: Training) -> str:
        """The name of a training for people, with its seed where there are several."""
        return training.name if len(self.training_seeds) > 1 else training.label

    def of_training(self, training: Training) -> Self:
        """The configuration as one training sees it: its own seed and way to draw prompts."""
        sampling, variant = self.train.sampling, training.variant
        if isinstance(variant, BoundPromptsVariant):
            sampling = sampling.bound
        elif isinstance(variant, PaftVariant) and variant.sampling is not None:
            sampling = variant.sampling
        train = variant.train.over(self.train).model_copy(update={"sampling": sampling})
        return self.model_copy(update={"seed": training.seed, "train": train})

    @model_validator(mode="after")
    def _combinations_work(self) -> Self:
        if self.train.deepspeed.stage == 0 and self.model.dtype == "bfloat16":
            raise ValueError(
                "train.deepspeed.stage 0 with model.dtype bfloat16 gives wrong losses: "
                "use stage 1, or model.dtype float32"
            )
        if self.model.peft is None and (self.train.warm_start or self.model.quantization != "none"):
            raise ValueError(
                "model.peft: null trains all weights, which goes with neither train.warm_start nor "
                "model.quantization: name a peft method, or leave these out"
            )
        if self.tuning is not None and self.seed in self.tuning.final_seeds(self.seed):
            raise ValueError(
                f"tuning.seeds holds seed ({self.seed}), with which trials are trained and chosen: "
                "name others"
            )
        first = next(iter(self.task.grade), None)
        if self.evaluation.estimate is not None and isinstance(first, BETWEEN):
            raise ValueError(
                f"evaluation.estimate is for answers that are right or wrong, and task.grade "
                f"{first.type} may lie between: leave one of them out"
            )
        check_objective(self.train, self.task, self.model)
        for index, variant in enumerate(self.variants):
            own = variant.train.over(self.train)
            try:
                check_objective(own, self.task, self.model)
                check_prompts(own, variant, self.prompts.pool_size)
            except ValueError as error:
                raise ValueError(f"variants.{index}: {error}") from error
        self._check_unlabelled()
        if self.train.validation is not None:
            self.train.validation.check_prompts(self.prompts.split.validation)
        if self.train.row_tokens < self.task.max_length:
            raise ValueError(
                f"train.row_tokens ({self.train.row_tokens}) is less than task.max_length "
                f"({self.task.max_length}): a longest example would fit no row; raise it"
            )
        if self.evaluation.row_tokens < self.task.max_length:
            raise ValueError(
                f"evaluation.row_tokens ({self.evaluation.row_tokens}) is less than "
                f"task.max_length ({self.task.max_length}): raise it"
            )
        return self

    def _check_unlabelled(self) -> None:
        """Check that rows of which none has an answer can be learned from."""
        if not isinstance(self.task, CustomTaskConfig) or self.task.answer is not None:
            return
        own = [self.of_training(training).train.objective for training in self.trainings]
        needing = [each.type for each in own if not each.reads_unlabelled]
        if needing or not own:
            learns = f"train.objective: {needing[0]} learns" if needing else "variants: [] measures"
            raise ValueError(
                f"task.answer: null, so that no row has an answer, which {learns} from: name its "
                "column, or train by consensus or prefix"
            )
