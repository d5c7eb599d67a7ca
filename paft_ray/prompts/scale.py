"""`dedup.deduplicate` for more texts than one process should hold, on Ray Data.

Every row is sketched where it lies. One task gathers a sketch (about 300 bytes) and the wording of
every distinct text into the object store, where all workers of a node read the same copy. Tasks
look for similar pairs, each among the bands whose keys fall to its partition, and verify them; only
the verified pairs, as two numbers and a similarity, go to the one task that decides. Rows then look
up what was decided. The driver holds references and counts, never texts, candidates or pairs.

A crowded bucket, of thousands of texts alike or with the same boilerplate, is not compared all with
all: its texts are compared with its first ones, then with those that are kept so far, until no
others are kept. That yields what all pairs would have: whatever is kept was compared with
everything after it. Only if more than `_WIDE` texts of a bucket are kept is each compared with no
more than `_WIDE` neighbours, by signature. All of it depends on the texts alone: never on blocks,
partitions, workers or the order of rows.

N distinct normalised texts (of a group, where rows have groups), numbered in the order of their
hashes; P pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.cluster.remote import own_errors
from paft_ray.config.errors import DataError
from paft_ray.prompts.dedup import (
    FEW,
    Choice,
    Sketches,
    bucket_pairs,
    choose,
    in_columns,
    likely,
    normalise,
    propose_all,
    similarities,
    sketch,
    sketch_type,
)
from paft_ray.storage.fingerprint import fingerprint

if TYPE_CHECKING:
    import ray
    import ray.data

_ROWS = 16_384
"""Rows that are sketched together: some 10 MB."""
_CROWD = 64
"""Up to this many texts of a bucket are compared all with all."""
_FIRST = 8
"""Of a larger bucket, the texts that all others are compared with at first."""
_WIDE = 512
"""Up to this many kept texts of a bucket are compared with all of it; not fewer than `FEW`."""
_MADE = ("kept", "repeats", "similarity")
_HIDDEN = ("__group", "__node", "__mark", "__normal", "__sketch")
_GROUP, _NODE, _MARK, _NORMAL, _SKETCH = _HIDDEN

_Pairs = Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class _Corpus:
    """The distinct texts."""

    texts: pa.LargeStringArray
    """[N] normalised."""
    sketches: Sketches


@dataclass(frozen=True, slots=True)
class _Names:
    """Which row stands for each distinct text: the one whose own wording has the smallest hash."""

    keys: NDArray[np.uint64]
    """[N] ascending, of texts and groups."""
    numbers: NDArray[np.int64]
    """[N] the number of the text with each key."""
    marks: NDArray[np.uint64]
    """[N] the standing row's hash of its own wording."""
    ids: pa.Array
    """[N] the standing row's id."""


class _Edges(NamedTuple):
    """Verified pairs."""

    low: NDArray[np.int64]
    """[P]"""
    high: NDArray[np.int64]
    """[P] the one that comes later in the order of hashes."""
    similar: NDArray[np.float64]
    """[P] between the threshold and 1."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where the decision stands."""

    choice: Choice
    asked: NDArray[np.bool_]
    """[N] kept in this turn or an earlier one: compared with all after it, or about to be."""
    asking: NDArray[np.bool_]
    """[N] kept in this turn for the first time."""


def deduplicate_dataset(
    dataset: "ray.data.Dataset",
    threshold: float,
    column: str = "instruction",
    id_column: str = "id",
    partitions: int | None = None,
    group_column: str | None = None,
) -> "ray.data.Dataset":
    """Say of every row whether it is kept, as `dedup.deduplicate` would of all texts together.

    The data set is executed once, and held in the object store with a sketch beside every row.

    Args:
        dataset: Rows with an id and a text; other columns pass through as they are.
        threshold: Jaccard similarity at which one of two texts is dropped, above 0, at most 1.
        column: Column of the texts.
        id_column: Column of the ids, unique and derived from content.
        partitions: Tasks that look for pairs at a time; more need less memory each. As many as
            the cluster has CPUs unless given. The result does not depend on it.
        group_column: Column of strings or numbers; only rows with the same one are compared, as if
            each group were a data set of its own. All rows unless given.

    Returns:
        The rows with three more columns: `kept`; `repeats`, the id of the kept row that a dropped
        one repeats, else null; `similarity`, how similar these two are, else null. An empty data
        set is returned as it is.

    Raises:
        DataError: A column is missing or already there, a text is null, or two rows with the same
            text have the same id.
    """
    import ray

    with own_errors():
        described = dataset.map_batches(
            partial(_describe, threshold, column, id_column, group_column),
            batch_format="pyarrow",
            batch_size=_ROWS,
        ).materialize()
        if not described.count():
            return dataset
        gather: Any = ray.remote(_gather).options(num_returns=2)
        corpus, names = gather.remote(threshold, id_column, *described.to_arrow_refs())
        cpus = int(ray.cluster_resources().get("CPU", 1))
        choice = _settle(corpus, threshold, partitions or max(1, cpus))
    return described.map_batches(
        partial(_mark, names, choice, id_column),
        batch_format="pyarrow",
        batch_size=None,
    )


