"""A worker pod that is stopped tells Ray so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import K8S

PROGRAM = Path(__file__).with_name("leave_program.py")


@pytest.mark.ray
@pytest.mark.slow
def test_hook_of_a_pod_drains_its_own_node() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(K8S / "leave.py")],
        env={**clean, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"code": 0, "alive": 1, "reason": "pod pod-2 is being stopped"}
