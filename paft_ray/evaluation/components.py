"""How much of the spread of a model's grades each axis makes: variance components; pure.

They come from `evaluation.variation.design: crossed`, where every pair of prompt and example is
asked under combinations of levels that are drawn for it at random. Products of two grades estimate
them without bias: of two answers that differ in prompt and example, those under the same level of
an axis are more alike than any two by the axis's share alone; where they share the example too, by
what the axis does to each example besides (Hoeffding's decomposition by U-statistics). Levels of
`variation` are all there are; prompts and examples are drawn from many, so that intervals resample
both.

Shapes: L levels, P prompts, E examples, G groups of prompts with one instruction or layout.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.evaluation.axes import INSTRUCTION, LAYOUT, Wording
from paft_ray.evaluation.bootstrap import interval
from paft_ray.evaluation.scores import grades_of
from paft_ray.prompts.variation import CROSSED

EXAMPLE, PROMPT, REST = "example", "prompt", "rest"
"""Differences between examples, between prompts, and what is left."""
BY_EXAMPLE = " by example"
"""After an axis: what it does to each example beyond what it does to all."""
_RESAMPLES = 200

Floats = NDArray[np.float64]


def components_of(
    scores: pa.Table, labels: Sequence[str], prompts: Mapping[str, Wording]
) -> dict[str, dict[str, Any]]:
    """Label to its components; empty where no design was crossed.

    Each entry has `variance` (of a single grade, averaged over seeds), and `shares`: component to
    `value` (its part of the variance; an estimate, which may fall below 0), `low` and `high` (95%
    interval). A component is left out where these prompts and draws cannot tell it from others.

    Args:
        scores: Table of the scores.
        labels: Models.
        prompts: Prompt id to its instruction and layout.
    """
    if "axis" not in scores.column_names:
        return {}
    rows = scores.filter(pc.field("axis") == CROSSED)
    found = {}
    for label in labels:
        own = rows.filter(pc.field("variant") == label)
        if own.num_rows:
            found[label] = _shares(_Crossed.read(own, prompts))
    return found


@dataclass(frozen=True, slots=True)
class _Cells:
    """Sums over the answers to each example under each prompt at each level of an axis."""

    grade_LPE: Floats
    square_LPE: Floats
    """Of squared grades."""
    count_LPE: Floats

    @classmethod
    def sum(cls, grade_N: Floats, place: tuple[NDArray[np.int64], ...]) -> "_Cells":
        """Sum grades by (level, prompt, example)."""
        shape = tuple(int(each.max(initial=-1)) + 1 for each in place)
        cells = []
        for values_N in (grade_N, grade_N**2, np.ones_like(grade_N)):
            sums = np.zeros(shape)
            np.add.at(sums, place, values_N)
            cells.append(sums)
        return cls(*cells)


@dataclass(frozen=True, slots=True)
class _Crossed:
    """One model's answers in the crossed design."""

    all: _Cells
    """With one level."""
    axes: Mapping[str, _Cells]
    groups: Mapping[str, Floats]
    """Instruction and layout, each as groups of prompts: [G, P], 1 where a prompt has it."""

    @classmethod
    def read(cls, rows: pa.Table, prompts: Mapping[str, Wording]) -> "_Crossed":
        """Read a model's rows; grades of its seeds are averaged."""
        rows = rows.append_column("value", pa.array(grades_of(rows)))
        keys = ["prompt_id", "example_id", "level"]
        table = (
            rows.group_by(keys)
            .aggregate([("value", "mean")])
            .sort_by([(key, "ascending") for key in keys])
        )
        ids, prompt_N = _codes(table["prompt_id"].to_pylist())
        _, example_N = _codes(table["example_id"].to_pylist())
        drawn = [json.loads(level) for level in table["level"].to_pylist()]
        grade_N = table["value_mean"].to_numpy().astype(np.float64)
        grade_N -= grade_N.mean()  # cancels, and would be noise in resamples
        axes = {}
        for axis in sorted({axis for each in drawn for axis in each} - {CROSSED}):
            levels, level_N = _codes([each[axis] for each in drawn])
            if len(levels) > 1:
                axes[axis] = _Cells.sum(grade_N, (level_N, prompt_N, example_N))
        whole = _Cells.sum(grade_N, (np.zeros_like(prompt_N), prompt_N, example_N))
        known = [prompts.get(id) for id in ids]
        groups = {}
        for name in (INSTRUCTION, LAYOUT):
            parts = [
                id if each is None else getattr(each, name)
                for id, each in zip(ids, known, strict=True)
            ]
            groups[name] = np.eye(len(set(parts)))[:, _codes(parts)[1]]
        return cls(whole, axes, groups)


