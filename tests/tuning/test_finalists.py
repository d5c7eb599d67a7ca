"""What `search.json` holds, and which trials become finalists."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from paft_ray.config import WorstPrompt
from paft_ray.config.errors import TrainingError
from paft_ray.config.loading import load_config
from paft_ray.evaluation import figures
from paft_ray.evaluation.figures import Figure, validation_metrics
from paft_ray.runs.context import RunContext
from paft_ray.serving.record import MadeFrom, TrainingRecord
from paft_ray.storage.paths import Storage, to_json
from paft_ray.tasks import load_task
from paft_ray.tuning.finalists import choose_finalists, search_result
from paft_ray.tuning.settings import tuning_of
from paft_ray.tuning.trial import TrialRecord, write_record

SAMPLES = ({"prompts.pool_size": 2}, {"prompts.pool_size": 3}, {"prompts.pool_size": 4})
BETTER, WORSE, BAD = [[1, 1, 1, 1], [1, 1, 1, 0]], [[1, 1, 1, 0], [1, 1, 1, 0]], [[0] * 4] * 2

TRAINED = TrainingRecord(
    variant="trial_000", seed=0, steps=2, tokens=70, answer_tokens=7, trimmed=0, seconds=1.5,
    prompts=3, workers=1, dtype="float32", last_loss=0.5, made_from=MadeFrom("t", "m", "p"),
)  # fmt: skip


@pytest.fixture
def context(make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """A search whose trials have not begun."""
    monkeypatch.chdir(tmp_path)
    _, tree = make_config(finalists=2, seeds=[1, 2], goal={"type": "mean"})
    config = load_config(tree)
    return RunContext.create(
        config, load_task(config.task, config.seed), Storage.open(str(tmp_path))
    )


def put_trial(context: RunContext, record: TrialRecord, *results: list[list[int]]) -> None:
    """A trial as its processes leave it, scored every 10 steps."""
    write_record(context.run_folder, record)
    folder = context.run_folder.child("training", f"{record.label}-s0", "validation")
    for step, correct in zip((10, 20), results, strict=False):
        folder.write_json(f"step-{step:08d}.json", {"step": step, "correct": correct})


def scores_of(labels: list[str], seeds: tuple[int, ...]) -> pa.Table:
    """Scores of finalists: with the first seed all is right, with others every second answer."""
    rows = [
        {
            "variant": label, "seed": seed, "split": "test", "prompt_id": f"p{p}",
            "example_id": f"e{e}", "prediction": "positive", "correct": seed == seeds[0] or e % 2,
        }
        for label in labels for seed in seeds for p in range(2) for e in range(4)
    ]  # fmt: skip
    return pa.Table.from_pylist([{**row, "correct": bool(row["correct"])} for row in rows])


def test_best_finished_trials_are_tested_and_every_trial_is_listed(context: RunContext) -> None:
    tuning = tuning_of(context.config)
    put_trial(context, TrialRecord(0, SAMPLES[0], "finished", 2.5, about=TRAINED), BAD, WORSE)
    put_trial(context, TrialRecord(1, SAMPLES[1], "stopped", 1.5), BETTER)
    put_trial(
        context,
        TrialRecord(2, SAMPLES[2], "finished", 3.5, about=replace(TRAINED, tokens=90)),
        BAD,
        BETTER,
    )
    put_trial(context, TrialRecord(3, SAMPLES[2], "failed", 0.5, "too long"))

    finalists = choose_finalists(context, tuning)
    assert [finalist.label for finalist in finalists] == ["finalist_2", "finalist_0"]
    scores = scores_of(["finalist_2", "finalist_0"], (1, 2))
    found = asdict(search_result(context, tuning, finalists, scores, "abc"))
    assert list(found) == ["goal", "space", "validation", "trials", "finalists", "made_from"]
    assert found["goal"] == "mean accuracy" and found["made_from"] == "abc"
    assert found["space"]["prompts.pool_size"] == {"type": "randint", "low": 1, "high": 4}
    assert found["validation"] == {"prompts": 2, "examples": 4}

    first, *others = found["trials"]
    low, high = first.pop("interval")
    assert low <= 0.75 <= high
    reports = first.pop("reports")
    assert [(r["step"], r["goal"], r["mean"], r["worst_prompt"], r["p05"]) for r in reports] == [
        (10, 0.0, 0.0, 0.0, 0.0), (20, 0.75, 0.75, 0.75, 0.75)
    ]  # fmt: skip
    assert first == {
        "number": 0, "sample": SAMPLES[0], "state": "finished", "reason": "", "seconds": 2.5,
        "tokens": 70,
    }  # fmt: skip
    assert list(others[0]) == [
        "number", "sample", "state", "reason", "seconds", "tokens", "interval", "reports"
    ]  # fmt: skip
    assert [(t["state"], t["tokens"], len(t["reports"])) for t in others] == [
        ("stopped", None, 1), ("finished", 90, 2), ("failed", None, 0)
    ]  # fmt: skip
    assert others[-1]["interval"] is None and others[-1]["reason"] == "too long"

    best = found["finalists"][0]
    low, high = best.pop("test_interval")
    assert low <= 0.75 <= high
    assert best == {
        "label": "finalist_2", "trial": 2, "sample": SAMPLES[2], "settings": "pool_size 4",
        "seeds": [1, 2], "validation": 0.875, "test": 0.75, "gap": 0.125,
    }  # fmt: skip
    assert b"NaN" not in to_json(found)


def test_added_figure_is_in_every_report_of_a_trial(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    iqr = Figure(
        key="iqr",
        heading="IQR",
        meaning="distance of the quartiles over prompts",
        metric="accuracy/iqr",
        table="results",
        over_prompts=lambda a: np.quantile(a, 0.75, axis=-1) - np.quantile(a, 0.25, axis=-1),
    )
    before = list(validation_metrics(np.ones((2, 2), bool)))
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, iqr))
    put_trial(context, TrialRecord(0, SAMPLES[0], "finished", 2.5), BETTER)
    tuning = tuning_of(context.config)
    scores = scores_of(["finalist_0"], (1, 2))
    found = search_result(context, tuning, choose_finalists(context, tuning), scores, "abc")
    [report] = found.trials[0].reports
    assert list(report) == ["step", "goal", *(n.rpartition("/")[2] for n in before), "iqr"]
    assert report["iqr"] == 0.125


def test_search_without_a_finished_trial_says_why(context: RunContext) -> None:
    put_trial(context, TrialRecord(0, SAMPLES[0], "stopped"), BETTER)
    put_trial(context, TrialRecord(1, SAMPLES[1], "failed", reason="too long"))
    with pytest.raises(TrainingError, match=r"no trial came to its end, 1 failed; .*: too long"):
        choose_finalists(context, tuning_of(context.config))


def test_of_equal_trials_the_higher_mean_then_the_earlier_is_first(context: RunContext) -> None:
    tuning = tuning_of(context.config).model_copy(update={"goal": WorstPrompt(type="worst")})
    equal = [[1, 1, 0, 0], [1, 1, 0, 0]]
    for number, last in enumerate([equal, equal, [[1, 1, 0, 0], [1, 1, 1, 0]]]):
        put_trial(context, TrialRecord(number, SAMPLES[number], "finished"), BAD, last)
    assert np.isclose([f.validation for f in choose_finalists(context, tuning)], 0.5).all()
    assert [f.trial.number for f in choose_finalists(context, tuning)] == [2, 0]
