"""The notebook of the documentation runs from its first cell to its last, outside of Jupyter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_notebook_is_stored_without_outputs_and_in_plain_python() -> None:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in found["cells"])
    for cell in cells():
        compile(cell, "cell", "exec")  # which Jupyter's own commands are not


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_notebook_runs_from_beginning_to_end(tmp_path: Path) -> None:
    program = tmp_path / "cells.py"  # without a guard: a script may call as a notebook does
    shown = (
        "print('rows of scores:', len(result.scores), len(measured.table))\n"
        "print(paft_ray.list_runs(config['storage']))"
    )
    program.write_text("\n\n".join([*cells(), shown]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    models, measured = 3, 2
    # 4 test prompts x 20 examples
    assert f"rows of scores: {models * 4 * 20} {measured}" in done.stdout, done.stdout[-3000:]
    assert "of-trainer" in done.stdout
