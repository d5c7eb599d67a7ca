"""Layouts: the grammar that makes them, and the layout of a template from the wild.

A prompt is an instruction in a layout: order of instruction and slots, field names, separators,
answer cue. `enumerate_layouts` lists the layouts of a task, `compose` puts an instruction into
one. `layout_of` reads the layout off any template, as a key that is the same for templates that
differ in nothing but wording; `instruction_of` is what remains. For grammar layouts the key is
known (`Layout.key`) and is the one that `layout_of` finds in the composed text, as long as the
instruction is a plain line of more than a word or two, without symbols that mark fields.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from paft_ray.prompts.template import clean, count_words, parse
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

INSTRUCTION = "{instruction}"
"""Where the wording stands, in a skeleton and in a key."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All of a prompt but its wording."""

    id: str
    """Sixteen hex digits of the skeleton."""
    skeleton: str
    """Text with `{instruction}` and every slot of the task, each once."""
    key: str
    """What `layout_of` makes of it: equal keys are the same layout."""
    place: int
    """Where in the skeleton `{instruction}` begins; a slot may have that name too."""


_SEPARATORS = ("\n", "\n\n", " ", " | ", "\n###\n")
_STYLES: Mapping[str, Callable[[str, str], str]] = {
    "bare": lambda name, slot: slot,
    "named": lambda name, slot: f"{name}: {slot}",
    "quoted": lambda name, slot: f'"{slot}"',
    "tagged": lambda name, slot: f"<{_tag(name)}>{slot}</{_tag(name)}>",
    "bold": lambda name, slot: f"**{name}:** {slot}",
    "bracketed": lambda name, slot: f"[{name}] {slot}",
    "heading": lambda name, slot: f"### {name}\n{slot}",
}
_GENERIC_NAMES = ("Input", "Text")
_OPTIONS: tuple[Callable[[str, str], str], ...] = (
    lambda letter, slot: f"{letter}. {slot}",
    lambda letter, slot: f"({letter}) {slot}",
    lambda letter, slot: f"{letter}: {slot}",
)
_CUES = ("Answer:", "Output:", "Response:", "->", "The answer is")
_CUES_OF_CHOICES = ("A:", "Label:", "Result:")
_CUES_OF_OPTIONS = ("Choice:",)
_CUES_OF_FREE_TEXT = ("A:", "Solution:", "Result:")
_UNMARKED = ("The answer is", "A:")
"""On one line with an instruction that has no full stop, these could not be told from it."""
_NICE_NAMES: Mapping[str, str] = {"ctx": "Context", "sent": "Sentence", "q": "Question"}


def enumerate_layouts(task: Task) -> tuple[Layout, ...]:
    """Every layout that the grammar has for a task, no two with the same key, in a fixed order."""
    choices = task.choices if task.choices_as is None else None  # a slot shows those of a row
    return _enumerate(_Shape(task.slots, tuple(task.option_slots.items()), choices))


def compose(instruction: str, layout: Layout) -> str:
    """The template text of an instruction in a layout; the instruction is inserted verbatim."""
    before, after = layout.skeleton[: layout.place], layout.skeleton[layout.place :]
    return before + instruction + after.removeprefix(INSTRUCTION)


def layout_of(text: str, slots: Sequence[str]) -> str:
    """The layout of a whole template as a key: its pieces in order, with the wording replaced.

    Kept are the slots, field names (up to two words and a colon in front of a slot, or marked
    up), option letters, a list of the choices, separators, line ends and the answer cue, in lower
    case; every stretch of wording becomes `{instruction}`.
    """
    key: list[str] = []
    space = ""
    previous = ""
    for kind, piece in _pieces(text, slots):
        if kind == "space":
            space += piece
            continue
        if kind == previous == "words":
            space = ""
            continue
        if key:
            key.append(_normal_space(space, beside_words="words" in (kind, previous)))
        key.append(INSTRUCTION if kind == "words" else " ".join(piece.lower().split()))
        space, previous = "", kind
    return "".join(key)


def instruction_of(text: str, slots: Sequence[str]) -> str:
    """The wording of a template without its layout and slots.

    A template without any wording has its field names and cue for an instruction, so that two
    such templates can still be compared.
    """
    pieces = _pieces(text, slots)
    words = [piece for kind, piece in pieces if kind == "words"]
    return " ".join(words or [piece for kind, piece in pieces if kind == "label"])


def wording_spans(text: str, slots: Sequence[str]) -> list[tuple[int, int]]:
    """Where the wording of a template stands in it, in order: no layout, slot or answer cue."""
    found: list[tuple[int, int]] = []
    end = 0
    for kind, piece in _pieces(text, slots):
        start = text.find(piece, end)
        if start < 0:
            continue
        end = start + len(piece)
        if kind == "words":
            found.append((start, end))
    return found


