"""Deduplication: mark the rows of a table that are kept, from ten rows to millions.

Every row is sketched where it lies. One step gathers a sketch (about 300 bytes) and the wording of
every distinct text, steps by partition look for similar pairs among them, one step decides, and
rows look up the decision. They run in this process, or on Ray, see `distributed`. The result
depends on the rows alone: never on where the steps run, on blocks, partitions or the order of rows.

N distinct normalised texts (of a group, where rows have groups), numbered in the order of their
hashes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.prompts.dedup.decision import Corpus, compare, decide
from paft_ray.prompts.dedup.similarity import (
    FEW,
    in_columns,
    normalise,
    propose_all,
    sketch,
    sketch_type,
)
from paft_ray.storage.fingerprint import fingerprint

_ROWS = 16_384
"""Rows that are sketched together: some 10 MB."""
_MADE = ("kept", "repeats", "similarity")
_HIDDEN = ("__group", "__node", "__mark", "__normal", "__sketch")
_GROUP, _NODE, _MARK, _NORMAL, _SKETCH = _HIDDEN


Function = Callable[[pa.Table], pa.Table]


class InProcess:
    """Runs functions of tables at once, in this process: quickest for some ten thousand rows.

    Subclasses run them elsewhere: their rows and results need not be in this process.
    """

    def rows(self, items: Sequence[Mapping[str, Any]]) -> Any:
        """Rows from dicts."""
        return [pa.Table.from_pylist(list(items))] if items else []

    def map(self, function: Function, rows: Any, together: int | None = None) -> Any:
        """Apply a function to the rows, block by block or to so many rows together."""
        return [function(table) for table in self.blocks(rows)]

    def hold(self, rows: Any) -> Any:
        """The same rows, computed once."""
        return rows

    def blocks(self, rows: Any) -> list[Any]:
        """Tables of held rows; none where there are no rows."""
        return [table for table in rows if len(table)]

    def batches(self, rows: Any) -> Iterable[pa.Table]:
        """The rows as tables of this process."""
        return self.blocks(rows)

    def partitions(self) -> int:
        """The number of calls that look for similar pairs at a time."""
        return 1

    def call(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> Any:
        """Call a function with one result or so many; arguments may be results too."""
        return function(*arguments)

    def get(self, results: Any) -> Any:
        """Results as values of this process."""
        return results


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns."""

    text: str = "instruction"
    id: str = "id"
    """Unique among rows with the same text. Of these the one with the smallest id may be kept."""
    group: str | None = None
    """Of strings or numbers; only rows with the same one are compared, as if each group were a
    table of its own. All rows where it is None."""


@dataclass(frozen=True, slots=True)
class _Names:
    """The row of each distinct text: the one whose own wording has the smallest hash."""

    keys: NDArray[np.uint64]
    """[N] ascending, of texts and groups."""
    numbers: NDArray[np.int64]
    """[N] the number of the text with each key."""
    marks: NDArray[np.uint64]
    """[N] the standing row's hash of its own wording."""
    ids: pa.Array
    """[N] the standing row's id."""


def deduplicate(rows: Any, threshold: float, execution: InProcess, columns: Columns) -> Any:
    """Mark the rows that are kept.

    Texts are looked at in the order of their hashes. One is dropped only if it is itself similar
    to a text that is kept, never for being similar to another dropped one; of several, the most
    similar counts as the one that it repeats.

    Args:
        rows: With an id and a text each; other columns pass through as they are. They are computed
            once, and held with a sketch beside every row.
        threshold: Jaccard similarity at which one of two texts is dropped, above 0, at most 1.
        execution: Where to compute; the rows are its own.
        columns: Their names.

    Returns:
        The rows with three more columns: `kept`; `repeats`, the id of the kept row that a dropped
        one repeats, else null; `similarity`, how similar these two are, else null. No rows are
        returned as they are.

    Raises:
        DataError: A column is missing or already there, a text is null, or two rows with the same
            text have the same id.
    """
    described = execution.hold(execution.map(partial(_describe, threshold, columns), rows, _ROWS))
    blocks = execution.blocks(described)
    if not blocks:
        return rows
    corpus, names = execution.call(_gather, threshold, columns.id, *blocks, returns=2)
    turn = _settle(corpus, threshold, execution)
    return execution.map(partial(_mark, execution, names, turn, columns.id), described)


def _settle(corpus: Any, threshold: float, execution: InProcess) -> Any:
    """The last `Turn`: pairs are looked for until no other text is kept."""
    turn, pairs, parts = None, [], execution.partitions()
    while True:
        found = [
            execution.call(compare, corpus, threshold, part, parts, turn, returns=2)
            for part in range(parts)
        ]
        pairs += [verified for verified, _ in found]
        turn, new = execution.call(decide, corpus, turn, *pairs, returns=2)
        crowded = any(execution.get([crowded for _, crowded in found]))
        if not (crowded and execution.get(new)):
            return turn