def _settle(corpus: "ray.ObjectRef", threshold: float, partitions: int) -> "ray.ObjectRef":
    """A reference to the `Choice`: pairs are looked for until nobody else is kept."""
    import ray

    compare: Any = ray.remote(_compare).options(num_returns=2)
    decide: Any = ray.remote(_decide).options(num_returns=3)
    turn, edges = None, []
    while True:
        found = [
            compare.remote(corpus, threshold, part, partitions, turn) for part in range(partitions)
        ]
        edges += [pairs for pairs, _ in found]
        turn, choice, asking = decide.remote(corpus, turn, *edges)
        crowded = any(ray.get([crowded for _, crowded in found]))
        if not (crowded and ray.get(asking)):
            return choice


def _describe(
    threshold: float, column: str, id_column: str, group_column: str | None, batch: pa.Table
) -> pa.Table:
    """Rows with what is needed to compare them in hidden columns."""
    names = set(batch.column_names)
    if missing := {column, id_column, group_column or id_column} - names:
        raise DataError(f"rows have {sorted(names)}, not {sorted(missing)}: name the columns")
    if taken := names & {*_MADE, *_HIDDEN}:
        raise DataError(f"rows already have {sorted(taken)}: drop or rename these columns")
    if batch[column].null_count:
        raise DataError(f"{batch[column].null_count} rows have no {column}: leave them out")
    texts = batch[column].to_pylist()
    normal = [normalise(text) for text in texts]
    groups = np.zeros(len(batch), np.uint64)
    if group_column:
        values = batch[group_column].to_pylist()
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


def _gather(threshold: float, id_column: str, *blocks: pa.Table) -> tuple[_Corpus, _Names]:
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
    return _Corpus(table[_NORMAL].chunk(0), in_columns(sketches)), standing


def _refuse_same_ids(ordered: pa.Table, id_column: str) -> None:
    """Neighbours with the same text and the same id could both stand for the text."""
    before, after = ordered.slice(0, len(ordered) - 1), ordered.slice(1)
    same = np.ones(len(after), bool)
    for name in ordered.column_names:
        same &= pc.call_function("equal", [before[name], after[name]]).to_numpy()
    if same.any():
        value = after[id_column][int(np.flatnonzero(same)[0])]
        raise DataError(f"{id_column} {value} is there twice, of the same text: make ids unique")


