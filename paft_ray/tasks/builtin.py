"""The published tasks as data: their sources, and how a row becomes fields and an answer.

Covered: PIQA, HellaSwag, WinoGrande, RACE, BoolQ, SST-2, GSM8K. Columns have the source's names;
`options[2]` is the third entry of a column that holds a list. Where the labels of a test split are
secret, the validation split is the test split here, as is usual.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from paft_ray.config.task import RowChoices


@dataclass(frozen=True, slots=True)
class TaskOutline:
    """The description of a task, without its rows."""

    name: str
    description: str
    """What the model has to do, for LLMs that write prompts."""
    columns: Mapping[str, str]
    """Slot name to column, in the order of reading."""
    answer: str | None
    """Column of the answer; None where no row has one."""
    choices: tuple[str, ...] | None = None
    """All allowed answers, or None where the answer is free text."""
    row_choices: RowChoices | None = None
    """Places of the choices, where each row has its own."""
    choices_as: Literal["letters", "texts"] = "letters"
    """How these are given."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Value of the answer column, as text, to the choice it stands for."""
    option_slots: Mapping[str, str] = field(default_factory=dict)
    """Slots that hold an answer option, to the choice that stands for it."""
    field_rewrites: tuple[tuple[str, str], ...] = ()
    """Regular expression and replacement, applied in turn to every field."""
    answer_rewrites: tuple[tuple[str, str], ...] = ()
    """Regular expression and replacement, applied in turn to a free-text answer."""
    answer_pattern: str | None = None
    """Regular expression whose last match in a text, or its group, is the answer (free text)."""
    relevance_words: tuple[str, ...] = ()
    """Words of which a good instruction for this task mentions at least one."""
    instructions: tuple[str, ...] = ()
    """Instructions written by hand, which few-shot requests show to LLMs."""
    top_threshold: float = 0.85
    """Accuracy t of Top@t, from the paper (arXiv 2502.12859, table 1); 85% for all tasks that the
    paper does not name."""
    train_split: str = "train"
    """Split of the source with training and validation examples."""
    test_split: str = "test"
    """Split of the source with test examples, where it has one."""
    hub_name: str | None = None
    """Data set on the Hugging Face hub; Parquet, since scripts are no longer run."""
    hub_config: str | None = None
    """The data set's configuration there."""

    @property
    def shows_choices(self) -> bool:
        """Return whether a slot shows the choices of each row after letters."""
        return self.row_choices is not None and self.choices_as == "letters"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LETTERS = {letter: letter for letter in "ABCD"}

_PIQA = TaskOutline(
    name="piqa",
    description=(
        "Commonsense about the physical world: given a goal and two solutions, A and B, "
        "say which solution reaches the goal."
    ),
    columns={"goal": "goal", "sol1": "sol1", "sol2": "sol2"},
    answer="label",
    choices=("A", "B"),
    labels={"0": "A", "1": "B"},
    option_slots={"sol1": "A", "sol2": "B"},
    relevance_words=_words(
        "answer option choice choose select solution goal question sense commonsense practical "
        "approach method"
    ),
    test_split="validation",
    hub_name="baber/piqa",
    instructions=(
        "Pick the solution that a practical person would use to reach the goal.",
        "Which of the two solutions works in the real world?",
        "Read the goal and choose the solution that achieves it.",
        "You know how everyday things work; select the better solution for this goal.",
        "Decide with common sense which option reaches the goal.",
        "Answer with the letter of the solution that makes physical sense.",
    ),
)

_HELLASWAG = TaskOutline(
    name="hellaswag",
    description=(
        "Commonsense about what happens next: given the beginning of a description and four "
        "endings, A to D, say which ending continues it most plausibly."
    ),
    columns={"ctx": "ctx", **{letter: f"endings[{i}]" for i, letter in enumerate("ABCD")}},
    answer="label",
    choices=("A", "B", "C", "D"),
    labels={"0": "A", "1": "B", "2": "C", "3": "D"},
    option_slots=_LETTERS,
    # the WikiHow half carries marks such as [header]; lm-evaluation-harness removes them alike
    field_rewrites=((r"\s*\[title\]", ". "), (r"\[[^\]]*\]", ""), (r" {2,}", " ")),
    top_threshold=0.9,
    relevance_words=_words(
        "ending continue continuation complete completion next follow finish conclude "
        "conclusion outcome option choose select plausible likely story scenario context"
    ),
    test_split="validation",
    hub_name="Rowan/hellaswag",
    instructions=(
        "Choose the ending that continues the description most plausibly.",
        "What most likely happens next?",
        "Read the beginning and select the ending that fits it.",
        "Pick the continuation that makes sense.",
        "Decide which of the endings completes the story.",
        "Answer with the letter of the most natural ending.",
    ),
)

