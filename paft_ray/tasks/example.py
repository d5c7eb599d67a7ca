"""The records of a task: `Example`, `Task`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    """The right answer; one of the task's choices, where it has any."""


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
    """All allowed answers, or None where the answer is free text."""
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    duplicates: int = 0
    """Source rows that repeated another row and were left out."""
    answer_pattern: str | None = None
    """Regular expression whose last match in a generated text is the answer (free text only)."""
    relevance_words: tuple[str, ...] = ()
    """Words of which a good instruction for this task mentions at least one."""
    instructions: tuple[str, ...] = ()
    """Instructions written by hand, which few-shot requests show to LLMs."""
    top_threshold: float = 0.85
    """Accuracy t of Top@t, where the configuration names none."""

    def examples(self, split: SplitName) -> tuple[Example, ...]:
        """The examples of one split, in an order given by seed and id."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]
