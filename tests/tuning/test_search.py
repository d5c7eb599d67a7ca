"""Whole searches on a tiny real model, as a user types them: refused, killed, finished."""

import json
import os
import signal
import time
from typing import Any

import mlflow
import pytest
from small_search import left_of, paft

from paft_ray.cli import call
from paft_ray.config import TuningConfig
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.storage.paths import Storage
from paft_ray.tuning.settings import fit_trials
from paft_ray.tuning.trial import read_records


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"space": {"train.batchsize": {"type": "choice", "values": [1]}}}, "did you mean"),
        ({"space": {"model.peft.r": {"type": "choice", "values": [4, 0]}}}, "r"),
        ({"space": {"train.steps": {"type": "randint", "low": -1, "high": 3}}}, "train.steps: -1"),
        ({"space": {"model.peft.rank": {"type": "choice", "values": [4]}}}, "rank"),
        ({"space": {"model.peft": {"type": "choice", "values": [None]}}}, "searched together"),
        ({"space": {"train.batch_size": {"type": "uniform", "low": 1, "high": 4}}}, "whole number"),
        ({"space": {"train.batch_size": {"type": "choice", "values": [4, 999]}}}, "lower it"),
        (
            {
                "space": {
                    "train.sampling.unit": {"type": "choice", "values": ["bound"]},
                    "train.sampling.temperature": {"type": "choice", "values": [0.5]},
                }
            },
            "draws by past losses",
        ),
        ({"seeds": [0]}, "tuning.seeds holds seed (0)"),
    ],
)
@pytest.mark.usefixtures("warm_checks")
def test_impossible_search_exits_2_before_anything_is_written(
    make_config, tmp_path, monkeypatch, capfd, tuning, said
) -> None:
    path, _ = make_config(**tuning)
    monkeypatch.chdir(tmp_path)
    assert call(["tune", str(path)]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tuning=null", "tuning: missing"),
        ("prompts.split.validation=0", "prompts.split.validation: 0"),
    ],
)
def test_command_without_what_a_search_needs_says_what_is_missing(
    make_config, tmp_path, monkeypatch, capfd, override, said
) -> None:
    path, _ = make_config()
    monkeypatch.chdir(tmp_path)
    assert call(["tune", str(path), override]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_that_do_not_fit_the_cluster_are_refused_up_front(make_config) -> None:
    import ray

    cpus = int(ray.cluster_resources()["CPU"])
    _, tree = make_config()

    def found(concurrency: int | None, **workers: Any) -> tuple[float, int]:
        tree["train"]["workers"] = workers
        config = load_config(tree)
        tuning = TuningConfig.model_validate({**tree["tuning"], "concurrency": concurrency})
        return fit_trials(config, tuning, [])

    assert found(None, num=1, cpus=1) == (1.0, cpus)
    assert found(1, num=1) == (float(cpus), 1)
    assert found(cpus, num=1) == (1.0, cpus)
    with pytest.raises(ConfigError, match=rf"{cpus + 1} trials with 1 worker of 1 CPUs"):
        found(cpus + 1, num=1, cpus=1)
    with pytest.raises(ConfigError, match=r"train\.workers: \d+ workers with 1 CPUs"):
        found(None, num=cpus + 1, cpus=1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_killed_search_goes_on_and_leaves_nothing_open(make_config, mark, tmp_path) -> None:
    """SIGKILL in the middle of a trial, while the test rows are not even there."""
    path, _ = make_config(scheduler={"type": "none"}, concurrency=1)
    run = tmp_path / "storage" / "runs" / "searched"
    rows = (tmp_path / "test.jsonl").read_bytes()
    (tmp_path / "test.jsonl").unlink()
    process = paft(mark, tmp_path, "tune", str(path), "--json")
    deadline = time.monotonic() + 240
    second = run / "training" / "trial_001-s0" / "validation"
    while not (second.exists() and list(second.glob("step-*.json"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the second trial never came so far"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = run / "training" / "trial_000-s0" / "manifest.json"
    written = first.stat().st_mtime_ns
    begun = [record.sample for record in read_records(Storage.open(str(run)))]
    assert len(begun) == 2
    assert left_of(mark) == []

    (tmp_path / "test.jsonl").write_bytes(rows)
    process = paft(mark, tmp_path, "tune", str(path), "--json")
    out, err = process.communicate(timeout=420)
    assert process.returncode == 0, out + err
    result = json.loads(out)
    assert first.stat().st_mtime_ns == written  # found, not trained again
    assert [trial["sample"] for trial in result["trials"][:2]] == begun
    assert [trial["state"] for trial in result["trials"]] == ["finished"] * 3
    assert [[r["step"] for r in t["reports"]] for t in result["trials"]] == [[10, 20, 30, 40]] * 3
    [finalist] = result["finalists"]
    assert finalist["label"] == f"finalist_{finalist['trial']}"
    best = max(result["trials"], key=lambda trial: trial["reports"][-1]["goal"])
    assert finalist["validation"] == best["reports"][-1]["goal"]
    assert finalist["gap"] == pytest.approx(finalist["validation"] - finalist["test"])
    assert set(result["summary"]["models"]) == {"base", finalist["label"]}
    assert "The search" in (run / "report.html").read_text(encoding="utf-8")
    assert left_of(mark) == []

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    [experiment] = [e for e in client.search_experiments() if e.name == "paft"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    search = runs["searched"]
    for number in range(3):
        trial = runs[f"trial_{number:03d} of searched"]
        assert trial.data.tags["mlflow.parentRunId"] == search.info.run_id
        steps = client.get_metric_history(trial.info.run_id, "validation/accuracy/p05")
        assert sorted(entry.step for entry in steps) == [10, 20, 30, 40]
    seed = runs[f"{finalist['label']}-s1 trained in searched"]
    parent = runs[f"trial_{finalist['trial']:03d} of searched"]
    assert seed.data.tags["mlflow.parentRunId"] == parent.info.run_id

    process = paft(mark, tmp_path, "tune", str(path), "--json")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert json.loads(out) == result
    process = paft(mark, tmp_path, "tune", str(path), "tuning.trials=4")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "figures on test prompts are known" in err
    process = paft(mark, tmp_path, "run", str(path))
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "holds a search" in err


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_trials_run_beside_each_other_and_bad_ones_stop_early(make_config, mark, tmp_path) -> None:
    space = {"train.learning_rate": {"type": "choice", "values": [1e-2, 1e-9, 2e-9, 3e-9]}}
    path, _ = make_config(
        space=space, search={"type": "grid"}, trials=None, concurrency=2,
        scheduler={"type": "asha", "grace_reports": 1, "reduction_factor": 2},
    )  # fmt: skip
    longer = ("train.steps=400", "train.checkpoint.every_steps=50")
    process = paft(mark, tmp_path, "tune", str(path), *longer)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    result = json.loads(
        (tmp_path / "storage" / "runs" / "searched" / "search.json").read_text(encoding="utf-8")
    )
    states = [trial["state"] for trial in result["trials"]]
    assert "finished" in states
    stopped = [t for t in result["trials"] if t["state"] == "stopped"]
    assert stopped and all(len(trial["reports"]) < 4 for trial in stopped)
    assert left_of(mark) == []
    assert f"{states.count('stopped')} stopped" in out
