"""The records of a task: `Example`, `RowCounts`, `Task`."""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from paft_ray.config.objectives import Objective
from paft_ray.config.variation import Names
from paft_ray.tasks.grading import Grader, RankedGrader, open_graders

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer."""

    id: str
    """Sixteen hex digits, from the content of fields and answer."""
    fields: Mapping[str, str]
    """Slot name to text."""
    answer: str
    """The right answer; one of the choices, where there are any. Empty where nobody gave one."""
    where: str = field(default="", compare=False, repr=False)
    """File and line of its first row, for messages."""
    options: tuple[str, ...] = ()
    """The texts of its own choices, in their order, where each row has its own."""

    @property
    def some_answer(self) -> str:
        """The right answer, or a stand-in where there is none, to encode its question with."""
        return self.answer or "?"

    @property
    def right(self) -> str:
        """The text of the right answer, where a letter is answered too."""
        if not self.options or self.answer in self.options:
            return self.answer
        return self.options[letters(len(self.options)).index(self.answer)]

    def under(self, prompt: str) -> str:
        """Its name in messages about it and a prompt."""
        place = f"{self.where}: " if self.where else ""
        return f"{place}example {self.id} under prompt {prompt}"


def letters(count: int) -> tuple[str, ...]:
    """The letters of so many choices."""
    return tuple(string.ascii_uppercase[:count])


def named(count: int, names: Names) -> tuple[str, ...]:
    """The names of so many choices."""
    if names == "digits":
        return tuple(str(number + 1) for number in range(count))
    return letters(count) if names == "letters" else tuple(string.ascii_lowercase[:count])


def lettered(options: Sequence[str], names: Names = "letters") -> str:
    """Choices under each other, each after its name."""
    mark = ")" if names == "lowercase" else "."
    pairs = zip(named(len(options), names), options, strict=True)
    return "\n".join(f"{name}{mark} {option}" for name, option in pairs)


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What became of the rows of a source besides examples."""

    duplicates: int = 0
    """Rows that repeat another one, and were left out."""
    tied: int = 0
    """Examples that differ from another one in no more than blanks, capitals, Unicode form and
    answer, and stay in one split with it."""
    contradicting: int = 0
    """Of these, examples that the other one has another answer for."""
    in_held_out: int = 0
    """Training rows left out because the source's own test or validation rows have their text or
    group, and validation rows that its test rows have."""
    empty_fields: int = 0
    """Fields without a value, read as empty."""
    groups: int = 0
    """Groups of `task.group` whose rows stay together."""
    unlabelled: int = 0
    """Training examples without an answer."""
    beyond_unlabelled: int = 0
    """Further ones, which `task.max_train_examples` leaves no room for."""
    unused_splits: str = ""
    """Names of the source's splits that nothing is read from."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Examples of each split, before `task.examples_per_class` and `task.max_train_examples`."""
    beyond_class: int = 0
    """Training examples left out by `task.examples_per_class`."""
    fewest_of_class: int = 0
    """Training examples of the answer that has the fewest of these."""

    def by_class(self, kept: "Sequence[Example]") -> "RowCounts":
        """The counts where `task.examples_per_class` left these training examples."""
        fewest = min(Counter(example.answer for example in kept).values(), default=0)
        beyond = self.sizes["train"] - len(kept)
        return replace(self, beyond_class=beyond, fewest_of_class=fewest)

    def shares(self) -> str:
        """The share of all examples that each split reached, in words."""
        total = sum(self.sizes.values()) or 1
        return ", ".join(f"{split} {size / total:.1%}" for split, size in self.sizes.items())

    def sentences(self) -> list[str]:
        """What a reader of figures has to know, one sentence each."""
        found = []
        if self.tied:
            found.append(
                f"{self.tied} examples have the text of another one (but for blanks, capitals and "
                f"Unicode form) and stay in one split with it; {self.contradicting} of them "
                "contradict it by another answer"
            )
        if self.groups:
            found.append(
                f"{self.groups} groups stay whole in a split each; shares reached: {self.shares()}"
            )
        if self.in_held_out:
            found.append(
                f"{self.in_held_out} rows were left out of training or validation because held-out "
                "rows have the same text or group"
            )
        if self.unlabelled:
            found.append(
                f"{self.unlabelled} examples have no answer: only trainings by consensus or prefix "
                "learn from them, and nothing grades them"
            )
        if self.beyond_unlabelled:
            found.append(
                f"{self.beyond_unlabelled} {'further ' if self.unlabelled else ''}examples without "
                "an answer are left out: task.max_train_examples leaves them no room"
            )
        if self.unused_splits:
            found.append(
                f"of the source these splits are not read: {self.unused_splits}; task.splits "
                "names what each split is for"
            )
        if self.beyond_class:
            total = self.sizes["train"]
            found.append(
                f"{total - self.beyond_class} of {total} training examples are trained on, the "
                "first ones of each answer (task.examples_per_class); the answer with the fewest "
                f"has {self.fewest_of_class}"
            )
        if self.empty_fields:
            found.append(f"{self.empty_fields} fields hold no value and are read as empty")
        return found


