"""Whole runs on a tiny real model: as a user starts them, killed at every stage, and repeated."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from factories import run_config
from paft_ray.runs.opening import StageClock
from paft_ray.storage.paths import Storage

pytestmark = pytest.mark.ray

WORDINGS = (
    "Decide whether the {} is positive or negative", "Say how the {} feels about the film",
    "Judge the mood of this {} carefully", "Is the opinion in the {} good or bad",
    "Classify this short {} by its tone", "Tell me what the writer of the {} thinks",
    "Read the {} and name its sentiment", "Find out if the {} praises the movie",
    "What attitude does the {} show", "Pick the label that fits the {} best",
    "Look at the {} and choose an answer", "Would you call this {} favorable",
    "Give the polarity of the {}", "Weigh every word in the {} before you answer",
    "You are a critic; rate the {}", "Which of the two labels describes the {}",
    "Determine the emotion behind the {}", "Please evaluate the {} in one word",
    "State whether somebody enjoyed the film in the {}", "Answer for the {} below with one label",
)  # fmt: skip


class Endpoint:
    """A real HTTP server that speaks enough of the OpenAI protocol, and counts."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.keys: set[str | None] = set()
        self.delay_s = 0.0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(endpoint.delay_s)
                with endpoint.lock:
                    endpoint.calls[asked["seed"]] += 1
                    endpoint.keys.add(self.headers["Authorization"])
                number = asked["seed"] % (len(WORDINGS) * 7)
                wording = WORDINGS[number % len(WORDINGS)].format("review")
                text = f"{wording}, version {'abcdefg'[number // len(WORDINGS)]}."
                body = json.dumps(
                    {
                        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
                        "choices": [{"index": 0, "finish_reason": "stop",
                                     "message": {"role": "assistant", "content": text}}],
                        "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
                    }
                ).encode()  # fmt: skip
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()


@pytest.fixture(scope="module")
def make_config(
    endpoint: Endpoint,
    tiny_model: Path,
    review_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Write the configuration of a small run with a storage folder of its own."""

    def make(label: str, steps: int = 12) -> Path:
        folder = tmp_path_factory.mktemp(label)
        generation = {
            "llms": [{"type": "openai", "base_url": endpoint.url, "model": "m",
                      "concurrency": 2, "api_key_env": KEY_ENV}],
            "form": "instruction",
            "per_llm": 30,
        }  # fmt: skip
        config = run_config(
            tiny_model,
            review_file,
            folder / "storage",
            seed=1,
            task={"max_length": 200},
            prompts={"generation": generation, "split": {"validation": 2, "test": 3}},
            train={
                "steps": steps,
                "row_tokens": 256,
                "learning_rate": 0.01,
                "checkpoint": {"every_steps": 4},
            },
            variants=[{"type": "single_prompt"}, {"type": "paft"}],
            evaluation={
                "examples": 10,
                "trained_prompts": True,
                "subjects": [{"type": "best_prompt", "of": "base", "prompts": 4}],
                "selection_prompts": 4,
                "selection_examples": 5,
                "row_tokens": 256,
            },
        )
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return make


KEYS = ("variant", "seed", "prompt_id", "example_id")
KEY_ENV, KEY = "PAFT_TEST_PLANTED_KEY", "sk-planted-7f3a9c5e1b2d4f60"


def paft(*arguments: str) -> subprocess.Popen[str]:
    """`paft ...` in a process group of its own, as a shell starts it, with a key to keep secret."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "paft_ray.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**inherited, KEY_ENV: KEY},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 220) -> dict:
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, out + err
    lines = out.strip().splitlines()
    assert len(lines) == 1, out
    return json.loads(lines[0])


def adapter_bytes(storage: Path) -> dict[str, bytes]:
    found = storage.glob("runs/small/training/*/adapter/adapter_model.safetensors")
    return {path.parent.parent.name: path.read_bytes() for path in found}


def kept_answers(storage: Path) -> list[bytes]:
    files = storage.glob("generations/*/*.jsonl")
    return [line for path in files for line in path.read_bytes().splitlines()]


