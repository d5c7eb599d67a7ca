"""Templates: cleaning, parsing and rendering them, all of it safe against hostile text.

A template is text that holds each slot of its task once, as `{slot}`. It was written by an LLM or
a stranger: nothing here evaluates it, `str.format` is not used, and whatever is no known slot is
plain text, braces included. Only a name in two braces, `{{name}}`, stands for another text, which
is `{name}`. What is wrong with a template is found by `lint`.

`{demonstrations}` is no slot of a task: where it stands, solved examples are shown; where none are,
it leaves nothing behind, no blank line either. A blank line sets demonstrations apart from what
stands right beside the slot.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from paft_ray.config.errors import TemplateError
from paft_ray.config.task import DEMONSTRATIONS_SLOT

_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f\u200b\u2060\ufeff]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# the exceptions are LaTeX: \nabla, \neq, \theta, \times, ...
_ESCAPED_LINE_END = re.compile(r"(?:\\{1,3}r)?\\{1,3}n(?!abla\b|eq?\b|eg\b|ot(?:in)?\b|u\b|mid\b)")
_ESCAPED_TAB = re.compile(r"\\{1,3}t(?!ext|frac|heta\b|imes\b|au\b|o\b|an\b|op\b|riangle)")
_LINE_BEGINS = re.compile(r"\{[^\W\d]|\d{1,2}[.)][ \t]|[#•]|[-*][ \t]|[^\W\d]\w*(?: \w+)?[ \t]?:")
_SLOT_ENDS = re.compile(r"\{[^\W\d]\w*\}[ \t]*\Z")
_NEAR = 60
"""Characters around an escaped line end that are looked at."""
_NAME = r"[ \t]*+[^\W\d]\w*+(?:[.-]\w++)*+[ \t]*+"
_NAME_IN_BRACES = re.compile(rf"\{{(\{{{_NAME}\}})\}}|\{{({_NAME})\}}")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Template:
    """A text with slots, taken apart."""

    text: str
    parts: tuple[str, ...]
    """Literal text at even places, slot names at odd ones; without `{demonstrations}`."""
    halves: "tuple[Template, Template] | None" = None
    """What stands before and behind `{demonstrations}`; None without it."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots in the order of the text."""
        return self.parts[1::2]

    @property
    def literals(self) -> tuple[str, ...]:
        """The text before, between and after the slots: one more than there are slots."""
        return self.parts[::2]

    def render(self, fields: Mapping[str, str]) -> str:
        """The text with every slot replaced by its field, in one pass; fields are never rescanned.

        Raises:
            TemplateError: There is no field for a slot.
        """
        try:
            return "".join(
                fields[part] if index % 2 else part for index, part in enumerate(self.parts)
            )
        except KeyError as error:
            raise TemplateError(
                f"the template has a slot {error.args[0]!r}, and the fields are only "
                f"{sorted(fields)}: map the field, or take the slot out of the template"
            ) from error


def parse(text: str, slots: Sequence[str]) -> Template:
    """Take a text apart at its known slots; every text is a template, if maybe a useless one."""
    around = _around_demonstrations(text)
    if around is None:
        return _parsed(text, slots)
    before, behind = around
    blank = not before or before[-1].isspace()
    bare = before + (behind.lstrip() if blank else behind)
    first, second = (_parsed(half, slots) for half in _set_apart(before, behind))
    return replace(_parsed(bare, slots), text=text, halves=(first, second))


def touches_demonstrations(text: str) -> bool:
    """Return whether something stands right beside `{demonstrations}` and is set apart."""
    around = _around_demonstrations(text)
    return around is not None and _set_apart(*around) != around


def _around_demonstrations(text: str) -> tuple[str, str] | None:
    for found in _NAME_IN_BRACES.finditer(text):
        if found[2] == DEMONSTRATIONS_SLOT:
            return text[: found.start()], text[found.end() :]
    return None


def _set_apart(before: str, behind: str) -> tuple[str, str]:
    return (
        f"{before}\n\n" if before and not before[-1].isspace() else before,
        f"\n\n{behind}" if behind and not behind[0].isspace() else behind,
    )


def _parsed(text: str, slots: Sequence[str]) -> Template:
    parts, behind = [""], 0
    for found in _NAME_IN_BRACES.finditer(text):
        shown, name = found.groups()
        if shown is None and name not in slots:
            continue
        parts[-1] += text[behind : found.start()] + (shown or "")
        behind = found.end()
        if shown is None:
            parts += [name, ""]
    parts[-1] += text[behind:]
    return Template(text, tuple(parts))


def names_in_braces(text: str) -> Iterator[tuple[str, bool]]:
    """Every bare word in braces, slots included, and whether two braces make it plain text."""
    for found in _NAME_IN_BRACES.finditer(text):
        shown, name = found.groups()
        yield (name, False) if shown is None else (shown[1:-1], True)


def clean(text: str, *, escapes: bool = False) -> str:
    r"""Undo what chat windows and CRLF did to a text; cleaning twice changes nothing more.

    Invisible characters and trailing spaces go, and three or more line ends in a row become two.

    Args:
        text: Any text.
        escapes: Literal `\n` and `\t` become what they stand for: in what LLMs write, and where a
            text stands on one line. Elsewhere a backslash is a backslash.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be stored
    text = _LINE_ENDS.sub("\n", _INVISIBLE.sub("", text))
    if escapes:
        text = _ESCAPED_TAB.sub("\t", _ESCAPED_LINE_END.sub("\n", text))
    text = "\n".join(line.rstrip(" \t") for line in text.replace("\xa0", " ").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def is_flattened(text: str) -> bool:
    r"""Return whether a text was put on one line, with literal `\n` where its lines ended.

    What people publish often was. It has no line end of its own, and behind a `\n` of its begins
    what begins a line, or a slot ends before it; `Separate words by \n.`, `\d+\n` and `C:\new`
    show a backslash.
    """
    line = text.strip()
    if "\n" in line or _LINE_ENDS.search(line):
        return False
    ends = [found.span() for found in _ESCAPED_LINE_END.finditer(line)]
    return any(_parts(line[max(0, a - _NEAR) : a], line[b : b + _NEAR]) for a, b in ends)


def _parts(before: str, after: str) -> bool:
    after = after.lstrip(" \t")
    begins = after[:1].isalpha() and not after[:1].islower()
    return begins or bool(_LINE_BEGINS.match(after) or _SLOT_ENDS.search(before))


def count_words(text: str) -> int:
    """Count the words of a text; in Chinese and Japanese every character counts."""
    return len(_WORD.findall(text))
