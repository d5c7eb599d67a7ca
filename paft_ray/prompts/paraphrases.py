"""Other wordings of an example's own text by an LLM: requests, what is usable of the answers; pure.

Every field is rewritten by a request of its own: not those that hold choices, nor texts without a
letter. A rewritten text has exactly the numbers of the text itself, and names a choice, or the
answer, exactly if the text does: else it could tell the answer, or make the question another one.
What the LLM says around it is no part of it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paft_ray.config.task import CHOICES_SLOT
from paft_ray.prompts.generate.asking import Writer
from paft_ray.prompts.generate.completions import Completion, candidate_in, holds_talk
from paft_ray.prompts.generate.requests import Request
from paft_ray.tasks.example import Example, Task
from paft_ray.tasks.grading import normalise

PARAPHRASE = "paraphrase"
"""Kind of these requests."""
ATTEMPTS = 3
"""How often a text is asked for at most."""
_RAISED = "²³¹⁰-⁹₀-₉¼-¾⅐-⅞"
"""Digits that stand above or below a line, and fractions in one character."""
_NUMBER = re.compile(
    r"(?:(?<![\w)\]])(?P<sign>[-±])(?:[$€£] ?)?|(?P<raised>\^-?))?"
    rf"(?P<digits>\d+(?:[.,:/]\d+)*(?:[eE][-+]?\d+)?[{_RAISED}]*|\.\d+|[{_RAISED}]+)"
    r"(?:\s?(?P<percent>%|‰|per ?cent\b))?",
    re.IGNORECASE,
)
_PERCENT = {None: "", "‰": "‰"}
_ARTICLES = frozenset({"a", "an", "the"})
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One field of an example, to be rewritten for the `number`-th time."""

    example: Example
    slot: str
    number: int

    @property
    def text(self) -> str:
        """The field as it is."""
        return self.example.fields[self.slot]


@dataclass(frozen=True)
class Paraphrases:
    """What was written so far."""

    task: Task
    examples: Sequence[Example]
    per_example: int
    texts: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """By example id, slot and number."""
    refused: Counter[str] = field(default_factory=Counter)
    """Why answers could not be used."""

    def wanted(self) -> list[Wanted]:
        """What is not written yet."""
        return [
            Wanted(example, slot, number)
            for example in self.examples
            for number in range(self.per_example)
            for slot in rewritable(self.task, example)
            if (example.id, slot, number) not in self.texts
        ]

    def add(self, one: Wanted, answer: Completion, max_tokens: int) -> None:
        """Use an answer, or count why it cannot be used."""
        text, reason = candidate_in(answer, "text", max_tokens)
        if text is not None:
            numbers = range(self.per_example)
            known = [self.texts.get((one.example.id, one.slot, n)) for n in numbers]
            reason = _unusable(self.task, one, text, [t for t in known if t is not None])
            text = text if "\n" in one.text else " ".join(text.split())
        if text is None or reason:
            self.refused[reason] += 1
        else:
            self.texts[one.example.id, one.slot, one.number] = text

    def kept(self) -> dict[str, dict[int, Mapping[str, str]]]:
        """Example id to its rewritten fields by number, from 1; of wordings that are whole."""
        found: dict[str, dict[int, Mapping[str, str]]] = {}
        for example in self.examples:
            slots = rewritable(self.task, example)
            for n in range(self.per_example) if slots else ():
                if all((example.id, slot, n) in self.texts for slot in slots):
                    own = {slot: self.texts[example.id, slot, n] for slot in slots}
                    found.setdefault(example.id, {})[n + 1] = own
        return found

    def complete(self) -> list[Mapping[str, Mapping[str, str]]]:
        """For each number, example id to its rewritten fields, of the examples that have all."""
        whole = {id: own for id, own in self.kept().items() if len(own) == self.per_example}
        return [{id: own[n + 1] for id, own in whole.items()} for n in range(self.per_example)]


def rewritable(task: Task, example: Example) -> list[str]:
    """The fields of an example that can be put in other words."""
    choices = {*task.option_slots, *([CHOICES_SLOT] if task.choices_as == "letters" else [])}
    return [s for s in task.slots if s not in choices and _LETTER.search(example.fields[s])]


def request(task: Task, one: Wanted, writer: Writer, seed: int, attempt: int) -> Request:
    """The request for a text, a function of seed, example, slot, number and attempt."""
    kept = [f'"{name}"' for name in _names(task, one.example) if _names_it(one.text, name)]
    lines = [
        "Put the text below in other words. Keep its meaning, its language, and every name and "
        "number; leave nothing out, add nothing, and do not answer it.",
        *([f"Keep these words as they stand: {', '.join(kept)}."] if kept else []),
        "Reply with the new text and nothing else.",
        "",
        "Text:",
        one.text,
    ]
    place = seed, one.example.id, one.slot, one.number, attempt
    return writer.request(PARAPHRASE, "\n".join(lines), *place)


def _unusable(task: Task, one: Wanted, text: str, known: Sequence[str]) -> str:
    """Why a text cannot stand for a field; empty where it can."""
    if _bare(text) == _bare(one.text):
        return "unchanged"
    if any(_bare(text) == _bare(other) for other in known):
        return "repeated"
    if holds_talk(text, one.text):
        return "chatter"
    if _numbers(one.text) - _numbers(text):
        return "lost_number"
    if _numbers(text) - _numbers(one.text):
        return "added_number"
    for name in _names(task, one.example):
        if _names_it(one.text, name) and not _names_it(text, name):
            return "lost_choice"
        if any(said(text, name) and not said(one.text, name) for said in (_names_it, _tells)):
            return "tells_choice"
    return ""


def _names(task: Task, example: Example) -> Iterator[str]:
    """The texts of the choices, and the answer, without the marks that end a sentence."""
    if task.option_slots:
        texts = [example.fields[slot] for slot in task.option_slots]
    else:
        texts = [*(example.options or task.choices or ()), example.right]
    yield from dict.fromkeys(text.strip(" \t\n.,;:!?") for text in texts if re.search(r"\w", text))


def _names_it(text: str, name: str) -> bool:
    """Whether a text holds a name to the letter, as whole words."""
    return _holds(text.casefold(), name.casefold())


def _tells(text: str, name: str) -> bool:
    """Whether a text holds a name as graders compare it, or its words one after another."""
    squad = normalise(name, "squad")
    words = [each for each in _bare(name) if each not in _ARTICLES]
    said = [each for each in _bare(text) if each not in _ARTICLES]
    return bool(squad and _holds(normalise(text, "squad"), squad)) or bool(
        words and _holds(" ".join(said), " ".join(words))
    )


def _holds(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _numbers(text: str) -> Counter[tuple[str, ...]]:
    """The numbers of a text as they stand: `1,000` is not `1000`, as some would read it as 1."""
    found = _NUMBER.finditer(text.replace("\N{MINUS SIGN}", "-"))
    return Counter(
        (each["sign"] or each["raised"] or "", each["digits"], _PERCENT.get(each["percent"], "%"))
        for each in found
    )


def _bare(text: str) -> list[str]:
    return re.findall(r"\w+", normalise(text, "case"))
