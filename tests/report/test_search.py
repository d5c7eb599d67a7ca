"""What a search found, as text and on the page; by hand where it can be."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_run import make_run, make_search

from paft_ray.report import SEARCH_FILE, search_table, write_report
from paft_ray.report.search import (
    dimension_plots,
    importances,
    next_steps,
    search_axis,
    trial_rows,
)
from paft_ray.storage.paths import Storage


def search_of(samples: list[dict[str, Any]], goals: list[float], **changes: Any) -> dict[str, Any]:
    found = make_search(samples, goals)
    return {**found, **changes}


def test_text_has_the_best_first_and_the_gap() -> None:
    search = search_of(
        [{"prompts.pool_size": 1}, {"prompts.pool_size": 64}, {"prompts.pool_size": 8}],
        [0.5, 0.75, 0.625],
    )
    search["trials"][0]["state"] = "stopped"
    lines = search_table(search).splitlines()
    assert lines[0].split()[:3] == ["trial", "pool_size", "state"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["1", "64", "finished"],
        ["2", "8", "finished"],
        ["0", "1", "stopped"],
    ]
    assert "75.0%" in lines[1]
    assert lines[5].startswith("finalist_1 (trial 1: pool_size 64): 5% quantile 70.0% [")
    assert lines[5].endswith("75.0% on validation prompts, a selection gap of +5.0 points")


def test_trial_that_failed_before_its_first_report_is_shown_without_a_figure() -> None:
    search = search_of([{"train.steps": 1}, {"train.steps": 2}], [0.5, 0.6])
    search["trials"][0] |= {"state": "failed", "reports": [], "interval": None, "tokens": None}
    assert trial_rows(search)[-1].goal is None
    assert "failed" in search_table(search)
    [plot] = dimension_plots(search)
    assert [point.number for point in plot.points] == [1]
    assert importances(search) == {}


def test_numbers_lie_by_their_logarithm_where_they_span_much_and_words_evenly() -> None:
    samples = [
        {"prompts.pool_size": size, "train.sampling.temperature": temperature}
        for size, temperature in ((1, "inf"), (10, 0.5), (100, "inf"), (1, 0.5))
    ]
    sizes, temperatures = dimension_plots(search_of(samples, [0.1, 0.2, 0.3, 0.4]))
    assert [point.value for point in sizes.points] == pytest.approx([0.04, 0.5, 0.96, 0.04])
    assert [point.value for point in temperatures.points] == [0.75, 0.25, 0.75, 0.25]
    assert [label for _, label in sizes.ticks] == ["1", "10", "100"]
    assert [label for _, label in temperatures.ticks] == ["0.5", "inf"]


def test_importance_is_the_variance_that_groups_explain() -> None:
    samples = [{"a": k % 2, "b": k % 3 % 2} for k in range(12)]
    search = search_of(samples, [0.5 + 0.2 * sample["a"] for sample in samples])
    found = importances(search)
    assert found["a"] == pytest.approx(1.0)
    assert found["b"] == pytest.approx(0.0, abs=0.05)
    alike = search_of(samples, [0.5] * 12)
    assert importances(alike) == {}


def test_scale_holds_every_interval() -> None:
    axis = search_axis(search_of([{"a": 1}, {"a": 2}], [0.42, 0.71]))
    assert axis.low <= 37 and axis.high >= 76
    axis = search_axis(search_of([{"a": 1}, {"a": 2}], [-0.42, 0.31]))  # mean - 3 x std, say
    assert axis.low <= -47 and axis.high >= 36


def test_next_steps_name_commands_overlapping_finalists_and_a_best_value_at_the_edge() -> None:
    samples = [{"prompts.pool_size": size, "train.schedule.type": "cosine"} for size in (1, 8, 64)]
    search = search_of(samples, [0.5, 0.6, 0.7])
    first, second, edge = next_steps(search, "mine")
    assert first.command == "paft export CONFIG"
    assert second.command == (
        "paft run CONFIG name=mine-best prompts.pool_size=64 train.schedule.type=cosine"
    )
    assert "(64) is the greatest one tried: widen tuning.space.prompts.pool_size" in edge.text
    other = {**search["finalists"][0], "label": "finalist_2"}
    search["finalists"].append(other)
    assert "which of them is best is not shown" in next_steps(search, "mine")[2].text
    search["finalists"] = [{**other, "sample": samples[1]}]
    assert len(next_steps(search, "mine")) == 2


def test_page_of_finalists_has_the_search_and_no_trial_among_its_curves(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    make_run(run, {"base": (0.6, 0.1), "finalist_1": (0.8, 0.05)})
    samples = [{"prompts.pool_size": size} for size in (1, 8, 64, 2, 32, 16)]
    run.write_json(SEARCH_FILE, make_search(samples, [0.7] * 6))
    run.child("training", "trial_000-s0").write_json("identity.json", {})
    page = Path(write_report(run)).read_text(encoding="utf-8")
    assert 'id="search"' in page
    assert "selection gap" in page
    assert "5% quantile over prompts.pool_size" in page
    assert page.count('class="m trial') == 6
    assert "trial 000" not in page
    assert run.read_bytes("search.png").startswith(b"\x89PNG")
