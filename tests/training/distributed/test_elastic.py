"""Trainings on two nodes, of which one goes or comes, against one that keeps its two."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

TESTS = Path(__file__).parents[2]
PROGRAM = TESTS / "training/elastic_program.py"
STEPS = 60
EVERY = 1000
"""Steps between two checkpoints."""
LONG = 8 * EVERY + 1
"""Takes longer than a new node needs to start and to be noticed: 80 s at 10 ms a step."""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run_on_nodes(
    tiny_model: Path, review_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict]]:
    """Run the program; returns the training's folder and what the program tells."""

    def run(what: str, steps: int = STEPS) -> tuple[Path, dict]:
        storage, answer = tmp_path_factory.mktemp(what), tmp_path_factory.mktemp("a") / "answer"
        places = [str(path) for path in (tiny_model, review_file, storage)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        said = storage / "said.txt"
        done = subprocess.Popen(
            [sys.executable, str(PROGRAM), what, *places, str(steps), str(answer)],
            env={
                **clean,
                "PYTHONPATH": str(TESTS),
                "RAY_AUTH_MODE": "disabled",
                "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            },
            stdout=said.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = done.wait(timeout=800)
        finally:
            if done.poll() is None:
                os.killpg(done.pid, signal.SIGKILL)
        assert code == 0, said.read_text(errors="replace")[-3000:]
        return storage / "runs/small/training/paft-s1", json.loads(answer.read_text())

    return run


@pytest.fixture(scope="module")
def fixed(run_on_nodes: Callable[..., tuple[Path, dict]]) -> Path:
    folder, found = run_on_nodes("fixed")
    assert found["workers"] == 2
    return folder


def ledger(folder: Path) -> list[tuple]:
    rows = pq.read_table(folder / "ledger").to_pylist()
    return sorted((r["step"], r["slot"], r["example_id"], r["prompt_id"]) for r in rows)


def adapter_distance(one: Path, other: Path) -> float:
    tensors = [load_file(path / "adapter/adapter_model.safetensors") for path in (one, other)]
    norm = sum(float((tensor**2).sum()) for tensor in tensors[0].values())
    apart = sum(float(((tensors[0][name] - tensors[1][name]) ** 2).sum()) for name in tensors[0])
    return (apart / norm) ** 0.5


@pytest.mark.parametrize("what", ["shrink", "drain"])
def test_training_that_loses_a_node_ends_like_one_that_keeps_it(
    what: str, fixed: Path, run_on_nodes: Callable[..., tuple[Path, dict]]
) -> None:
    folder, found = run_on_nodes(what)
    assert found["changed"]
    assert found["workers"] == 1
    assert ledger(folder) == ledger(fixed)
    assert adapter_distance(fixed, folder) < 1e-3
    saved = [int(path.name[-9:]) for path in (folder / "checkpoints").iterdir()]
    assert len(saved) == (2 if what == "drain" else 1)  # a notice leaves time for a checkpoint


def test_training_that_gets_a_node_goes_on_with_two_workers_and_loses_no_step(
    run_on_nodes: Callable[..., tuple[Path, dict]],
) -> None:
    folder, found = run_on_nodes("grow", LONG)
    assert found["workers"] == 2
    [line] = found["lines"]
    saved = [int(path.name[-9:]) for path in (folder / "checkpoints").iterdir()]
    [left] = [step for step in saved if step % EVERY and step < LONG]
    assert f"{left} steps are saved" in line
    assert len(ledger(folder)) == len(set(ledger(folder))) == LONG * 4
