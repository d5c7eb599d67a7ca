"""Whole searches on a tiny real model, as a user types them: refused, killed, finished."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from paft_ray.artifacts import Storage
from paft_ray.config import TuningConfig
from paft_ray.errors import ConfigError
from paft_ray.loading import load_config
from paft_ray.tuning.check import room
from paft_ray.tuning.goal import read_records

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
SPACE = {
    "prompts.pool_size": {"type": "randint", "low": 1, "high": 4},
    "train.sampling.temperature": {"type": "choice", "values": [0.5, float("inf")]},
}
INSTRUCTIONS = [
    "Decide if this is positive or negative", "Say how the writer feels", "Judge the mood here",
    "Is the opinion good or bad", "Classify the tone of it", "Tell what the author thinks of it",
    "Name the sentiment", "Find out whether somebody praises something", "Which attitude is shown",
    "Pick a label that fits", "Look closely and choose one answer", "Would you call it favorable",
]  # fmt: skip
LAYOUTS = [
    "{0}.\n{{review}}\nAnswer:", "{{review}}\n\n{0} ->", "Text: {{review}}\nTask: {0}\nLabel:",
    "{0}: {{review}} =", "Q: {0}?\n{{review}}\nA:", "Review: {{review}}. {0}:",
    "### {0}\n{{review}}\n###", "{{review}} || {0} ||", "{0} - {{review}} -", "[{{review}}] {0}:",
    "<{0}> {{review}} <end>", "'{{review}}'\n{0}\nResult:",
]  # fmt: skip


@pytest.fixture
def make_config(
    tmp_path: Path, tiny_model: Path, review_file: Path
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Write the configuration of a small search; its test rows have a file of their own."""
    lines = review_file.read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:90]), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("\n".join(lines[90:]), encoding="utf-8")
    texts = [layout.format(text) for text, layout in zip(INSTRUCTIONS, LAYOUTS, strict=True)]
    (tmp_path / "tiny").symlink_to(tiny_model)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")

    def make(**tuning: Any) -> tuple[Path, dict[str, Any]]:
        config = {
            "name": "searched",
            "storage": "storage",  # relative paths: trials run in a folder of their own
            "task": {
                "type": "custom", "name": "reviews", "path": "rows.jsonl",
                "test_path": "test.jsonl", "validation_share": 0.3,
                "description": "Say whether a short film review is positive or negative.",
                "fields": {"review": "review"}, "answer": "label",
                "choices": ["positive", "negative"], "max_length": 200,
            },
            "prompts": {"files": ["prompts.jsonl"], "split": {"validation": 3, "test": 3}},
            "model": {"path": "./tiny", "dtype": "float32", "peft": LORA},
            "train": {
                "steps": 40, "batch_size": 4, "row_tokens": 512, "learning_rate": 1e-2,
                "checkpoint": {"every_steps": 5}, "workers": {"num": 1, "cpus": 1},
            },
            "evaluation": {"examples": 20, "workers": {"num": 1, "cpus": 1}},
            "tuning": {
                "space": SPACE, "trials": 3, "reports": 4, "examples": 12, "finalists": 1,
                "seeds": [1], **tuning,
            },
        }  # fmt: skip
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path, config

    return make


def paft(mark: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "paft_ray.cli", *words],
        env={
            **os.environ,
            "PAFT_TEST_MARK": mark,
            "RAY_ADDRESS": "local",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_of(mark: str, patience_s: float = 60) -> list[str]:
    """Command lines of the processes that a command started and that do not go."""
    deadline = time.monotonic() + patience_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def marked(mark: str) -> list[str]:
    """Command lines of the processes that a command started and that are there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PAFT_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:100])
        except OSError:
            continue
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    yield uuid.uuid4().hex


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"space": {"train.batchsize": {"type": "choice", "values": [1]}}}, "did you mean"),
        ({"space": {"model.peft.r": {"type": "choice", "values": [4, 0]}}}, "r"),
        ({"space": {"train.steps": {"type": "randint", "low": -1, "high": 3}}}, "train.steps: -1"),
        ({"space": {"model.peft.rank": {"type": "choice", "values": [4]}}}, "rank"),
        ({"space": {"model.peft": {"type": "choice", "values": [None]}}}, "searched together"),
        ({"space": {"train.batch_size": {"type": "uniform", "low": 1, "high": 4}}}, "integer"),
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
def test_impossible_search_exits_2_before_anything_is_written(
    make_config, mark, tmp_path, tuning, said
) -> None:
    path, _ = make_config(**tuning)
    process = paft(mark, tmp_path, "tune", str(path))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2, out + err
    assert said in err
    assert "Traceback" not in err
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


def test_command_without_a_search_says_what_is_missing(make_config, mark, tmp_path) -> None:
    path, _ = make_config()
    process = paft(mark, tmp_path, "tune", str(path), "tuning=null")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "tuning: missing" in err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_room_for_trials_is_found_or_refused_up_front(make_config) -> None:
    import ray

    cpus = int(ray.cluster_resources()["CPU"])
    _, tree = make_config()

    def found(concurrency: int | None, **workers: Any) -> tuple[float, int]:
        tree["train"]["workers"] = workers
        config = load_config(tree)
        tuning = TuningConfig.model_validate({**tree["tuning"], "concurrency": concurrency})
        return room(config, tuning, [])

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
        trial = runs[f"searched/trial_{number:03d}"]
        assert trial.data.tags["mlflow.parentRunId"] == search.info.run_id
        steps = client.get_metric_history(trial.info.run_id, "validation/accuracy/p05")
        assert sorted(entry.step for entry in steps) == [10, 20, 30, 40]
    seed = runs[f"searched/{finalist['label']}-s1"]
    parent = runs[f"searched/trial_{finalist['trial']:03d}"]
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
