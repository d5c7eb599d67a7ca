"""`train.objective`: the loss that training minimises; `training.objective` computes it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from paft_ray.config.base import Section


class Objective(Section, affects="weights"):
    """What all objectives say of themselves."""

    compares: ClassVar[str] = ""
    """What of an example is compared, all of which has to stand in one row; empty for nothing."""
    reads_choices: ClassVar[bool] = False
    """Whether the likelihood of every choice is read, where a task has choices."""


class CrossEntropy(Objective, affects="weights"):
    """The answer's log-likelihood and nothing else: the paper's objective."""

    type: Literal["cross_entropy"] = "cross_entropy"


class Consistency(Objective, affects="weights"):
    """Every example through two prompts at once, and a penalty where the two answers differ."""

    compares = "two renderings"
    reads_choices = True
    type: Literal["consistency"]
    weight: float = Field(default=1.0, gt=0)
    """Weight of the penalty, a symmetric Kullback-Leibler divergence in nats, which is added to the
    mean answer loss of both renderings."""


class GroupDRO(Objective, affects="weights"):
    """More weight for prompts under which the loss is high, as group DRO learns it
    (arXiv 1911.08731, algorithm 1, with prompts as groups)."""

    type: Literal["group_dro"]
    step_size: float = Field(default=0.01, gt=0)
    """By how much a prompt's log-weight grows per nat of its loss."""


class CVaR(Objective, affects="weights"):
    """The mean over the worst prompts: those with the highest mean losses carry the weight."""

    type: Literal["cvar"]
    share: float = Field(default=0.2, gt=0, le=1)
    """Share of the prompts that count as the worst."""
    uniform_floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the weight that stays with all prompts alike."""


class ExpectedReward(Objective, affects="weights"):
    """The probability of the right choice among all choices: the reward that answers would have on
    average, were they drawn from the model. It is what GRPO learns from with groups of any size."""

    compares = "all choices"
    reads_choices = True
    type: Literal["expected_reward"]


ObjectiveConfig = Annotated[
    CrossEntropy | Consistency | GroupDRO | CVaR | ExpectedReward, Field(discriminator="type")
]