_WINOGRANDE = TaskOutline(
    name="winogrande",
    description=(
        "Pronoun resolution: a sentence has a blank, written _, and two options, A and B, "
        "could fill it; say which one makes sense."
    ),
    columns={"sentence": "sentence", "option1": "option1", "option2": "option2"},
    answer="answer",
    choices=("A", "B"),
    labels={"1": "A", "2": "B"},
    option_slots={"option1": "A", "option2": "B"},
    top_threshold=0.8,
    relevance_words=_words(
        "blank fill complete sentence option choose select refer replace underscore word answer"
    ),
    test_split="validation",
    hub_name="allenai/winogrande",
    hub_config="winogrande_xl",
    instructions=(
        "Which option fills the blank so that the sentence makes sense?",
        "Choose the option that the blank stands for.",
        "Read the sentence and decide who or what the underscore refers to.",
        "Fill the blank with the option that fits.",
        "Select the word that completes the sentence correctly.",
        "Answer with the letter of the option that belongs in the blank.",
    ),
)

_RACE = TaskOutline(
    name="race",
    description=(
        "Reading comprehension: given an article, a question about it and four options, A to D, "
        "say which option answers the question."
    ),
    columns={
        "article": "article",
        "question": "question",
        **{letter: f"options[{i}]" for i, letter in enumerate("ABCD")},
    },
    answer="answer",
    choices=("A", "B", "C", "D"),
    option_slots=_LETTERS,
    relevance_words=_words(
        "article passage text read question answer option choose select comprehension"
    ),
    hub_name="ehovy/race",
    hub_config="all",
    instructions=(
        "Read the article and choose the option that answers the question.",
        "Which option answers the question, going by the passage?",
        "Answer this reading comprehension question with the letter of the right option.",
        "Select the answer that the article supports.",
        "Study the text, then pick the correct option.",
        "Use only what the passage says to choose an answer.",
    ),
)

_BOOLQ = TaskOutline(
    name="boolq",
    description=(
        "Yes-or-no questions about a text: given a passage and a question, "
        "answer the question with yes or no."
    ),
    columns={"passage": "passage", "question": "question"},
    answer="answer",
    choices=("yes", "no"),
    labels={"true": "yes", "false": "no", "True": "yes", "False": "no", "1": "yes", "0": "no"},
    relevance_words=_words("passage text question answer yes true read statement determine"),
    test_split="validation",
    hub_name="google/boolq",
    instructions=(
        "Read the passage and answer the question with yes or no.",
        "Does the text say yes or no to this question?",
        "Decide from the passage whether the answer is yes or no.",
        "Going by the passage alone, answer the question.",
        "Answer yes or no, using what the text states.",
        "Is the answer to the question yes or no?",
    ),
)

_SST2 = TaskOutline(
    name="sst2",
    description=(
        "Sentiment of film reviews: given a sentence from a review, "
        "say whether its sentiment is negative or positive."
    ),
    columns={"sentence": "sentence"},
    answer="label",
    choices=("negative", "positive"),
    labels={"0": "negative", "1": "positive"},
    relevance_words=_words(
        "sentiment positive negative review opinion tone feel feeling emotion emotional "
        "mood attitude favorable critic"
    ),
    test_split="validation",
    hub_name="nyu-mll/glue",
    hub_config="sst2",
    instructions=(
        "Decide whether the sentiment of the sentence is negative or positive.",
        "Is the opinion in this review negative or positive?",
        "Read the sentence and say how the reviewer feels about the film.",
        "Classify the sentiment of the review.",
        "You are a film critic; tell whether the review is favorable or not.",
        "What is the tone of this sentence, negative or positive?",
    ),
)

_GSM8K = TaskOutline(
    name="gsm8k",
    description=(
        "Grade-school arithmetic: given a word problem, reason step by step and end with a line "
        "that holds #### and the number that is the answer."
    ),
    columns={"question": "question"},
    answer="answer",
    # the calculator's marks, and separators inside numbers
    answer_rewrites=((r"<<[^<>]*>>", ""), (r"(?<=\d),(?=\d{3}(?!\d))", "")),
    answer_pattern=r"####\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)",
    relevance_words=_words(
        "problem question solve answer calculate compute math step number reason solution"
    ),
    hub_name="openai/gsm8k",
    hub_config="main",
    instructions=(
        "Solve the word problem step by step and end with the answer after ####.",
        "Work out the answer to this math question.",
        "Read the problem, calculate, and give the final number.",
        "How much or how many? Show your steps, then the answer.",
        "Solve this problem and write the result after ####.",
        "Think through the arithmetic and state the final answer.",
    ),
)

PUBLISHED: Mapping[str, TaskOutline] = {
    outline.name: outline
    for outline in (_BOOLQ, _GSM8K, _HELLASWAG, _PIQA, _RACE, _SST2, _WINOGRANDE)
}
"""Every task that `task.type: builtin` can name."""
