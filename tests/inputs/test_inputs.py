"""Every row of the table of inputs ends as its user would want it."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from input_rows import Outcome, Row, World, judge, read_rows

from factories import LORA
from paft_ray.cli import call
from paft_ray.config.loading import load_config
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.models.meta import count_weights
from paft_ray.tasks import load_task

ROWS = read_rows()
COMMANDS = [row for row in ROWS if row.section not in ("endpoints", "locks")]
THROUGH_PAFT = 8
LONGEST_S = 60
LATE = "code and checkpoints"
"""A kind that is refused only when all libraries are imported, which is left to the slow tier."""


def chosen_for_paft() -> set[str]:
    """Rows that `make test` runs through the real `paft`: refusals of each section's kinds."""
    refused = [row for row in COMMANDS if row.want == "refused" and row.kind != LATE]
    kinds: dict[str, list[str]] = {}
    places = Counter[tuple[str, str]]()
    ranked = []
    for row in refused:
        of_section = kinds.setdefault(row.section, [])
        if row.kind not in of_section:
            of_section.append(row.kind)
        place = places[row.section, row.kind]
        ranked.append((place, of_section.index(row.kind), row.name))
        places[row.section, row.kind] += 1
    return {name for *_, name in sorted(ranked)[:THROUGH_PAFT]}


def through_paft_too() -> list[Any]:
    """The first row of each kind and ending; the others end alike in this process."""
    first = {(row.section, row.kind, row.want): row for row in reversed(COMMANDS)}
    quick = chosen_for_paft()
    return [
        pytest.param(row, id=row.name, marks=[] if row.name in quick else [pytest.mark.slow])
        for row in first.values()
    ]


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> World:
    return World(tmp_path / "here", tiny_model)


def judge_shown(row: Row, world: World, outcome: Outcome) -> list[str]:
    """Faults of what `--print-config --json` shows."""
    tree = json.loads(outcome.out) if outcome.code == 0 else {}
    faults = []
    for path, wanted in row.shows.items():
        value: Any = tree
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, list) else (value or {}).get(key)
        if (wanted := world.filled(wanted)) != value or type(value) is not type(wanted):
            faults.append(f"{path} is {value!r}, not {wanted!r}")
    return faults


def judge_task(row: Row, world: World) -> list[str]:
    """Faults of the examples that were read."""
    config = load_config(world.folder / "config.yaml", [world.text(text) for text in row.set])
    task = load_task(config.task, config.seed)
    examples = [*task.train, *task.validation, *task.test]
    texts = {text for e in examples for text in (*e.fields.values(), e.answer)}
    faults = [f"no example holds {text!r}" for text in row.holds if text not in texts]
    if row.examples not in (None, len(examples)):
        faults.append(f"{len(examples)} examples, not {row.examples}")
    return faults


@pytest.fixture(scope="session")
def _imported(_kept_checks: ModelCheckProcess, tiny_model: Path) -> None:
    """The process that checks models has imported what it needs, which takes long."""
    _kept_checks.begin(count_weights, str(tiny_model), None, LORA, 0)
    _kept_checks.finish()


@pytest.mark.timeout(LONGEST_S, func_only=True)
@pytest.mark.usefixtures("_imported", "warm_checks")
@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_input_ends_as_its_user_wants(
    row: Row, world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.build(row)
    for name, value in world.environment(row).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr("paft_ray.cluster.session.ray_session", pytest.fail)
    before = world.content()
    outcome = in_process(world.arguments(row), capfd)
    faults = judge(row, world, outcome)
    if row.shows and not faults:
        outcome = in_process(world.arguments(row, "--print-config", "--json"), capfd)
        faults += judge_shown(row, world, outcome)
    if (row.holds or row.examples) and not faults:
        faults += judge_task(row, world)
    if outcome.code == 2 or row.verb == "plan":
        after = world.content()
        faults += [f"{name} was written" for name in after if after[name] != before.get(name, ...)]
    assert not faults, f"{faults}\n{outcome.out}{outcome.err}"


def in_process(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> Outcome:
    """Run a command in this process."""
    try:
        code = call(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    return Outcome(code, *capfd.readouterr())


@pytest.mark.parametrize("row", through_paft_too())
def test_input_ends_so_through_the_real_command(row: Row, world: World) -> None:
    world.build(row)
    before = world.content()
    outcome = through_paft(world, row)
    faults = judge(row, world, outcome)
    if outcome.code == 2 or row.verb == "plan":
        after = world.content()
        faults += [f"{name} was written" for name in after if after[name] != before.get(name, ...)]
    assert not faults, f"{faults}\n{outcome.out}{outcome.err}"


def through_paft(world: World, row: Row) -> Outcome:
    """Run a row's command as a process of its own."""
    environment = {**os.environ, **world.environment(row)}
    result = subprocess.run(
        [sys.executable, "-m", "paft_ray.cli", *world.arguments(row)],
        cwd=world.folder,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        timeout=LONGEST_S,
        check=False,
    )
    return Outcome(result.returncode, *(s.decode() for s in (result.stdout, result.stderr)))


def test_the_table_holds_many_inputs_of_few_of_a_kind() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 400
    assert max(Counter((row.section, row.kind) for row in ROWS).values()) <= 8
