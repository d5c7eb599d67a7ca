"""How good and how steady a model is over prompts: pure functions of a grid of answers.

Covered: the figures of one model (`robustness`), the paired difference of two with an interval
(`paired_difference`), reading a grid out of the scores table, and all of it as the content of
`summary.json` (`summarise`). Not covered: producing answers, which is `evaluation.grid`.

Shapes: P prompts, E examples, S seeds, R bootstrap resamples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.errors import DataError

Statistic = Literal["mean", "std", "min", "p05", "max"]
BASE = "base"
"""Label of the model before any training."""
SINGLE_PROMPT = "single_prompt"
"""Label of the variant that every other variant is compared with."""

_RESAMPLES_AT_ONCE = 250
OVER_PROMPTS: Mapping[Statistic, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda accuracy: accuracy.mean(axis=-1),
    "std": lambda accuracy: accuracy.std(axis=-1),
    "min": lambda accuracy: accuracy.min(axis=-1),
    "p05": lambda accuracy: np.quantile(accuracy, 0.05, axis=-1),
    "max": lambda accuracy: accuracy.max(axis=-1),
}


@dataclass(frozen=True, slots=True)
class Robustness:
    """One model's accuracy over prompts; all but `top` are shares between 0 and 1."""

    mean: float
    """Mean over prompts of the accuracy under a prompt."""
    std: float
    """Standard deviation over prompts, of these prompts as a population (numpy's `ddof=0`)."""
    min: float
    """Accuracy under the worst prompt."""
    p05: float
    """5% quantile over prompts, interpolated linearly."""
    max: float
    """Accuracy under the best prompt."""
    consistency: float
    """Share of the examples that are answered alike, right or wrong, under all prompts."""
    pairwise_agreement: float
    """How often two different prompts get the same answer to the same example."""
    top: Mapping[float, float]
    """Threshold t to the share of prompts with accuracy of at least t: Top@t."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One model's statistic minus another's, with a 95% interval."""

    value: float
    """The difference on the grid itself."""
    low: float
    """2.5% quantile over bootstrap resamples."""
    high: float
    """97.5% quantile over bootstrap resamples."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Every prompt with every example, for one model; rows and columns are sorted by id."""

    prompt_ids: tuple[str, ...]
    example_ids: tuple[str, ...]
    correct_PE: NDArray[np.bool_]
    predictions_PE: NDArray[np.str_]
    """Answers; an answer that could not be read from the text is the empty one."""

    def __iter__(self) -> Iterator[Any]:
        """The four fields in order, for unpacking."""
        return iter((self.prompt_ids, self.example_ids, self.correct_PE, self.predictions_PE))


def robustness(
    correct_PE: NDArray[np.bool_],
    predictions_PE: NDArray[Any],
    thresholds: Sequence[float] = (),
) -> Robustness:
    """The figures of one model (PAFT, arXiv 2502.12859, section 4: mean, std and Top@t).

    Args:
        correct_PE: Whether the answer is right.
        predictions_PE: The answers themselves, of any type that can be sorted.
        thresholds: Accuracies for Top@t.

    Raises:
        DataError: The grid is empty, or the two arrays differ in shape.
    """
    _require_grid(correct_PE)
    if predictions_PE.shape != correct_PE.shape:
        raise DataError(
            f"predictions have shape {predictions_PE.shape} and correctness {correct_PE.shape}: "
            "give both for the same prompts and examples"
        )
    accuracy_P = correct_PE.mean(axis=1)
    prompts, examples = correct_PE.shape
    codes_PE = np.unique(predictions_PE, return_inverse=True)[1].reshape(correct_PE.shape)
    ordered_pairs = sum(int((codes_PE == codes_E).sum()) for codes_E in codes_PE)
    others = prompts * (prompts - 1) * examples
    return Robustness(
        **{name: float(over_prompts(accuracy_P)) for name, over_prompts in OVER_PROMPTS.items()},
        consistency=float((codes_PE == codes_PE[0]).all(axis=0).mean()),
        pairwise_agreement=(ordered_pairs - prompts * examples) / others if others else 1.0,
        top={threshold: float((accuracy_P >= threshold).mean()) for threshold in thresholds},
    )