def _compare(
    corpus: _Corpus, threshold: float, part: int, parts: int, turn: Turn | None
) -> tuple[_Edges, bool]:
    """Verified pairs from the band keys of one partition, and whether any bucket is crowded."""
    sketches, n = corpus.sketches, len(corpus.texts)
    found = [np.empty(0, np.int64)]  # low * n + high
    crowded = False
    for band, keys in enumerate(sketches.bands):
        # the keys' upper halves, dealt into equal ranges
        mine = np.flatnonzero((keys >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part)
        members = mine[np.argsort(keys[mine], kind="stable")]
        keys = keys[members]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        sizes = np.diff(np.append(starts, len(keys)))
        many = sizes > _CROWD
        crowded |= bool(many.any())
        buckets = [members[a:b] for a, b in zip(starts[many], (starts + sizes)[many], strict=True)]
        if turn is None:
            few = np.repeat(~many, sizes)
            proposed = chain(bucket_pairs(members[few], keys[few]), *map(_from_first, buckets))
        else:
            proposed = chain(
                *(propose_from_kept(bucket, turn, sketches, band) for bucket in buckets)
            )
        for low, high in _together(proposed):
            close = likely(sketches, low, high, threshold)
            found.append(low[close] * n + high[close])
    low, high = np.divmod(np.unique(np.concatenate(found)), n)
    used, at = np.unique(np.concatenate([low, high]), return_inverse=True)
    texts = corpus.texts.take(pa.array(used)).to_pylist()
    similar = similarities(texts, *np.split(at, 2))
    true = similar >= threshold
    return _Edges(low[true], high[true], similar[true]), crowded


def _from_first(bucket: NDArray[np.int64]) -> _Pairs:
    """A bucket's first texts, in the order of hashes, with all after them."""
    for place in range(_FIRST):
        after = bucket[place + 1 :]
        yield np.full(len(after), bucket[place]), after


def propose_from_kept(
    bucket: NDArray[np.int64], turn: Turn, sketches: Sketches, band: int
) -> _Pairs:
    """A bucket's newly kept texts with all after them, or with neighbours where many are kept.

    Args:
        bucket: Its texts, ascending.
        turn: Who is kept, and newly so.
        sketches: Of all texts.
        band: Which band the bucket is of.

    Yields:
        Pairs, the smaller number first, in arrays no longer than the bucket.
    """
    kept = bucket[turn.choice.kept[bucket]]
    if len(kept) <= _WIDE:
        for place in np.flatnonzero(turn.asking[bucket]):
            after = bucket[place + 1 :]
            yield np.full(len(after), bucket[place]), after
        return
    # sorted by what follows the band in the signature, similar texts are close: an LSH forest
    digests = sketches.digests[kept].view(np.uint8)
    start = (band + 1) * (digests.shape[1] // len(sketches.bands))
    first, second = np.roll(digests, -start, axis=1)[:, :16].copy().view(">u8").T
    line = kept[np.lexsort((second, first))]
    for distance in range(1, _WIDE + 1):
        a, b = line[:-distance], line[distance:]
        new = turn.asking[a] | turn.asking[b]
        yield np.minimum(a, b)[new], np.maximum(a, b)[new]


def _together(pairs: _Pairs, enough: int = 1 << 16) -> _Pairs:
    """The same pairs in fewer, larger arrays."""
    waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    held = 0
    for low, high in pairs:
        waiting.append((low, high))
        held += len(low)
        if held >= enough:
            yield _joined(waiting)
            waiting, held = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    low, high = zip(*pairs, strict=True)
    return np.concatenate(low), np.concatenate(high)


def _decide(corpus: _Corpus, turn: Turn | None, *edges: _Edges) -> tuple[Turn, Choice, bool]:
    """Choose by the edges found so far; the next turn, the choice, and whether anybody is new."""
    n = len(corpus.texts)
    low, high, similar = (np.concatenate(column) for column in zip(*edges, strict=True))
    choice = choose(n, low, high, similar)
    asked = np.zeros(n, bool) if turn is None else turn.asked
    asking = choice.kept & ~asked
    return Turn(choice, asked | asking, asking), choice, bool(asking.any())


def _mark(
    names: "ray.ObjectRef", choice: "ray.ObjectRef", id_column: str, batch: pa.Table
) -> pa.Table:
    """Rows with what was decided, without the hidden columns."""
    import ray

    standing, chosen = ray.get([names, choice])
    keys = batch[_NODE].to_numpy() ^ batch[_GROUP].to_numpy()
    at = standing.numbers[np.searchsorted(standing.keys, keys)]
    first = standing.marks[at] == batch[_MARK].to_numpy()
    first &= pc.call_function(
        "equal", [batch[id_column], standing.ids.take(pa.array(at))]
    ).to_numpy()
    stays = chosen.kept[at]
    kept = stays & first
    repeats = standing.ids.take(pa.array(np.where(stays, at, chosen.repeats[at]), mask=kept))
    similar = pa.array(np.where(stays, 1.0, chosen.similar[at]), mask=kept)
    batch = batch.drop_columns(list(_HIDDEN))
    for name, values in zip(_MADE, (pa.array(kept), repeats, similar), strict=True):
        batch = batch.append_column(name, values)
    return batch
