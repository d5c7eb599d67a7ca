"""The notebook of the documentation runs from its first cell to its last, outside of Jupyter."""

import json
import sys
from pathlib import Path

import pytest

from in_notebook import NOTEBOOK, cells, run_notebook


def test_notebook_is_stored_without_outputs_and_in_plain_python() -> None:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in found["cells"])
    for cell in cells():
        compile(cell, "cell", "exec")  # which Jupyter's own commands are not


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_notebook_runs_from_beginning_to_end(tmp_path: Path) -> None:
    run_notebook(sys.executable, tmp_path)
