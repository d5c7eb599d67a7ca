"""Rows in which sequences with a common beginning share its tokens.

Examples under one prompt often begin with its instruction, and the choices of one example with the
whole context. A row holds such a beginning as one part, to which later parts attend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paft_ray.models.packing import Part, Row, TokenSequence, assemble_row, deal_rows

Context = tuple[tuple[int, ...], Sequence[int]]
"""Tokens before the answers, and the indices of the sequences that begin with them."""
_SHORTEST = 4
"""Tokens of the shortest beginning that is worth a part of its own."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What one row holds."""

    common: int
    """Tokens of the common beginning of all contexts."""
    contexts: tuple[Context, ...]
    """None for a row that only keeps ranks in step."""
    size: int
    """Tokens behind the common beginning."""

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return self.size + self.common if self.contexts else 0

    def build(self, sequences: Mapping[int, TokenSequence]) -> Row:
        """Build the row; `sequences` are those that were dealt."""
        writer = _RowWriter()
        start = writer.add(self.contexts[0][0][: self.common], _Path(-1, ()))
        at: list[int] = []
        for context, members in self.contexts:
            head = writer.add(context[self.common :], start)
            for index in members:
                path = writer.add(sequences[index].input_ids[len(context) :], head)
                at.extend(path.places[position] for position in sequences[index].positions)
        chosen = {index: sequences[index] for _, own in self.contexts for index in own}
        return assemble_row(chosen, writer.ids, writer.position_ids, at, writer.parts)


def share_rows(
    sequences: Mapping[int, TokenSequence], row_tokens: int, ranks: int = 1
) -> list[list[Shared]] | None:
    """Deal sequences into rows of parts, of at most `row_tokens` tokens.

    A part is the common beginning of all contexts, the rest of a context, or the tokens of an
    answer. Sequences with the same context stand in the same row, as many as it holds.

    Args:
        sequences: By their index in the batch.
        row_tokens: Most tokens in a row.
        ranks: Workers to deal to.

    Returns:
        For each rank its rows, as many as every other's; None where nothing can be shared, or a
        sequence fits no row.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in sequences.items():
        by_context.setdefault(sequence.input_ids[: sequence.positions[0] + 1], []).append(index)
    contexts = list(by_context)
    common = _common_beginning(contexts)
    if not common and len(contexts) == len(sequences):
        return None
    units: list[tuple[Context, int]] = []
    for context, members in by_context.items():
        sizes = [len(sequences[i].input_ids) - len(context) for i in members]
        own = len(context) - common
        if own + max(sizes) > row_tokens - common:
            return None
        units += [
            ((context, [members[n] for n in held]), own + sum(sizes[n] for n in held))
            for held in _in_turn(sizes, row_tokens - common - own)
        ]
    dealt = deal_rows([size for _, size in units], row_tokens - common, ranks)
    return [
        [
            Shared(common, tuple(units[n][0] for n in row), sum(units[n][1] for n in row))
            for row in rows
        ]
        for rows in dealt
    ]


def _in_turn(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Cut indices of `sizes` into runs of at most `most` in all; none is larger by itself."""
    runs: list[list[int]] = [[]]
    left = most
    for index, size in enumerate(sizes):
        if size > left:
            runs.append([])
            left = most
        runs[-1].append(index)
        left -= size
    return runs


def _common_beginning(contexts: Sequence[tuple[int, ...]]) -> int:
    """Return the length of the contexts' common beginning; 0 where it is short."""
    if len(contexts) < 2:
        return 0
    first, last = min(contexts), max(contexts)  # what these two share, all share
    equal = [a == b for a, b in zip(first, last, strict=False)]
    shared = equal.index(False) if False in equal else len(equal)
    return shared if shared >= _SHORTEST else 0


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
