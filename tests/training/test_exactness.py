"""Training through the real engine against a plain padded loop with full logits, in fp32.

All scenarios of one number of ranks share one launch: real processes, gloo, DeepSpeed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

RANK_PROGRAM = Path(__file__).with_name("rank_program.py")
STAGES = [0, 1, 2, 3]
Weights = dict[str, torch.Tensor]

ONE_RANK = [
    {"name": "plain", "plain": True},
    *({"name": f"one-stage{stage}", "stage": stage} for stage in STAGES),
    {"name": "unpacked", "packing": False},
    {"name": "cut1", "until": 11, "every": 4},
    {"name": "resumed1", "continues": "cut1"},
    {"name": "full-plain", "full": True, "plain": True},
]
SHARDED = {"full": True, "small_state": 0, "shard_bytes": 50_000}
TWO_RANKS = [
    *({"name": f"two-stage{stage}", "stage": stage} for stage in STAGES),
    {"name": "cut2", "stage": 2, "until": 11, "every": 4},
    {"name": "cut3", "stage": 3, "until": 11, "every": 4},
    {"name": "cut4", "stage": 3, "until": 11, "every": 4},
    {"name": "resumed2", "stage": 2, "continues": "cut2"},
    {"name": "resumed3", "stage": 3, "continues": "cut3"},
    {"name": "full-two-stage3", "stage": 3, **SHARDED},
    {"name": "full-cut3", "stage": 3, "until": 8, "every": 4, **SHARDED},
    {"name": "full-resumed3", "stage": 3, "continues": "full-cut3", **SHARDED},
    {"name": "full-cut2", "stage": 2, "until": 8, "every": 4, **SHARDED},
]
FEWER_RANKS = [
    {"name": "resumed4", "stage": 1, "continues": "cut4"},
    {"name": "full-resumed2", "stage": 1, "continues": "full-cut2", **SHARDED},
]


def launch(folder: Path, model: Path, ranks: int, scenarios: list[dict]) -> None:
    settings = {"model": str(model), "folder": str(folder), "ranks": ranks, "scenarios": scenarios}
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK_PROGRAM), json.dumps({**settings, "rank": rank})],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Trained weights after each scenario."""
    folder = tmp_path_factory.mktemp("exactness")
    launch(folder, tiny_model, 2, TWO_RANKS)
    (folder / "meeting-1").unlink(missing_ok=True)
    launch(folder, tiny_model, 1, [*ONE_RANK, *FEWER_RANKS])
    return {path.stem: safetensors.torch.load_file(path) for path in folder.glob("*.safetensors")}


def largest_relative_difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", ["one", "two"])
def test_engine_after_20_steps_agrees_with_a_plain_padded_loop(
    stage: int, ranks: str, trained: dict[str, Weights]
) -> None:
    difference = largest_relative_difference(trained[f"{ranks}-stage{stage}"], trained["plain"])
    assert difference < 1e-3


def test_engine_without_packing_agrees_with_a_plain_padded_loop(
    trained: dict[str, Weights],
) -> None:
    assert largest_relative_difference(trained["unpacked"], trained["plain"]) < 1e-3


@pytest.mark.parametrize(
    ("whole", "resumed"),
    [
        ("one-stage1", "resumed1"),
        ("two-stage2", "resumed2"),
        ("two-stage3", "resumed3"),
        ("full-two-stage3", "full-resumed3"),
    ],
)
def test_interrupted_and_resumed_training_ends_with_the_same_bits(
    whole: str, resumed: str, trained: dict[str, Weights]
) -> None:
    assert trained[whole].keys() == trained[resumed].keys()
    for name, tensor in trained[whole].items():
        assert torch.equal(tensor, trained[resumed][name]), name


def test_engine_that_trains_all_weights_agrees_with_a_plain_padded_loop(
    trained: dict[str, Weights],
) -> None:
    assert largest_relative_difference(trained["full-two-stage3"], trained["full-plain"]) < 1e-3


@pytest.mark.parametrize(
    ("resumed", "plain"), [("resumed4", "plain"), ("full-resumed2", "full-plain")]
)
def test_training_resumed_on_another_number_of_ranks_and_stage_stays_close(
    resumed: str, plain: str, trained: dict[str, Weights]
) -> None:
    assert largest_relative_difference(trained[resumed], trained[plain]) < 1e-3


def test_training_moves_every_adapter_tensor(trained: dict[str, Weights]) -> None:
    for name, tensor in trained["plain"].items():
        assert float(tensor.abs().max()) > 1e-3, name
