"""What recorded studies say: adjusted p-values, power, and answers to questions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from names import IN_COMPARISONS, name_of
from picture import compared
from questions import QUESTIONS, Question, answer, block, comparisons, together
from scipy.special import ndtr
from study import axis_rows, holm, hours, smallest_shown

from paft_ray.evaluation.figures import STD


def test_holm_multiplies_by_the_comparisons_left_and_keeps_the_order() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_smallest_difference_is_shown_in_80_of_100_repetitions() -> None:
    error = 0.03
    for among, level in ((1, 0.05), (4, 0.05 / 4)):
        difference = smallest_shown(-1.96 * error, 1.96 * error, among)
        estimates = np.random.default_rng(0).normal(difference, error, 20_000)
        p_values = 2 * ndtr(-np.abs(estimates) / error)
        assert np.mean(p_values < level) == pytest.approx(0.8, abs=0.01)


def record(differences: dict[str, tuple[float, float, float, float]], **more: Any) -> dict:
    """A record of two models whose differences have a value, an interval and a p-value."""
    labels = dict.fromkeys(label for pair in differences for label in pair.split(" - "))
    figures = {
        pair: dict(zip(("value", "low", "high", "p"), values, strict=True))
        for pair, values in differences.items()
    }
    summary = {"models": labels, "differences": figures}
    return {
        "task": "sst2", "sources": {"model": "gemma-3-270m.gguf"}, "summary": summary,
        "config": {"evaluation": {}}, **more,
    }  # fmt: skip


ONE = Question("One?", (("paft", "single_prompt"),))
AHEAD, NOT_SHOWN = (0.1, 0.04, 0.16, 0.001), (0.01, -0.02, 0.04, 0.5)


def test_answer_says_in_how_many_comparisons_a_difference_is_shown() -> None:
    records = [record({"paft - single_prompt": d}) for d in (AHEAD, NOT_SHOWN)]
    assert answer(ONE, comparisons(ONE, records)) == (
        "Yes in 1 of 2 comparisons (+10.0 points); not shown in 1 (+1.0 points). "
        "On average: PAFT - the best of 32 prompts +5.5 (+1.0 to +10.0), shown."
    )
    behind = record({"single_prompt - paft": AHEAD})
    assert answer(ONE, comparisons(ONE, [behind])).startswith("No, the opposite in 1 of 1")
    assert answer(ONE, comparisons(ONE, records[1:])) == (
        "Not shown: in none of 1 comparisons is a difference shown (+1.0 points); "
        "each shows one of 4.3 points in 80 of 100 repetitions."
    )
    assert answer(ONE, comparisons(ONE, [record({"paft - base": AHEAD})])) == "Not measured."


def test_average_over_studies_takes_those_of_a_task_as_dependent_and_tasks_as_independent() -> None:
    pair = {"paft - single_prompt": (0.03, -0.01, 0.07, 0.14)}
    same = [record(pair), record(pair)]
    other = [*same, record({"paft - single_prompt": (0.06, -0.02, 0.14, 0.14)}, task="piqa")]
    [mean] = together(ONE, comparisons(ONE, same))
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.03, -0.01, 0.07))
    assert mean.p == pytest.approx(0.1416, abs=1e-3) and not mean.shown
    [mean] = together(ONE, comparisons(ONE, other))
    half = np.hypot(0.04, 0.08) / 2
    assert (mean.value, mean.low) == pytest.approx((0.045, 0.045 - half))
    assert mean.study == "mean of 3" and mean.shown
    assert not together(ONE, comparisons(ONE, same[:1]))


def test_smaller_spread_is_the_better_one() -> None:
    question = replace(ONE, figure=STD)
    entry = record({"paft - single_prompt": NOT_SHOWN})
    entry["summary"]["differences"]["paft - single_prompt"]["std"] = {
        "value": -0.08, "low": -0.12, "high": -0.04, "p": 0.002,
    }  # fmt: skip
    found = comparisons(question, [entry])
    assert answer(question, found) == "Yes in 1 of 1 comparisons (-8.0 points)."
    assert 'fill="#2f8f6b"' in compared(question, found)


def test_cost_under_its_own_prompt_is_read_from_there() -> None:
    question = replace(ONE, on_trained=True)
    entry = record({"paft - single_prompt": AHEAD})
    assert not comparisons(question, [entry])
    own = record({"paft - single_prompt": NOT_SHOWN})["summary"]
    entry["on_trained_prompts"] = {"single_prompt": own, "human_prompt": entry["summary"]}
    assert [each.value for each in comparisons(question, [entry])] == [NOT_SHOWN[0]]
    asked = QUESTIONS["own_prompt"]
    assert asked.on_trained and asked.text.startswith("Is it ahead even under")
    entry["on_trained_prompts"]["single_prompt"] = record({"single_prompt - paft": AHEAD})[
        "summary"
    ]
    assert answer(asked, comparisons(asked, [entry])).startswith("No, the opposite in 1 of 1")


def test_p_values_are_adjusted_over_all_studies_of_a_question_and_pairs_may_be_turned_round() -> (
    None
):
    records = [
        record({"paft - single_prompt": (0.05, 0.01, 0.09, 0.03)}),
        record({"single_prompt - paft": (-0.05, -0.09, -0.01, 0.02)}),
    ]
    first, second = comparisons(ONE, records)
    assert (first.value, first.low, first.high) == (second.value, second.low, second.high)
    assert first.p == second.p == pytest.approx(0.04)
    records.append(record({"paft - base": AHEAD, "single_prompt - base": AHEAD}))
    with pytest.raises(KeyError, match="single_prompt - paft"):
        comparisons(ONE, records)


def test_prompts_of_each_author_are_compared_apart() -> None:
    parts = {
        "stock:sst2": record({"paft - single_prompt": AHEAD})["summary"],
        "gemma-3-270m.gguf": record({"paft - single_prompt": NOT_SHOWN})["summary"],
    }
    entry = record({"paft - single_prompt": AHEAD}, by_author=parts)
    found = comparisons(replace(ONE, by_author=True), [entry])
    assert [each.study for each in found] == [
        "SST-2, Gemma 3 270M, prompts by people", "SST-2, Gemma 3 270M, prompts by Gemma 3 270M",
    ]  # fmt: skip
    lines = list(block("authors", [entry]))
    assert lines[0].startswith("**Yes in 1 of 2 comparisons") and len(lines) == 6


def test_question_about_a_family_is_answered_by_its_studies_alone() -> None:
    gemma = record({"paft - single_prompt": AHEAD})
    smollm2 = record(
        {"paft - single_prompt": NOT_SHOWN}, sources={"model": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    )
    found = comparisons(QUESTIONS["family"], [smollm2, gemma])
    assert [(each.study, each.among) for each in found] == [("SST-2, Gemma 3 270M", 2)]
    assert found[0].p == comparisons(ONE, [smollm2, gemma])[1].p  # the same in both questions


def test_axes_of_variation_are_compared_each_by_itself_and_fewer_changes_are_better() -> None:
    entry = record({"paft - single_prompt": AHEAD})
    moved = {"moved": 0.2, "intervals": {"moved": [0.1, 0.3]}}
    against = {"value": -0.05, "low": -0.08, "high": -0.02, "p": 0.004}
    varied = entry | {
        "axes": {
            axis: {"paft": moved | {"against": {"single_prompt": against}}, "single_prompt": moved}
            for axis in ("noise", "order")
        },
        "config": {"evaluation": {"selection_prompts": 32}},
    }
    question = QUESTIONS["axes"]
    found = comparisons(question, [entry, varied])
    assert [each.study.rpartition(", ")[2] for each in found] == [
        "slips in the text", "order of the choices",
    ]  # fmt: skip
    assert answer(question, found) == "Yes in 2 of 2 comparisons (-5.0 points)."
    assert {(each.p, each.among) for each in found} == {(0.004, 2)}, "the record has adjusted them"
    assert {each.p for each in comparisons(question, [varied, varied])} == {0.008}
    assert comparisons(ONE, [entry, varied]) == comparisons(ONE, [entry])
    assert list(axis_rows(varied))[-1] == (
        "| one prompt, the best of 32 for the base model | 20.0 (10.0 to 30.0) | "
        "20.0 (10.0 to 30.0) |"
    )


def test_prompts_of_files_answer_questions_of_their_own() -> None:
    own = record({"paft - single_prompt": AHEAD})
    against = {"value": -0.05, "low": -0.08, "high": -0.02, "p": 0.004}
    moved = {"paft": {"against": {"single_prompt": against}}, "single_prompt": {}}
    files, axes = {"files": ["far.jsonl"], "like_trained": []}, {"layout": moved}
    far = record({"paft - single_prompt": NOT_SHOWN}, prompt_files=files, axes=axes)
    varied = record({"paft - single_prompt": AHEAD}, axes={"noise": moved})
    asked = QUESTIONS["far"]
    [found] = comparisons(asked, [own, far])
    assert found.value == 0.01
    assert comparisons(ONE, [own, far]) == comparisons(ONE, [own])
    moves = QUESTIONS["axes"]
    assert comparisons(moves, [own, far, varied]) == comparisons(moves, [own, varied])


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("paft_25", "PAFT, 25 steps"),
        ("dozen_200", "a dozen bound, 200 steps"),
        ("bound_1", "1 prompt, each example bound to one"),
        ("drawn_48", "48 prompts, one drawn at each step"),
        ("k_4", "one prompt for four steps"),
        ("paft_t1", "PAFT, drawn by losses (T = 1)"),
        ("my_own", "my own"),
    ],
)
def test_labels_of_studies_have_names(label: str, name: str) -> None:
    assert name_of(label, IN_COMPARISONS) == name


def test_hours_count_trainings_that_were_found_finished() -> None:
    models = {
        "base": {"seeds": [0]},
        "paft": {"seeds": [0, 1], "trained_seconds": 1800.0},
        "single_prompt": {"seeds": [0, 1], "trained_seconds": 1500.0},
    }
    seconds = {"train_paft": 2.0, "train_single_prompt": 3600.0, "evaluation": 1800.0}
    assert hours({"models": models, "seconds": seconds}) == pytest.approx(1 + 1 + 0.5)


def test_questions_fit_above_their_pictures() -> None:
    assert max(len(question.text) for question in QUESTIONS.values()) <= 54


def test_every_study_configuration_answers_a_question() -> None:
    asked = {label for each in QUESTIONS.values() for pair in each.pairs for label in pair}
    for path in (Path(__file__).parents[2] / "jobs/configs/study").glob("*.yaml"):
        tree = yaml.safe_load(path.read_text("utf-8"))
        made = [*tree["variants"], *tree["evaluation"].get("subjects", [])]
        labels = {each.get("name", each["type"]) for each in made}
        assert len(labels & asked) > 1, path
        pairs = [pair for each in QUESTIONS.values() for pair in each.pairs]
        assert any(set(pair) <= labels for pair in pairs), path
