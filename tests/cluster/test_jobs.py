"""Verbs as jobs of a real head: sent, followed, stopped, sent again."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from heads import BIN, ROOT, Head, clean_environment, write_config
from mlflow import MlflowClient
from ray.job_submission import JobSubmissionClient

from paft_ray.cli.submit import WithoutResult
from paft_ray.cluster.jobs import JOBS, Job, follow

pytestmark = pytest.mark.ray


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What a user's checkout has that a job needs; the cluster has the dependencies.

    Also modules with the names of packages, which Ray lets workers of jobs find first.
    """
    folder = tmp_path / "project"
    for part in ("jobs", "paft_ray"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for name in ("rich", "tokenizers", "torch", "safetensors"):
        (folder / f"{name}.py").write_text("raise RuntimeError('a file of the project')\n")
    return folder


@pytest.fixture
def submit(head: Head, project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `paft submit` on a configuration in the project."""

    def run(
        config: dict[str, Any], *words: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        path = write_config(project, config)
        place = ["--address", head.dashboard, "--working-dir", str(project)]
        return head.command("submit", str(path), *words, *place, **environment)

    return run


def test_every_verb_that_works_on_storage_has_a_job_file() -> None:
    assert {f"{name}.py" for name in JOBS.values()} <= {
        p.name for p in (ROOT / "jobs").glob("*.py")
    }


def test_plan_as_a_job_sees_the_cluster_and_ends_with_its_json(submit, small_run) -> None:
    """Sent to the address that was checked, though the environment names another."""
    files = f"prompts.files=[{small_run['prompts']['files'][0]}]"  # rich would take it for markup
    done = submit(small_run, "--job", "plan", "--json", files, RAY_ADDRESS="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert files in done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "SUCCEEDED"
    plan = answer["result"]
    [node] = plan["nodes"]
    assert node["cpus"] == 2
    assert plan["missing"] == [], "maybe its worker took a module of the project"
    assert answer["job"] in done.stderr


@pytest.mark.slow
def test_job_that_is_refused_hands_on_its_exit_code_and_its_error(submit, small_run) -> None:
    small_run["train"]["workers"]["num"] = 64
    done = submit(small_run, "--job", "train")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "train.workers: 64 workers" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["storage=here"], "deleted with the cluster"),
        (["--job", "plan", "--overwrite"], "unrecognized arguments: --overwrite"),
        (["--job", "plan", "train.stepz=1"], "did you mean"),
    ],
)
def test_job_that_cannot_be_meant_is_not_sent(
    submit, head: Head, small_run, words, message
) -> None:
    client = JobSubmissionClient(head.dashboard, headers=_shown(head))
    before = len(client.list_jobs())
    done = submit(small_run, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(client.list_jobs()) == before


@pytest.mark.parametrize("name", ["random.py", "pyarrow/__init__.py"])
def test_folder_with_a_module_that_rays_processes_import_is_refused(
    head: Head, submit, project: Path, small_run, name: str
) -> None:
    """A process of Ray's that ran it would end before the job begins."""
    client = JobSubmissionClient(head.dashboard, headers=_shown(head))
    before = len(client.list_jobs())
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).touch()
    (project / "json").mkdir()  # a folder that is no package replaces none
    done = submit(small_run, "--job", "plan")
    assert done.returncode == 2
    assert done.stderr.count("rename it") == 1
    assert str(project / name).removesuffix("/__init__.py") in done.stderr
    assert len(client.list_jobs()) == before


def test_configuration_outside_of_the_working_dir_is_refused(head, small_run, tmp_path) -> None:
    path = write_config(tmp_path, small_run)
    done = head.command("submit", str(path), "--address", head.dashboard)
    assert done.returncode == 2
    assert "all that travels" in done.stderr


def test_folder_that_is_too_large_for_the_cluster_is_refused_with_the_remedy(
    submit, project: Path, small_run
) -> None:
    (project / "weights.bin").write_bytes(os.urandom(101 * 2**20))  # a zip makes it no smaller
    done = submit(small_run)
    assert done.returncode == 2
    assert str(project) in done.stderr and ".rayignore" in done.stderr


class Broken:
    """A Jobs client whose connection breaks after every piece of the log, on a job that ends."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces, self._given = pieces, 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self._given += 1
        for piece in self._pieces[: self._given]:
            yield piece
        raise ConnectionError("the port is no longer forwarded")

    def get_job_status(self, job_id: str) -> str:
        if self._given % 2:
            raise RuntimeError("Request failed with status code 502")
        return "FAILED" if self._given >= len(self._pieces) else "RUNNING"

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(driver_exit_code=2, message="why\nand the log again")

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self._pieces)


def test_log_is_shown_once_over_connections_that_break(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("paft_ray.cluster.jobs.time.sleep", lambda seconds: None)
    pieces = ["one\n", "two\n", "three", " and a half\n", '{"ended": true}\n', "\n"]
    shown: list[str] = []
    ended = follow(Broken(pieces), Job("python x", tmp_path, "paft-x", {}), shown.append)
    assert "".join(shown) == "".join(pieces)
    assert (ended.code, ended.message, ended.result) == (2, "why", {"ended": True})


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_person_sees_a_job_s_log_without_its_last_line_for_programs(size: int) -> None:
    text = 'one\n{"in": "the middle"}\ntable\n'
    for last, is_result, seen in (
        ('{"ended": true}\n\n', True, text),
        ('{"ended": tr', False, text + '{"ended": tr'),
        ("error: why\n", False, text + "error: why\n"),
    ):
        shown: list[str] = []
        log, whole = WithoutResult(shown.append), text + last
        for start in range(0, len(whole), size):
            log(whole[start : start + size])
        log.close(is_result)
        assert "".join(shown) == seen


def _shown(head: Head) -> dict[str, str]:
    return {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_verb_works_as_a_job_submitted_by_ray_itself(
    head: Head, project: Path, small_run, tmp_path: Path
) -> None:
    """`ray job submit` of every job file in turn, as in the README."""
    small_run["tuning"] = {
        "space": {"train.sampling.temperature": {"type": "choice", "values": [0.5, float("inf")]}},
        "trials": 2, "scheduler": {"type": "none"}, "finalists": 1, "seeds": [1], "reports": 2,
        "examples": 8,
    }  # fmt: skip
    write_config(project, small_run)
    results = {}
    for verb, program in JOBS.items():
        more = {"tune": ["name=searched"], "export": ["--merge"]}.get(verb, [])
        order = ["python", f"jobs/{program}.py", "config.yaml", *more]
        done = subprocess.run(
            [str(BIN / "ray"), "job", "submit", f"--address={head.dashboard}",
             "--working-dir", ".", "--", *order],
            env={**clean_environment(), **head.environment},
            cwd=project, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (verb, done.stdout[-3000:], done.stderr[-1000:])
    client = JobSubmissionClient(head.dashboard, headers=_shown(head))
    jobs = sorted(client.list_jobs(), key=lambda job: job.start_time or 0)[-len(JOBS) :]
    for verb, job in zip(JOBS, jobs, strict=True):
        last = client.get_job_logs(job.submission_id).strip().splitlines()[-1]
        results[verb] = json.loads(last)
    assert set(results["run"]["models"]) == {"base", "paft"}
    assert len(results["tune"]["trials"]) == 2
    assert Path(results["report"]["report"]).is_file()
    assert Path(results["export"]["folder"], "model.safetensors").is_file()
    assert results["plan"]["training"] == {"paft": "complete"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_job_that_is_sent_again_loses_only_steps_since_the_last_checkpoint(
    head: Head, submit, small_run, tmp_path: Path
) -> None:
    small_run["train"] |= {"steps": 2000, "checkpoint": {"every_steps": 100}}
    run = tmp_path / "storage" / "runs" / "small"
    sent = submit(small_run, "--json", "--no-wait")
    assert sent.returncode == 0, sent.stderr
    job = json.loads(sent.stdout)["job"]
    client = JobSubmissionClient(head.dashboard, headers=_shown(head))
    checkpoints = run / "training" / "paft-s0" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("step-*/manifest.json")):
        assert str(client.get_job_status(job)) in ("PENDING", "RUNNING"), client.get_job_logs(job)
        assert time.monotonic() < deadline, "no checkpoint ever came"
        time.sleep(0.1)
    client.stop_job(job)
    while str(client.get_job_status(job)) == "RUNNING":
        assert time.monotonic() < deadline + 100
        time.sleep(0.2)
    assert str(client.get_job_status(job)) == "STOPPED"
    assert states(tmp_path / "storage") == {
        "small": "KILLED", "paft trained in small": "KILLED", "pool of small": "FINISHED",
    }  # fmt: skip
    saved = max(int(path.parent.name[5:]) for path in checkpoints.glob("step-*/manifest.json"))

    done = submit(small_run, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["result"]["models"]["paft"]
    assert set(states(tmp_path / "storage").values()) == {"FINISHED"}
    rows = pq.read_table(run / "training/paft-s0/ledger").to_pylist()
    assert sorted((r["step"], r["slot"]) for r in rows) == [
        (step, slot) for step in range(2000) for slot in range(4)
    ]
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert f"continues after step {saved}" in log
    assert "Failed to query Ray Train Controller" not in log


def states(storage: Path) -> dict[str, str]:
    """Name to state of all runs in a storage's own MLflow."""
    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments)
    return {run.info.run_name: run.info.status for run in found}
