"""The documentation's notebook as a program, for a test to run with any Python."""

import json
import os
import subprocess
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
_SHOWN = """\
print('rows of scores:', len(result.scores), len(measured.table))
print(paft_ray.list_runs(config['storage']))
"""


def cells() -> list[str]:
    """The code cells."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def run_notebook(python: str | Path, folder: Path) -> None:
    """Run all cells outside of Jupyter, in a folder, and check what they leave."""
    program = folder / "cells.py"  # without a guard: a script may call as a notebook does
    program.write_text("\n\n".join([*cells(), _SHOWN]), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), str(program)], capture_output=True, text=True, cwd=folder, check=False,
        env={**environment, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    models, measured = 3, 2
    # 4 test prompts x 20 examples
    assert f"rows of scores: {models * 4 * 20} {measured}" in done.stdout, done.stdout[-3000:]
    assert "of-trainer" in done.stdout
