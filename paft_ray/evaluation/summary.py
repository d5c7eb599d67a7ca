"""From the scores table to the content of `summary.json`.

Shapes: P prompts, E examples.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config import BASE
from paft_ray.config.errors import DataError
from paft_ray.evaluation.answers import Grid, grid_from_scores
from paft_ray.evaluation.bootstrap import Resamples, resample
from paft_ray.evaluation.estimate import Posterior, fit
from paft_ray.evaluation.metrics import (
    OF_ANSWERS,
    OVER_PROMPTS,
    AnswerFigures,
    Robustness,
    calibration_error,
    robustness,
    top_name,
)

SINGLE_PROMPT = "single_prompt"
"""Label of the variant that every other variant is compared with."""
PAFT = "paft"
"""Label of the variant that is compared with every other one."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """What must be known of the examples to estimate a grid of which only a part was scored."""

    answers: Mapping[str, str]
    """Example id to its right answer."""
    choices: bool
    """Whether answers are one of a few choices, so that prompts may favour some of them."""


def summarise(
    scores: pa.Table,
    variants: Sequence[str],
    thresholds: Sequence[float],
    seeds: Sequence[int],
    seconds: Mapping[str, float],
    split: str = "test",
    estimate: Unscored | None = None,
) -> dict[str, Any]:
    """The content of `summary.json`.

    `models` holds, per label, the fields of `Robustness` (averaged over seeds; the keys of `top`
    are texts such as "0.75"), `intervals` (statistic to its 95% interval, `top` by threshold) and
    the `seeds` they come from. `differences` compares each variant with the single prompt and with
    the base model, PAFT with all others, and the single prompt with the base model:
    `"paft - single_prompt": {"value", "low", "high", "p", "std": {...}, "min": {...}, ...}`, the
    outer four for the mean over prompts, the inner ones for other statistics, `top` by threshold.
    `prompts` and `examples` are counts, `seeds` and `seconds` are as given.

    Where the whole grid is estimated, `scored_share` is the part of it that was scored, each model
    has its `accuracies` (prompt id to the mean over draws and seeds), figures about agreement
    between prompts are None, and differences are not paired and have no p.

    Args:
        scores: See `grid_from_scores`.
        variants: Labels to report, the base model's among them if it was evaluated.
        thresholds: Accuracies for Top@t.
        seeds: Seeds of this comparison.
        seconds: Stage to wall-clock time.
        split: Which prompts.
        estimate: Estimate the figures of the whole grid from the part that was scored.

    Raises:
        DataError: A grid has holes or duplicates, or two models saw different prompts or examples.
    """
    whole = None if estimate is None else estimate.answers
    grids = {label: _grids_by_seed(scores, label, split, whole) for label in variants}
    first = _require_same_pairs(grids)
    if estimate is None:
        found, figures = _measured(grids, thresholds)
    else:
        found, figures = _estimated(grids, estimate, thresholds)
    models = {
        label: {
            **figures[label],
            "intervals": _intervals(found, label, thresholds),
            "seeds": sorted(by_seed),
        }
        for label, by_seed in grids.items()
    }
    differences = {f"{a} - {b}": _difference(found, a, b, thresholds) for a, b in pairs(variants)}
    return {
        "models": models,
        "differences": differences,
        "prompts": len(first.prompt_ids),
        "examples": len(first.example_ids),
        "seeds": list(seeds),
        "seconds": dict(seconds),
        **({"scored_share": float(np.mean(_scored(first)))} if estimate is not None else {}),
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


def _intervals(
    found: Resamples | Posterior, label: str, thresholds: Sequence[float]
) -> dict[str, Any]:
    known = found.draws[label]
    plain = [name for name in (*OVER_PROMPTS, *OF_ANSWERS) if name in known]
    return {
        **{name: list(found.interval(label, name)) for name in plain},
        "top": {str(t): list(found.interval(label, top_name(t))) for t in thresholds},
    }


def _difference(
    found: Resamples | Posterior, a: str, b: str, thresholds: Sequence[float]
) -> dict[str, Any]:
    both = found.draws[a].keys() & found.draws[b].keys()
    plain = [name for name in (*OVER_PROMPTS, *OF_ANSWERS) if name in both]
    of = {name: asdict(found.difference(a, b, name)) for name in plain}
    tops = {str(t): asdict(found.difference(a, b, top_name(t))) for t in thresholds}
    return {**of.pop("mean"), **of, "top": tops}


def _grids_by_seed(
    scores: pa.Table, label: str, split: str, whole: Collection[str] | None
) -> dict[int, Grid]:
    of_label = scores.filter(pc.field("variant") == label)
    seeds = sorted(of_label["seed"].unique().to_pylist())
    if not seeds:
        raise DataError(f"variant {label!r} has no scores: evaluate it first")
    return {seed: grid_from_scores(of_label, label, split, seed, whole) for seed in seeds}


def _require_same_pairs(grids: Mapping[str, Mapping[int, Grid]]) -> Grid:
    """The first of the grids, which all have its prompts and examples."""
    (first_label, of_first), *_ = grids.items()
    first = next(iter(of_first.values()))
    for label, by_seed in grids.items():
        for grid in by_seed.values():
            if (grid.prompt_ids, grid.example_ids) != (first.prompt_ids, first.example_ids):
                raise DataError(
                    f"variant {label!r} was not evaluated on the same prompts and examples as "
                    f"{first_label!r}: evaluate all variants again, together"
                )
    return first


def _measured(
    grids: Mapping[str, Mapping[int, Grid]], thresholds: Sequence[float]
) -> tuple[Resamples, dict[str, dict[str, Any]]]:
    """Figures of grids that were scored as a whole, averaged over seeds."""
    found = resample(
        {label: np.stack([g.correct_PE for g in by.values()]) for label, by in grids.items()},
        thresholds=thresholds,
        answers={label: list(map(_answers, by.values())) for label, by in grids.items()},
    )
    return found, {label: _averaged(by.values(), thresholds) for label, by in grids.items()}


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


def _answers(grid: Grid) -> AnswerFigures:
    return AnswerFigures(grid.correct_PE, grid.predictions_PE, grid.confidence_PE, grid.tokens_PE)


def _estimated(
    grids: Mapping[str, Mapping[int, Grid]], estimate: Unscored, thresholds: Sequence[float]
) -> tuple[Posterior, dict[str, dict[str, Any]]]:
    """Figures of whole grids from their scored parts: medians over draws, averaged over seeds.

    The draws say what the unscored pairs leave open, for these prompts, examples and seeds.
    """
    fits = {
        label: [
            fit(
                grid.correct_PE,
                _scored(grid),
                [estimate.answers[id] for id in grid.example_ids] if estimate.choices else None,
                seed=1000 * number + place,  # independent draws for every model
            )
            for place, grid in enumerate(by_seed.values())
        ]
        for number, (label, by_seed) in enumerate(grids.items())
    }
    found = Posterior(fits, thresholds)
    figures = {}
    for label, by_seed in grids.items():
        accuracy_P = np.mean([fit.accuracy_RP.mean(axis=0) for fit in fits[label]], axis=0)
        prompt_ids = next(iter(by_seed.values())).prompt_ids
        figures[label] = {
            **dict.fromkeys(Robustness.__dataclass_fields__),
            **{name: found.figure(label, name).value for name in OVER_PROMPTS},
            **_of_scored(by_seed.values()),
            "top": {str(t): found.figure(label, top_name(t)).value for t in thresholds},
            "accuracies": dict(zip(prompt_ids, accuracy_P.tolist(), strict=True)),
        }
    return found, figures


def _of_scored(grids: Iterable[Grid]) -> dict[str, float]:
    """The figures that need no whole grid, of the pairs that were spread evenly over it.

    The others were chosen by what was answered before: where a prompt's first answers were wrong by
    chance it is asked again, and where they were right by chance it is not.
    """
    figures: dict[str, list[float]] = {}
    for grid in grids:
        even_PE = _scored(grid) if grid.even_PE is None else grid.even_PE
        if grid.confidence_PE is not None:
            error = calibration_error(grid.confidence_PE[even_PE], grid.correct_PE[even_PE])
            figures.setdefault("calibration_error", []).append(error)
        if grid.tokens_PE is not None:
            tokens = float(grid.tokens_PE[even_PE].mean())
            figures.setdefault("generated_tokens", []).append(tokens)
    return {name: float(np.mean(values)) for name, values in figures.items()}


def _scored(grid: Grid) -> NDArray[np.bool_]:
    return np.ones(grid.correct_PE.shape, bool) if grid.scored_PE is None else grid.scored_PE
