"""Answers of one model as arrays, read out of the scores table; pure.

Shapes: P prompts, E examples, C choices.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config.errors import DataError


@dataclass(frozen=True, slots=True)
class Grid:
    """Every prompt with every example, for one model; rows and columns are sorted by id.

    Where only a part was scored, the rest is False, empty or 0, and not in `scored_PE`.
    """

    prompt_ids: tuple[str, ...]
    example_ids: tuple[str, ...]
    correct_PE: NDArray[np.bool_]
    predictions_PE: NDArray[np.str_]
    """Answers; an answer that could not be read from the text is the empty one."""
    confidence_PE: NDArray[np.float64] | None = None
    """Probability of the answer among the choices; None for free text."""
    tokens_PE: NDArray[np.float64] | None = None
    """Tokens generated for the answer; None for choices."""
    scored_PE: NDArray[np.bool_] | None = None
    """Which pairs were scored; None for all."""
    even_PE: NDArray[np.bool_] | None = None
    """Which of them were not chosen by other answers; None for all."""


def grid_from_scores(
    scores: pa.Table,
    variant: str,
    split: str,
    seed: int | None = None,
    whole: Collection[str] | None = None,
) -> Grid:
    """One model's grid from the scores table.

    Args:
        scores: Columns `variant, seed, split, prompt_id, example_id, prediction, correct`, and
            `choice_logprobs`, `generated_tokens` or `look` where there are any.
        variant: The model's label.
        split: Which prompts: normally `test`.
        seed: Which training; may be left out where there is only one.
        whole: Ids of all examples, where pairs may lack a row.

    Raises:
        DataError: No such rows, a prompt and example without a row, or with more than one.
    """
    chosen = (pc.field("variant") == variant) & (pc.field("split") == split)
    if seed is not None:
        chosen = chosen & (pc.field("seed") == seed)
    rows = scores.filter(chosen)
    what = f"scores of variant {variant!r}, split {split!r}" + (
        "" if seed is None else f", seed {seed}"
    )
    if rows.num_rows == 0:
        raise DataError(f"{what}: no rows; evaluate that variant first")
    prompt_ids, prompt_of_row = np.unique(_text(rows, "prompt_id"), return_inverse=True)
    asked = _text(rows, "example_id")
    example_ids = np.unique(asked if whole is None else [*whole, *asked])
    example_of_row = np.searchsorted(example_ids, asked)
    count_PE = np.zeros((len(prompt_ids), len(example_ids)), int)
    np.add.at(count_PE, (prompt_of_row, example_of_row), 1)
    wrong_PE = count_PE != 1 if whole is None else count_PE > 1
    if wrong_PE.any():
        p, e = np.argwhere(wrong_PE)[0]
        raise DataError(
            f"{what}: prompt {prompt_ids[p]} with example {example_ids[e]} has {count_PE[p, e]} "
            f"rows, and each of the {count_PE.size} pairs needs exactly one: "
            "name the seed if there are several, or evaluate again"
        )
    place = (prompt_of_row, example_of_row)
    confidence, tokens = _confidence(rows), _numbers(rows, "generated_tokens")
    look = _numbers(rows, "look")
    return Grid(
        tuple(prompt_ids.tolist()),
        tuple(example_ids.tolist()),
        _spread(rows["correct"].to_numpy(), place, count_PE.shape),
        _spread(_text(rows, "prediction"), place, count_PE.shape),
        None if confidence is None else _spread(confidence, place, count_PE.shape),
        None if tokens is None else _spread(tokens, place, count_PE.shape),
        None if whole is None else count_PE == 1,
        None if look is None else _spread(look == 0, place, count_PE.shape),
    )


def _confidence(rows: pa.Table) -> NDArray[np.float64] | None:
    """Softmax of the choices' log-likelihoods at its largest: shape [rows]."""
    if "choice_logprobs" not in rows.column_names or rows["choice_logprobs"].null_count:
        return None
    logprobs_C = np.asarray(rows["choice_logprobs"].to_pylist(), np.float64)
    return 1 / np.exp(logprobs_C - logprobs_C.max(axis=1, keepdims=True)).sum(axis=1)


def _numbers(rows: pa.Table, column: str) -> NDArray[np.float64] | None:
    if column not in rows.column_names or rows[column].null_count:
        return None
    return rows[column].to_numpy().astype(np.float64)


def _spread(values: NDArray[Any], place: tuple[Any, Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """One value per row of the table to [P, E]."""
    spread_PE = np.zeros(shape, values.dtype)
    spread_PE[place] = values
    return spread_PE


def _text(rows: pa.Table, column: str) -> NDArray[np.str_]:
    return np.asarray(pc.fill_null(rows[column].cast(pa.string()), "").to_pylist(), dtype=np.str_)
