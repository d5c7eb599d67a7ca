"""`tuning`: what is searched, by which figure, and how much work that may be."""

import math
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from paft_ray.config.base import NOTHING, Section, Seeds
from paft_ray.config.validation import GoalConfig, LowQuantile

_FIXED = {
    "name": "it names the search itself",
    "storage": "all trials share one",
    "seed": "a best seed is luck; finalists are trained with several (tuning.seeds)",
    "seeds": "finalists are trained with several (tuning.seeds)",
    "tracking": "all trials are recorded in one place",
    "tuning": "it describes the search itself",
    "task": "figures on other examples cannot be compared",
    "evaluation": "figures measured in other ways cannot be compared",
    "variants": "a search is over ways to train with PAFT; name train.sampling or prompts",
    "train.validation": "a search scores trials by itself, after tuning.reports",
    "model.path": "all trials adapt one base model",
    "model.revision": "all trials adapt one base model",
    "model.dtype": "figures in other arithmetic cannot be compared",
    "model.trust_remote_code": "all trials adapt one base model",
    "model.chat_template": "figures measured in other ways cannot be compared",
    "model.chat_template_kwargs": "figures measured in other ways cannot be compared",
    "model.system": "figures measured in other ways cannot be compared",
    "prompts.files": "prompts of other files cannot be held out together",
    "prompts.split": "figures on other held-out prompts cannot be compared",
}


def _searchable(path: str) -> str:
    for fixed, reason in _FIXED.items():
        if path == fixed or path.startswith(f"{fixed}.") or fixed.startswith(f"{path}."):
            raise ValueError(f"{path} cannot be searched: {reason}")
    return path


def _as_json(value: Any) -> Any:
    """A value as JSON holds it; infinity becomes a text, which every field accepts as well."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if value is None or (isinstance(value, str | int | float) and value == value):
        return value
    raise ValueError(f"{value!r} is no text, number, list or section: put it in quotes")


class Choice(Section, affects="search"):
    """One of some values, each as likely as the others."""

    type: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)
    """What the field may be."""

    @field_validator("values")
    @classmethod
    def _values_are_json(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(_as_json, values))


Number = TypeVar("Number", int, float)


class _Range(Section, Generic[Number], affects="search"):
    low: Number
    """Least value."""
    high: Number
    """Greatest value; a range of whole numbers includes it."""

    _by_magnitude: ClassVar[bool] = False
    """Whether it is drawn by its logarithm."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) is not below high ({self.high:g})")
        if self._by_magnitude and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) has no logarithm: name one above 0")
        return self


class Uniform(_Range[float], affects="search"):
    """A number between two."""

    type: Literal["uniform"]


class LogUniform(_Range[float], affects="search"):
    """A number between two, both above 0, every order of magnitude as likely as the others."""

    type: Literal["loguniform"]
    _by_magnitude: ClassVar[bool] = True


class RandInt(_Range[int], affects="search"):
    """A whole number from one to another, both included."""

    type: Literal["randint"]


class LogRandInt(_Range[int], affects="search"):
    """A whole number above 0, both ends included, every order of magnitude as likely."""

    type: Literal["lograndint"]
    _by_magnitude: ClassVar[bool] = True


DimensionConfig = Annotated[
    Choice | Uniform | LogUniform | RandInt | LogRandInt, Field(discriminator="type")
]


class RandomSearch(Section, affects="search"):
    """Independent draws."""

    type: Literal["random"] = "random"


class GridSearch(Section, affects="search"):
    """Every combination, for dimensions of some values."""

    type: Literal["grid"]


class OptunaSearch(Section, affects="search"):
    """Optuna's tree-structured Parzen estimator, which learns from the trials so far (extra
    `optuna`)."""

    type: Literal["optuna"]
    startup_trials: int = Field(default=8, ge=1)
    """Trials that are drawn at random before the estimator chooses."""


class NoScheduler(Section, affects="search"):
    """Every trial runs to its end."""

    type: Literal["none"]


class ASHA(Section, affects="search"):
    """Successive halving (arXiv 1810.05934): only the best share of the trials goes on after each
    rung of reports."""

    type: Literal["asha"] = "asha"
    grace_reports: int = Field(default=1, ge=1)
    """Reports after which the first trials may be stopped."""
    reduction_factor: float = Field(default=2.0, gt=1)
    """One of so many goes on."""


class MedianStopping(Section, affects="search"):
    """A trial whose best figure lies below the median of the others' means is stopped."""

    type: Literal["median"]
    grace_reports: int = Field(default=1, ge=1)
    """Reports after which trials may be stopped."""
    min_trials: int = Field(default=3, ge=1)
    """Trials that must have come as far before any is stopped."""


class TuningConfig(Section, affects="search"):
    """A search for the settings of the most robust model."""

    space: dict[Annotated[str, AfterValidator(_searchable)], DimensionConfig] = Field(min_length=1)
    """Dotted path of a field to the values that it may have."""
    trials: Annotated[int | None, NOTHING] = Field(default=None, ge=1)
    """How many settings are tried; 16 by default, all combinations of a grid."""
    search: RandomSearch | GridSearch | OptunaSearch = Field(
        default=RandomSearch(), discriminator="type"
    )
    scheduler: NoScheduler | ASHA | MedianStopping = Field(default=ASHA(), discriminator="type")
    goal: GoalConfig = LowQuantile()
    """The figure on validation prompts that is to be as high as possible."""
    reports: int = Field(default=4, ge=1)
    """How often a trial is scored on the way, the end included."""
    prompts: int | None = Field(default=None, ge=1)
    """Validation prompts to score on; all by default."""
    examples: int = Field(default=64, ge=1)
    """Validation examples to score on."""
    concurrency: Annotated[int | None, NOTHING] = Field(default=None, ge=1)
    """Trials at a time; as many as the cluster has room for by default."""
    finalists: Annotated[int, NOTHING] = Field(default=2, ge=1)
    """How many of the best are trained again, with other seeds, and evaluated on test prompts."""
    seeds: Annotated[Seeds | None, NOTHING] = None
    """Seeds of the finalists' trainings, three by default; `seed`, which trials are trained with,
    may not be one of them."""

    def final_seeds(self, seed: int) -> tuple[int, ...]:
        """The seeds of the finalists' trainings, where `seed` is that of the trials."""
        return self.seeds or tuple((seed + more) % 2**63 for more in (1, 2, 3))

    @model_validator(mode="after")
    def _fields_are_apart(self) -> Self:
        for path in self.space:
            for other in self.space:
                if other.startswith(f"{path}."):
                    raise ValueError(f"space: {path} and {other} overlap: leave one out")
        return self

    @model_validator(mode="after")
    def _spaces_are_finite(self) -> Self:
        for path, dimension in self.space.items():
            finite = isinstance(dimension, Choice | RandInt)
            if self.search.type == "grid" and not finite:
                raise ValueError(
                    f"space.{path}: {dimension.type} has too many values for a grid: "
                    "use choice or randint, or another search"
                )
            if path.startswith("prompts.") and path != "prompts.pool_size" and not finite:
                raise ValueError(
                    f"space.{path}: {dimension.type} would make a pool of its own for every "
                    "trial: use choice, so that pools are built once"
                )
        return self
