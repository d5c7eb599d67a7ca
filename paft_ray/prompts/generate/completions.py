"""Completions of LLMs, and the candidate prompt that each one holds.

Every pattern takes a time that grows with the answer's length, however hostile the answer is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from paft_ray.prompts.generate.meta_prompt import Form
from paft_ray.prompts.generate.reasoning import thinks_aloud, without_reasoning

CUT_OFF = "length"
FILTERED = "content_filter"
REFUSED = "refusal"
_LONGEST = 200_000
"""Characters of the longest answer that is looked at, reasoning included."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a request: a text or an error, never neither."""

    request_id: str
    text: str | None
    """The answer, empty where a model was paid for none; None where the request failed."""
    error: str | None
    """Why it failed, in a few words."""
    status: int | None
    """The HTTP status, where there was one."""
    attempts: int
    seconds: float
    """Wall time, retries included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    """Why the answer ends: `stop`, or one of this module's constants; empty in answers that
    earlier versions kept."""
    left_out: str = ""
    """Parameters that the endpoint refused and the request was sent without, with commas."""
    reasoned: bool = False
    """The endpoint showed its reasoning beside the answer."""

    @property
    def billed_tokens(self) -> int:
        """Completion tokens that a budget counts: the bytes of a text that nobody counted."""
        return self.completion_tokens or len((self.text or "").encode("utf-8", "replace"))


def candidate_in(
    answer: Completion, form: Form | Literal["text"], max_tokens: int
) -> tuple[str | None, str]:
    """The candidate in an LLM's answer, or None and the reason why it holds none; or any text.

    An answer that was cut off behind the candidate holds it whole.
    """
    text, finish = answer.text or "", answer.finish_reason
    if finish in (FILTERED, REFUSED):
        return None, {FILTERED: "filtered", REFUSED: "refused"}[finish]
    if len(text) > _LONGEST:
        return None, "too_long"
    cut_off = finish == CUT_OFF or (not finish and 0 < max_tokens <= answer.completion_tokens)
    said = without_reasoning(text)
    if said is None or not said.strip():
        return None, "cut_off" if cut_off else "only_reasoning" if text.strip() else "no_text"
    if thinks_aloud(said):
        return None, "cut_off" if cut_off else "untagged_reasoning"
    found = _prompt_in(said, form)
    if found is not None and cut_off and _prompt_in(f"{said}x", form) != found:
        return None, "cut_off"
    return found, "" if found is not None else "no_prompt_found"


def holds_talk(text: str, original: str) -> bool:
    """Whether a text found by `candidate_in`, which stands for another, still has talk around it.

    Talk are more paragraphs than the other text has, more lines where that has one, quotes around
    the whole, and sentences that speak to a reader, unless the other text has them too.
    """
    line_breaks = "\n" in text and "\n" not in original.strip()
    if line_breaks or _paragraphs(text) > _paragraphs(original):
        return True
    signs = (_quoted, _TALK_BEGINS.match, _speaks_to_reader)
    return any(sign(text) and not sign(original.strip()) for sign in signs)


def _paragraphs(text: str) -> int:
    return sum(filled for filled, _ in groupby(bool(line.strip()) for line in text.split("\n")))


def _quoted(text: str) -> bool:
    return len(text) > 1 and text[-1] == _QUOTES.get(text[0])


def _speaks_to_reader(text: str) -> bool:
    sentences = re.split(r"(?<=[.!?:\"”»)])\s+", text)
    return any(_TALK.match(sentence) for sentence in sentences)


def _prompt_in(text: str, form: Form | Literal["text"]) -> str | None:
    """The candidate in what an LLM said, without the talk around it; None where there is none.

    Code fences, numbering, quotes and lead-ins such as "Here is ..." go. Of several templates the
    first counts; of an instruction, the first sentence.
    """
    text = text.strip()
    if fence := re.search(r"```[\w-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", text, re.DOTALL):
        text = fence[1]
    text = text.replace("\r\n", "\n").strip().strip("`").strip()
    wrapped = _WRAPPED.fullmatch(text)
    if wrapped and f"</{wrapped[1]}>" not in wrapped[2]:
        text = wrapped[2].strip()
    if form == "text":
        found = _unquote(_peel(text, (_CHAT, _NAMED_TEXT)).strip())
    else:
        found = _instruction_in(text) if form == "instruction" else _template_in(text)
    return found or None


_WRAPPED = re.compile(
    r"<((?:final_?)?(?:answer|output|prompt|instruction|response|template|result))>(.*)</\1>",
    re.DOTALL | re.IGNORECASE,
)
_CHAT = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok|great)\b[^\w\n]*)?"
    r"(?:here(?:'s|’s| is| are)\b[^:\n{]*:|(?:sure|certainly|of course|okay|ok)[!,.:]+)\s*",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"(?:[-*•]\s+|\(?\d{1,2}[.):]\s+|#{1,4}\s+)(?=\S)")
_NAMED = (
    r"(?:\*\*|__)?(?:{})s?(?:\s++\d++)?[^\S\n]*+(?:\*\*|__)?[^\S\n]*+(?::|\n|\Z)"
    r"\s*+(?:\*\*|__)?\s*+"
)
_NAMED_INSTRUCTION = re.compile(
    _NAMED.format(
        r"(?:(?:new|final|my|the|your|one)\s+)?"
        r"(?:instruction|sentence|prompt|question|answer|output|response|task|command)"
    ),
    re.IGNORECASE,
)
_NAMED_TEMPLATE = re.compile(
    _NAMED.format(r"(?:(?:new|final|my|the|your|prompt)\s+)?(?:template|prompt|example)"),
    re.IGNORECASE,
)
_NAMED_TEXT = re.compile(
    _NAMED.format(
        r"(?:(?:new|rewritten|rephrased|paraphrased|the)\s+)?(?:text|version|paraphrase)"
    ),
    re.IGNORECASE,
)
_AFTERWORD = re.compile(
    r"(?:\*\*)?(?:(?:this|the above|that) (?:prompt|template)|note\b|explanation\b|i hope"
    r"|let me know|in this template|feel free)",
    re.IGNORECASE,
)
_TALK = re.compile(
    r"\W*(?:i hope (?:this|that|it)\b|let me know\b|feel free\b|(?:please )?note(?: that\b|:))",
    re.IGNORECASE,
)
_TALK_BEGINS = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay|ok)\b|here(?:'s|’s| is| are)\b)",
    re.IGNORECASE,
)
_BLANKS = re.compile(r"\s*+")
_LINE_ENDS = re.compile(r"\n\s*+")
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "`": "`"}


def _instruction_in(text: str) -> str:
    """The first sentence that is not talk about the sentence."""
    for line in text.split("\n"):
        if not line or line.isspace():
            continue
        line = _peel(line.strip(), (_CHAT, _NUMBERING, _NAMED_INSTRUCTION))
        line = re.sub(r"\*\*|__", "", line).strip()
        if re.search(r"\w", line):
            return _unquote(_first_sentence(_unquote(line)))
    return ""


def _first_sentence(line: str) -> str:
    """Up to the first full stop that ends at least five words: "Read it." alone asks nothing."""
    for end in re.finditer(r"(?<!\be\.g)(?<!\bi\.e)[.!?][\"'”’)]*(?=\s+[\"'“(]?[A-Z])", line):
        if len(line[: end.end()].split()) >= 5:
            return line[: end.end()]
    return line


def _template_in(text: str) -> str:
    """The first template, without lead-in and afterword."""
    text = _peel(text, (_CHAT, _NAMED_TEMPLATE))
    numbered = list(re.finditer(r"^\(?[12][.)]\s+", text, re.MULTILINE))
    if numbered and numbered[0].start() == 0:
        end = numbered[1].start() if len(numbered) > 1 else len(text)
        first, others = text[numbered[0].end() : end], text[end:]
        repeats = set(re.findall(r"\{\w+\}", first)) & set(re.findall(r"\{\w+\}", others))
        if repeats or not others:  # a list of templates, not a template that holds a list
            text = first
    return _unquote(_without_afterword(text).strip())


def _without_afterword(text: str) -> str:
    """A text up to the paragraph of talk after its last brace, if there is one."""
    for gap in _LINE_ENDS.finditer(text, text.rfind("{") + 1):
        blank_line = gap[0].count("\n") > 1 and gap[0].endswith("\n")
        if blank_line and _AFTERWORD.match(text, gap.end()):
            return text[: gap.start()]
    return text


def _peel(text: str, leads: Sequence[re.Pattern[str]]) -> str:
    """A text without any of these at its beginning, however often they come."""
    start, peeled = 0, True
    while peeled:
        peeled = False
        for lead in leads:
            if (found := lead.match(text, start)) and found.end() > start:
                start, peeled = _BLANKS.match(text, found.end()).end(), True  # pyright: ignore
    return text[start:]


def _unquote(text: str) -> str:
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text[1:].find(closing) == len(text) - 2:
        return text[1:-1].strip()
    return text
