"""What is on a storage, and models of several runs in one paired table; no Ray."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paft_ray.cli import call
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage

STORED = Path(__file__).parents[1] / "fixtures/stored_run/storage/runs"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A complete run, a search, a run that only has begun."""
    folder = tmp_path / "storage"
    for name in ("from-files", "searched", "generated"):
        shutil.copytree(STORED / name, folder / "runs" / name)
    return folder


@pytest.fixture
def copy_run(storage: Path) -> Callable[..., Path]:
    """Copy a run under another name, with other answers of its trained models."""

    def copy(name: str, change: Callable[[dict], dict] = dict) -> Path:
        folder = storage / "runs" / name
        shutil.copytree(storage / "runs/from-files", folder)
        table = pq.read_table(folder / "scores.parquet")
        rows = [change(row) for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "scores.parquet")
        return folder

    return copy


def always_right(row: dict) -> dict:
    return row if row["variant"] == "base" else row | {"correct": True}


def test_runs_are_listed_with_their_states_and_figures(
    storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with lock(Storage.open(str(storage / "runs/generated")), "run"):
        assert call(["runs", f"storage={storage}", "--json"]) == 0
    runs = {run["name"]: run for run in json.loads(capfd.readouterr().out)["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {
        "from-files": "complete", "searched": "complete", "generated": "running",
    }  # fmt: skip
    summary = json.loads((storage / "runs/from-files/summary.json").read_text())
    run = runs["from-files"]
    assert run["kind"] == "run"
    assert runs["searched"]["kind"] == "search"
    assert {m: f["mean"] for m, f in run["figures"].items()} == {
        label: model["mean"] for label, model in summary["models"].items()
    }
    assert call(["runs", f"storage={storage}"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4
    assert any(line.startswith("generated") and "unfinished" in line for line in lines)


def test_damaged_folders_do_not_hide_the_others(
    storage: Path, copy_run: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("a", "null"), ("b", '{"config": null}'), ("c", '{"config": {"task": 3}}')):
        (copy_run(name) / "config.json").write_text(text)
    (copy_run("d") / "summary.json").write_text('{"models": {}}')
    for name, text in (("g", "{"), ("h", '{"models": {"base": 3}}'), ("i", '{"models": null}')):
        (copy_run(name) / "summary.json").write_text(text)
    (copy_run("j") / "lease.json").mkdir()
    further = copy_run("e") / "evaluations"
    further.mkdir()
    (further / "stray").write_text("")
    (storage / "runs/stray").write_text("")
    ahead = {"host": "elsewhere", "pid": 1, "token": "x", "renewed": time.time() + 1e7}
    (copy_run("f") / "lease.json").write_text(json.dumps(ahead))
    assert call(["runs", f"storage={storage}", "--json"]) == 0
    runs = {run["name"]: run for run in json.loads(capfd.readouterr().out)["runs"]}
    assert runs.keys() == {"from-files", "searched", "generated", *"abcdefghij"}
    assert runs["f"]["state"] == runs["j"]["state"] == "complete"
    for names, file in (("abc", "config.json"), ("ghi", "summary.json")):
        for name in names:
            assert runs[name]["state"] == "damaged"
            assert runs[name]["damaged"] == [str(storage / "runs" / name / file)]
    assert call(["runs", f"storage={storage}"]) == 0
    shown = capfd.readouterr().out
    assert f"damaged: {storage}/runs/a/config.json cannot be read" in shown
    assert call(["compare", "from-files", "d", f"storage={storage}"]) == 2
    assert "names no model" in capfd.readouterr().err


def test_storage_without_runs_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["runs", f"storage={tmp_path}"]) == 0
    assert "no runs" in capfd.readouterr().out
    file = tmp_path / "file"
    file.touch()
    for place, message in ((file, "is a file"), (tmp_path / "no", "is not there: name the place")):
        assert call(["runs", f"storage={place}", "--json"]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        assert f"error: storage: {place} {message}" in captured.err
    for wrong in (["unknown"], ["storag=here"], ["--unknown"]):
        with pytest.raises(SystemExit, match="2"):
            call(["runs", *wrong])
        assert "unrecognized arguments" in capfd.readouterr().err


def test_models_of_two_runs_are_compared_in_pairs(
    storage: Path, copy_run: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    copy_run("other", always_right)
    assert call(["compare", "from-files", "other", f"storage={storage}", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    own = json.loads((storage / "runs/from-files/summary.json").read_text())
    trained = [label for label in own["models"] if label != "base"]
    labels = ["base", *(f"{run}_{label}" for run in ("from_files", "other") for label in trained)]
    assert list(summary["models"]) == labels  # the base model is the same in both
    assert len(summary["differences"]) == len(labels) * (len(labels) - 1) // 2
    for label in trained:
        assert summary["models"][f"from_files_{label}"]["mean"] == own["models"][label]["mean"]
        assert summary["models"][f"other_{label}"]["mean"] == 1.0
        entry = summary["differences"][f"other_{label} - from_files_{label}"]
        assert entry["value"] == pytest.approx(1.0 - own["models"][label]["mean"])
        assert np.isfinite(entry["p"])
    folder = storage / "comparisons/from-files--other"
    assert (folder / "report.html").is_file()
    assert call(["compare", "from-files", "other", f"storage={storage}"]) == 0
    out = capfd.readouterr().out
    assert "other" in out
    assert str(folder) in out


def test_run_compared_with_its_copy_is_there_once(
    storage: Path, copy_run: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    copy_run("again")
    assert call(["compare", "from-files", "again", f"storage={storage}", "--json"]) == 0
    models = json.loads(capfd.readouterr().out)["models"]
    assert not any(label.startswith("again") for label in models)


def test_seeds_of_every_run_are_named_as_they_are(
    storage: Path, copy_run: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_run("other", always_right)
    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    more = [row | {"seed": 2} for row in scores if row["variant"] != "base"]
    schema = pq.read_schema(folder / "scores.parquet")
    pq.write_table(pa.Table.from_pylist(scores + more, schema), folder / "scores.parquet")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"seeds": [1, 2]}))
    assert call(["compare", "from-files", "other", f"storage={storage}", "--json"]) == 0
    compared = json.loads(capfd.readouterr().out)
    assert compared["seeds"] == [1, 2]
    assert compared["models"]["from_files_paft"]["seeds"] == [1]
    assert compared["models"]["other_paft"]["seeds"] == [1, 2]
    assert call(["compare", "from-files", "other", f"storage={storage}"]) == 0
    said = capfd.readouterr().out
    assert "from files PAFT: 1; other single prompt: 1, 2; other PAFT: 1, 2" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row | {"prompt_id": row["prompt_id"] + "x"}, "shares 0 of its"),
        (lambda row: row | {"example_id": row["example_id"] + "x"}, "test examples"),
    ],
)
def test_runs_that_share_no_prompts_or_examples_are_refused(
    change, said: str, storage: Path, copy_run, capfd: pytest.CaptureFixture[str]
) -> None:
    copy_run("other", change)
    assert call(["compare", "from-files", "other", f"storage={storage}"]) == 2
    assert said in capfd.readouterr().err
    assert not (storage / "comparisons").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["from-files"], "two different runs"),
        (["from-files", "from-files"], "two different runs"),
        (["from-files", "nowhere"], "nowhere"),
        (["from-files", "generated"], "summary.json is not there"),
        (["../runs/from-files", "searched"], "name"),
    ],
)
def test_names_that_cannot_be_compared_are_refused(
    names: list[str], said: str, storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["compare", *names, f"storage={storage}"]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [({"scored_share": 0.2}, "20% of its grid"), ({"answer_end": "other"}, "graded with")],
)
def test_figures_that_mean_something_else_are_refused(
    change: dict, said: str, storage: Path, copy_run, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copy_run("other", always_right) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert call(["compare", "from-files", "other", f"storage={storage}"]) == 2
    assert said in capfd.readouterr().err
