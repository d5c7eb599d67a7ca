"""Evaluations that ask through prompts of files, in place of the pool's test prompts."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import paft_ray
from factories import run_config, write_prompts
from paft_ray.cli import call
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.comparing import compare_runs
from paft_ray.report.written import prompts_of_files
from paft_ray.storage.paths import Storage

POOL = [
    "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
    "Text: {review}\nSentiment:", "How does this feel? {review} ->", "{review} || mood ||",
]  # fmt: skip
STRANGE = ["<r>{review}</r> <verdict>", "### Kritik\n{review}\n### Urteil"]


@pytest.fixture
def make_tree(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A run of two variants, and further evaluations of it."""
    pool = write_prompts(tmp_path / "pool.jsonl", POOL)

    def make(*files: Path, **evaluation: Any) -> dict[str, Any]:
        further = {"name": "later", "prompt_files": list(map(str, files))} if files else {}
        return run_config(
            tiny_model,
            review_file,
            tmp_path / "storage",
            prompts={"files": [str(pool)], "split": {"test": 2, "validation": 0}},
            variants=[
                {"type": "paft"},
                {"type": "single_prompt", "prompt": "Judge this. {review} Say one word:"},
            ],
            evaluation={"examples": 6, "trained_prompts": True, **further, **evaluation},
            tracking={"type": "none"},
        )

    return make


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_prompts_of_files_are_asked_instead_and_those_like_trained_ones_are_counted(
    make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = paft_ray.run(load_config(make_tree())).data
    run = tmp_path / "storage/runs/small"
    prompts = pq.read_table(run / "prompts.parquet").to_pylist()
    of_pool = {split: [p for p in prompts if p["split"] == split] for split in ("train", "test")}
    held_out, trained = of_pool["test"][0], of_pool["train"][0]
    strange = write_prompts(tmp_path / "strange.jsonl", STRANGE)
    given = "Judge this. {review} Say one word:"  # the single prompt
    known = write_prompts(tmp_path / "known.jsonl", [held_out["text"], trained["text"], given])

    tree = make_tree(strange, known)
    capfd.readouterr()
    summary = paft_ray.evaluate(load_config(tree)).data
    shown = capfd.readouterr().err
    assert f"asked: {STRANGE[0]!r}".replace("'", '"') in shown
    assert summary["prompts"] == 5
    assert {file: part["prompts"] for file, part in summary["by_author"].items()} == {
        str(strange): 2, str(known): 3,
    }  # fmt: skip
    paft_ray.evaluate(load_config(make_tree(strange, known, name="fewer", trained_prompts=False)))
    folder = run / "evaluations/later"
    asked = pq.read_table(folder / "prompts.parquet").to_pylist()
    tested = {p["prompt_id"]: p["text"] for p in asked if p["split"] == "test"}
    assert list(tested.values()) == [*STRANGE, held_out["text"], trained["text"], given]
    like = summary["prompt_files"]["like_trained"]
    assert [tested[id] for id in like] == [trained["text"], given]
    [said] = prompts_of_files(summary)
    assert said.endswith("2 of them have the wording or the layout of a training prompt.")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(word not in page for word in ("no training saw", "eld-out", "may touch a training"))
    assert "that no training saw" in (run / "report.html").read_text(encoding="utf-8")

    def scored(where: Path, of: dict[str, Any] = held_out) -> dict[tuple[Any, ...], Any]:
        rows = pq.read_table(where / "scores.parquet").to_pylist()
        return {
            (row["variant"], row["example_id"]): row["choice_logprobs"]
            for row in rows
            if (row["prompt_id"], row["split"]) == (of["prompt_id"], "test")
        }

    again = scored(folder)
    capfd.readouterr()
    assert "mean, 2 of strange.jsonl" in page
    assert len(again) == 3 * 6
    for place, numbers in scored(run).items():
        assert again[place] == pytest.approx(numbers, abs=1e-4)
    [id] = [id for id, text in tested.items() if text == given]
    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    asked = Counter(row["split"] for row in scores if row["prompt_id"] == id)
    assert asked == {"test": 3 * 6, "train": 3 * 6}
    assert summary["on_trained_prompts"]["single_prompt"]["prompts"] == 1
    compared = compare_runs(Storage.open(tree["storage"]), ["small/later", "small/fewer"])
    assert compared.data["prompt_files"] == summary["prompt_files"]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    for asked, count in (([], 5), (["evaluation.name=planned", "evaluation.prompts=2"], 2)):
        assert call(["plan", str(path), *asked, "--json"]) == 0
        plan = json.loads(capfd.readouterr().out)
        assert plan["evaluation"]["prompts"] == count
    assert json.loads((run / "summary.json").read_text(encoding="utf-8")) == first

    write_prompts(strange, [*STRANGE, "Mot: {review} !"])
    assert call(["plan", str(path)]) == 2
    with pytest.raises(ConfigError, match=r"made from another evaluation\.prompt_files"):
        paft_ray.evaluate(load_config(tree))


@pytest.mark.usefixtures("warm_checks")
@pytest.mark.parametrize(
    ("texts", "change", "words"),
    [
        (["{review} so", "{revue} so"], {}, ["template 2 of", "revue", "mend it"]),
        (["{review} so:", "{review} so:"], {}, ["template 2 of", "is there before"]),
        (["{review} so:"], {"name": None}, ["evaluation", "prompt_files", "give it a name"]),
        ([], {}, ["evaluation.prompt_files", "no template"]),
        (None, {}, ["evaluation.prompt_files", "no such file"]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_asked_whole_are_refused(
    texts, change, words, make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.jsonl"
    if texts is not None:
        write_prompts(file, texts)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree(file, **change)), encoding="utf-8")
    assert call(["evaluate", str(path)]) == 2
    said = capfd.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "storage").exists()