def _describe(threshold: float, columns: Columns, batch: pa.Table) -> pa.Table:
    """Add hidden columns by which rows are compared."""
    names = set(batch.column_names)
    if missing := {columns.text, columns.id, columns.group or columns.id} - names:
        raise DataError(f"rows have {sorted(names)}, not {sorted(missing)}: name the columns")
    if taken := names & {*_MADE, *_HIDDEN}:
        raise DataError(f"rows already have {sorted(taken)}: drop or rename these columns")
    if batch[columns.text].null_count:
        raise DataError(
            f"{batch[columns.text].null_count} rows have no {columns.text}: leave them out"
        )
    texts = batch[columns.text].to_pylist()
    normal = [normalise(text) for text in texts]
    groups = np.zeros(len(batch), np.uint64)
    if columns.group:
        values = batch[columns.group].to_pylist()
        named = {value: int(fingerprint(value), 16) for value in set(values)}
        groups = np.array([named[value] for value in values], np.uint64)
    sketches = sketch(normal, threshold)
    sketches["bands"] ^= groups[:, None]
    packed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(sketches.itemsize), len(sketches), [None, pa.py_buffer(sketches)]
    )
    made = [
        pa.array(groups),
        _hashes(normal),
        _hashes(texts),
        pa.array(normal, pa.large_string()),
        packed,
    ]
    for name, values in zip(_HIDDEN, made, strict=True):
        batch = batch.append_column(name, values)
    return batch


def _hashes(texts: list[str]) -> pa.Array:
    """Hashes in the order of which `deduplicate` goes through texts."""
    return pa.array([int(fingerprint(text), 16) for text in texts], pa.uint64())


def _gather(threshold: float, id_column: str, *blocks: pa.Table) -> tuple[Corpus, _Names]:
    """The distinct texts of all blocks."""
    table = pa.concat_tables([b.select([*_HIDDEN, id_column]) for b in blocks if len(b)])
    names = [_NODE, _GROUP, _MARK, id_column]
    by = pc.SortOptions([(name, "ascending") for name in names])
    order = pc.call_function("sort_indices", [table.select(names)], by)
    ordered = table.select(names).take(order)
    _refuse_same_ids(ordered, id_column)
    nodes, groups = ordered[_NODE].to_numpy(), ordered[_GROUP].to_numpy()
    changes = (nodes[1:] != nodes[:-1]) | (groups[1:] != groups[:-1])
    first = np.flatnonzero(np.concatenate([[True], changes]))
    table = table.take(order.take(pa.array(first))).combine_chunks()
    packed, groups = table[_SKETCH].chunk(0), groups[first]
    sketches = np.frombuffer(packed.buffers()[1], sketch_type(threshold))
    sketches = sketches[packed.offset : packed.offset + len(packed)].copy()
    keys = nodes[first] ^ groups
    _, at, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    few = sizes[at] <= FEW
    sketches[few] = propose_all(sketches[few])
    sketches["bands"][few] = keys[few, None]
    sketches["bands"][few, 0] = groups[few]  # one band proposes all pairs, the others none
    numbers = np.argsort(keys)
    standing = _Names(keys[numbers], numbers, table[_MARK].to_numpy(), table[id_column].chunk(0))
    return Corpus(table[_NORMAL].chunk(0), in_columns(sketches)), standing


def _refuse_same_ids(ordered: pa.Table, id_column: str) -> None:
    """Neighbours with the same text and the same id could both stand for the text."""
    before, after = ordered.slice(0, len(ordered) - 1), ordered.slice(1)
    same = np.ones(len(after), bool)
    for name in ordered.column_names:
        same &= pc.call_function("equal", [before[name], after[name]]).to_numpy()
    if same.any():
        value = after[id_column][int(np.flatnonzero(same)[0])]
        raise DataError(f"{id_column} {value} is there twice, of the same text: make ids unique")


def _mark(execution: InProcess, names: Any, turn: Any, id_column: str, batch: pa.Table) -> pa.Table:
    """Add the decision to rows and drop the hidden columns."""
    standing, last = execution.get([names, turn])
    keys = batch[_NODE].to_numpy() ^ batch[_GROUP].to_numpy()
    at = standing.numbers[np.searchsorted(standing.keys, keys)]
    first = standing.marks[at] == batch[_MARK].to_numpy()
    first &= pc.call_function(
        "equal", [batch[id_column], standing.ids.take(pa.array(at))]
    ).to_numpy()
    chosen = last.choice
    stays = chosen.kept[at]
    kept = stays & first
    repeats = standing.ids.take(pa.array(np.where(stays, at, chosen.repeats[at]), mask=kept))
    similar = pa.array(np.where(stays, 1.0, chosen.similar[at]), mask=kept)
    batch = batch.drop_columns(list(_HIDDEN))
    for name, values in zip(_MADE, (pa.array(kept), repeats, similar), strict=True):
        batch = batch.append_column(name, values)
    return batch