@dataclass(frozen=True, slots=True)
class Task:
    """A data set: its fields, its answers, and its examples in three splits."""

    name: str
    description: str
    """What the model has to do, for LLMs that write prompts."""
    slots: tuple[str, ...]
    """Fields that a template must use, each once."""
    option_slots: Mapping[str, str]
    """Slots that hold an answer option, to the choice that stands for it: {"sol1": "A"}."""
    choices: tuple[str, ...] | None
    """All allowed answers; None where the answer is free text, or each row has texts of its own."""
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    rows: RowCounts = RowCounts()
    """What became of rows that are no examples of their own."""
    answer_pattern: str | None = None
    """Regular expression whose last match in a generated text is the answer (free text only)."""
    relevance_words: tuple[str, ...] = ()
    """Words of which a good instruction for this task mentions at least one."""
    instructions: tuple[str, ...] = ()
    """Instructions written by hand, which few-shot requests show to LLMs."""
    top_threshold: float = 0.85
    """Accuracy t of Top@t, where the configuration names none."""
    choices_as: Literal["letters", "texts"] | None = None
    """How choices of its own are given to each row; None where all rows have the same."""
    graders: tuple[Grader, ...] = ()
    """What a prediction is worth, by the one that decides first; never empty."""
    unlabelled: tuple[Example, ...] = ()
    """Training examples without an answer; see `learned_by`."""

    def __post_init__(self) -> None:
        """Fill in the task's own grader."""
        if not self.graders:
            own = open_graders((), self.has_choices, self.answer_pattern)
            object.__setattr__(self, "graders", own)

    @property
    def has_choices(self) -> bool:
        """Return whether answers are chosen; otherwise they are free text."""
        return self.choices is not None or self.choices_as is not None

    @property
    def answering(self) -> list[str]:
        """What of the choices is in identities: those of all rows, or how rows give their own."""
        return [self.choices_as] if self.choices_as else list(self.choices or ())

    def choices_of(self, example: Example) -> tuple[str, ...] | None:
        """What may be answered to an example; None where the answer is free text."""
        if self.choices_as is None or not example.options:
            return self.choices
        return letters(len(example.options)) if self.choices_as == "letters" else example.options

    @property
    def ranks(self) -> bool:
        """Return whether log-likelihoods of choices are graded."""
        return any(isinstance(grader, RankedGrader) for grader in self.graders)

    @property
    def generates(self) -> bool:
        """Return whether texts that the model writes are graded."""
        return not all(isinstance(grader, RankedGrader) for grader in self.graders)

    def without_examples(self) -> "Task":
        """The task for processes that get the examples they need by other means."""
        return replace(self, train=(), validation=(), test=(), unlabelled=())

    def learned_by(self, objective: Objective) -> tuple[Example, ...]:
        """The examples that an objective learns from: those without an answer only if it can."""
        return (*self.train, *self.unlabelled) if objective.reads_unlabelled else self.train

    def examples(self, split: SplitName) -> tuple[Example, ...]:
        """The examples of one split, in an order given by seed and id."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]
