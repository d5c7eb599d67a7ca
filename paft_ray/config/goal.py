"""Figures on validation prompts by which trials of a search, or checkpoints, are chosen."""

from typing import Annotated, Literal

from pydantic import Field

from paft_ray.config.base import Section


class MeanAccuracy(Section, affects="search"):
    """Mean accuracy over prompts."""

    type: Literal["mean"]


class MeanMinusStd(Section, affects="search"):
    """Mean accuracy minus a multiple of its standard deviation over prompts."""

    type: Literal["mean_minus_std"]
    weight: float = Field(default=1.0, ge=0)
    """The multiple."""


class LowQuantile(Section, affects="search"):
    """The 5% quantile of the accuracy over prompts: a bad wording that users may well choose."""

    type: Literal["p05"] = "p05"


class WorstPrompt(Section, affects="search"):
    """The accuracy under the worst prompt."""

    type: Literal["worst"]


GoalConfig = Annotated[
    MeanAccuracy | MeanMinusStd | LowQuantile | WorstPrompt, Field(discriminator="type")
]