def kill_group_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL the driver and all that it started, as a lost machine would, once something is so."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def undisturbed(make_config: Callable[..., Path], endpoint: Endpoint) -> tuple[Path, dict]:
    """A run that nothing happened to: its storage folder and its summary."""
    config = make_config("undisturbed")
    summary = finish(paft("run", str(config), "--json"))
    return config.parent / "storage", summary


def test_run_leaves_every_promised_file(undisturbed: tuple[Path, dict]) -> None:
    storage, summary = undisturbed
    run = storage / "runs" / "small"
    for name in ("config.json", "manifest.json", "log.txt", "summary.json", "scores.parquet"):
        assert (run / name).stat().st_size > 0, name
    # Ray Train's own cleaner would ask another cluster's dashboard, see RankGroupTrainer
    assert "PlacementGroupCleaner" not in (run / "log.txt").read_text(encoding="utf-8")
    assert "<table" in (run / "report.html").read_text(encoding="utf-8")
    card = (run / "training/paft-s1/adapter/README.md").read_text(encoding="utf-8")
    assert "over 3 held-out prompts x 10 test examples" in card
    assert f"{100 * summary['models']['paft']['mean']:.1f}" in card
    assert json.loads((run / "summary.json").read_text()) == summary
    assert set(summary["models"]) == {"base", "single_prompt", "paft", "best_prompt"}
    assert set(adapter_bytes(storage)) == {"single_prompt-s1", "paft-s1"}
    scores = pq.read_table(run / "scores.parquet")
    rows = Counter(zip(scores["split"].to_pylist(), scores["variant"].to_pylist(), strict=True))
    trained = dict.fromkeys((("train", label) for label in summary["models"]), 10)
    del trained["train", "best_prompt"]  # which answers under its own prompt alone
    assert rows == {
        **dict.fromkeys((("test", label) for label in summary["models"]), 30),
        **trained,
    }


def test_base_is_measured_under_the_prompt_that_is_best_for_it_and_all_under_the_trained_one(
    undisturbed: tuple[Path, dict],
) -> None:
    storage, summary = undisturbed
    run = storage / "runs" / "small"
    about = json.loads((run / "training/single_prompt-s1/manifest.json").read_text())["about"]
    own = summary["on_trained_prompts"]["single_prompt"]
    [found] = summary["models"]["best_prompt"]["optimized_prompts"]
    assert own["prompt"] == about["prompt"]["text"] == found["prompt"]
    assert (found["prompts"], found["tracked"], found["pairs"]) == (4, 5, 20)
    assert summary["models"]["best_prompt"]["std"] == pytest.approx(0, abs=1e-12)
    assert (own["prompts"], list(own["models"])) == (1, ["base", "single_prompt", "paft"])
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    for label, model in own["models"].items():
        right = [s["correct"] for s in scores if (s["variant"], s["split"]) == (label, "train")]
        assert model["mean"] == sum(right) / 10
    under_best = summary["models"]["best_prompt"]["mean"]
    assert own["models"]["base"]["mean"] == pytest.approx(under_best)  # the same prompt
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Under prompts that were trained on" in page and "mean, that of single prompt" in page
    assert "the best of 4 training prompts" in page


def test_key_of_an_endpoint_is_used_and_written_nowhere(
    undisturbed: tuple[Path, dict], endpoint: Endpoint
) -> None:
    """Not into storage, MLflow's database and artifacts, the log, or what Ray writes anywhere."""
    storage, _ = undisturbed
    assert endpoint.keys == {f"Bearer {KEY}"}
    started = (storage / "runs/small/config.json").stat().st_mtime - 60
    sessions = [p for p in Path("/tmp/ray").glob("session_2*") if p.stat().st_mtime > started]
    assert sessions
    read = 0
    for folder in (storage, *sessions):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26:
                read += 1
                assert KEY.encode() not in path.read_bytes(), path
    assert read > 100
    shown = paft("run", str(storage.parent / "config.yaml"), "--print-config").communicate()[0]
    assert KEY_ENV in shown
    assert KEY not in shown


