"""Token sequences, and rows of them that one forward pass reads."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from paft_ray.config.errors import DataError

PACKED = "packed"
MIXES = "unpacked: "
"""How rows are described where a model has to read or write one by one; the reason follows."""
ROWS = "one sequence a row"
"""The beginning of the reason where rows mix."""
BATCHES = "padded batches"
"""The same where sequences are then read as batches."""
IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens of one text that a model reads, and those that it predicts."""

    input_ids: tuple[int, ...]
    """Tokens read: the context, and all of the answer but its last token."""
    positions: tuple[int, ...]
    """Indices into `input_ids` whose next token is predicted; non-decreasing."""
    targets: tuple[int, ...]
    """Token to predict at each of `positions`."""
    owners: tuple[int, ...]
    """For each target the index of its answer: 0, or that of a choice."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of a row that continue another part, or begin a sequence."""

    start: int
    stop: int
    parent: int
    """Index of the earlier part that it continues; -1 for none."""


@dataclass(frozen=True, slots=True)
class Row:
    """Several sequences in one forward pass; positions restart at 0 for each of them."""

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
    """For each sequence of the row its index in the packed list; empty for an inert row."""
    parts: tuple[Part, ...] = ()
    """Parts that sequences share, see `sharing.py`; empty where nothing is shared."""
    padded: bool = False
    """Whether its sequences are read as a batch, padded behind each, and not as one text."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.input_ids_T)


def build_row(
    sequences: Sequence[TokenSequence] | Mapping[int, TokenSequence],
    members: Sequence[int],
    padded: bool = False,
) -> Row:
    """Concatenate the sequences named by `members` into one row."""
    chosen = {index: sequences[index] for index in members}
    own = chosen.values()
    starts = accumulate((len(s.input_ids) for s in own), initial=0)
    row = assemble_row(
        chosen,
        input_ids=[token for s in own for token in s.input_ids],
        position_ids=[position for s in own for position in range(len(s.input_ids))],
        at=[start + p for start, s in zip(starts, own, strict=False) for p in s.positions],
    )
    return replace(row, padded=True) if padded else row


def assemble_row(
    chosen: Mapping[int, TokenSequence],
    input_ids: Sequence[int],
    position_ids: Sequence[int],
    at: Sequence[int],
    parts: Sequence[Part] = (),
) -> Row:
    """Build a row from its tokens.

    Args:
        chosen: The row's sequences, in their order, by index in the packed list.
        input_ids: Tokens of the row.
        position_ids: Their positions.
        at: For each target of the sequences the place in the row that predicts it.
        parts: See `Row`.
    """
    keep_U, gather_A = np.unique(np.asarray(at, np.int64), return_inverse=True)
    own = chosen.values()
    return Row(
        input_ids_T=np.asarray(input_ids, np.int64),
        position_ids_T=np.asarray(position_ids, np.int64),
        keep_U=keep_U,
        gather_A=gather_A.astype(np.int64),
        targets_A=np.asarray([target for s in own for target in s.targets], np.int64),
        members_A=np.asarray([n for n, s in enumerate(own) for _ in s.targets], np.int64),
        owners_A=np.asarray([owner for s in own for owner in s.owners], np.int64),
        members=tuple(chosen),
        parts=tuple(parts),
    )


def inert_row(token: int) -> Row:
    """Return a row whose loss counts nothing, for ranks with fewer rows than others.

    Its forward pass keeps the ranks' collectives in step (ZeRO 2 and 3 hang otherwise).
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
        packing: Put several sequences into a row.

    Returns:
        For each rank its rows, each a list of indices into `lengths`; rows may be empty.

    Raises:
        DataError: A sequence is longer than a row.
    """
    if lengths and max(lengths) > row_tokens:
        raise DataError(
            f"a sequence of {max(lengths)} tokens fits no row: raise row_tokens ({row_tokens})"
        )
    order = _longest_first(lengths)
    fewest = -(-sum(lengths) // row_tokens) if packing else len(lengths)
    per_rank = max(1, -(-fewest // ranks))
    while (rows := _fill(order, lengths, row_tokens, per_rank * ranks, packing)) is None:
        per_rank += 1
    # longest rows first, to the ranks in turn: rows that ranks read at the same time are alike
    rows.sort()
    return [[row for _, _, row in rows[rank::ranks]] for rank in range(ranks)]


def deal_batches(lengths: Sequence[int], row_tokens: int, ranks: int) -> list[list[list[int]]]:
    """Deal sequences into batches of at most `row_tokens` tokens, padding included.

    Those of like length go together: as few batches as possible, a multiple of the ranks, and then
    of the least size. See `deal_rows`.
    """
    order = _longest_first(lengths)
    if lengths and lengths[order[0]] > row_tokens:
        return deal_rows(lengths, row_tokens, ranks)  # raises

    def cut(most: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in order:
            if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches

    count = -(-len(cut(row_tokens)) // ranks) * ranks
    low, high = max(lengths, default=1), row_tokens
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= count else (middle + 1, high)
    batches = cut(low)
    batches += [[] for _ in range(count - len(batches))]
    return [batches[rank::ranks] for rank in range(ranks)]


def batches_by_length(lengths: Sequence[int], more: int, most: int) -> list[list[int]]:
    """Indices of texts, the longest first, in batches of limited padded size.

    Args:
        lengths: Lengths of the texts, in tokens.
        more: Tokens that may be generated for each.
        most: Most padded tokens of a batch, generated ones included; a text that needs more is a
            batch of its own.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        last = batches[-1] if batches else None
        if last is None or (len(last) + 1) * (lengths[last[0]] + more) > most:
            batches.append([place])
        else:
            last.append(place)
    return batches


def _fill(
    order: Sequence[int], lengths: Sequence[int], row_tokens: int, count: int, packing: bool
) -> list[tuple[int, int, list[int]]] | None:
    """Fill `count` rows; for each its tokens, negated, its first member and its members."""
    if not packing and len(order) > count:
        return None
    rows: list[list[int]] = [[] for _ in range(count)]
    emptiest = list(range(count))  # a heap of tokens * count + row
    full = (row_tokens + 1) * count
    scaled, replace = (np.array(lengths, np.int64) * count).tolist(), heapq.heapreplace
    for index in order:  # some thousands at every step
        entry = emptiest[0] + scaled[index]
        if entry >= full:
            return None
        rows[entry % count].append(index)
        replace(emptiest, entry)
    used = {entry % count: entry // count for entry in emptiest}
    for row in rows:
        row.sort()
    return [(-used[n], row[0] if row else -1, row) for n, row in enumerate(rows)]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, of equal ones the first first."""
    return np.argsort(-np.array(lengths, np.int64), kind="stable").tolist()
