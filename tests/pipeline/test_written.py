"""What LLMs write for an evaluation, from the command to the table."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from factories import run_config, write_prompts
from paft_ray.cli import call
from paft_ray.config.affects import result_fields
from paft_ray.config.loading import load_config

TEXTS = [
    "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
    "Text: {review}\nSentiment:", "How does this feel? {review} ->", "{review} || mood ||",
]  # fmt: skip


@pytest.fixture
def tree(tiny_model: Path, review_file: Path, tmp_path: Path) -> dict[str, Any]:
    """An evaluation with a prompt improved by a real model, and examples reworded by the fake."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", TEXTS)
    writer = {"type": "transformers", "path": str(tiny_model), "max_tokens": 8}
    return run_config(
        tiny_model, review_file, tmp_path / "storage",
        task={"max_length": 200, "test_share": 0.2, "validation_share": 0.2},
        prompts={"files": [str(prompts)], "split": {"validation": 0, "test": 2}},
        variants=[],
        evaluation={
            "examples": 6,
            "subjects": [
                {"type": "optimized_prompt", "of": "base", "budget": 20, "llm": writer},
            ],
            "variation": {"paraphrases": {"per_example": 1, "llm": {"type": "fake"}}},
            # all CPUs of the machine: the writer needs none of them
            "workers": {"num": 1},
        },
        tracking={"type": "none"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_evaluation_with_written_prompt_and_paraphrases_ends_with_table_and_report(
    tree: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    assert call(["evaluate", str(path)]) == 0
    told = capfd.readouterr().out
    run = tmp_path / "storage" / "runs" / "small"
    summary = json.loads((run / "summary.json").read_text())
    optimized = summary["models"]["optimized_prompt"]
    [search] = optimized["optimized_prompts"]
    assert search["pairs"] == optimized["optimized_pairs"] <= 20
    assert search["asked"]["requests"] == optimized["reflections"] > 0
    assert (optimized["std"], optimized["prompts_per_answer"]) == (0.0, 1)
    assert summary["paraphrases"]["examples"] == 6
    assert "paraphrases" in summary["axes"]
    for words in ("no spread over prompts", "wording of the example", f"{search['pairs']} pairs"):
        assert words in told
    assert "no spread over prompts" in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_run_trains_on_examples_in_other_words_that_are_written_once(
    tree: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    written = {"variation": {"paraphrases": {"llm": {"type": "fake"}}}}
    changed = {
        "train": {**tree["train"], **written, "steps": 6, "row_tokens": 400},
        "variants": [{"type": "paft"}, {"type": "bound_prompts", "prompts": 2}],
        "seeds": [0, 1],
        "evaluation": {"examples": 6, "workers": {"num": 1}},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree | changed))
    assert call(["run", str(path)]) == 0
    assert capfd.readouterr().out.count("paraphrase for training") == 1
    run = tmp_path / "storage" / "runs" / "small"
    about = json.loads((run / "summary.json").read_text())["training_paraphrases"]
    assert about["rewritten"] > 0 and about["examples"] <= 2 * 6 * 4
    assert "training examples in other words too" in (run / "report.html").read_text()
    kept = pq.read_table(run / "training_paraphrases.parquet").to_pylist()
    known = {(row["example_id"], row["paraphrase"]) for row in kept}
    for training in ("paft-s0", "paft-s1", "bound_prompts-s1"):
        drawn = [
            (row["example_id"], json.loads(row["variation"]).get("paraphrase"))
            for file in (run / "training" / training / "ledger").iterdir()
            for row in pq.read_table(file).to_pylist()
        ]
        reworded = [each for each in drawn if each[1] is not None]
        assert reworded and set(reworded) <= known and len(reworded) < len(drawn)
    (run / "manifest.json").unlink()  # as if it had been killed at the end
    assert call(["run", str(path)]) == 0
    assert capfd.readouterr().out.count("found complete") == 1 + 4  # the pool, trainings


@pytest.mark.usefixtures("warm_checks")
def test_plan_names_what_is_to_be_written(
    tree: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    assert call(["plan", str(path), "--json"]) == 0
    plan = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert plan["optimized_prompts"][0]["pairs_at_most"] == 20
    assert plan["paraphrases"]["requests"] == 6
    assert not (tmp_path / "storage").exists()


def test_missing_package_is_named_before_anything_begins(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    known = importlib.util.find_spec
    missing = lambda name, *more: None if name == "gepa" else known(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    assert call(["evaluate", str(path)]) == 2
    assert "pip install 'paft_ray[optimize]'" in capfd.readouterr().err
    assert not (tmp_path / "storage").exists()


def test_prompts_of_variants_that_are_not_trained_are_not_left_out_in_silence(
    tree: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    subjects = [{"type": "ensemble", "of": "base", "prompts": 2}]
    tree["evaluation"] = {"examples": 6, "trained_prompts": True, "subjects": subjects}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**tree, "variants": [{"type": "single_prompt"}]}))
    assert call(["evaluate", str(path)]) == 2
    assert "trained_prompts: single_prompt is not trained" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [{"type": "ensemble", "prompts": 2}, {"type": "optimized_prompt"}])
def test_subject_that_is_made_of_an_untrained_variant_is_refused(
    tree: dict[str, Any], kind: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    [optimized] = tree["evaluation"]["subjects"]
    own = optimized if kind["type"] == "optimized_prompt" else kind
    tree["evaluation"] |= {"subjects": [own | {"of": "paft"}]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**tree, "variants": [{"type": "paft"}]}))
    assert call(["evaluate", str(path)]) == 2
    assert "paft is not trained" in capfd.readouterr().err


def test_price_and_pace_of_an_llm_move_no_run(tree: dict[str, Any]):
    served = {"type": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
    fields = [
        result_fields(load_config({**tree, "evaluation": {**tree["evaluation"], **changes}}))
        for more in ({}, {"price": {"prompt": 1}, "concurrency": 2}, {"model": "n"})
        for changes in [{"variation": {"paraphrases": {"llm": {**served, **more}}}}]
    ]
    assert fields[0] == fields[1] != fields[2]
