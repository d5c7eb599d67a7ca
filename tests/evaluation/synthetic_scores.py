"""Scores tables of models that never answered, from grids of correctness."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def random_grid(seed: int, accuracy: float = 0.7) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((6, 40)) < accuracy


def scores(grids: dict[tuple[str, int], NDArray[np.bool_]], split: str = "test") -> pa.Table:
    """A scores table from correctness by variant and seed, in an order of no meaning."""
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "split": split,
            "prompt_id": f"p{p}",
            "example_id": f"e{e:02d}",
            "prediction": "yes" if right else None,
            "correct": bool(right),
        }
        for (variant, seed), correct_PE in grids.items()
        for (p, e), right in np.ndenumerate(correct_PE)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order])