class _Shape(NamedTuple):
    """The parts of a task that the grammar uses."""

    slots: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    """Slot and letter."""
    choices: tuple[str, ...] | None


@lru_cache(maxsize=16)
def _enumerate(shape: _Shape) -> tuple[Layout, ...]:
    options = dict(shape.options)
    fields = [slot for slot in shape.slots if slot not in options]
    found: dict[str, Layout] = {}
    for separator, (names, style), make_option in product(
        _SEPARATORS, _name_styles(len(fields)), _OPTIONS if options else (None,)
    ):
        if "\n" in _STYLES[style]("", "") and "\n" not in separator:
            continue  # a heading needs lines
        blocks = [
            _STYLES[style](name, "{" + slot + "}")
            for slot, name in zip(fields, names or [_name_of(s) for s in fields], strict=True)
        ]
        if make_option:
            blocks.append(_option_block(shape, make_option, separator))
        for place, choices_line, cue in product(
            range(len(blocks) + 1), _choices_lines(shape, separator), _cues_of(shape)
        ):
            if 1 < place < len(blocks) and place < len(fields):
                continue  # between: behind the first field, or in front of the options
            if separator == " " and place == len(blocks) and (choices_line or cue in _UNMARKED):
                continue
            before = "".join(block + separator for block in blocks[:place])
            after = "".join(separator + x for x in (*blocks[place:], *choices_line, cue))
            layout = _layout(before, after, shape.slots)
            found.setdefault(layout.key, layout)
    return tuple(found.values())


def _layout(before: str, after: str, slots: Sequence[str]) -> Layout:
    skeleton = before + INSTRUCTION + after
    # any plain sentence would do: the key does not depend on it
    spoken = f"{before}Please do with all of this what you are asked to do.{after}"
    name = fingerprint(skeleton, len(before))
    return Layout(name, skeleton, layout_of(spoken, slots), len(before))


def _name_styles(fields: int) -> Iterator[tuple[list[str] | None, str]]:
    """Field names (None for those of the slots) with the style they are written in."""
    for style in _STYLES:
        yield None, style
    for name in _GENERIC_NAMES:
        yield [name if fields == 1 else f"{name} {i + 1}" for i in range(fields)], "named"


def _name_of(slot: str) -> str:
    words = slot.replace("_", " ").split()[-2:]  # a longer name would read as wording
    name = " ".join(words) or slot
    return _NICE_NAMES.get(name, name[:1].upper() + name[1:])


