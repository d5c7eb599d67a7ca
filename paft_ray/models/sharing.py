"""Rows in which sequences with a common beginning share its tokens.

Examples under one prompt often begin with its instruction, and the choices of one example with the
whole context. A row holds such a beginning as one part, to which later parts attend.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from paft_ray.models.packing import Part, Row, TokenSequence, assemble_row, deal_rows

_SHORTEST = 4
"""Tokens of the shortest beginning that is worth a part of its own."""


def share_rows(sequences: Sequence[TokenSequence], row_tokens: int) -> list[Row] | None:
    """Deal sequences into rows of parts, of at most `row_tokens` tokens.

    A part is the common beginning of all contexts, the rest of a context, or the tokens of an
    answer. Sequences with the same context stand in the same row.

    Returns:
        The rows, or None where nothing can be shared, or sequences of a context do not fit a row.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_context.setdefault(sequence.input_ids[: sequence.positions[0] + 1], []).append(index)
    contexts = list(by_context)
    common = _common_beginning(contexts)
    if not common and len(contexts) == len(sequences):
        return None
    lengths = [
        len(context) - common + sum(len(sequences[i].input_ids) - len(context) for i in members)
        for context, members in by_context.items()
    ]
    if max(lengths) > row_tokens - common:
        return None
    [rows] = deal_rows(lengths, row_tokens - common, ranks=1)
    return [
        _build_row(sequences, [(contexts[i], by_context[contexts[i]]) for i in row], common)
        for row in rows
        if row
    ]


def _common_beginning(contexts: Sequence[tuple[int, ...]]) -> int:
    """Return the length of the contexts' common beginning; 0 where it is short."""
    if len(contexts) < 2:
        return 0
    first, last = min(contexts), max(contexts)  # what these two share, all share
    equal = [a == b for a, b in zip(first, last, strict=False)]
    shared = equal.index(False) if False in equal else len(equal)
    return shared if shared >= _SHORTEST else 0


def _build_row(
    sequences: Sequence[TokenSequence],
    contexts: Sequence[tuple[tuple[int, ...], Sequence[int]]],
    common: int,
) -> Row:
    """Build the row of some contexts, each with the sequences that begin with it."""
    writer = _RowWriter()
    start = writer.add(contexts[0][0][:common], _Path(-1, ()))
    at: list[int] = []
    for context, members in contexts:
        head = writer.add(context[common:], start)
        for index in members:
            path = writer.add(sequences[index].input_ids[len(context) :], head)
            at.extend(path.places[position] for position in sequences[index].positions)
    chosen = {index: sequences[index] for _, own in contexts for index in own}
    return assemble_row(chosen, writer.ids, writer.position_ids, at, writer.parts)


@dataclass(frozen=True, slots=True)
class _Path:
    """The tokens from the beginning of a sequence to the end of a part."""

    part: int
    places: tuple[int, ...]
    """Index of each token in the row."""


@dataclass(slots=True)
class _RowWriter:
    ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def add(self, tokens: Sequence[int], after: _Path) -> _Path:
        """Append tokens as a part that continues a path; return the longer path."""
        if not tokens:
            return after
        start, stop, first = len(self.ids), len(self.ids) + len(tokens), len(after.places)
        self.ids.extend(tokens)
        self.position_ids.extend(range(first, first + len(tokens)))
        self.parts.append(Part(start, stop, after.part))
        return _Path(len(self.parts) - 1, (*after.places, *range(start, stop)))
