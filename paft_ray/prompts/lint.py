"""Lint of templates and instructions: slots, brackets, given answers, topic, length.

Every pattern takes a time that grows with the text's length, however hostile the text is.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain

from paft_ray.config import LintConfig
from paft_ray.config.task import DEMONSTRATIONS_SLOT
from paft_ray.prompts.template import Template, clean, count_words, names_in_braces, parse
from paft_ray.tasks.example import Task

EMPTY = "empty"
REFUSAL = "refusal"
UNKNOWN_SLOT = "unknown_slot"
ESCAPED_SLOT = "escaped_slot"
MISSING_SLOT = "missing_slot"
REPEATED_SLOT = "repeated_slot"
MISPLACED_SLOT = "misplaced_slot"
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

_WORDS_IN_BRACES = re.compile(r"\{[ \t]*[^\W\d][\w.-]*+(?: [\w.-]++)+[ \t]*\}")
_BRACKETED = re.compile(r"\[([^\[\]\n]{1,200})\](?!\()")
_ANGLED = re.compile(r"<([A-Za-z][^<>\n]{0,200})>")
_CLOSING = re.compile(r"\[/[^\[\]\n]{1,200}\]|</[A-Za-z][^<>\n]{0,200}>")
_LOOKS_BACK = 200
"""Characters of a line that are looked at to see whether brackets begin it."""
_LISTED = re.compile(
    r"(?:[^\W_]-[^\W_]|\\\w)+[^\W_]*|[\"'].*|[\w.+-]+(?: *[,|/] *[\w.+-]+)+|\.\.\.", re.DOTALL
)
_OF_ANSWERS = re.compile(
    r"(?:final[ _-]?)?(?:answer|label|output|response|result|reasoning|thinking|think|eos|sep|s)",
    re.IGNORECASE,
)
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


def lint(
    text: str, task: Task, config: LintConfig, *, authored: bool = False, escapes: bool = False
) -> LintResult:
    """Clean a whole template and name the first reason, if any, for which it cannot be used.

    Args:
        text: The template.
        task: For its slots and answers.
        config: The rules.
        authored: An LLM wrote it, which may ask with brackets or words in braces for something to
            be filled in; what a user wrote shows these as text.
        escapes: `\\n` and `\\t` stand for a line end and a tab, as in what an LLM wrote.
    """
    text = clean(text, escapes=authored or escapes)
    template = parse(text, task.slots)
    literal = _HOLE.join(template.literals)
    problem = (
        _unusable_text(text, config)
        or _brace_problem(text, template.slots, task, () if authored else (DEMONSTRATIONS_SLOT,))
        or _slot_problem(template, task)
        or (authored and _fill_in_problem(literal, task))
        or _option_problem(template, literal, task)
        or _answer_problem(template, task)
        or _brevity(literal.replace(_HOLE, " "), 1)
    )
    return LintResult(text, *problem) if problem else LintResult(text, None)


def refused_by_rule_1(text: str, task: Task, config: LintConfig, *, escapes: bool) -> bool:
    """Return whether a user's template can be used that earlier versions refused.

    To these every brace that was not a slot's and most brackets were faults.
    """
    literal = _HOLE.join(parse(clean(text, escapes=escapes), task.slots).literals)
    refused = re.search("[{}]", literal) or _bracket_to_fill_in(literal, task, strict=True)
    return bool(refused) and lint(text, task, config, escapes=escapes).problem is None


def lint_instruction(text: str, task: Task, config: LintConfig) -> LintResult:
    """Clean a bare instruction (one line, no slots) and name the first reason to refuse it."""
    text = " ".join(clean(text, escapes=True).split())  # only LLMs write these
    problem = (
        _unusable_text(text, config)
        or _slot_in_instruction(text, task)
        or _brace_problem(text, (), task)
        or _fill_in_problem(text, task)
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


def _brace_problem(
    text: str, slots: Sequence[str], task: Task, more: Sequence[str] = ()
) -> _Problem:
    """A bare word in braces that is no slot, or a slot only as text. All other braces are text.

    Args:
        text: The text.
        slots: The slots of the task that it holds.
        task: The task.
        more: Names that may stand in braces besides.
    """
    for word, is_text in names_in_braces(text):
        name = word.strip()
        if is_text and name in task.slots and name not in slots:
            return ESCAPED_SLOT, f"{{{{{word}}}}}; write {{{name}}}"
        if not is_text and word not in (*task.slots, *more):
            [nearest] = get_close_matches(name, task.slots, 1, 0.0) or [""]
            slot = f"write {{{nearest}}}, or " if nearest else "write "
            return UNKNOWN_SLOT, f"{{{word}}}; {slot}{{{{{name}}}}} for braces that are text"
    return None


def _slot_problem(template: Template, task: Task) -> _Problem:
    for slot in task.slots:
        if (times := template.slots.count(slot)) != 1:
            name = "{" + slot + "}"
            return (REPEATED_SLOT, f"{name} {times} times") if times else (MISSING_SLOT, name)
    if template.halves is not None:
        names = names_in_braces(template.text)
        name = "{" + DEMONSTRATIONS_SLOT + "}"
        if (times := sum(word == (DEMONSTRATIONS_SLOT, False) for word in names)) > 1:
            return REPEATED_SLOT, f"{name} {times} times"
        if not template.halves[1].text.strip():
            return MISPLACED_SLOT, f"{name} at the end, where the answer begins"
    return None


def _slot_in_instruction(text: str, task: Task) -> _Problem:
    """A slot in what is still to be placed in a layout, which has every slot already."""
    slots = parse(text, task.slots).slots
    return (REPEATED_SLOT, f"{{{slots[0]}}} in an instruction") if slots else None


def _fill_in_problem(literal: str, task: Task) -> _Problem:
    """Brackets, or words in braces, that ask to be filled in."""
    if words := _WORDS_IN_BRACES.search(literal):
        return UNKNOWN_SLOT, words[0]
    bracket = _bracket_to_fill_in(literal, task)
    return (UNFILLED_BRACKET, bracket.replace(_HOLE, "{...}")) if bracket else None


def _bracket_to_fill_in(literal: str, task: Task, strict: bool = False) -> str:
    """The first bracket that asks to be filled in; strictly, all do but markup."""
    closing = {found[0].lower() for found in _CLOSING.finditer(literal)}
    for found in chain(_BRACKETED.finditer(literal), _ANGLED.finditer(literal)):
        text = not strict and _is_code(found, literal)
        if not (text or _is_markup(found, literal, closing, task)):
            return found[0]
    return ""


def _is_code(found: re.Match[str], literal: str) -> bool:
    """Return whether brackets are a type, a pattern, a list or a place for the answer.

    `List[str]`, `[A-Za-z]`, `[a, b]`, `["yes"]`, `<answer>`; what asks to be filled in is none.
    """
    inside = found[1].strip()
    if _FILL_ME_IN.search(inside):
        return False
    if found[0].startswith("<"):
        return _OF_ANSWERS.fullmatch(inside) is not None
    before = literal[max(0, found.start() - 1) : found.start()]
    after = literal[found.end() : found.end() + 1]
    attached = before.isalnum() or before == "_" or after in ("+", "{")
    return attached or _LISTED.fullmatch(inside) is not None


def _is_markup(found: re.Match[str], literal: str, closing: Set[str], task: Task) -> bool:
    """Return whether brackets are part of the text rather than something to be filled in."""
    inside = found[1].strip()
    if _HOLE in inside or not re.search(r"[^\W\d_]", inside):
        return True
    if task.choices and all(_mentions(inside, choice) for choice in task.choices):
        return True
    if found[0].startswith("["):
        line = literal[max(0, found.start() - _LOOKS_BACK) : found.start()].rpartition("\n")[2]
        is_heading = not line.strip(" *#-_") or _SLOT_FOLLOWS.match(literal, found.end())
        is_paired = inside.startswith("/") or f"[/{inside}]".lower() in closing
        short = count_words(inside) <= 3 and not _FILL_ME_IN.search(inside)
        return is_paired or bool(is_heading and short)
    tag = inside.split()[0].rstrip("/").lower()
    return tag in _MARKUP or f"</{tag}>" in closing


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
        return r"[-+]?\$?\d[\d,.]*+"
    return "|".join(rf"{re.escape(choice.strip())}(?!\w)" for choice in task.choices)


def _mentions(text: str, choice: str) -> bool:
    return _mention(choice).search(text) is not None


@lru_cache(4096)
def _mention(choice: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", re.IGNORECASE)


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
