"""Lint of templates and instructions: slots, brackets, given answers, topic, length."""

import re
from dataclasses import dataclass
from itertools import chain

from paft_ray.config import LintConfig
from paft_ray.prompts.template import Template, clean, count_words, parse
from paft_ray.tasks.example import Task

EMPTY = "empty"
REFUSAL = "refusal"
UNKNOWN_SLOT = "unknown_slot"
STRAY_BRACE = "stray_brace"
MISSING_SLOT = "missing_slot"
REPEATED_SLOT = "repeated_slot"
UNFILLED_BRACKET = "unfilled_bracket"
MISLABELLED_OPTION = "mislabelled_option"
UNLABELLED_OPTION = "unlabelled_option"
ANSWER_GIVEN = "answer_given"
TOO_LONG = "too_long"
ASKS_FOR_A_PROMPT = "asks_for_a_prompt"
TOO_SHORT = "too_short"
OFF_TOPIC = "off_topic"

_HOLE = "\x00"
"""Stands for a slot in the literal text; `clean` removes it from every other text."""

_NAME_IN_BRACES = re.compile(r"\{[ \t]*([\w.-][\w .-]{0,60})\}")
_BRACKETED = re.compile(r"\[([^\[\]\n]{1,200})\](?!\()")
_ANGLED = re.compile(r"<([A-Za-z][^<>\n]{0,200})>")
_SLOT_FOLLOWS = re.compile(rf"[*_:\s]{{0,9}}{_HOLE}")
_MARKUP = frozenset(("b", "br", "em", "h1", "h2", "h3", "hr", "i", "li", "ol", "p", "strong", "ul"))
_FILL_ME_IN = re.compile(
    r"\b(?:insert|describe|enter|add|fill|provide|put|specify|replace|paste|your|here|todo"
    r"|placeholder)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:(?:i'?m|i am|we'?re|we are)\s+(?:really |very |so )?(?:sorry|unable|not able)\b"
    r"|sorry,|as an ai\b|i (?:cannot|can'?t|can not|won'?t)\b)",
    re.IGNORECASE,
)
_ASKS_FOR_A_PROMPT = re.compile(
    r"\b(?:re)?(?:write|create|craft|compose|generate|provide)\s+(?:an?|one|the|your|another)\s+"
    r"(?:\w+\s+){0,2}?(?:(?:instruction|prompt|template)s?\b|sentence that (?:tells|asks)\b)",
    re.IGNORECASE,
)
_OTHER_WORK = re.compile(
    r"(?:^|[.!?:]\s+|\b(?:please|to|and|then|must|should|will)\s+)"
    r"(translate|summari[sz]e|paraphrase|proofread|rewrite|rephrase|"
    r"(?:write|compose)\s+(?:an?|the|your)\s+(?:\w+\s+)?(?:poem|story|song|essay|email|letter|code"
    r"|program|script|summary|article|haiku|joke))\b",
    re.IGNORECASE,
)
_ANSWER_CUE = (
    r"\b(?:answer|label|output|response|result|choice|option|prediction|conclusion|decision"
    r"|verdict|sentiment|classification|category|solution|ending)(?:\s+\w+){0,4}?"
    r"\s*(?:[:=]|[-=]+>|\b(?:is|be|was)\b:?)\s*"
)
# "if it is kind, the answer is positive" explains; "the answer is positive" gives away
_EXPLAINS = re.compile(
    r"\b(?:if|when|whenever|whether|or|either|else|otherwise|what|which|who|how|where|unless"
    r"|example|e\.g|such|like|format|not)\b",
    re.IGNORECASE,
)
_DECLARES = r"\b(?:is|are|was|were|sounds|seems|looks)(?:\s+(?:very|clearly|so|quite|always))?\s+"

_Problem = tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class LintResult:
    """A cleaned text, and the first reason, if any, not to use it."""

    text: str
    """The text after cleaning, which is what is used."""
    problem: str | None
    """Why it cannot be used, one of this module's constants; None where it can."""
    detail: str = ""
    """The offending piece, for a reader."""


