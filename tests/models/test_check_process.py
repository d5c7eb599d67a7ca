"""The process of model checks, started from a script of a user's."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
from paft_ray.models.check_process import ModelCheckProcess

print("begun")
with ModelCheckProcess() as checks:
    checks.begin(os.getpid)
    print(checks.finish() != os.getpid())
"""


def test_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begun", "True"]