def test_run_draws_as_the_ledger_says_and_single_prompt_draws_one(
    undisturbed: tuple[Path, dict],
) -> None:
    storage, _ = undisturbed
    drawn = {}
    for variant in ("single_prompt", "paft"):
        ledger = pq.read_table(storage / f"runs/small/training/{variant}-s1/ledger").to_pydict()
        assert sorted(zip(ledger["step"], ledger["slot"], strict=True)) == [
            (step, slot) for step in range(12) for slot in range(4)
        ]
        drawn[variant] = set(ledger["prompt_id"])
    assert len(drawn["single_prompt"]) == 1
    assert len(drawn["paft"]) > 20
    [pool] = (storage / "pools").iterdir()
    prompts = pq.read_table(pool / "pool.parquet").to_pylist()
    held_out = {row["prompt_id"] for row in prompts if row["split"] != "train"}
    assert not held_out & (drawn["paft"] | drawn["single_prompt"])


def test_run_is_recorded_in_mlflow_with_its_trainings_below(
    undisturbed: tuple[Path, dict],
) -> None:
    from mlflow import MlflowClient
    from mlflow.models import Model

    storage, summary = undisturbed
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name == "paft"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    labels = ("base", "single_prompt", "paft", "best_prompt")
    evaluated = {label: runs[f"{label} evaluated in small"] for label in labels}
    trained = {f"{label} trained in small" for label in labels[1:3]}
    assert set(runs) == {
        "small", "pool of small", *trained, *(f"{label} evaluated in small" for label in labels),
    }  # fmt: skip
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs["small"].info.run_id
    training = runs["paft trained in small"]
    below = [run.data.tags.get("mlflow.parentRunId") for run in runs.values()]
    assert below.count(parent) == len(runs) - 1
    history = client.get_metric_history(training.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, 13))
    for label, run in evaluated.items():
        mean = summary["models"][label]["mean"]
        assert run.data.metrics["eval/accuracy/mean"] == pytest.approx(mean)
        assert run.data.tags["paft.kind"] == "evaluation"
    assert not [name for name in runs["small"].data.metrics if "eval/" in name]
    assert f"{summary['prompts']} prompts" in runs["small"].data.tags["mlflow.note.content"]
    signature = Model.load(f"{training.info.artifact_uri}/model").signature
    assert [column.name for column in signature.inputs] == ["review", "text", "prompt"]
    pool = training.data.tags["paft.pool"]
    name, _, alias = pool.removeprefix("models:/").partition("@")
    version = client.get_model_version_by_alias(name, alias)
    assert version.run_id == runs["pool of small"].info.run_id
    table = json.loads(Path(str(version.source), "pool.json").read_text())
    assert len(table["data"]) == len(pq.read_table(storage / "runs/small/prompts.parquet"))
    names = {file.path for file in client.list_artifacts(parent)}
    assert {"report.html", "summary.json", "prompts.parquet", "config.json"} <= names


def test_run_called_again_only_reads_its_summary(
    undisturbed: tuple[Path, dict], endpoint: Endpoint
) -> None:
    storage, summary = undisturbed
    before = endpoint.calls.total()
    files = {path: path.stat().st_mtime_ns for path in storage.rglob("*.safetensors")}
    assert finish(paft("run", str(storage.parent / "config.yaml"), "--json")) == summary
    assert endpoint.calls.total() == before
    assert files == {path: path.stat().st_mtime_ns for path in storage.rglob("*.safetensors")}


