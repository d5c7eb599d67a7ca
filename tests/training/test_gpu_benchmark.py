"""The benchmark for GPUs, rehearsed on a CPU: every row is measured, or says what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_ON_CPUS = {"varlen", "flex_attention", "compiled"}


def rehearse(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process, as on a machine without Ray."""
    blocked = "import sys; sys.modules['ray'] = None; import runpy; "
    program = f"runpy.run_path({str(ROOT / 'jobs/benchmarks/gpu.py')!r}, run_name='__main__')"
    arguments = f"sys.argv[1:] = {['--rehearse', '--out', str(out), *words]!r}; "
    path = os.pathsep.join((str(ROOT / "jobs/benchmarks"), str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", blocked + arguments + program],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_row_is_measured_without_ray_or_says_what_is_missing(tmp_path: Path) -> None:
    done = rehearse(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(rows) > 40
    for row in rows:
        if row["status"] != "measured":
            assert row["status"] == "not run", row
            assert NOT_ON_CPUS & set(row["row"].split("/")), row
            assert row["why"]
        figures = row.get("figures", {})
        assert figures.get("holds") is not False, row
        assert figures.get("counts") is not False, row
    work = [row for row in rows if "times_padded" in row.get("figures", {})]
    assert work


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_without_time_are_named_and_measured_by_a_second_call(tmp_path: Path) -> None:
    only = ("--only", "head", "store/*")
    first = rehearse(tmp_path, *only, "--minutes", "0")
    assert "3 rows, 3 not run, 0 failed" in first.stdout, first.stdout + first.stderr
    again = rehearse(tmp_path, *only, "--continue")
    assert "3 rows, 0 not run, 0 failed" in again.stdout, again.stdout + again.stderr
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    rehearse(tmp_path, *only, "--continue")
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_run_that_is_killed_on_one_machine_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    path = os.pathsep.join((str(ROOT / "jobs/benchmarks"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/benchmarks/gpu_run.py"), "--rehearse", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=1100,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found.keys() == {"undisturbed", "killed", "grpo"}
    assert found["killed"]["means"] == found["undisturbed"]["means"]
    for label in ("paft-s0", "single_prompt-s0"):
        compared = found["killed"][label]
        assert compared["rows"] == 40 * 8
        assert compared["other_losses"] == compared["other_tensors"] == 0
    assert "all" in found["undisturbed"]["planned"]["worker_memory_gb"]
