"""Sequences dealt into rows, which one forward pass reads."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paft_ray.config.errors import DataError

if TYPE_CHECKING:
    pass


IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """What the model reads of one text, and what it is asked to predict there."""

    input_ids: tuple[int, ...]
    """Tokens read: the context, and all of the answer but its last token."""
    positions: tuple[int, ...]
    """Indices into `input_ids` whose next token counts; non-decreasing."""
    targets: tuple[int, ...]
    """The token asked for at each of `positions`."""
    owners: tuple[int, ...]
    """For each target the answer it belongs to: 0, or the index of a choice."""


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring tokens of a row that follow another part, or begin a sequence."""

    start: int
    stop: int
    parent: int
    """Index of the part that it follows, which stands before it; -1 for none."""


@dataclass(frozen=True, slots=True)
class Row:
    """Several sequences in one forward pass, told apart by positions that restart at 0."""

    input_ids_T: IntArray
    position_ids_T: IntArray
    keep_U: IntArray
    """Positions of the row whose logits are needed."""
    gather_A: IntArray
    """For each target its index into `keep_U`."""
    targets_A: IntArray
    members_A: IntArray
    """For each target the index of its sequence within the row."""
    owners_A: IntArray
    members: tuple[int, ...]
    """For each sequence of the row its index in the list that was packed; empty for an inert
    row, whose loss counts nothing."""
    parts: tuple[Part, ...] = ()
    """How sequences share tokens, see `sharing`; empty where each has all of its own."""

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return len(self.input_ids_T)


def build_row(sequences: Sequence[TokenSequence], members: Sequence[int]) -> Row:
    """Concatenate the sequences named by `members` into one row."""
    chosen = [sequences[index] for index in members]
    starts = np.cumsum([0, *(len(s.input_ids) for s in chosen)])
    at_A = _concatenate(
        [
            np.asarray(s.positions, np.int64) + start
            for s, start in zip(chosen, starts, strict=False)
        ]
    )
    keep_U, gather_A = np.unique(at_A, return_inverse=True)
    return Row(
        input_ids_T=_concatenate([np.asarray(s.input_ids, np.int64) for s in chosen]),
        position_ids_T=_concatenate([np.arange(len(s.input_ids)) for s in chosen]),
        keep_U=keep_U,
        gather_A=gather_A.astype(np.int64),
        targets_A=_concatenate([np.asarray(s.targets, np.int64) for s in chosen]),
        members_A=_concatenate(
            [np.full(len(s.targets), index, np.int64) for index, s in enumerate(chosen)]
        ),
        owners_A=_concatenate([np.asarray(s.owners, np.int64) for s in chosen]),
        members=tuple(members),
    )


def inert_row(token: int) -> Row:
    """A row with a real forward pass that counts nothing.

    It keeps the collectives of ranks with fewer rows in step (ZeRO 2 and 3 hang otherwise).
    """
    zero = np.zeros(1, np.int64)
    return Row(np.full(2, token, np.int64), np.arange(2), zero, zero, zero, zero, zero, ())


def deal_rows(
    lengths: Sequence[int], row_tokens: int, ranks: int, packing: bool = True
) -> list[list[list[int]]]:
    """Deal sequences into rows: per rank the same number of rows, of about equal length.

    Longest first, each into the emptiest row; the fewest rows with which everything fits.

    Args:
        lengths: Tokens of each sequence.
        row_tokens: Most tokens in a row.
        ranks: Workers to deal to.
        packing: False puts one sequence into a row.

    Returns:
        For each rank its rows, each a list of indices into `lengths`; rows may be empty.

    Raises:
        DataError: A sequence is longer than a row.
    """
    if lengths and max(lengths) > row_tokens:
        raise DataError(
            f"a sequence of {max(lengths)} tokens fits no row: raise row_tokens ({row_tokens})"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    fewest = -(-sum(lengths) // row_tokens) if packing else len(lengths)
    per_rank = max(1, -(-fewest // ranks))
    while (rows := _fill(order, lengths, row_tokens, per_rank * ranks, packing)) is None:
        per_rank += 1
    # heaviest rows first, to the ranks in turn: a rank's rows line up with the others' in time
    rows.sort(key=lambda row: (-sum(lengths[i] for i in row), row))
    return [rows[rank::ranks] for rank in range(ranks)]


def _fill(
    order: Sequence[int], lengths: Sequence[int], row_tokens: int, count: int, packing: bool
) -> list[list[int]] | None:
    rows: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, row) for row in range(count)]  # a heap: the first one is the emptiest
    for index in order:
        used, row = emptiest[0]
        if used + lengths[index] > row_tokens or (rows[row] and not packing):
            return None
        rows[row].append(index)
        heapq.heapreplace(emptiest, (used + lengths[index], row))
    return [sorted(row) for row in rows]


def _concatenate(arrays: Sequence[np.ndarray]) -> IntArray:
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)