def _codes(values: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    names, index_N = np.unique(np.array(values, object).astype(str), return_inverse=True)
    return names.tolist(), index_N.astype(np.int64)


def _shares(crossed: _Crossed) -> dict[str, Any]:
    """The shares of one model with their intervals."""
    prompts, examples = crossed.all.grade_LPE.shape[1:]
    values = dict(_components(crossed, np.ones(prompts), np.ones(examples)))
    total = values.pop("total")
    draws: dict[str, list[float]] = {name: [] for name in values}
    rng = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        times = [rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in (prompts, examples)]
        drawn = dict(_components(crossed, *times))
        if not drawn["total"] > 0:
            continue
        for name, own in draws.items():
            own.append(drawn.get(name, np.nan) / drawn["total"])
    shares = {}
    for name, value in values.items():
        own = np.array(draws[name])
        own = own[np.isfinite(own)]
        if not np.isfinite(value) or not total > 0 or len(own) < _RESAMPLES // 2:
            continue
        low, high = interval(own, value / total, -1.0)
        shares[name] = {"value": float(value / total), "low": low, "high": high}
    return {"variance": float(max(total, 0.0)), "shares": shares}


def _components(crossed: _Crossed, times_P: Floats, times_E: Floats) -> Iterator[tuple[str, float]]:
    """Yield `total` and every component, where prompts and examples count so many times."""
    whole = crossed.all
    apart, by_example, by_prompt = (
        float(each[0, 0]) for each in _products(whole, times_P, times_E)
    )
    weight_PE = times_P[:, None] * times_E
    count = (weight_PE * whole.count_LPE[0]).sum()
    total = (weight_PE * whole.square_LPE[0]).sum() / count - apart
    yield "total", total
    yield EXAMPLE, by_example - apart
    known = by_example - apart
    grouped = dict(_of_wording(crossed, times_P, times_E))
    prompt = by_prompt - apart
    yield from grouped.items()
    yield PROMPT, prompt - sum(grouped.values())
    known += prompt
    for axis, cells in crossed.axes.items():
        main, with_example, _ = map(_between, _products(cells, times_P, times_E))
        yield axis, main
        yield axis + BY_EXAMPLE, with_example - main
        known += with_example
    yield REST, total - known


def _products(cells: _Cells, times_P: Floats, times_E: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean product of two grades at every two levels, [L, L].

    Of those that share neither prompt nor example, the example alone, the prompt alone.
    """
    sums = [_pair_sums(each, times_P, times_E) for each in (cells.grade_LPE, cells.count_LPE)]
    with np.errstate(invalid="ignore", divide="ignore"):
        apart, by_example, by_prompt = (a / b for a, b in zip(*sums, strict=True))
    return apart, by_example, by_prompt


def _pair_sums(sum_LPE: Floats, times_P: Floats, times_E: Floats) -> tuple[Floats, Floats, Floats]:
    """Sums of products over pairs; a pair that shares an example counts as often as this one."""
    one_LPE = sum_LPE * times_P[:, None]
    prompt_LP, example_LE = (one_LPE * times_E).sum(2), one_LPE.sum(1)
    flat_LN = sum_LPE.reshape(len(sum_LPE), -1)

    def both(weight_PE: Floats) -> Floats:
        return (flat_LN * weight_PE.ravel()) @ flat_LN.T

    bare_LP = (sum_LPE * times_E).sum(2)
    same_example = (example_LE * times_E) @ example_LE.T
    same_prompt = (bare_LP * times_P) @ bare_LP.T
    p, e = times_P[:, None], times_E[None]
    by_example = same_example - both(p**2 * e)
    by_prompt = same_prompt - both(p * e**2)
    total_L = prompt_LP.sum(1)
    apart = (
        np.outer(total_L, total_L)
        - prompt_LP @ prompt_LP.T
        - (example_LE * times_E**2) @ example_LE.T
        + both(p**2 * e**2)
    )
    return apart, by_example, by_prompt


def _between(product_LL: Floats) -> float:
    """Variance between the levels, all of which are there."""
    return float(np.diag(product_LL).mean() - product_LL.mean())


def _of_wording(crossed: _Crossed, times_P: Floats, times_E: Floats) -> Iterator[tuple[str, float]]:
    """Components of instruction and layout, where some prompts share one and not the other."""
    sums = [
        {
            name: _group_sum(each[0], onehot_GP, times_P, times_E)
            for name, onehot_GP in {**crossed.groups, "": np.ones((1, len(times_P)))}.items()
        }
        for each in (crossed.all.grade_LPE, crossed.all.count_LPE)
    ]
    rest = [each[""] - each[INSTRUCTION] - each[LAYOUT] for each in sums]
    for name in (INSTRUCTION, LAYOUT):
        if sums[1][name] > 0 and rest[1] > 0:
            yield name, sums[0][name] / sums[1][name] - rest[0] / rest[1]


def _group_sum(sum_PE: Floats, onehot_GP: Floats, times_P: Floats, times_E: Floats) -> float:
    """Sum of products over pairs of two prompts of a group and two examples."""
    group_GE = (onehot_GP * times_P) @ sum_PE
    own_PE = times_P[:, None] * sum_PE

    def of_two_examples(each: Floats) -> float:
        return float(((each @ times_E) ** 2).sum() - (each**2 @ times_E**2).sum())

    return of_two_examples(group_GE) - of_two_examples(own_PE)