def lint(text: str, task: Task, config: LintConfig) -> LintResult:
    """Clean a whole template and name the first reason, if any, for which it cannot be used."""
    text = clean(text)
    template = parse(text, task.slots)
    literal = _HOLE.join(template.literals)
    problem = (
        _unusable_text(text, config)
        or _slot_problem(template, literal, task)
        or _bracket_problem(literal, task)
        or _option_problem(template, literal, task)
        or _answer_problem(template, task)
        or _brevity(literal.replace(_HOLE, " "), 1)
    )
    return LintResult(text, *problem) if problem else LintResult(text, None)


def lint_instruction(text: str, task: Task, config: LintConfig) -> LintResult:
    """Clean a bare instruction (one line, no slots) and name the first reason to refuse it."""
    text = " ".join(clean(text).split())
    problem = (
        _unusable_text(text, config)
        or _any_brace(text)
        or _bracket_problem(text, task)
        or _answer_problem(Template(text, (text,)), task)
        or _brevity(text, config.min_instruction_words)
        or _echo_problem(text)
        or (config.relevance and (other_work(text, task) or _topic_problem(text, task)))
    )
    return LintResult(text, *problem) if problem else LintResult(text, None)


def _unusable_text(text: str, config: LintConfig) -> _Problem:
    if not text:
        return EMPTY, "nothing is left after cleaning"
    if len(text) > config.max_characters:
        return TOO_LONG, f"{len(text)} characters; at most {config.max_characters}"
    if refusal := _REFUSAL.match(text):
        return REFUSAL, refusal[0].strip()
    return None


def _slot_problem(template: Template, literal: str, task: Task) -> _Problem:
    if name := _NAME_IN_BRACES.search(literal):
        return UNKNOWN_SLOT, name[0]
    if problem := _any_brace(literal):
        return problem
    for slot in task.slots:
        if (times := template.slots.count(slot)) != 1:
            name = "{" + slot + "}"
            return (REPEATED_SLOT, f"{name} {times} times") if times else (MISSING_SLOT, name)
    return None


def _any_brace(literal: str) -> _Problem:
    brace = re.search(r"[{}]", literal)
    return (STRAY_BRACE, _around(literal, brace)) if brace else None


def _bracket_problem(literal: str, task: Task) -> _Problem:
    for found in chain(_BRACKETED.finditer(literal), _ANGLED.finditer(literal)):
        if not _is_markup(found, literal, task):
            return UNFILLED_BRACKET, found[0].replace(_HOLE, "{...}")
    return None


def _is_markup(found: re.Match[str], literal: str, task: Task) -> bool:
    """Return whether brackets are part of the text rather than something to be filled in."""
    inside = found[1].strip()
    if _HOLE in inside or not re.search(r"[^\W\d_]", inside):
        return True
    if task.choices and all(_mentions(inside, choice) for choice in task.choices):
        return True
    if found[0].startswith("["):
        start = literal.rfind("\n", 0, found.start()) + 1
        names_slot = _SLOT_FOLLOWS.match(literal, found.end())
        is_heading = names_slot or not literal[start : found.start()].strip(" *#-_")
        is_paired = inside.startswith("/") or f"[/{inside}]" in literal
        short = count_words(inside) <= 3 and not _FILL_ME_IN.search(inside)
        return is_paired or bool(is_heading and short)
    tag = inside.split()[0].rstrip("/").lower()
    return tag in _MARKUP or f"</{tag}>" in literal.lower()


