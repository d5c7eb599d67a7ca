"""Which kind of change moves a model's answers: its grades along each axis of variation; pure.

An axis is compared by itself, all else equal: pairs of answers to one example that differ in the
level of that axis alone. How much an axis moves is the mean absolute difference of the grades of
such pairs, which is ProSA's PromptSensiScore (arXiv 2410.12405) along one axis; and how far the
accuracies of its levels lie apart, as the standard deviation over them.

Shapes: S seeds and draws, L levels, P prompts, E examples, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.evaluation.answers import Answers, read_answers, require_paired
from paft_ray.evaluation.bootstrap import difference, interval
from paft_ray.prompts.variation import AS_IT_IS, CROSSED, DEMONSTRATIONS

INSTRUCTION, LAYOUT = "instruction", "layout"
MAIN = AS_IT_IS
_RESAMPLES = 1000
_MOST_PAIRS = 2000
_SURELY = 0.01
_TIE = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wording:
    """What a prompt is made of."""

    instruction: str
    layout: str


@dataclass(frozen=True, slots=True)
class _Moved:
    """How much an axis moves one model's answers."""

    entry: dict[str, Any]
    draws_R: Floats
    """`moved` on each resample."""

    def against(self, other: "_Moved") -> dict[str, float]:
        """How much more it moves this model's than another one's."""
        value = self.entry["moved"] - other.entry["moved"]
        return _differs(value, self.draws_R - other.draws_R)


def axes_of(
    scores: pa.Table,
    labels: Sequence[str],
    prompts: Mapping[str, Wording],
    compared: Sequence[tuple[str, str]] = (),
) -> dict[str, dict[str, Any]]:
    """Axis to label to how much the axis moves the model's answers.

    Each entry has `moved` (mean absolute difference of grades between two levels, 0 to 1) and its
    95% interval under `intervals`. Axes but for instruction and layout, which have as many levels
    as there are prompts, also have `std` of the levels' accuracies, `accuracies` (level to mean
    grade) and `differences` to the question as it is (level to value, low, high, p; p values are
    adjusted after Holm over all levels of a model). `against` holds, for every other model that
    this one is compared with, the difference in `moved` (label to value, low, high, p; adjusted
    over all axes and pairs).

    Args:
        scores: Table of the scores.
        labels: Models.
        prompts: Prompt id to its instruction and layout.
        compared: The models to compare, the second of each pair subtracted.
    """
    main = read_answers(scores, labels)
    times = _times(len(main.prompt_ids), len(main.example_ids))
    draws = _draws(main, labels)
    found: dict[str, dict[str, _Moved]] = {}
    for axis, pairs in _wording_pairs(main, prompts).items():
        if pairs:
            found[axis] = {
                label: _between(main.grades(label), draws[label], pairs, times) for label in labels
            }
    for axis, levels in _levels(scores, labels, main).items():
        examples = next(
            grade_SPE.shape[-1] for own in levels.values() for grade_SPE in own.values()
        )
        own_times = times
        if examples < len(main.example_ids):  # some could not be put so
            own_times = _times(len(main.prompt_ids), examples)
        found[axis] = {
            label: _along({level: own[label] for level, own in levels.items()}, own_times)
            for label in labels
        }
    for of_labels in found.values():
        for one, other in compared:
            apart = of_labels[one].against(of_labels[other])
            of_labels[one].entry.setdefault("against", {})[other] = apart
    entries = {
        axis: {label: moved.entry for label, moved in of_labels.items()}
        for axis, of_labels in found.items()
    }
    for label in labels:
        _adjust([entry[label].get("differences", {}) for entry in entries.values()])
    _adjust([e.get("against", {}) for of_labels in entries.values() for e in of_labels.values()])
    return entries


def moving(axes: Mapping[str, Mapping[str, Any]], label: str) -> list[str]:
    """The axes that surely move at least one in a hundred of a model's grades, the most first."""
    entries = {axis: entry[label] for axis, entry in axes.items()}
    sure = [axis for axis, entry in entries.items() if entry["intervals"]["moved"][0] >= _SURELY]
    return sorted(sure, key=lambda axis: -entries[axis]["moved"])


def _times(prompts: int, examples: int) -> tuple[Floats, Floats]:
    """How often each prompt and each example counts in every resample: [R, P] and [R, E]."""
    rng = np.random.default_rng(0)
    each = [
        rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
        for count in (prompts, examples)
    ]
    return each[0], each[1]


def _wording_pairs(
    main: Answers, prompts: Mapping[str, Wording]
) -> dict[str, list[tuple[int, int]]]:
    """Pairs of prompts that differ in nothing but instruction, or layout."""
    pairs: dict[str, list[tuple[int, int]]] = {INSTRUCTION: [], LAYOUT: []}
    known = [prompts.get(id) for id in main.prompt_ids]
    for (a, one), (b, other) in combinations(enumerate(known), 2):
        if one is None or other is None:
            continue
        if one.layout == other.layout and one.instruction != other.instruction:
            pairs[INSTRUCTION].append((a, b))
        if one.instruction == other.instruction and one.layout != other.layout:
            pairs[LAYOUT].append((a, b))
    rng = np.random.default_rng(0)
    return {
        axis: [found[n] for n in np.sort(rng.permutation(len(found))[:_MOST_PAIRS])]
        for axis, found in pairs.items()
    }