@pytest.mark.slow
def test_run_that_scores_a_part_reports_estimates(make_config: Callable[..., Path]) -> None:
    config = make_config("part", steps=2)
    changes = ("evaluation.estimate.share=0.5", "variants=[{type: paft}]")
    changes += ("evaluation.subjects=[]", "evaluation.trained_prompts=false")
    summary = finish(paft("run", str(config), *changes, "--json"))
    run = config.parent / "storage/runs/small"
    scores = pq.read_table(run / "scores.parquet")
    assert scores.num_rows == 2 * 15
    assert len(set(zip(*(scores[c].to_pylist() for c in KEYS), strict=True))) == scores.num_rows
    assert summary["scored_share"] == 0.5
    assert (summary["prompts"], summary["examples"]) == (3, 10)
    for model in summary["models"].values():
        low, high = model["intervals"]["mean"]
        assert low <= model["mean"] <= high
        assert len(model["accuracies"]) == 3
    assert "50% of the prompts x examples" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_run_of_two_seeds_trains_each_variant_twice_on_one_pool(
    make_config: Callable[..., Path],
) -> None:
    config = make_config("seeds", steps=8)
    variants = (
        "variants=[{type: bound_prompts, prompts: 3}, "
        "{type: paft, name: paft_t1, sampling: {temperature: 1}}]"
    )
    no_more = ("evaluation.subjects=[]", "evaluation.trained_prompts=false")
    summary = finish(paft("run", str(config), "seeds=[1, 2]", variants, *no_more, "--json"), 580)
    assert summary["seeds"] == [1, 2]
    assert list(summary["models"]) == ["base", "bound_prompts", "paft_t1"]
    assert summary["models"]["paft_t1"]["seeds"] == [1, 2]
    assert summary["models"]["paft_t1"]["steps"] == 8
    storage = config.parent / "storage"
    run = storage / "runs/small"
    trainings = adapter_bytes(storage)
    assert set(trainings) == {*("bound_prompts-s1", "bound_prompts-s2", "paft_t1-s1", "paft_t1-s2")}
    assert len(set(map(str, trainings.values()))) == 4
    scores = pq.read_table(run / "scores.parquet")
    assert scores.num_rows == (1 + 4) * summary["prompts"] * summary["examples"]
    for seed in (1, 2):
        ledger = pq.read_table(run / f"training/bound_prompts-s{seed}/ledger").to_pylist()
        assert len({(row["example_id"], row["prompt_id"]) for row in ledger}) == len(
            {row["example_id"] for row in ledger}
        )
        assert len({row["prompt_id"] for row in ledger}) == 3
        assert (run / f"training/paft_t1-s{seed}/sampling").exists()
    assert len(list((storage / "pools").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.timeout(1500)  # six runs
def test_run_killed_at_every_stage_ends_like_an_undisturbed_one(
    undisturbed: tuple[Path, dict],
    make_config: Callable[..., Path],
    endpoint: Endpoint,
) -> None:
    config = make_config("killed")
    storage = config.parent / "storage"
    run = storage / "runs" / "small"
    first = run / "training/single_prompt-s1"
    conditions: dict[str, Callable[[], bool]] = {
        "generation": lambda: len(kept_answers(storage)) >= 10,
        "checkpoint write": lambda: (
            any((first / "checkpoints/step-000000004").glob("state-*.safetensors"))
            and not (first / "checkpoints/step-000000008").exists()
        ),
        "between the trainings": (first / "manifest.json").exists,
        "evaluation": lambda: len(list(run.glob("scores/*.parquet"))) >= 4 + 2,
    }
    endpoint.calls.clear()
    for moment, reached in conditions.items():
        endpoint.delay_s = 0.15 if moment == "generation" else 0.0
        kill_group_when(paft("run", str(config), "--json"), reached)
        assert not (run / "manifest.json").exists(), moment
    endpoint.delay_s = 0.0
    finish(paft("run", str(config), "--json"))
    found, expected = adapter_bytes(storage), adapter_bytes(undisturbed[0])
    assert found == expected
    assert len(kept_answers(storage)) == len(endpoint.calls) == 60
    # only what was in flight at a kill was asked twice: at most `concurrency` requests
    assert endpoint.calls.total() <= 60 + 2


@pytest.mark.slow
def test_run_terminated_exits_143_and_releases_its_name(make_config: Callable[..., Path]) -> None:
    config = make_config("terminated")
    run = config.parent / "storage" / "runs" / "small"
    process = paft("train", str(config), "prompts.generation.llms=[{type: fake, seconds: 1}]")
    deadline = time.monotonic() + 60
    while not kept_answers(config.parent / "storage"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "run the same command to continue" in out
    assert not (run / "lease.json").exists()


def test_clock_adds_up_attempts_and_a_failing_storage_does_not_hide_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Storage.open(str(tmp_path))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="first"), StageClock(folder).stage("train"):
            time.sleep(0.02)
            raise RuntimeError("first")
    assert StageClock(folder).seconds["train"] >= 0.04

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Storage, "write_json", refuse)
    with pytest.raises(RuntimeError, match="first"), StageClock(folder).stage("train"):
        raise RuntimeError("first")
    with pytest.raises(OSError, match="no space"), StageClock(folder).stage("train"):
        pass
