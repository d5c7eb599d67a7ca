"""Every answer of a run as dense arrays, from which the page takes all that it shows of them.

Shapes: M models (a training each, or the base model), S seeds of a label, P prompts, E examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COLUMNS = ("variant", "seed", "split", "prompt_id", "example_id", "prediction", "correct")


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers on test prompts; prompts and examples are sorted by id."""

    models: tuple[tuple[str, int], ...]
    """Label and seed of each model, sorted."""
    prompt_ids: tuple[str, ...]
    example_ids: tuple[str, ...]
    right_MPE: NDArray[np.int8]
    """1 where the answer is right, 0 where it is wrong, -1 where nobody asked."""
    said_MPE: NDArray[np.int32]
    """Index into `said`, -1 where nobody asked."""
    said: tuple[str, ...]
    """The different answers; one that could not be read is the empty one."""

    def of(self, label: str) -> list[int]:
        """Places of a label's models, by seed."""
        return [place for place, (name, _) in enumerate(self.models) if name == label]

    def accuracy(self, label: str) -> NDArray[np.float64]:
        """Accuracy per seed and prompt: shape [S, P], nan where nobody asked."""
        right_SPE = self.right_MPE[self.of(label)]
        asked_SP = (right_SPE >= 0).sum(axis=2)
        right_SP = (right_SPE == 1).sum(axis=2)
        return np.where(asked_SP > 0, right_SP / np.maximum(asked_SP, 1), np.nan)


def read_answers(scores: pa.Table, labels: Sequence[str]) -> Answers:
    """The answers of some models on test prompts.

    Args:
        scores: With `COLUMNS`, one row per model, prompt and example.
        labels: Models of other labels are passed over.
    """
    wanted = pc.field("variant").isin(list(labels)) & (pc.field("split") == "test")
    rows = scores.filter(wanted)
    variants, variant = _codes(rows["variant"])
    seed = rows["seed"].to_numpy().astype(np.int64)
    seeds, seed_code = np.unique(seed, return_inverse=True)
    width = max(len(seeds), 1)
    pairs, model = np.unique(variant * width + seed_code, return_inverse=True)
    prompt_ids, prompt = _codes(rows["prompt_id"])
    example_ids, example = _codes(rows["example_id"])
    said, words = _codes(rows["prediction"])
    shape = (len(pairs), len(prompt_ids), len(example_ids))
    right_MPE, said_MPE = np.full(shape, -1, np.int8), np.full(shape, -1, np.int32)
    place = (model, prompt, example)
    right_MPE[place] = rows["correct"].to_numpy()
    said_MPE[place] = words
    models = tuple((variants[pair // width], int(seeds[pair % width])) for pair in pairs)
    return Answers(models, prompt_ids, example_ids, right_MPE, said_MPE, said)


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The different texts, sorted, and the place of each row's among them."""
    filled = pc.fill_null(column.cast(pa.string()), "")
    encoded = filled.dictionary_encode().unify_dictionaries()
    if encoded.num_chunks == 0:
        return (), np.zeros(0, np.int64)
    texts = encoded.chunk(0).dictionary.to_pylist()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    order = sorted(range(len(texts)), key=texts.__getitem__)
    rank = np.empty(len(texts), np.int64)
    rank[order] = np.arange(len(texts))
    return tuple(texts[place] for place in order), rank[codes]