def paired_difference(
    correct_a_PE: NDArray[np.bool_],
    correct_b_PE: NDArray[np.bool_],
    statistic: Statistic = "mean",
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Statistic of `a` minus that of `b`, with a 95% percentile interval by paired bootstrap.

    A resample draws prompts and examples with replacement, the same ones for both models, so
    that what makes a prompt or an example hard cancels out. Both arrays may carry a leading axis
    of seeds: the statistic is taken per seed and averaged. Seeds are not resampled, so the
    interval says nothing about how much another seed would change.

    Raises:
        DataError: A grid is empty, or the two are not of the same prompts and examples.
    """
    _require_grid(correct_a_PE)
    if correct_a_PE.shape[-2:] != correct_b_PE.shape[-2:]:
        raise DataError(
            f"grids of {correct_a_PE.shape[-2:]} and {correct_b_PE.shape[-2:]} prompts x examples "
            "cannot be paired: evaluate both models on the same ones"
        )
    over_prompts = OVER_PROMPTS[statistic]
    a_SPE, b_SPE = _with_seeds(correct_a_PE), _with_seeds(correct_b_PE)
    prompts, examples = a_SPE.shape[-2:]
    rng = np.random.default_rng(seed)
    differences: list[NDArray[np.float64]] = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - start)
        weights_ER = rng.multinomial(examples, np.full(examples, 1 / examples), count).T / examples
        drawn_PR = rng.integers(prompts, size=(prompts, count))
        a_R, b_R = (
            over_prompts(
                np.take_along_axis(correct_SPE @ weights_ER, drawn_PR[None], axis=1).swapaxes(1, 2)
            ).mean(axis=0)
            for correct_SPE in (a_SPE, b_SPE)
        )
        differences.append(a_R - b_R)
    low, high = np.quantile(np.concatenate(differences), (0.025, 0.975))
    value = over_prompts(a_SPE.mean(axis=2)).mean() - over_prompts(b_SPE.mean(axis=2)).mean()
    return Difference(float(value), float(low), float(high))


def grid_from_scores(scores: pa.Table, variant: str, split: str, seed: int | None = None) -> Grid:
    """One model's grid from the scores table.

    Args:
        scores: Columns `variant, seed, split, prompt_id, example_id, prediction, correct`.
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
    predictions = _text(rows, "prediction")
    correct_PE = np.empty(count_PE.shape, bool)
    predictions_PE = np.empty(count_PE.shape, predictions.dtype)
    correct_PE[prompt_of_row, example_of_row] = rows["correct"].to_numpy()
    predictions_PE[prompt_of_row, example_of_row] = predictions
    return Grid(tuple(prompt_ids.tolist()), tuple(example_ids.tolist()), correct_PE, predictions_PE)


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
    are texts such as "0.75") and the `seeds` they come from. `differences` compares each variant
    with the single prompt and with the base model, and the single prompt with the base model:
    `"paft - single_prompt": {"value", "low", "high", "std": {"value", "low", "high"}}`, the outer
    three for the mean over prompts, `std` for the standard deviation over prompts. `prompts` and
    `examples` are counts, `seeds` and `seconds` are as given.

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
    correct = {label: np.stack([g.correct_PE for g in by.values()]) for label, by in grids.items()}
    return {
        "models": {
            label: {**_averaged(by_seed.values(), thresholds), "seeds": sorted(by_seed)}
            for label, by_seed in grids.items()
        },
        "differences": {
            f"{a} - {b}": {
                **asdict(paired_difference(correct[a], correct[b], "mean")),
                "std": asdict(paired_difference(correct[a], correct[b], "std")),
            }
            for a, b in _comparisons(variants)
        },
        "prompts": len(first.prompt_ids),
        "examples": len(first.example_ids),
        "seeds": list(seeds),
        "seconds": dict(seconds),
    }


def _comparisons(labels: Sequence[str]) -> list[tuple[str, str]]:
    trained = [label for label in labels if label not in (BASE, SINGLE_PROMPT)]
    pairs = [(label, SINGLE_PROMPT) for label in trained] + [(label, BASE) for label in trained]
    pairs.append((SINGLE_PROMPT, BASE))
    return [(a, b) for a, b in pairs if a in labels and b in labels]


def _grids_by_seed(scores: pa.Table, label: str, split: str) -> dict[int, Grid]:
    of_label = scores.filter(pc.field("variant") == label)
    seeds = sorted(of_label["seed"].unique().to_pylist())
    if not seeds:
        raise DataError(f"variant {label!r} has no scores: evaluate it first")
    return {seed: grid_from_scores(of_label, label, split, seed) for seed in seeds}


def _averaged(grids: Iterable[Grid], thresholds: Sequence[float]) -> dict[str, Any]:
    per_seed = [robustness(g.correct_PE, g.predictions_PE, thresholds) for g in grids]
    figures = {
        name: float(np.mean([getattr(figure, name) for figure in per_seed]))
        for name in Robustness.__dataclass_fields__
        if name != "top"
    }
    top = {str(t): float(np.mean([figure.top[t] for figure in per_seed])) for t in thresholds}
    return {**figures, "top": top}


def _require_grid(correct_PE: NDArray[np.bool_]) -> None:
    if correct_PE.ndim < 2 or correct_PE.size == 0:
        raise DataError(
            f"a grid of shape {correct_PE.shape} has nothing to measure: "
            "give at least one prompt and one example"
        )


def _with_seeds(correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    return correct.reshape(-1, *correct.shape[-2:]).astype(np.float64)


def _text(rows: pa.Table, column: str) -> NDArray[np.str_]:
    return np.asarray(pc.fill_null(rows[column].cast(pa.string()), "").to_pylist(), dtype=np.str_)