def _draws(main: Answers, labels: Sequence[str]) -> dict[str, int]:
    """How many draws of demonstrations each model was asked behind; 1 without any."""
    return {label: 1 + max(main.draws[m] for m in main.of(label)) for label in labels}


def _levels(
    scores: pa.Table, labels: Sequence[str], main: Answers
) -> dict[str, dict[str, dict[str, Floats]]]:
    """Axis to level to label to grades [S, P, E]; the question as it is comes first."""
    found: dict[str, dict[str, dict[str, Floats]]] = {}
    draws = _draws(main, labels)
    apart = {
        label: main.grades(label).reshape(draws[label], -1, *main.grade_MPE.shape[1:])
        for label in labels
    }
    if "axis" in scores.column_names:
        kinds = scores.select(["axis", "level"]).group_by(["axis", "level"]).aggregate([])
        for kind in kinds.sort_by([("axis", "ascending"), ("level", "ascending")]).to_pylist():
            if (axis := kind["axis"]) in (None, CROSSED):  # see `components`
                continue
            chosen = (pc.field("axis") == axis) & (pc.field("level") == kind["level"])
            answers = read_answers(scores, labels, axis=chosen)
            require_paired(answers, labels)
            place_E = [main.example_ids.index(id) for id in answers.example_ids]
            as_it_is = {label: apart[label][0][..., place_E] for label in labels}
            own = found.setdefault(axis, {MAIN: as_it_is})
            own[kind["level"]] = {label: answers.grades(label) for label in labels}
    if max(draws.values(), default=1) > 1:
        found[DEMONSTRATIONS] = {
            f"draw {draw + 1}": {label: apart[label][draw] for label in labels}
            for draw in range(max(draws.values()))
        }
    return found


def _between(
    grade_SPE: Floats,
    draws: int,
    pairs: Sequence[tuple[int, int]],
    times: tuple[Floats, Floats],
) -> _Moved:
    """How far the grades of pairs of prompts lie apart; seeds of one draw come together."""
    times_RP, times_RE = times
    first, second = np.array(pairs).T
    apart_SNE = np.abs(grade_SPE[:, first] - grade_SPE[:, second])
    weight_RN = times_RP[:, first] * times_RP[:, second]
    times_RS = _times_of_seeds(len(grade_SPE), draws)
    draws_R = np.einsum("rs,rn,sne,re->r", times_RS, weight_RN, apart_SNE, times_RE, optimize=True)
    total_R = weight_RN.sum(axis=1)
    value = float(apart_SNE.mean())
    draws_R = np.where(total_R > 0, draws_R / np.where(total_R > 0, total_R, 1), value)
    entry = {"moved": value, "intervals": {"moved": list(interval(draws_R, value, 0.0))}}
    return _Moved(entry, draws_R)


def _times_of_seeds(count: int, draws: int = 1) -> Floats:
    """How often each seed counts in every resample, the same for all its draws: [R, S]."""
    rng, seeds = np.random.default_rng(1), count // draws  # apart from those of the prompts
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _RESAMPLES) / count
    return np.tile(times, draws)


def _along(levels: Mapping[str, Floats], times: tuple[Floats, Floats]) -> _Moved:
    """How far the grades under several levels lie apart."""
    times_RP, times_RE = times
    grade_LSPE = np.stack(list(levels.values()))
    apart_SPE = np.mean([np.abs(a - b) for a, b in combinations(grade_LSPE, 2)], axis=0)
    mean_L = grade_LSPE.mean(axis=(1, 2, 3))
    times_RS = _times_of_seeds(len(apart_SPE))
    weights = times_RS, times_RP, times_RE
    moved_R = np.einsum("rs,rp,re,spe->r", *weights, apart_SPE, optimize=True)
    mean_LR = np.einsum("rs,rp,re,lspe->lr", *weights, grade_LSPE, optimize=True)
    moved, std = float(apart_SPE.mean()), float(mean_L.std())
    names = list(levels)
    entry = {
        "moved": moved,
        "std": std,
        "intervals": {
            "moved": list(interval(moved_R, moved, 0.0)),
            "std": list(interval(mean_LR.std(axis=0), std, 0.0)),
        },
        "accuracies": dict(zip(names, mean_L.tolist(), strict=True)),
        "differences": {
            name: _differs(float(mean - mean_L[0]), draws_R - mean_LR[0])
            for name, mean, draws_R in zip(names[1:], mean_L[1:], mean_LR[1:], strict=True)
        },
    }
    return _Moved(entry, moved_R)


def _differs(value: float, draws_R: Floats) -> dict[str, float]:
    """A difference, which few changed answers do not make a sure one: resamples without them."""
    found = asdict(difference(value, draws_R))
    without = min((draws_R <= _TIE).mean(), (draws_R >= -_TIE).mean())
    return found | {"p": max(found["p"], min(1.0, 2 * float(without)))}


def _adjust(of_axes: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Replace p values by those adjusted after Holm."""
    entries = sorted((e for axis in of_axes for e in axis.values()), key=lambda e: e["p"])
    largest = 0.0
    for place, entry in enumerate(entries):
        largest = max(largest, min(1.0, (len(entries) - place) * entry["p"]))
        entry["p"] = largest
