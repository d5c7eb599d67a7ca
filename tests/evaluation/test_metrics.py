"""Figures of one model, paired differences of two, and the summary made of them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paft_ray.errors import DataError
from paft_ray.evaluation.metrics import (
    Grid,
    grid_from_scores,
    paired_difference,
    robustness,
    summarise,
)

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 8))
GRIDS = SHAPES.flatmap(lambda shape: arrays(bool, shape))
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
SEEDS = st.integers(0, 2**32 - 1)
THRESHOLDS = (0.0, 0.5, 0.75)


def answers(correct_PE: NDArray[np.bool_]) -> NDArray[np.str_]:
    return np.where(correct_PE, "yes", "no")


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


def random_grid(seed: int, accuracy: float = 0.7) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((6, 40)) < accuracy


def test_robustness_of_a_known_grid_has_the_figures_worked_out_by_hand():
    correct_PE = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    figures = robustness(correct_PE, answers(correct_PE), thresholds=(0.5, 0.75))
    assert figures.mean == 0.5
    assert figures.std == pytest.approx(np.sqrt(1 / 6))  # population, not sample
    assert (figures.min, figures.max) == (0.0, 1.0)
    assert figures.p05 == pytest.approx(0.05)
    assert figures.consistency == 0.0
    assert figures.pairwise_agreement == pytest.approx(1 / 3)
    assert figures.top == {0.5: pytest.approx(2 / 3), 0.75: pytest.approx(1 / 3)}


def test_robustness_of_wrong_answers_that_agree_is_consistent():
    correct_PE = np.zeros((3, 5), bool)
    figures = robustness(correct_PE, np.full((3, 5), "the same"))
    assert (figures.mean, figures.consistency, figures.pairwise_agreement) == (0.0, 1.0, 1.0)


def test_robustness_of_one_prompt_has_no_spread_and_full_agreement():
    correct_PE = np.array([[True, False]])
    figures = robustness(correct_PE, answers(correct_PE))
    assert (figures.std, figures.pairwise_agreement) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_robustness_of_an_empty_grid_is_refused(shape: tuple[int, ...]):
    with pytest.raises(DataError, match="nothing to measure"):
        robustness(np.zeros(shape, bool), np.zeros(shape, str))


def test_robustness_of_unequal_shapes_is_refused():
    with pytest.raises(DataError, match="shape"):
        robustness(np.ones((2, 3), bool), np.full((3, 2), "a"))


@given(GRIDS)
def test_robustness_stays_within_its_bounds(correct_PE: NDArray[np.bool_]):
    figures = robustness(correct_PE, answers(correct_PE), THRESHOLDS)
    assert 0 <= figures.min <= figures.p05 <= figures.max <= 1
    assert figures.min - 1e-9 <= figures.mean <= figures.max + 1e-9
    assert 0 <= figures.std <= 0.5
    assert 0 <= figures.consistency <= figures.pairwise_agreement + 1e-9 <= 1 + 1e-9
    assert figures.top[0.0] == 1.0
    assert list(figures.top.values()) == sorted(figures.top.values(), reverse=True)


@given(GRIDS, SEEDS)
def test_robustness_ignores_the_order_of_prompts_and_examples(
    correct_PE: NDArray[np.bool_], seed: int
):
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rng.permutation(correct_PE, axis=0), axis=1)
    one = robustness(correct_PE, answers(correct_PE), THRESHOLDS)
    other = robustness(shuffled, answers(shuffled), THRESHOLDS)
    for name in ("mean", "std", "min", "p05", "max", "consistency", "pairwise_agreement"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert one.top == other.top


@pytest.mark.parametrize("statistic", ["mean", "std", "min", "p05", "max"])
def test_difference_of_identical_models_is_exactly_zero(statistic: str):
    same = random_grid(1)
    result = paired_difference(same, same.copy(), statistic)  # pyright: ignore[reportArgumentType]
    assert (result.value, result.low, result.high) == (0, 0, 0)


@given(PAIRS, st.sampled_from(["mean", "std", "min", "p05", "max"]), SEEDS)
def test_difference_swapped_changes_only_its_sign(pair, statistic, seed: int):
    a, b = pair
    one = paired_difference(a, b, statistic, resamples=50, seed=seed)
    other = paired_difference(b, a, statistic, resamples=50, seed=seed)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert -1 <= one.low <= one.high <= 1


def test_difference_repeated_with_one_seed_is_the_same_and_with_another_is_not():
    a, b = random_grid(1), random_grid(2)
    assert paired_difference(a, b, seed=3) == paired_difference(a, b, seed=3)
    assert paired_difference(a, b, seed=3) != paired_difference(a, b, seed=4)


def test_difference_of_a_clearly_better_model_has_an_interval_above_zero():
    worse = random_grid(5, 0.4)
    better = worse | random_grid(6, 0.5)
    result = paired_difference(better, worse)
    assert 0 < result.low < result.value < result.high


def test_difference_that_is_paired_has_a_narrower_interval_than_an_unpaired_one():
    hard_E = np.random.default_rng(0).random(40) < 0.5
    a = np.tile(hard_E, (6, 1))
    b = a.copy()
    b[:, :2] = ~b[:, :2]
    paired = paired_difference(a, b)
    unpaired = paired_difference(a, np.random.default_rng(1).permutation(b, axis=1))
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_difference_of_several_seeds_averages_the_statistic_per_seed():
    a = np.stack([random_grid(1), random_grid(2)])
    b = random_grid(3)
    expected = (a.mean(2).std(1)).mean() - b.mean(1).std()
    assert paired_difference(a, b, "std").value == pytest.approx(expected)


def test_difference_of_unequal_grids_is_refused():
    with pytest.raises(DataError, match="cannot be paired"):
        paired_difference(np.ones((2, 3), bool), np.ones((3, 3), bool))


def test_grid_from_shuffled_scores_is_the_grid_that_made_them():
    correct_PE = random_grid(1)
    grid = grid_from_scores(scores({("paft", 0): correct_PE}), "paft", "test")
    assert isinstance(grid, Grid)
    prompt_ids, example_ids, read_PE, predictions_PE = grid
    assert prompt_ids == tuple(f"p{p}" for p in range(6))
    assert example_ids == tuple(f"e{e:02d}" for e in range(40))
    assert (read_PE == correct_PE).all()
    assert (predictions_PE == np.where(correct_PE, "yes", "")).all()


@pytest.mark.parametrize("change", ["hole", "duplicate"])
def test_grid_with_a_hole_or_a_duplicate_is_refused(change: str):
    table = scores({("paft", 0): random_grid(1)})
    changed = table.slice(1) if change == "hole" else pa.concat_tables([table, table.slice(0, 1)])
    with pytest.raises(DataError, match="exactly one"):
        grid_from_scores(changed, "paft", "test")


def test_grid_of_two_seeds_asks_for_the_seed():
    table = scores({("paft", 0): random_grid(1), ("paft", 1): random_grid(2)})
    with pytest.raises(DataError, match="name the seed"):
        grid_from_scores(table, "paft", "test")
    assert (grid_from_scores(table, "paft", "test", 1).correct_PE == random_grid(2)).all()


@pytest.mark.parametrize(("variant", "split"), [("paft", "train"), ("other", "test")])
def test_grid_without_rows_is_refused(variant: str, split: str):
    with pytest.raises(DataError, match="no rows"):
        grid_from_scores(scores({("paft", 0): random_grid(1)}), variant, split)


def test_summary_has_the_documented_shape_and_survives_json():
    table = scores(
        {
            ("base", 0): random_grid(1, 0.5),
            ("single_prompt", 0): random_grid(2, 0.6),
            ("single_prompt", 1): random_grid(3, 0.6),
            ("paft", 0): random_grid(4, 0.8),
            ("paft", 1): random_grid(5, 0.8),
        }
    )
    summary = summarise(
        table, ("base", "single_prompt", "paft"), (0.75,), seeds=(0, 1), seconds={"train": 1.5}
    )
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary) == ["models", "differences", "prompts", "examples", "seeds", "seconds"]
    assert list(summary["models"]) == ["base", "single_prompt", "paft"]
    assert set(summary["models"]["paft"]) == {
        *("mean", "std", "min", "p05", "max", "consistency", "pairwise_agreement", "top", "seeds")
    }
    assert summary["models"]["paft"]["mean"] == pytest.approx(
        (random_grid(4, 0.8).mean() + random_grid(5, 0.8).mean()) / 2
    )
    assert list(summary["models"]["paft"]["top"]) == ["0.75"]
    assert list(summary["differences"]) == [
        "paft - single_prompt",
        "paft - base",
        "single_prompt - base",
    ]
    difference = summary["differences"]["paft - single_prompt"]
    assert set(difference) == {"value", "low", "high", "std"}
    assert set(difference["std"]) == {"value", "low", "high"}
    models = summary["models"]
    assert difference["value"] == pytest.approx(
        models["paft"]["mean"] - models["single_prompt"]["mean"]
    )
    assert difference["std"]["value"] == pytest.approx(
        models["paft"]["std"] - models["single_prompt"]["std"]
    )
    assert (summary["prompts"], summary["examples"]) == (6, 40)
    assert (summary["seeds"], summary["seconds"]) == ([0, 1], {"train": 1.5})


def test_summary_of_models_on_different_examples_is_refused():
    table = scores({("base", 0): random_grid(1), ("paft", 0): random_grid(1)[:, :30]})
    with pytest.raises(DataError, match="same prompts and examples"):
        summarise(table, ("base", "paft"), (), (0,), {})


def test_summary_of_a_variant_without_scores_is_refused():
    with pytest.raises(DataError, match="'paft' has no scores"):
        summarise(scores({("base", 0): random_grid(1)}), ("base", "paft"), (), (0,), {})