def _tag(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


def _option_block(shape: _Shape, make: Callable[[str, str], str], separator: str) -> str:
    order = shape.choices or tuple(sorted(letter for _, letter in shape.options))
    options = sorted(shape.options, key=lambda option: order.index(option[1]))
    joint = "\n" if "\n" in separator else separator
    return joint.join(make(letter, "{" + slot + "}") for slot, letter in options)


def _choices_lines(shape: _Shape, separator: str) -> Sequence[tuple[str, ...]]:
    """No line, or one that lists the choices; options with letters are already on show."""
    if not shape.choices or len(shape.choices) > 12 or (shape.options and separator != "\n"):
        return [()]
    return [(), (f"Choices: {', '.join(shape.choices)}",)]


def _cues_of(shape: _Shape) -> tuple[str, ...]:
    if shape.options:
        return _CUES + _CUES_OF_OPTIONS
    return _CUES + (_CUES_OF_CHOICES if shape.choices else _CUES_OF_FREE_TEXT)


_SYMBOL = re.compile(
    r"(\s*\n\s*|\|+|#{2,}|(?<!\S)#(?=\s)|[-=]+>|→|-{3,}|={3,}|~{3,}|\*{2,}"
    r"|</?[A-Za-z][\w -]{0,40}>|\[[^\[\]\n]{1,30}\])"
)
_QUOTES_AFTER = re.compile(r"(?:[\"“”`»)\]*_]|['’](?!\w))+")
_QUOTES_BEFORE = re.compile(r"[\"“`«(\[*_]+\Z|(?<!\w)['‘]+\Z")
_SENTENCE_END = re.compile(r"(?<=[.!?])([\"'”’)]*\s*)(?=[A-Z\"'“(])")
_FIELD_NAME = re.compile(r"\s*([^\s:/]+(?: [^\s:/]+)?\s?:)(?=\s|\Z)")
_LIST_NAME = re.compile(r"(?:\w+ )?(?:choices|options|labels|answers|classes|categories)\s?:", re.I)
_TRAILING_NAME = re.compile(r"(?<=\S)(\s+)([A-Z][\w'’-]+(?: [\w'’-]+)?:)(\s*)\Z")
_OPTION_LETTER = re.compile(
    r"(?:\A|(?<=[\s.!?:;,|(]))"
    r"((?:[-*•]\s*)?(?:[Oo]ption |[Cc]hoice )?[(\[]?[A-Za-z0-9][).:\]]{1,2})(\s*)\Z"
)
_REAL_WORD = re.compile(r"[^\W_]{2}|[\u3040-\u30ff\u3400-\u9fff]")
_BEFORE_NO_OPTION = re.compile(
    r"\b(?:or|and|option|choice|letter|with|is|either|between|pick|choose|select|from)\Z", re.I
)


def _pieces(text: str, slots: Sequence[str]) -> list[tuple[str, str]]:
    """A template as (kind, text), the kind being slot, space, label or words."""
    template = parse(clean(text), slots)
    last = len(template.literals) - 1
    pieces: list[tuple[str, str]] = []
    for index, literal in enumerate(template.literals):
        found = list(_literal_pieces(literal, index > 0, index < last))
        pieces += _with_cue(found) if index == last else found
        if index < last:
            pieces.append(("slot", "{" + template.slots[index] + "}"))
    following = ""
    for index in range(len(pieces) - 1, -1, -1):
        kind, piece = pieces[index]
        if kind == "name":  # "Hint: look closely" is wording, "Hint: {slot}" is not
            kind = "words" if following == "words" else "label"
            pieces[index] = (kind, piece)
        following = following if kind == "space" else kind
    return pieces


def _literal_pieces(
    literal: str, behind_slot: bool, before_slot: bool
) -> Iterator[tuple[str, str]]:
    """The pieces of the text between two slots."""
    if behind_slot:
        if quote := _QUOTES_AFTER.match(literal):
            yield "label", quote[0]
            literal = literal[quote.end() :]
        literal = re.sub(r"\A[.,;:!?]+", "", literal)  # ends a sentence that the slot is part of
    quote = _QUOTES_BEFORE.search(literal) if before_slot else None
    chunks = _SYMBOL.split(literal[: quote.start()] if quote else literal)
    heading = False
    for index, chunk in enumerate(chunks):
        if index % 2:
            yield ("space" if chunk.isspace() else "label"), chunk
            heading = chunk.startswith("#")
        elif heading and count_words(chunk) in (1, 2, 3):
            yield from _spaced("label", chunk)
        else:
            at_end = before_slot and not quote and index == len(chunks) - 1
            yield from _phrases(chunk, at_end)
    if quote:
        yield "label", quote[0]


def _phrases(chunk: str, before_slot: bool) -> Iterator[tuple[str, str]]:
    """Field names (of kind name), option letters, lists of the choices and wording of one line."""
    letter = _OPTION_LETTER.search(chunk) if before_slot else None
    if letter and letter[1][0] not in "([":
        no_option = _BEFORE_NO_OPTION.search(chunk[: letter.start()].strip())
        if no_option and no_option.start() > 0:  # "answer with A or B. {slot}" names no option
            letter = None
    body = chunk[: letter.start()] if letter else chunk
    for index, sentence in enumerate(_SENTENCE_END.split(body)):
        if index % 2:
            yield "space", sentence.lstrip("\"'”’)")
            continue
        kind = "words"
        while name := _FIELD_NAME.match(sentence):
            lists_choices = _LIST_NAME.fullmatch(name[1])
            kind = "label" if lists_choices else kind
            yield from _spaced("label" if lists_choices else "name", sentence[: name.end()])
            sentence = sentence[name.end() :]
        if name := _TRAILING_NAME.search(sentence):
            yield from _spaced(kind, sentence[: name.start()])
            yield from (("space", name[1]), ("name", name[2]), ("space", name[3]))
        else:
            yield from _spaced(kind, sentence)
    if letter:
        yield from (("label", letter[1].strip()), ("space", letter[2]))


def _with_cue(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pieces behind the last slot; a few words at their end are the answer cue."""
    for index in range(len(pieces) - 1, -1, -1):
        kind, piece = pieces[index]
        if kind == "words":
            asks = piece.endswith("?")
            short = count_words(piece) <= (2 if asks else 4) and (asks or piece[-1] not in ".!")
            return [*pieces[:index], ("label", piece), *pieces[index + 1 :]] if short else pieces
        if kind != "space":
            break
    return pieces


def _spaced(kind: str, text: str) -> Iterator[tuple[str, str]]:
    """A piece with the white space around it as pieces of their own."""
    stripped = text.strip()
    if not stripped:
        yield "space", text
        return
    if kind == "words" and not _REAL_WORD.search(stripped):
        kind = "label"  # "A/B" lists answers
    start = text.index(stripped)
    yield from (("space", text[:start]), (kind, stripped), ("space", text[start + len(stripped) :]))


def _normal_space(space: str, beside_words: bool) -> str:
    if lines := space.count("\n"):
        return "\n" * min(lines, 2)
    return " " if space or beside_words else ""
