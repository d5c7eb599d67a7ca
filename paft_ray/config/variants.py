"""`variants`: the ways to train that `run` compares, and one training of each per seed."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from paft_ray.config.base import Section, affects
from paft_ray.config.objectives import ObjectiveConfig
from paft_ray.config.train import SamplingConfig, TrainConfig

BASE = "base"
"""Label of the model before any training, which is always compared."""
LABEL_PATTERN = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


class VariantOptions(Section, affects="run"):
    """The fields that all variants have."""

    name: str | None = Field(default=None, max_length=40)
    """Its label in folders, tables and MLflow; by default its type."""

    @property
    def label(self) -> str:
        """Name of the variant in folders, tables and MLflow."""
        return self.name or self.type  # pyright: ignore[reportAttributeAccessIssue]

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, name: str | None) -> str | None:
        if name is not None and (name == BASE or not LABEL_PATTERN.fullmatch(name)):
            raise ValueError(f"a name is made of a-z, 0-9 and single '_', and is not {BASE!r}")
        return name


class OwnTrain(Section, affects="run"):
    """Fields of `train` that one variant has of its own."""

    objective: ObjectiveConfig | None = None
    """Replaces `train.objective`."""
    steps: int | None = Field(default=None, ge=1)
    """Replaces `train.steps`, or `train.epochs`."""
    batch_size: int | None = Field(default=None, ge=1)
    """Replaces `train.batch_size`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Replaces `train.learning_rate`."""

    def over(self, train: TrainConfig) -> TrainConfig:
        """The section `train` with these fields."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        changed = {name: value for name, value in own.items() if value is not None}
        if "steps" in changed:
            changed["epochs"] = None
        return train.model_copy(update=changed)


class TrainedVariant(VariantOptions, affects="run"):
    """What all ways to train have."""

    train: Annotated[OwnTrain, affects("run", neutral=OwnTrain(), whole=True)] = OwnTrain()
    """Replaces fields of `train`, so that objectives can be compared. Trainings then differ in
    more than their prompts; results say in what."""


class PaftVariant(TrainedVariant, affects="run"):
    """Every example through a prompt drawn afresh from the pool."""

    type: Literal["paft"]
    sampling: SamplingConfig | None = None
    """Replaces `train.sampling`, for example to compare temperatures."""
    pool_size: Annotated[int | None, affects("run", neutral=None)] = Field(default=None, ge=1)
    """Replaces `prompts.pool_size`, for example to compare sizes."""


class SinglePromptVariant(TrainedVariant, affects="run"):
    """Every example through one prompt, as is usual without PAFT."""

    type: Literal["single_prompt"]
    prompt: str | None = None
    """A template to use; by default the training prompt with the base model's best accuracy on
    validation examples (the paper's TopAccuracy)."""


class HumanPromptVariant(TrainedVariant, affects="run"):
    """Every example through one prompt written by hand: the first of the task's `instructions`, in
    the first layout of the grammar, that is not like a held-out prompt. For a whole template of
    your own, give a `single_prompt` its `prompt`."""

    type: Literal["human_prompt"]


class BoundPromptsVariant(TrainedVariant, affects="run"):
    """Every example bound once, for the whole training, to a random prompt of a small pool, as in
    the official implementation."""

    type: Literal["bound_prompts"]
    prompts: int = Field(default=12, ge=1)
    """Size of the small pool: the first so many training prompts."""


VariantConfig = Annotated[
    PaftVariant | SinglePromptVariant | HumanPromptVariant | BoundPromptsVariant,
    Field(discriminator="type"),
]


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a run."""

    variant: VariantConfig
    seed: int
    """Seed of the order of examples, the draws of prompts, the adapter's start and dropout."""

    @property
    def label(self) -> str:
        """The variant's label."""
        return self.variant.label

    @property
    def name(self) -> str:
        """The training's folder under `training/`."""
        return f"{self.label}-s{self.seed}"
