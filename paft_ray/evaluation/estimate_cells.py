"""The choice of the cells of a grid that are scored where only a part is; pure.

A quantile over prompts depends on few of them, and evenly spread cells give little about each: a
tenth of 200 examples gives an accuracy to 11 points. Therefore only half of the cells is spread
evenly (`balanced_cells`), and the rest is scored, in `LOOKS` - 1 more looks, under the prompts that
may be among the weakest by the answers so far (`next_cells`). A look depends on scored answers
only, so that their likelihood needs no correction (Rubin, Biometrika 63, 1976); a plain mean over
them would be biased.

Compared with as many evenly spread cells, the error of the 5% quantile is up to 2.4 times smaller
and that of the worst prompt up to 3.7 times, where some prompts are weak; that of the mean is up to
1.7 times larger (`jobs/benchmarks/results/estimate.json`).

Shapes: P prompts, E examples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.estimate import class_numbers, fit

LOOKS = 3
FIRST_LOOK = 0.5
"""Share of the scored cells that is spread evenly."""
_WEAKEST = 0.1
"""Share of the prompts that count as the weakest."""
_DRAWS = 200


def balanced_cells(
    seed: int,
    prompts: int,
    examples: int,
    share: float,
    classes_E: Sequence[Any] | NDArray[Any] | None = None,
) -> NDArray[np.bool_]:
    """Choose evenly spread cells; with `FIRST_LOOK` of the share, those of the first look.

    Every prompt gets as many cells as the others, give or take one, and at least one; so does every
    example, give or take one. Classes occur in a prompt's cells nearly as often as in all examples
    (of two classes, give or take three).

    Args:
        seed: Seed of the choice.
        prompts: Rows of the grid.
        examples: Columns of the grid.
        share: Share of the cells to score.
        classes_E: The right answers, or other classes of the examples, to spread evenly.

    Returns:
        A mask [P, E], true where a cell is to be scored.

    Raises:
        DataError: The grid is empty, `share` is not in (0, 1], or classes do not fit the examples.
    """
    if prompts < 1 or examples < 1:
        raise DataError(
            f"a grid of {prompts} prompts x {examples} examples has no cell to choose: "
            "give at least one of both"
        )
    if not 0 < share <= 1:
        raise DataError(f"share is {share}: give the part of the cells to score, over 0, up to 1")
    class_E = class_numbers(classes_E, examples)
    rng = np.random.default_rng((seed, prompts, examples))
    total = max(prompts, round(share * prompts * examples))
    count_P = np.full(prompts, total // prompts)
    count_P[rng.permutation(prompts)[: total % prompts]] += 1
    mask_PE = np.zeros((prompts, examples), bool)
    waiting = np.empty(0, int)
    for p, count in enumerate(count_P):
        taken = waiting[:count]
        waiting = waiting[count:]
        if len(taken) < count:
            # deal all examples again; the prompt takes none twice
            deal = _mixed_order(rng, class_E)
            fresh = deal[~np.isin(deal, taken)][: count - len(taken)]
            taken = np.concatenate([taken, fresh])
            waiting = deal[~np.isin(deal, fresh)]
        mask_PE[p, taken] = True
    return mask_PE


def next_cells(
    seed: int,
    look: int,
    correct_PE: NDArray[np.bool_],
    observed_PE: NDArray[np.bool_],
    share: float,
    classes_E: Sequence[Any] | NDArray[Any] | None = None,
) -> NDArray[np.bool_]:
    """Choose more cells of one model's grid, mostly of prompts that are weak and little known.

    A prompt gets cells in proportion to its probability of being among the weakest tenth times the
    standard deviation of its accuracy, given the scored cells.

    Args:
        seed: Seed of the choice.
        look: Number of this look, from 1, below `LOOKS`.
        correct_PE: Whether the answer is right; without meaning where it was not observed.
        observed_PE: Whether a cell was scored.
        share: Share of the cells to score in all looks together.
        classes_E: As for `balanced_cells`.

    Returns:
        A mask [P, E] of cells that were not observed; empty where enough were.
    """
    left = min(round(share * observed_PE.size), observed_PE.size) - int(observed_PE.sum())
    count = max(0, left) // (LOOKS - look)
    mask_PE = np.zeros(observed_PE.shape, bool)
    if count == 0:
        return mask_PE
    accuracy_RP = fit(correct_PE, observed_PE, classes_E, _DRAWS, seed)
    bound_R = np.quantile(accuracy_RP, _WEAKEST, axis=1)
    weak_P = (accuracy_RP <= bound_R[:, None] + 1e-9).mean(axis=0)
    room_P = (~observed_PE).sum(axis=1)
    class_E = class_numbers(classes_E, observed_PE.shape[1])
    rng = np.random.default_rng((seed, look))
    for p, of_prompt in enumerate(_dealt(weak_P * accuracy_RP.std(axis=0), room_P, count)):
        order = _mixed_order(rng, class_E)
        mask_PE[p, order[~observed_PE[p, order]][:of_prompt]] = True
    return mask_PE


def _dealt(weight_P: NDArray[np.float64], room_P: NDArray[np.int_], count: int) -> NDArray[np.int_]:
    """Deal `count` cells to prompts: by their weight, and at most their room."""
    dealt_P = np.zeros(len(weight_P), int)
    while (left := count - int(dealt_P.sum())) > 0:
        open_P = dealt_P < room_P
        wanted_P = np.where(open_P, weight_P, 0)
        if not wanted_P.any():
            wanted_P = open_P.astype(float)
        wanted_P = wanted_P / wanted_P.sum() * left
        more_P = np.minimum(wanted_P.astype(int), room_P - dealt_P)
        if not more_P.any():
            more_P[np.argsort(-wanted_P, kind="stable")[:left]] = 1
            more_P = np.minimum(more_P, room_P - dealt_P)
        dealt_P += more_P
    return dealt_P


def _mixed_order(rng: np.random.Generator, class_E: NDArray[np.int_]) -> NDArray[np.int_]:
    """A random order of all examples in which every stretch holds the classes in proportion."""
    place_E = np.empty(len(class_E))
    for label in np.unique(class_E):
        members = rng.permutation(np.flatnonzero(class_E == label))
        place_E[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place_E, kind="stable")
