"""What `paft init` understands of some data, and what it has to be told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paft_ray.config.errors import ConfigError
from paft_ray.pipeline.question import has_letters
from paft_ray.tasks.guessing import Guess, Look, Said, guess


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that a look at the data does not show."""

    option: str
    """The option of `paft init` that says it."""
    question: str
    default: str
    allowed: tuple[str, ...] = ()
    """The only answers that can be used, where there are such."""
    several: bool = False
    """Whether several of them may be given, with commas between them."""


Ask = Callable[[Unknown], str]


def understand(look: Look, said: Said, ask: Ask) -> tuple[Guess, bool]:
    """The task's section, and whether the user described what the model has to do.

    Args:
        look: The first rows of the data.
        said: What is known of the columns.
        ask: Answers what the look does not show.

    Raises:
        ConfigError: A column does not exist, or no task can be made of the columns.
    """
    if len(look.columns) < 2:
        raise ConfigError(
            f"{look.path}: a task needs a column that the model sees and one with answers, and "
            f"there is only {look.columns[0]}: add the other one"
        )
    said = _name_columns(look, said, ask)
    found = guess(look, said)
    choices = found.section.get("choices")
    if not isinstance(choices, Mapping):
        look.refuse_single_answer(found.section["answer"], None, Said())
    if isinstance(choices, list) and not said.choices and not any(map(has_letters, choices)):
        shown = ", ".join(f"{choice}=WORD" for choice in choices)
        question = f"the words that the model answers with ({shown})"
        words = _words(ask(Unknown("--choices", question, ",".join(choices))))
        if list(words) != choices:
            found = guess(look, replace(said, choices=words))
    section, described = dict(found.section), said.description is not None
    if not described:
        default = section["description"]
        section["description"] = ask(Unknown("--description", "what the model has to do", default))
        described = section["description"] != default
    return Guess(section, found.notes), described


def _name_columns(look: Look, said: Said, ask: Ask) -> Said:
    """What is known of the columns, completed where the look leaves several ways."""
    listed = look.listed(said)
    if said.answer is None and len(found := look.answers(listed)) != 1:
        others = [name for name in look.columns if name != listed]
        default = (found or look.useful(others) or others)[-1]
        question = "the column with the right answer"
        said = replace(said, answer=ask(Unknown("--answer", question, default, tuple(others))))
    if not said.fields:
        answer = said.answer or look.answer(listed)
        taken = {answer, listed, *said.choices_columns}
        texts, clear = look.all_texts(taken)
        if not clear:
            others = [name for name in look.columns if name not in taken]
            default = ", ".join(texts or look.useful(others) or others)
            question = "the columns that the model sees"
            named = ask(Unknown("--field", question, default, tuple(others), several=True))
            said = replace(said, fields=_words(named))
    return said


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def balance(look: Look, section: Mapping[str, Any]) -> list[str]:
    """How often the commonest answer is right, where all rows have the same choices."""
    if not isinstance(section.get("choices"), list):
        return []
    values = look.values(section["answer"])
    [(value, count)] = values.most_common(1)
    share, name = f"{count / values.total():.0%}", section.get("labels", {}).get(value, value)
    return [f"balance: {name} is the answer of {share} of the rows, which a model is to exceed"]
