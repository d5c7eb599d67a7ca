"""`variants`: the ways to train that `run` compares."""

from typing import Annotated, Literal

from pydantic import Field

from paft_ray.config.base import Section


class PaftVariant(Section):
    """Every example through a prompt drawn afresh from the pool."""

    type: Literal["paft"]

    @property
    def label(self) -> str:
        """Name of the variant in folders, tables and MLflow."""
        return "paft"


class SinglePromptVariant(Section):
    """Every example through one prompt: what people do otherwise."""

    type: Literal["single_prompt"]
    prompt: str | None = None
    """A template to use; by default the training prompt with the base model's best accuracy on
    validation examples."""

    @property
    def label(self) -> str:
        """Name of the variant in folders, tables and MLflow."""
        return "single_prompt"


VariantConfig = Annotated[PaftVariant | SinglePromptVariant, Field(discriminator="type")]