def _option_problem(template: Template, literal: str, task: Task) -> _Problem:
    """An option under another option's letter, or letters that the reader is never shown."""
    letters = {choice.casefold() for choice in task.option_slots.values()}
    for before, slot in zip(template.literals, template.slots, strict=False):
        own = task.option_slots.get(slot)
        label = re.search(r"(?<!\w)(\w+)[\"'*]*\s*[).:\]–=-]+[\"'*\s]*\Z", before)
        if own is None:
            continue
        if label and label[1].casefold() in letters - {own.casefold()}:
            return MISLABELLED_OPTION, f"{label[0].strip()} {{{slot}}}, which is {own}"
        if not _mentions(literal, own):
            return UNLABELLED_OPTION, f"{{{slot}}} is the answer {own!r}, and nothing says so"
    return None


def _answer_problem(template: Template, task: Task) -> _Problem:
    """An answer given where the model should give it: in what follows the last slot."""
    tail = template.literals[-1]
    answer = rf"{_ANSWER_CUE}[\"'(\[*]*(?:{_answers(task)})"
    ends = re.compile(rf"{answer}[\"')\]*]*[.!]*\s*\Z", re.IGNORECASE)
    sentences = re.split(r"\n|(?<=[.!?])\s", tail)
    for sentence in sentences:
        given = ends.search(sentence)
        if given and not _EXPLAINS.search(sentence):
            return ANSWER_GIVEN, given[0]
    if _declares_answer(tail, sentences[-1], task):
        return ANSWER_GIVEN, sentences[-1]
    if template.slots and template.slots[-1] in task.option_slots and not tail:
        option = re.search(rf"{answer}\s*[).:]*\s*\Z", template.literals[-2], re.IGNORECASE)
        if option:
            return ANSWER_GIVEN, f"{option[0].strip()} {{{template.slots[-1]}}}"
    return None


def _declares_answer(text: str, sentence: str, task: Task) -> bool:
    """Return whether the last sentence says what is so ("The review is positive.")."""
    mentioned = [choice for choice in task.choices or () if _mentions(text, choice)]
    if len(mentioned) != 1 or _EXPLAINS.search(sentence):
        return False
    choice = re.escape(mentioned[0].strip())
    ends = rf"{_DECLARES}[\"'(]*{choice}(?!\w)[\"')]*[.!]*\s*\Z"
    return re.search(ends, sentence, re.IGNORECASE) is not None


def _answers(task: Task) -> str:
    """A pattern for any answer of the task; in free text, for a number."""
    if not task.choices:
        return r"[-+]?\$?\d[\d,.]*"
    return "|".join(rf"{re.escape(choice.strip())}(?!\w)" for choice in task.choices)


def _mentions(text: str, choice: str) -> bool:
    pattern = rf"(?<!\w){re.escape(choice.strip())}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _brevity(text: str, fewest: int) -> _Problem:
    if (count := count_words(text)) < fewest:
        return TOO_SHORT, f"{count} words; at least {fewest}"
    return None


def _echo_problem(text: str) -> _Problem:
    """A small model's answer that repeats our question instead of answering it."""
    echo = _ASKS_FOR_A_PROMPT.search(text)
    return (ASKS_FOR_A_PROMPT, echo[0]) if echo else None


def other_work(text: str, task: Task) -> _Problem:
    """Find an instruction for another kind of work than the task's: reason and detail."""
    other = _OTHER_WORK.search(text)
    if other is None or re.search(rf"\b{other[1][:5]}", task.description, re.IGNORECASE):
        return None
    return OFF_TOPIC, f"asks to {other[1].lower()}"


def _topic_problem(text: str, task: Task) -> _Problem:
    """A sentence without a word of the task; "feel" also counts as mentioned by "feelings".

    Whole templates show the task's fields and are not asked for more: of prompts that people wrote
    this would refuse good ones.
    """
    words = task.relevance_words
    if not words or any(re.search(rf"(?<!\w){re.escape(w)}", text, re.IGNORECASE) for w in words):
        return None
    return OFF_TOPIC, f"mentions none of: {', '.join(words)}"


def _around(text: str, found: re.Match[str]) -> str:
    piece = text[max(0, found.start() - 15) : found.end() + 15]
    return piece.replace(_HOLE, "{...}")
