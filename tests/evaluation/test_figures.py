"""The registry of figures: what is added to it appears everywhere, and nothing else lists them."""

import ast
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import ACCURACY, make_run

import paft_ray
from paft_ray.evaluation import figures
from paft_ray.evaluation.figures import (
    FIGURES,
    Figure,
    eval_metrics,
    figures_of,
    top,
    validation_metrics,
)
from paft_ray.report import card_figures, results_table, write_report
from paft_ray.storage.paths import Storage

MEDIAN = Figure(
    key="median",
    heading="middle one",
    meaning="accuracy that half of the prompts reach",
    definition="Median over prompts.",
    metric="accuracy/median",
    table="results",
    compared=True,
    over_prompts=lambda accuracy: np.median(accuracy, axis=-1),
)
MAJORITY = Figure(
    key="majority",
    heading="said by most",
    meaning="prompts that get the answer that most prompts get",
    definition="One less the flip rate.",
    metric="majority",
    of_answers=lambda answers: answers.over_examples(answers.most_RE) / answers.prompts_R,
)


def test_added_figure_appears_in_summary_screen_page_card_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(figures, "FIGURES", (*FIGURES, MEDIAN, MAJORITY))
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder)
    for label in ACCURACY:
        model = summary["models"][label]
        assert model["min"] < model["median"] < model["max"]
        assert model["majority"] == pytest.approx(1 - model["flip_rate"])
        for key in ("median", "majority"):
            low, high = model["intervals"][key]
            assert low < model[key] < high
        tracked = eval_metrics(summary, label)
        assert tracked["eval/accuracy/median"] == model["median"]
        assert tracked["eval/majority"] == model["majority"]
    assert {"median", "majority"} <= set(summary["differences"]["paft - base"])
    shown = MEDIAN.show(summary["models"]["paft"]["median"])
    screen = results_table(summary).split("\n\n")[1].splitlines()
    assert "middle one" in screen[0]
    assert shown in screen[3]
    card = card_figures(summary)
    assert "middle one" in card.columns
    assert shown in card.rows[-1]
    page = Path(write_report(folder)).read_text("utf-8")
    assert page.count("middle one</button>") == 2, "results and differences"
    assert page.count("said by most</button>") == 1, "further figures"
    assert MEDIAN.meaning in page
    assert MAJORITY.meaning in page
    right_PE = np.eye(3, dtype=bool)
    assert validation_metrics(right_PE)["validation/accuracy/median"] == pytest.approx(1 / 3)


def test_names_in_files_and_mlflow_are_those_that_charts_and_readers_know():
    """Stored summaries and dashboards use them."""
    names = {figure.key: figure.metric for figure in FIGURES}
    assert (
        names.items()
        >= {
            "mean": "accuracy/mean",
            "std": "accuracy/std",
            "min": "accuracy/worst_prompt",
            "p05": "accuracy/p05",
            "max": "accuracy/best_prompt",
            "std_by_chance": "accuracy/std_by_chance",
            "consistency": "consistency",
            "pairwise_agreement": "pairwise_agreement",
            "flip_rate": "flip_rate",
            "calibration_error": "calibration_error",
            "generated_tokens": "generated_tokens",
            "seconds_per_example": "seconds_per_example",
            "trained_tokens": None,
            "trained_answer_tokens": None,
        }.items()
    )
    assert (top(0.75).metric, top("0.75").heading) == ("accuracy/top_75", "Top>=75%")
    assert (
        validation_metrics(np.eye(2, dtype=bool)).items()
        >= {
            "validation/accuracy/mean": 0.5,
            "validation/accuracy/std": 0.0,
            "validation/accuracy/worst_prompt": 0.5,
            "validation/accuracy/p05": 0.5,
        }.items()
    )


def test_tracked_figures_are_those_of_the_summary_that_are_known(tmp_path: Path):
    summary = make_run(Storage.open(str(tmp_path)))
    model = summary["models"]["paft"]
    tracked = eval_metrics(summary, "paft")
    assert tracked["eval/accuracy/top_75"] == model["top"]["0.75"]
    assert tracked["eval/seconds_per_example"] == 0.0123
    assert "eval/generated_tokens" not in tracked, "choices are not written"
    known = [f for f in figures_of(summary) if f.metric and f.read(model) is not None]
    assert len(tracked) == len(known)


def test_no_other_module_lists_figures():
    """Two names may be words of something else; three of them would be a list."""
    names = {figure.key for figure in FIGURES} | {figure.metric for figure in FIGURES}
    home = Path(paft_ray.__file__).parent
    listing = []
    for path in sorted(home.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
        if len(texts & names - {None}) > 2:
            listing.append(path.relative_to(home).as_posix())
    assert listing == ["evaluation/cost_figures.py", "evaluation/figures.py"]
