"""Figures on validation prompts, and the choice of a checkpoint by them: `train.validation`."""

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

_QUANTILE_PROMPTS = 20
"""Fewest prompts of which one lies below the 5% quantile."""


class ValidationConfig(Section, affects="weights"):
    """Scores on held-out validation prompts and examples during a training, which may choose the
    checkpoint that is saved and end the training."""

    every_steps: int = Field(ge=1)
    """Optimizer steps between two scores; the last step is scored too."""
    prompts: int | None = Field(default=None, ge=1)
    """Validation prompts to score on; all by default."""
    examples: int = Field(default=64, ge=1)
    """Validation examples to score on."""
    goal: GoalConfig = MeanAccuracy(type="mean")
    """The figure on validation prompts that is to be as high as possible."""
    keep_best: bool = True
    """Save the weights of the scored step with the best figure, the earliest of equal ones; its
    checkpoint is never pruned. Else those of the last step are saved."""
    patience: int | None = Field(default=None, ge=1)
    """End a training after so many scores in a row that are no better than its best. Variants are
    then trained for different numbers of steps; by default all take `steps`."""

    def steps(self, total: int) -> tuple[int, ...]:
        """The steps after which a training of `total` steps is scored."""
        return (*range(self.every_steps, total, self.every_steps), total)

    def check_prompts(self, available: int) -> None:
        """Check that a pool has the validation prompts that are asked for.

        Raises:
            ValueError: It has fewer, or fewer than the goal's figure needs.
        """
        if available == 0:
            raise ValueError(
                "train.validation scores on validation prompts, and prompts.split.validation is 0: "
                "raise it, or leave train.validation out"
            )
        used = self.prompts or available
        if used > available:
            raise ValueError(
                f"train.validation.prompts ({used}) is more than the {available} validation "
                "prompts: lower it, or raise prompts.split.validation"
            )
        needed = {LowQuantile: _QUANTILE_PROMPTS, MeanMinusStd: 2}.get(type(self.goal), 1)
        if used < needed:
            raise ValueError(
                f"train.validation.goal: {self.goal.type} needs {needed} validation prompts or "
                f"more, not {used}: raise prompts.split.validation, or use mean or worst"
            )
