"""The scores table, made into a summary."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from synthetic_scores import random_grid, scores

from paft_ray.config.errors import DataError
from paft_ray.evaluation.estimate_cells import balanced_cells
from paft_ray.evaluation.figures import FIGURES
from paft_ray.evaluation.summary import Unscored, pairs, scores_by_author, summarise
from paft_ray.prompts.pool import Origin, training_prompt


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
    computed = [figure.key for figure in FIGURES if figure.computed]
    assert list(summary["models"]["paft"]) == [*computed, "top", "intervals", "seeds"]
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
    assert set(difference["std"]) == {"value", "low", "high", "p"}
    models = summary["models"]
    intervals = models["paft"]["intervals"]
    assert set(difference) == {*difference["std"], *intervals} - {"mean"}
    for name in ("mean", "consistency", "pairwise_agreement", "flip_rate"):
        low, high = intervals[name]
        assert low < models["paft"][name] < high, name
    assert intervals["top"]["0.75"][0] <= models["paft"]["top"]["0.75"]
    assert difference["top"]["0.75"]["value"] == pytest.approx(
        models["paft"]["top"]["0.75"] - models["single_prompt"]["top"]["0.75"]
    )
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


def test_pairs_put_paft_first_and_name_each_comparison_once():
    labels = ("base", "human_prompt", "single_prompt", "bound_prompts", "paft")
    named = pairs(labels)
    assert named[:4] == [
        ("paft", "single_prompt"),
        ("paft", "human_prompt"),
        ("paft", "bound_prompts"),
        ("paft", "base"),
    ]
    assert len(set(named)) == len(named)
    assert ("human_prompt", "single_prompt") in named
    assert pairs(("base", "paft")) == [("paft", "base")]


def test_summary_of_a_part_estimates_the_whole_with_intervals_that_hold_it():
    rng = np.random.default_rng(2)
    quality_P, ease_E = rng.normal(0.8, 0.5, 60), rng.normal(0, 0.8, 150)
    whole = {
        label: rng.random((60, 150)) < 1 / (1 + np.exp(-(quality_P[:, None] + ease_E + lift)))
        for label, lift in (("base", -0.8), ("paft", 0.4))
    }
    table = scores({(label, 0): grid for label, grid in whole.items()})
    cells_PE = balanced_cells(0, 60, 150, 0.2)
    place = [
        cells_PE[int(row["prompt_id"][1:]), int(row["example_id"][1:])] for row in table.to_pylist()
    ]
    part = table.filter(pa.array(place))
    unscored = Unscored({f"e{e:02d}": "yes" for e in range(150)}, choices=False)
    summary = summarise(part, ("base", "paft"), (0.75,), (0,), {}, estimate=unscored)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["scored_share"] == pytest.approx(0.2, abs=0.01)
    assert (summary["prompts"], summary["examples"]) == (60, 150)
    for label, grid in whole.items():
        model = summary["models"][label]
        assert model["consistency"] is model["flip_rate"] is None
        accuracy_P = grid.mean(axis=1)
        truth = {"mean": accuracy_P.mean(), "p05": np.quantile(accuracy_P, 0.05)}
        for name, value in truth.items():
            low, high = model["intervals"][name]
            assert low <= model[name] <= high
            assert low - 0.01 <= value <= high + 0.01, (label, name)
        share = (accuracy_P >= 0.75).mean()
        assert model["top"]["0.75"] == pytest.approx(share, abs=0.12)
        low, high = model["intervals"]["top"]["0.75"]
        assert low - 0.05 <= share <= high + 0.05
        estimated_P = [model["accuracies"][f"p{p}"] for p in range(60)]
        scored_P = np.array([grid[p, cells_PE[p]].mean() for p in range(60)])
        assert np.abs(estimated_P - accuracy_P).mean() < 0.9 * np.abs(scored_P - accuracy_P).mean()
    difference = summary["differences"]["paft - base"]
    assert difference["p"] is difference["std"]["p"] is None
    true = whole["paft"].mean() - whole["base"].mean()
    assert difference["low"] - 0.01 <= true <= difference["high"] + 0.01


def test_calibration_and_tokens_are_of_the_pairs_that_no_answer_chose():
    """Prompts whose first answers are wrong get more answers: a mean over all pairs is too high."""
    rng = np.random.default_rng(0)
    correct_PE = rng.random((60, 100)) < 0.6
    table = scores({("paft", 0): correct_PE})
    rows = table.to_pylist()
    table = table.append_column("generated_tokens", pa.array([4 + 6 * r["correct"] for r in rows]))
    first_PE = balanced_cells(0, 60, 100, 0.05)
    unlucky_P = (correct_PE & first_PE).sum(axis=1) <= 2
    look = [
        0 if first_PE[p, e] else 1 if unlucky_P[p] and e < 40 else None
        for p, e in ((int(r["prompt_id"][1:]), int(r["example_id"][1:])) for r in rows)
    ]
    part = table.append_column("look", pa.array(look, pa.int8()))
    part = part.filter(pa.array([number is not None for number in look]))
    answers = Unscored({f"e{e:02d}": "yes" for e in range(100)}, choices=False)
    summary = summarise(part, ("paft",), (), (0,), {}, estimate=answers)
    expected = 4 + 6 * correct_PE[first_PE].mean()
    assert summary["models"]["paft"]["generated_tokens"] == pytest.approx(expected)


def test_examples_that_nobody_was_asked_belong_to_the_grid():
    table = scores({("paft", 0): random_grid(1)})
    answers = Unscored({f"e{e:02d}": "yes" for e in range(50)}, choices=False)
    summary = summarise(table, ("paft",), (), (0,), {}, estimate=answers)
    assert (summary["prompts"], summary["examples"]) == (6, 50)
    assert summary["scored_share"] == 0.8


def test_summary_of_a_grid_with_holes_is_refused_unless_it_is_to_be_estimated():
    table = scores({("paft", 0): random_grid(1)}).slice(1)
    with pytest.raises(DataError, match="exactly one"):
        summarise(table, ("paft",), (), (0,), {})
    answers = Unscored({f"e{e:02d}": "yes" for e in range(40)}, choices=True)
    assert summarise(table, ("paft",), (), (0,), {}, estimate=answers)["scored_share"] < 1


def test_variants_with_names_of_their_own_are_compared_with_those_before_them() -> None:
    assert pairs(["base", "sft", "grpo", "grpo_pool"]) == [
        ("sft", "base"), ("grpo", "base"), ("grpo_pool", "base"),
        ("grpo", "sft"), ("grpo_pool", "sft"), ("grpo_pool", "grpo"),
    ]  # fmt: skip
    assert ("b", "a") not in pairs(["base", "single_prompt", "a", "b"])


def test_scores_by_author_hold_the_prompts_of_that_author_alone():
    table = scores({("base", 0): random_grid(1, 0.5)})
    ids = table.column("prompt_id").unique().to_pylist()
    origins = [Origin(llm="m"), Origin(file="stock:sst2"), Origin(llm="other")]
    prompts = [
        replace(training_prompt("Say it. {x}", ["x"], origins[place % 3]), id=id)
        for place, id in enumerate(ids)
    ]
    parts = scores_by_author(table, prompts, ["stock:sst2", "m", "nobody"])
    assert list(parts) == ["stock:sst2", "m"]
    assert parts["m"].column("prompt_id").unique().to_pylist() == ids[::3]
    assert parts["stock:sst2"].column("prompt_id").unique().to_pylist() == ids[1::3]
    assert parts["m"].num_rows == table.num_rows * len(ids[::3]) // len(ids)
