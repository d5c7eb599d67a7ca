"""Completions of LLMs, and the candidate prompt that each one holds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paft_ray.prompts.generate.meta_prompt import Form


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a request: a text or an error, never neither."""

    request_id: str
    text: str | None
    """The answer; None where the request failed."""
    error: str | None
    """Why it failed, in a few words."""
    status: int | None
    """The HTTP status, where there was one."""
    attempts: int
    seconds: float
    """Wall time, retries included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def parse_completion(text: str, form: Form) -> str | None:
    """The candidate in an LLM's answer, without the talk around it; None where there is none.

    Reasoning in tags, code fences, numbering, quotes and lead-ins such as "Here is ..." go. Of
    several templates the first counts; of an instruction, the first sentence.
    """
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.DOTALL).strip()
    if fence := re.search(r"```[\w-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", text, re.DOTALL):
        text = fence[1]
    text = text.replace("\r\n", "\n").strip().strip("`").strip()
    found = _instruction_in(text) if form == "instruction" else _template_in(text)
    return found or None


_CHAT = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok|great)\b[^\w\n]*)?"
    r"(?:here(?:'s|’s| is| are)\b[^:\n{]*:|(?:sure|certainly|of course|okay|ok)[!,.:]+)\s*",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"(?:[-*•]\s+|\(?\d{1,2}[.):]\s+|#{1,4}\s+)(?=\S)")
_NAMED = r"(?:\*\*|__)?(?:{})s?(?:\s+\d+)?\s*(?:\*\*|__)?\s*(?::|\n|\Z)\s*(?:\*\*|__)?\s*"
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
_AFTERWORD = re.compile(
    r"\n\s*\n(?:\*\*)?(?:(?:this|the above|that) (?:prompt|template)|note\b|explanation\b|i hope"
    r"|let me know|in this template|feel free)(?:(?!\{).)*\Z",
    re.IGNORECASE | re.DOTALL,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "`": "`"}


def _instruction_in(text: str) -> str:
    """The first sentence that is not talk about the sentence."""
    for line in text.split("\n"):
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
    return _unquote(_AFTERWORD.sub("", text).strip())


def _peel(text: str, leads: Sequence[re.Pattern[str]]) -> str:
    """A text without any of these at its beginning, however often they come."""
    peeled = True
    while peeled:
        peeled = False
        for lead in leads:
            if found := lead.match(text):
                text, peeled = text[found.end() :].lstrip(), True
    return text


def _unquote(text: str) -> str:
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text[1:].find(closing) == len(text) - 2:
        return text[1:-1].strip()
    return text
