"""Text from outside, made safe to show: on a terminal, in a log, in a shell, in Markdown.

Prompts, data, model files and endpoints may hold sequences that move a terminal's cursor, change
its title or reverse the order of what is read, and Markdown that loads pictures.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Control characters but tab and line end, bidirectional controls, lone surrogates, tags."""
_MARKUP = re.compile(r"([\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)|(?<=:)//|(?<=\bwww)\.)", re.IGNORECASE)
"""What Markdown, and GitHub's tables, formulas and links, read inside a line."""


def visible(text: str) -> str:
    """A text whose control characters are shown as JSON writes them: JSON stays the same value."""
    return _UNSEEN.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(rf"\u{data[start : start + 4]}" for start in range(0, len(data), 4))


def shell_words(words: Sequence[str]) -> str:
    """A command for a shell, in which every word is what it is here."""
    return shlex.join(words)


def near(path: str) -> str:
    """A path as it is called from the working directory, where it lies below that."""
    inside = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if inside else path


def markdown(text: str) -> str:
    """A text as it stands, for the inside of a line or of a table's cell in Markdown."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))


def markdown_code(text: str) -> str:
    """A text as inline code of Markdown; not in a table, of which a bar would end the cell."""
    text = " ".join(visible(text).split())
    ticks = "`" * _more_than(re.findall("`+", text), 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def markdown_block(text: str, language: str = "") -> str:
    """A text as a block of code in Markdown, which nothing in it ends."""
    fence = "`" * _more_than(re.findall(r"^[ \t]*(`+)", text, re.MULTILINE), 3)
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def _more_than(runs: Sequence[str], fewest: int) -> int:
    return max([fewest, *(len(run) + 1 for run in runs)])
