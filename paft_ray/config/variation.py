"""`evaluation.variation` and `train.variation`: further ways in which a question may be put."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from paft_ray.config.base import Section, affects
from paft_ray.config.llms import LLMConfig

Names = Literal["letters", "digits", "lowercase"]
"""What the choices of a row are called: `A. x`, `1. x`, `a) x`."""
NoiseKind = Literal["typos", "case", "spaces", "punctuation"]


class ChoicesVariation(Section, affects="run"):
    """Order and names of the choices that a prompt shows."""

    order: Literal["given", "shuffled"] = "given"
    """Whether each row's choices are put in another order."""
    names: tuple[Names, ...] = ("letters",)
    """What the choices are called: in training one of these at each draw; in evaluation each of
    them, beside `letters`. For choices of a row that a slot shows (`task.choices_as: letters`)."""

    @field_validator("names")
    @classmethod
    def _differ(cls, names: tuple[Names, ...]) -> tuple[Names, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{list(names)}: give different names, at least one")
        return names


class NoiseVariation(Section, affects="run"):
    """Slips in fields and instruction; slots, choices, numbers and the answer cue stay."""

    rate: float = Field(gt=0, le=1)
    """Share of the words that get one."""
    kinds: tuple[NoiseKind, ...] = ("typos", "case", "spaces", "punctuation")
    """Which slips there are, each as likely as the others."""

    @field_validator("kinds")
    @classmethod
    def _differ(cls, kinds: tuple[NoiseKind, ...]) -> tuple[NoiseKind, ...]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"{list(kinds)}: give different kinds, at least one")
        return kinds


class DemonstrationsVariation(Section, affects="run"):
    """Solved training examples in front of the question, put through the same prompt.

    Where a prompt has the slot `{demonstrations}` they stand there, each put through what follows
    the slot; elsewhere the slot leaves nothing behind.
    """

    shots: int = Field(ge=1)
    """How many."""
    draws: int = Field(default=3, ge=1)
    """In evaluation, how often other ones are drawn: figures are means over draws, and intervals
    tell how much draws differ. In training every example gets its own at each step."""
    examples_per_class: int | None = Field(default=None, ge=1)
    """Draw from the first so many training examples of each answer only; by default from all that
    are trained on (`task.examples_per_class`)."""


class ParaphrasesVariation(Section, affects="run"):
    """The fields of each example in other words, which an LLM writes once; choices, answers and
    numbers stay. Demonstrations keep their own text, and so do the examples that models are scored
    on while they are trained and that prompts are chosen by.

    In training the examples that some training of the run reads are rewritten, once for all
    variants, seeds and trials.
    """

    per_example: int = Field(default=2, ge=1)
    """How many. In evaluation each is asked, for the examples that have all; in training each draw
    is the example's own text or one of those that could be used, with equal chances."""
    llm: Annotated[LLMConfig | None, affects("run", whole=True)] = None
    """The LLM that writes them; by default the first of `prompts.generation.llms`."""
    budget_tokens: Annotated[int | None, affects("nothing", neutral=None)] = Field(
        default=None, ge=1
    )
    """Most completion tokens of the LLM, reasoning included. Where they could be exceeded the
    command stops, and goes on with a larger budget."""


class VariationConfig(Section, affects="run"):
    """The axes of variation besides instruction and layout; all off by default."""

    choices: ChoicesVariation | None = None
    """In which order choices are shown, and what they are called."""
    noise: NoiseVariation | None = None
    """Slips in what is written."""
    demonstrations: DemonstrationsVariation | None = None
    """Solved examples in front."""
    paraphrases: Annotated[ParaphrasesVariation | None, affects("run", neutral=None)] = None
    """The example's own text in other words."""

    design: Annotated[Literal["separate", "crossed"], affects("run", neutral="separate")] = (
        "separate"
    )
    """In evaluation, how axes are combined. `separate`: each by itself. `crossed`: besides, every
    prompt and example is asked twice under levels of all axes that are drawn for it, at the cost of
    two more answers a pair; the report then says how much of the spread each axis makes.
    Paraphrases are varied by themselves."""

    @model_validator(mode="after")
    def _combines_axes(self) -> Self:
        if self.design == "crossed" and not (self.choices or self.noise or self.demonstrations):
            raise ValueError(
                "design: crossed combines the levels of axes, and none is varied: give choices, "
                "noise or demonstrations, or leave it out"
            )
        if self.design == "crossed" and not self._has_levels:
            raise ValueError(
                "design: crossed draws from the levels of axes, and no axis has two: give choices "
                "another order or other names, more draws of demonstrations, or noise, or leave "
                "it out"
            )
        return self

    @property
    def _has_levels(self) -> bool:
        """Whether an axis that can be crossed has two levels in evaluation."""
        choices, shown = self.choices, self.demonstrations
        named = choices is not None and any(name != "letters" for name in choices.names)
        shuffled = choices is not None and choices.order == "shuffled"
        return bool(named or shuffled or self.noise or (shown is not None and shown.draws > 1))

    @property
    def is_off(self) -> bool:
        """Return whether nothing is varied."""
        return not (self.choices or self.noise or self.demonstrations or self.paraphrases)


OFF = VariationConfig()
