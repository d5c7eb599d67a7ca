"""Figures over prompts from a part of the grid, against the whole grid: how far off, how often.

    python jobs/benchmarks/estimate.py --model MODEL --json \
        --grid sst2 sst2 POOL.parquet 100 200 --grid trained sst2 written 72 200 ADAPTER

A grid is scored once by the package's scorer and kept (`--cache`), a quarter of an hour on one
thread for 100 prompts and 200 examples of SST-2. Then a share of its cells is drawn again and
again, and each time the figures are estimated from it in four ways: `looks`, the package's, which
scores half of them evenly and the rest under the prompts that may be the weakest; `evenly`, the
package's estimate from as many cells that are spread evenly; `one ability`, from the same cells
with one ability per prompt instead of one per prompt and right answer (the Rasch model); `cells`,
the accuracy of each prompt on its own of these cells.

Per grid, share, way and statistic: the mean error and its root mean square over the drawings, how
often it is at most 2 points, how often the 95% interval holds the full grid's value, and the
interval's mean width.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from estimate_grids import FullGrid, GridPlan, full_grid
from numpy.typing import NDArray
from records import print_record

from paft_ray.evaluation.estimate import Posterior, fit
from paft_ray.evaluation.estimate_cells import FIRST_LOOK, LOOKS, balanced_cells, next_cells
from paft_ray.evaluation.figures import BEST, LOW_QUANTILE, MEAN, STD, WORST, over_prompts

STATISTICS = {figure.key: figure for figure in (MEAN, STD, LOW_QUANTILE, WORST, BEST)}
OURS = "looks"
WAYS = (OURS, "evenly", "one ability", "cells")
CLOSE = 0.02
"""An error of 2 points, as a share."""


def looked_at(grid: FullGrid, share: float, seed: int) -> NDArray[np.float64]:
    """What the package does with a grid of which it may score a share."""
    correct_PE, answers_E = grid.correct_PE, grid.answers_E
    prompts, examples = correct_PE.shape
    observed_PE = balanced_cells(seed, prompts, examples, FIRST_LOOK * share, answers_E)
    for look in range(1, LOOKS):
        observed_PE |= next_cells(seed, look, correct_PE, observed_PE, share, answers_E)
    return fit(correct_PE, observed_PE, answers_E, seed=seed)


def estimates(
    grid: FullGrid, share: float, seed: int
) -> tuple[dict[str, dict[str, tuple[float, float, float]]], float]:
    """Way to statistic to its value and the bounds of its interval, for one drawing of cells.

    The second is the CPU-seconds of the package's way.
    """
    correct_PE, answers_E = grid.correct_PE, grid.answers_E
    prompts, examples = correct_PE.shape
    observed_PE = balanced_cells(seed, prompts, examples, share, answers_E)
    cells_P = (correct_PE & observed_PE).sum(axis=1) / observed_PE.sum(axis=1)
    started = time.process_time()
    looks = looked_at(grid, share, seed)
    seconds = time.process_time() - started
    evenly = fit(correct_PE, observed_PE, answers_E, seed=seed)
    one_ability = fit(correct_PE, observed_PE, seed=seed)
    found = Posterior({OURS: [looks], "evenly": [evenly], "one ability": [one_ability]})
    naive = {name: float(value) for name, value in over_prompts(cells_P).items()}
    return {
        **{
            way: {
                name: (found.values[way][name], *found.interval(way, figure))
                for name, figure in STATISTICS.items()
            }
            for way in found.draws
        },
        "cells": {name: (value, value, value) for name, value in naive.items()},
    }, seconds


def compare(grid: FullGrid, share: float, drawings: int) -> list[dict[str, Any]]:
    """One row per way: errors over many drawings of cells."""
    accuracy_P = grid.correct_PE.mean(axis=1)
    exact = {name: float(value) for name, value in over_prompts(accuracy_P).items()}
    found, seconds = zip(*(estimates(grid, share, seed) for seed in range(drawings)), strict=True)
    rows = []
    for way in WAYS:
        row: dict[str, Any] = {"share": share, "way": way}
        if way == OURS:
            row["cpu_seconds"] = round(float(np.median(seconds)), 2)
        for name in STATISTICS:
            row[name] = _errors([each[way][name] for each in found], exact[name], way != "cells")
        rows.append(row)
    return rows


def _errors(
    found: Sequence[tuple[float, float, float]], exact: float, with_interval: bool
) -> dict[str, float]:
    value_D, low_D, high_D = np.array(found).T
    error_D = value_D - exact
    row = {
        "full": exact,
        "bias": error_D.mean(),
        "rms_error": np.sqrt((error_D**2).mean()),
        "within_2_points": (np.abs(error_D) <= CLOSE + 1e-9).mean(),
    }
    if with_interval:
        row["coverage"] = ((low_D <= exact + 1e-9) & (exact - 1e-9 <= high_D)).mean()
        row["width"] = (high_D - low_D).mean()
    return {key: round(float(value), 4) for key, value in row.items()}


def show(name: str, correct_PE: NDArray[np.bool_], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of one grid, errors in points."""
    prompts, examples = correct_PE.shape
    print(f"\n{name}: {prompts} prompts x {examples} examples, errors in points (rms; bias)")
    full = "   ".join(f"{s} {100 * rows[0][s]['full']:.1f}" for s in STATISTICS)
    print(f"  the full grid: {full}")
    for row in rows:
        errors = "  ".join(
            f"{s} {100 * row[s]['rms_error']:4.1f} ({100 * row[s]['bias']:+.1f})"
            for s in STATISTICS
        )
        p05 = row["p05"]
        held = f", interval holds it in {p05['coverage']:.0%}" if "coverage" in p05 else ""
        print(
            f"  {row['share']:4.0%} {row['way']:12} {errors}  "
            f"p05 within 2 points in {p05['within_2_points']:.0%}{held}"
        )


def main() -> None:
    """Score, estimate, print, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument(
        "--grid",
        action="append",
        nargs="+",
        required=True,
        metavar="WORD",
        help="name, task (sst2, piqa, boolq, hellaswag), file of prompts (or `written`: 72 by hand "
        "for sst2), how many prompts, how many examples, and the folder of an adapter if it is not "
        "the base model; may be repeated",
    )
    parser.add_argument("--cache", default="storage/grids", help="where scored grids are kept")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--drawings", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if any(len(words) not in (5, 6) for words in options.grid):
        parser.error("--grid takes a name, a task, a file, two numbers, and maybe an adapter")
    plans = [
        GridPlan(name, task, file, int(prompts), int(examples), *adapter)
        for name, task, file, prompts, examples, *adapter in options.grid
    ]
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    for plan in plans:
        grid = full_grid(plan, options.model, options.dtype, Path(options.cache))
        of_grid = [row for s in options.shares for row in compare(grid, s, options.drawings)]
        show(plan.name, grid.correct_PE, of_grid)
        prompts, examples = grid.correct_PE.shape
        about = {"grid": plan.name, "prompts": prompts, "examples": examples}
        rows += [{**about, **row} for row in of_grid]
        rms = {(row["share"], row["way"]): row["p05"]["rms_error"] for row in of_grid}
        for share in options.shares:
            for other in WAYS[1:]:
                theirs = rms[share, other]  # none where all weak prompts say one class
                key = f"{plan.name} at {share:g}: p05 error, {OURS} / {other}"
                ratios[key] = round(rms[share, OURS] / theirs, 3) if theirs else None
    if options.json:
        print_record("estimate", options, ("numpy", "torch"), rows, ratios)


if __name__ == "__main__":
    main()
