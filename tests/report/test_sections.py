"""What the report's sections are made of: accuracy, flips, draws, curves, coverage, tables."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from synthetic_run import ACCURACY, SIX, make_run, scores

from paft_ray.evaluation.summary import summarise
from paft_ray.prompts.dedup.similarity import similarity
from paft_ray.report.accuracy import accuracy_plot, levels_without_overlap, prompt_lines
from paft_ray.report.axes import step_ticks
from paft_ray.report.coverage import run_coverage
from paft_ray.report.files import Drawn, RunFiles, Training, read_run
from paft_ray.report.flips import flip_lines, flipping_examples
from paft_ray.report.page import write_report
from paft_ray.report.tables import by_certainty, differences, further_figures, results
from paft_ray.report.text import results_table
from paft_ray.report.training import curve_plot, curves_of, draws_of
from paft_ray.storage.paths import Storage, to_parquet

WORDINGS = {"p0": "Say it: {x}", "p1": "Tell how it is: {x}", "p2": "Tell how it was: {x}"}
RIGHT = {
    ("paft", 0): {"e0": (1, 1, 1), "e1": (1, 1, 0), "e2": (0, 0, 0), "e3": (1, 1, 1)},
    ("paft", 1): {"e0": (1, 1, 1), "e1": (1, 0, 1), "e2": (1, 1, 1), "e3": (1, 0, 1)},
    ("single_prompt", 0): {"e0": (0, 0, 1), "e1": (0, 1, 0), "e2": (0, 0, 0), "e3": (1, 1, 1)},
    ("single_prompt", 1): {"e0": (0, 0, 1), "e1": (0, 0, 0), "e2": (0, 0, 0), "e3": (1, 1, 1)},
}
"""Model to example to whether it is right under each of the three prompts."""


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    folder = Storage.open(str(tmp_path_factory.mktemp("runs") / "six"))
    make_run(folder, SIX, 40, seeds=(0, 1, 2))
    return read_run(folder)


@pytest.fixture
def known(tmp_path: Path) -> RunFiles:
    """A run of four examples, of which one has no text."""
    rows = [
        {
            "variant": label,
            "seed": seed,
            "split": "test",
            "prompt_id": prompt,
            "example_id": example,
            "prediction": "yes" if right else "no",
            "correct": bool(right),
            "generated_tokens": 2,
        }
        for (label, seed), examples in RIGHT.items()
        for example, rights in examples.items()
        for prompt, right in zip(WORDINGS, rights, strict=True)
    ]
    folder = Storage.open(str(tmp_path / "known"))
    model = {"mean": 0.5, "std": 0.1, "min": 0.4, "top": {}}
    summary = {"models": {"single_prompt": model, "paft": model}, "seeds": [0, 1], "seconds": {}}
    folder.write_json("config.json", {"config": {}})
    folder.write_json("summary.json", summary)
    folder.write_bytes("scores.parquet", to_parquet(pa.Table.from_pylist(rows)))
    prompts = pa.table({"prompt_id": list(WORDINGS), "text": list(WORDINGS.values())})
    folder.write_bytes("prompts.parquet", to_parquet(prompts))
    examples = pa.table({"example_id": ["e1"], "fields": ['{"x": "fine"}'], "answer": ["yes"]})
    folder.write_bytes("examples.parquet", to_parquet(examples))
    return read_run(folder)


def test_examples_that_flip_within_a_seed_are_shown_and_others_are_not(known: RunFiles):
    flips = flipping_examples(known)
    assert [flip.example_id for flip in flips.examples] == ["e1", "e3"], "e2 differs by seed only"
    assert {label: share for label, _, share in flips.shares} == {
        "paft": 37.5,
        "single_prompt": 37.5,
    }
    first, second = flips.examples
    assert first.fields == (("x", "fine"),)
    assert first.answer == "yes"
    assert second.fields == ()
    assert second.answer is None


def test_two_wordings_of_a_flip_are_alike_and_differ_in_outcome(known: RunFiles):
    flip = flipping_examples(known).examples[0]
    assert flip.seed == "0"
    assert [wording.prompt_id for wording in flip.wordings] == ["p1", "p2"]
    paft, single = zip(*(wording.predictions for wording in flip.wordings), strict=True)
    assert [(shown.name, shown.text, shown.right) for shown in paft] == [
        ("PAFT", "yes", True),
        ("PAFT", "no", False),
    ]
    assert [shown.right for shown in single] == [True, False]


def test_one_flip_on_the_screen_is_of_the_model_that_flips_most(known: RunFiles):
    first, *wordings = flip_lines(known)
    assert first == "    single prompt flips on 38% of the examples: e0"
    assert wordings == [
        '        "yes" under "Tell how it was: {x}"',
        '        "no" under "Tell how it is: {x}"',
    ]


def test_bars_of_a_flip_follow_the_ranking_of_prompts(known: RunFiles):
    assert [line.id for line in prompt_lines(known)] == ["p1", "p2", "p0"]
    paft = next(bars for bars in flipping_examples(known).examples[0].bars if bars.label == "paft")
    assert paft.right == "M0 1v-0.5h.82v0.5zM1 1v-0.5h.82v0.5zM2 1v-1h.82v1z"
    assert paft.count == "2 of 3"


def test_flips_over_draws_of_demonstrations_show_the_predictions_that_they_are_about(
    tmp_path: Path,
):
    """Seen: the prediction under the wording that is right was that of another draw."""
    folder = Storage.open(str(tmp_path))
    make_run(folder)
    parts = []
    for draw in range(3):
        own = scores(20 + draw, ACCURACY, 60)
        parts.append(own.append_column("draw", pa.array([draw] * own.num_rows, pa.int64())))
    table = pa.concat_tables(parts)
    folder.write_bytes("scores.parquet", to_parquet(table))
    folder.write_json("summary.json", summarise(table, list(ACCURACY), (0.75,), (0,), {}))
    flips = flipping_examples(read_run(folder)).examples
    assert len(flips) > 3
    for flip in flips:
        right, wrong = flip.wordings
        assert right.predictions[0].right and not wrong.predictions[0].right
        assert flip.seed == ""  # there is one


def test_page_and_screen_say_how_much_of_the_spread_each_axis_makes(tmp_path: Path):
    folder = Storage.open(str(tmp_path))
    make_run(folder)
    summary = folder.read_json("summary.json")
    shares = {
        "order by example": {"value": 0.31, "low": 0.2, "high": 0.42},
        "names": {"value": -0.01, "low": -0.03, "high": 0.02},
    }
    summary["components"] = {"paft": {"variance": 0.2, "shares": shares}}
    folder.write_json("summary.json", summary)
    write_report(folder)
    page = folder.read_bytes("report.html").decode()
    assert (
        "What makes the spread" in page and "order of the choices, other for each example" in page
    )
    lines = results_table(summary).splitlines()
    [order] = [line for line in lines if line.startswith("order of the choices, other")]
    assert order.endswith("31.0 (20.0 – 42.0)")
    assert any(line.startswith("names of the choices") and "not shown" in line for line in lines)


def test_figures_with_an_interval_over_half_of_the_scale_are_folded_away_but_the_mean():
    intervals = {"mean": [0.1, 0.9], "std": [0.1, 0.2], "min": [0.2, 0.75], "top": {"0.75": [0, 1]}}
    model = {"mean": 0.5, "std": 0.15, "min": 0.4, "top": {"0.75": 0.5}, "intervals": intervals}
    sure, folded = by_certainty(results({"models": {"base": model, "mine": model}}))
    assert sure.columns == ("mean", "std over prompts")
    assert folded.columns == ("worst", "Top>=75%")
    assert [len(row.cells) for row in (*sure.rows, *folded.rows)] == [2, 2, 2, 2]


def test_steps_on_an_axis_are_round_and_do_not_overlap():
    assert step_ticks(1, 150) == ((0.0, 1), (32.89, 50), (66.44, 100), (100.0, 150))
    assert step_ticks(50, 150) == ((0.0, 50), (50.0, 100), (100.0, 150))
    assert step_ticks(1, 1) == ((0.0, 1), (0.0, 1))


def test_strips_of_several_seeds_have_their_means_and_ranges(six: RunFiles):
    plot = accuracy_plot(six)
    strips = {strip.label: strip for strip in plot.strips}
    assert strips["base"].seeds == ()
    assert len(strips["paft"].seeds) == 3
    assert all(dot.low <= dot.accuracy <= dot.high for dot in strips["paft"].dots)
    assert any(dot.low < dot.high for dot in strips["paft"].dots)


def test_strips_show_the_accuracies_of_the_scores_on_a_scale_that_holds_them(six: RunFiles):
    plot = accuracy_plot(six)
    [paft] = [strip for strip in plot.strips if strip.label == "paft"]
    mean_P = 100 * six.answers.accuracy("paft").mean(axis=0)
    assert [dot.accuracy for dot in paft.dots] == pytest.approx(sorted(mean_P))
    assert paft.mean == pytest.approx(mean_P.mean())
    dots = [dot.accuracy for strip in plot.strips for dot in strip.dots]
    assert plot.axis.low <= min(dots) <= max(dots) <= plot.axis.high
    assert (plot.prompts, plot.several_seeds, plot.thresholds) == (12, True, (75.0,))


def test_dots_of_one_level_never_overlap():
    places = sorted(np.random.default_rng(1).uniform(0, 100, 60).tolist())
    levels = levels_without_overlap(places, 2.0, 4)
    for level in set(levels) - {0}:
        own = [place for place, at in zip(places, levels, strict=True) if at == level]
        assert all(b - a >= 2.0 for a, b in pairwise(own))


def training(seed: str, losses: tuple[float, ...], drawn: dict[str, tuple[int, float]]) -> Training:
    prompts = tuple(Drawn(name, count, loss, count) for name, (count, loss) in drawn.items())
    return Training("paft", seed, losses, prompts, {})


def test_curve_of_seeds_of_unequal_length_is_their_mean_as_far_as_they_go():
    [curve] = curves_of([training("0", (4.0, 2.0, 2.0), {}), training("1", (2.0, 2.0), {})])
    assert curve.thick == (3.0, 2.0, 2.0)
    assert len(curve.thin) == 2


def test_scale_of_curves_holds_the_smoothed_ones_and_starts_at_zero():
    plot = curve_plot([training("0", (0.4, 0.3, 0.2), {}), training("1", (0.5, 0.1), {})])
    assert plot is not None
    assert plot.axis.low == 0 and plot.axis.high >= max(plot.curves[0].thick)
    assert (plot.last_step, plot.several_seeds) == (3, True)
    assert plot.points((plot.axis.high, 0.0)) == "0.00,0.00 50.00,100.00"
    assert curve_plot([training("0", (), {})]) is None


def test_draws_of_seeds_are_summed_and_listed_by_seed():
    first = training("0", (), {"a": (3, 1.0), "b": (1, 2.0)})
    second = training("1", (), {"a": (1, 3.0), "c": (2, 1.0)})
    [draws] = draws_of([first, second], {"a": "text of a"})
    assert [(p.text, p.total, p.by_seed, p.loss) for p in draws.listed] == [
        ("text of a", 4, (3, 1), 1.5),
        ("c", 2, (0, 2), 1.0),
        ("b", 1, (1, 0), 2.0),
    ]
    assert (draws.total, draws.prompts, draws.seeds) == (7, 3, ("0", "1"))


def test_coverage_names_the_training_wording_nearest_to_every_test_prompt(six: RunFiles):
    coverage = run_coverage(six)
    assert coverage is not None
    train = [row["instruction"] for row in six.prompts if row["split"] == "train"]
    wordings = {row["text"]: row["instruction"] for row in six.prompts if row["split"] == "test"}
    assert len(coverage.nearest) == 12
    for line in coverage.nearest:
        own = {text: similarity(wordings[line.text], text) for text in train}
        assert line.similarity == pytest.approx(max(own.values()))
        assert own[line.nearest] == pytest.approx(line.similarity)
    assert [line.similarity for line in coverage.nearest] == sorted(
        (line.similarity for line in coverage.nearest), reverse=True
    )
    assert {size.split: size.prompts for size in coverage.sizes} == {
        "train": 84,
        "validation": 4,
        "test": 12,
    }
    assert coverage.new_layouts == 12


def test_tables_show_intervals_and_only_the_columns_that_some_model_has(six: RunFiles):
    summary = six.summary
    mean = results(summary).rows[-1].cells[0]
    low, high = summary["models"]["paft_t1"]["intervals"]["mean"]
    assert mean.below == f"{100 * low:.1f} – {100 * high:.1f}"
    columns = further_figures(summary).columns
    assert {"best", "calibration error"} <= set(columns)
    assert not {"mean", "Top>=75%"} & set(columns)
    assert "tokens per answer" not in columns
    base = dict(zip(columns, further_figures(summary).rows[0].cells, strict=True))
    assert base["trained tokens"].value is None
    entry = summary["differences"]["paft - single_prompt"]
    cells = differences(summary).rows[0].cells
    assert [cell.value for cell in cells] == pytest.approx(
        [entry["value"], entry["std"]["value"], entry["min"]["value"], entry["p"]]
    )
    assert cells[0].weak == (entry["low"] <= 0 <= entry["high"])
