"""Variance components of a crossed design: planted ones are found, absent ones are not shown."""

import json

import numpy as np
import pyarrow as pa
import pytest

from paft_ray.evaluation.axes import Wording
from paft_ray.evaluation.components import components_of
from paft_ray.report.axis_tables import components
from paft_ray.report.text import what_spreads

LEVELS = {"order": 2, "names": 3, "demonstrations": 4}
EXAMPLES, INSTRUCTIONS, LAYOUTS = 80, 6, 3
NOTHING: dict[str, float] = {}


def spread(rng: np.random.Generator, sd: float, shape: tuple[int, ...], ddof: int) -> np.ndarray:
    """Effects of levels that sum to 0, with this standard deviation."""
    values = rng.normal(size=shape)
    values -= values.mean(axis=0)
    return values * (sd / np.sqrt((values**2).mean() * shape[0] / (shape[0] - ddof)))


def planted(seed: int, sd: dict[str, float]) -> tuple[pa.Table, dict[str, Wording]]:
    """Grades that are sums of such effects, in the design of `evaluation.variation`."""
    rng = np.random.default_rng(seed)
    instruction_I = spread(rng, sd.get("instruction", 0), (INSTRUCTIONS,), 1)
    layout_Y = spread(rng, sd.get("layout", 0), (LAYOUTS,), 1)
    example_E = spread(rng, sd.get("example", 0), (EXAMPLES,), 1)
    main = {a: spread(rng, sd.get(a, 0), (n,), 0) for a, n in LEVELS.items()}
    own = {
        a: spread(rng, sd.get(f"{a} by example", 0), (n, EXAMPLES), 0) for a, n in LEVELS.items()
    }
    rows = []
    for i, y, e, number in np.ndindex(INSTRUCTIONS, LAYOUTS, EXAMPLES, 2):
        level = {axis: int(rng.integers(count)) for axis, count in LEVELS.items()}
        grade = 0.5 + instruction_I[i] + layout_Y[y] + example_E[e] + rng.normal(0, 0.2)
        grade += sum(main[a][at] + own[a][at, e] for a, at in level.items())
        named = {"crossed": str(number), **{axis: str(at) for axis, at in level.items()}}
        rows.append(
            {
                "variant": "base", "seed": 0, "split": "test", "prompt_id": f"p{i}-{y}",
                "example_id": f"{e:04}", "correct": False, "grade": grade, "axis": "crossed",
                "level": json.dumps(named),
            }
        )  # fmt: skip
    wordings = {
        f"p{i}-{y}": Wording(str(i), str(y)) for i in range(INSTRUCTIONS) for y in range(LAYOUTS)
    }
    return pa.Table.from_pylist(rows), wordings


@pytest.mark.parametrize(
    "sd",
    [
        NOTHING,
        {"example": 0.3, "order": 0.15},
        {"order by example": 0.2, "instruction": 0.25},
        {"layout": 0.2, "names": 0.15, "demonstrations by example": 0.2},
    ],
)
def test_planted_components_are_within_their_intervals_and_absent_ones_are_not_shown(sd):
    table, wordings = planted(1, sd)
    found = components_of(table, ["base"], wordings)["base"]
    variance = sum(value**2 for value in sd.values()) + 0.04
    assert found["variance"] == pytest.approx(variance, rel=0.2)
    shares = found["shares"]
    names = ["example", "instruction", "layout", "prompt", *LEVELS]
    assert set(shares) == {*names, *(f"{axis} by example" for axis in LEVELS), "rest"}
    for name, entry in shares.items():
        true = 0.04 if name == "rest" else sd.get(name, 0) ** 2
        assert entry["low"] <= true / variance <= entry["high"], (name, entry)
        assert (entry["low"] > 0) == (true > 0), (name, entry)
    assert sum(entry["value"] for entry in shares.values()) == pytest.approx(1)


@pytest.mark.slow
def test_estimates_are_right_on_average():
    sd = {"example": 0.2, "order": 0.1, "names by example": 0.15, "instruction": 0.1}
    found = [components_of(*swapped(planted(seed, sd)))["base"] for seed in range(12)]
    for name in found[0]["shares"]:
        values = [each["shares"][name]["value"] * each["variance"] for each in found]
        true = 0.04 if name == "rest" else sd.get(name, 0) ** 2
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - true) < 4 * error + 1e-3, name


def swapped(given: tuple[pa.Table, dict[str, Wording]]) -> tuple:
    """The arguments in their order."""
    return given[0], ["base"], given[1]


def test_what_the_prompts_cannot_tell_apart_is_left_out():
    table, wordings = planted(0, {"instruction": 0.2})
    alone = {id: Wording(id, id) for id in wordings}
    shares = components_of(table, ["base"], alone)["base"]["shares"]
    assert not {"instruction", "layout"} & set(shares) and shares["prompt"]["low"] > 0


def test_table_says_what_is_not_shown():
    table, wordings = planted(1, {"order": 0.2})
    found = {"components": components_of(table, ["base"], wordings)}
    cells = {row.name: row.cells[0].text for row in components(found).rows}
    assert cells["names of the choices"] == "not shown"
    assert float(cells["order of the choices"]) == pytest.approx(50, abs=20)
    assert components({}).rows == ()
    assert what_spreads(found, None) == []
    table, wordings = planted(1, NOTHING)
    found = {"components": components_of(table, ["base"], wordings)}
    [sentence] = what_spreads(found, None)
    assert sentence.startswith("base model: of no axis it is shown")
