"""Trainings that share a base model in one process, under each stage that may share it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_trainings_over_a_kept_base_equal_fresh_ones_and_leave_nothing_behind(
    tiny_model: Path, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("kept_program.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tiny_model), str(tmp_path / "meeting")],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for stage, found in json.loads(done.stdout.splitlines()[-1]).items():
        assert found["same"] == [True, True], stage
        assert len(set(found["alive"][1:])) == 1, (stage, found["alive"])
