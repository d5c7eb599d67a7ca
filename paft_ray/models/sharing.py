"""Rows in which sequences that begin alike read their beginning once; knows no prompt and no torch.

Examples under one prompt often begin with its instruction, and the choices of one example with the
whole context. A row holds such a beginning as one part and lets what follows attend to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from paft_ray.models.packing import Part, Row, TokenSequence, deal_rows

_SHORTEST = 4  # tokens: a shorter common beginning is not worth a part of its own


def share_rows(sequences: Sequence[TokenSequence], row_tokens: int) -> list[Row] | None:
    """Deal sequences into rows of parts.

    A part is what all contexts begin with, or the rest of a context, or what a sequence reads of
    its answer. Sequences with the same context stand in the same row.

    Args:
        sequences: What to read and to predict.
        row_tokens: Most tokens in a row.

    Returns:
        The rows, or None where nothing can be shared, or what shares does not fit a row.
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
    """Tokens that several contexts all begin with; 0 where they are few."""
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
    """The row of some contexts, each with the sequences that begin with it."""
    writer = _RowWriter()
    start = writer.add(contexts[0][0][:common], _Path(-1, ()))
    at: list[int] = []
    for context, members in contexts:
        head = writer.add(context[common:], start)
        for index in members:
            path = writer.add(sequences[index].input_ids[len(context) :], head)
            at.extend(path.places[position] for position in sequences[index].positions)
    members = [index for _, own in contexts for index in own]
    chosen = [sequences[index] for index in members]
    keep_U, gather_A = np.unique(np.asarray(at, np.int64), return_inverse=True)
    return Row(
        input_ids_T=np.asarray(writer.ids, np.int64),
        position_ids_T=np.asarray(writer.position_ids, np.int64),
        keep_U=keep_U,
        gather_A=gather_A.astype(np.int64),
        targets_A=np.asarray(list(chain.from_iterable(s.targets for s in chosen)), np.int64),
        members_A=np.repeat(np.arange(len(chosen)), [len(s.targets) for s in chosen]),
        owners_A=np.asarray(list(chain.from_iterable(s.owners for s in chosen)), np.int64),
        members=tuple(members),
        parts=tuple(writer.parts),
    )


@dataclass(frozen=True, slots=True)
class _Path:
    """From the first token of a sequence to the last one of a part."""

    part: int
    places: tuple[int, ...]
    """Where each token stands in the row."""


@dataclass(slots=True)
class _RowWriter:
    ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def add(self, tokens: Sequence[int], after: _Path) -> _Path:
        """Write tokens that follow a path; none leave it as it is."""
        if not tokens:
            return after
        start, stop, first = len(self.ids), len(self.ids) + len(tokens), len(after.places)
        self.ids.extend(tokens)
        self.position_ids.extend(range(first, first + len(tokens)))
        self.parts.append(Part(start, stop, after.part))
        return _Path(len(self.parts) - 1, (*after.places, *range(start, stop)))
