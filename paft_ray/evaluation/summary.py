"""From the scores table to the content of `summary.json`.

Shapes: S seeds, P prompts, E examples, C choices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config import BASE
from paft_ray.errors import DataError
from paft_ray.evaluation.bootstrap import Resamples, resample
from paft_ray.evaluation.metrics import OVER_PROMPTS, Robustness, robustness

SINGLE_PROMPT = "single_prompt"
"""Label of the variant that every other variant is compared with."""
PAFT = "paft"
"""Label of the variant that is compared with every other one."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Every prompt with every example, for one model; rows and columns are sorted by id."""

    prompt_ids: tuple[str, ...]
    example_ids: tuple[str, ...]
    correct_PE: NDArray[np.bool_]
    predictions_PE: NDArray[np.str_]
    """Answers; an answer that could not be read from the text is the empty one."""
    confidence_PE: NDArray[np.float64] | None = None
    """Probability of the answer among the choices; None for free text."""
    tokens_PE: NDArray[np.float64] | None = None
    """Tokens generated for the answer; None for choices."""


def grid_from_scores(scores: pa.Table, variant: str, split: str, seed: int | None = None) -> Grid:
    """One model's grid from the scores table.

    Args:
        scores: Columns `variant, seed, split, prompt_id, example_id, prediction, correct`, and
            `choice_logprobs` or `generated_tokens` where there are any.
        variant: The model's label.
        split: Which prompts: normally `test`.
        seed: Which training; may be left out where there is only one.

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
    example_ids, example_of_row = np.unique(_text(rows, "example_id"), return_inverse=True)
    count_PE = np.zeros((len(prompt_ids), len(example_ids)), int)
    np.add.at(count_PE, (prompt_of_row, example_of_row), 1)
    if (count_PE != 1).any():
        p, e = np.argwhere(count_PE != 1)[0]
        raise DataError(
            f"{what}: prompt {prompt_ids[p]} with example {example_ids[e]} has {count_PE[p, e]} "
            f"rows, and each of the {count_PE.size} pairs needs exactly one: "
            "name the seed if there are several, or evaluate again"
        )
    place = (prompt_of_row, example_of_row)
    confidence, tokens = _confidence(rows), _numbers(rows, "generated_tokens")
    return Grid(
        tuple(prompt_ids.tolist()),
        tuple(example_ids.tolist()),
        _spread(rows["correct"].to_numpy(), place, count_PE.shape),
        _spread(_text(rows, "prediction"), place, count_PE.shape),
        None if confidence is None else _spread(confidence, place, count_PE.shape),
        None if tokens is None else _spread(tokens, place, count_PE.shape),
    )


def summarise(
    scores: pa.Table,
    variants: Sequence[str],
    thresholds: Sequence[float],
    seeds: Sequence[int],
    seconds: Mapping[str, float],
    split: str = "test",
) -> dict[str, Any]:
    """The content of `summary.json`.

    `models` holds, per label, the fields of `Robustness` (averaged over seeds; the keys of `top`
    are texts such as "0.75"), `intervals` (statistic to its 95% interval) and the `seeds` they come
    from. `differences` compares each variant with the single prompt and with the base model, PAFT
    with all others, and the single prompt with the base model: `"paft - single_prompt": {"value",
    "low", "high", "p", "std": {...}, "min": {...}, "p05": {...}}`, the outer four for the mean over
    prompts, the inner ones for other statistics. `prompts` and `examples` are counts, `seeds` and
    `seconds` are as given.

    Args:
        scores: See `grid_from_scores`.
        variants: Labels to report, the base model's among them if it was evaluated.
        thresholds: Accuracies for Top@t.
        seeds: Seeds of this comparison.
        seconds: Stage to wall-clock time.
        split: Which prompts.

    Raises:
        DataError: A grid has holes or duplicates, or two models saw different prompts or examples.
    """
    grids = {label: _grids_by_seed(scores, label, split) for label in variants}
    first = next(iter(next(iter(grids.values())).values()))
    for label, by_seed in grids.items():
        for grid in by_seed.values():
            if (grid.prompt_ids, grid.example_ids) != (first.prompt_ids, first.example_ids):
                raise DataError(
                    f"variant {label!r} was not evaluated on the same prompts and examples as "
                    f"{variants[0]!r}: evaluate all variants again, together"
                )
    resamples = resample(
        {label: np.stack([g.correct_PE for g in by.values()]) for label, by in grids.items()}
    )
    return {
        "models": {
            label: {
                **_averaged(by_seed.values(), thresholds),
                "intervals": {name: list(resamples.interval(label, name)) for name in OVER_PROMPTS},
                "seeds": sorted(by_seed),
            }
            for label, by_seed in grids.items()
        },
        "differences": {f"{a} - {b}": _difference(resamples, a, b) for a, b in pairs(variants)},
        "prompts": len(first.prompt_ids),
        "examples": len(first.example_ids),
        "seeds": list(seeds),
        "seconds": dict(seconds),
    }


def pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are compared: first PAFT with all others, then others with the baselines."""
    trained = [label for label in labels if label not in (BASE, SINGLE_PROMPT)]
    wanted = [(PAFT, SINGLE_PROMPT), *((PAFT, label) for label in trained), (PAFT, BASE)]
    for label in trained:
        wanted += [(label, SINGLE_PROMPT), (label, BASE)]
    wanted.append((SINGLE_PROMPT, BASE))
    there = [(a, b) for a, b in wanted if a in labels and b in labels and a != b]
    return list(dict.fromkeys(there))


def _difference(resamples: Resamples, a: str, b: str) -> dict[str, Any]:
    of = {name: asdict(resamples.difference(a, b, name)) for name in ("mean", "std", "min", "p05")}
    return {**of.pop("mean"), **of}


def _grids_by_seed(scores: pa.Table, label: str, split: str) -> dict[int, Grid]:
    of_label = scores.filter(pc.field("variant") == label)
    seeds = sorted(of_label["seed"].unique().to_pylist())
    if not seeds:
        raise DataError(f"variant {label!r} has no scores: evaluate it first")
    return {seed: grid_from_scores(of_label, label, split, seed) for seed in seeds}


def _averaged(grids: Iterable[Grid], thresholds: Sequence[float]) -> dict[str, Any]:
    per_seed = [
        robustness(g.correct_PE, g.predictions_PE, thresholds, g.confidence_PE, g.tokens_PE)
        for g in grids
    ]
    figures: dict[str, Any] = {}
    for name in Robustness.__dataclass_fields__:
        if name != "top":
            values = [getattr(figure, name) for figure in per_seed]
            figures[name] = None if None in values else float(np.mean(values))
    top = {str(t): float(np.mean([figure.top[t] for figure in per_seed])) for t in thresholds}
    return {**figures, "top": top}


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
    spread_PE = np.empty(shape, values.dtype)
    spread_PE[place] = values
    return spread_PE


def _text(rows: pa.Table, column: str) -> NDArray[np.str_]:
    return np.asarray(pc.fill_null(rows[column].cast(pa.string()), "").to_pylist(), dtype=np.str_)
