"""Checkpoints: what was saved comes back, what is torn is passed over, storage may stumble."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from plans import make_draws

from paft_ray.config.errors import TrainingError
from paft_ray.storage.artifacts import MANIFEST
from paft_ray.storage.paths import Storage
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.ledger import Ledger
from paft_ray.training.state.checkpoint import Checkpoints, Progress, WriteLimits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def make(folder: Path) -> Callable[..., Checkpoints]:
    def make_checkpoints(identity: str = "mine", keep: int = 10, **options) -> Checkpoints:
        limits = WriteLimits(**{"pauses_s": (0.0,) * 4, **options})
        return Checkpoints(Storage.open(str(folder)), identity, keep, limits=limits)

    return make_checkpoints


def state(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weight/a": torch.randn(3, 4, generator=generator),
        "exp_avg/a": torch.randn(3, 4, generator=generator).to(torch.bfloat16),
        "exp_avg_sq/scalar": torch.tensor(float(step)),
        "sampler/scores": torch.randn(5, generator=generator, dtype=torch.float64),
    }


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(Progress(step=step, loss=1.0), state(step))
    checkpoints.wait()


def loaded_step(checkpoints: Checkpoints) -> int | None:
    restored = checkpoints.load()
    if restored is None:
        return None
    tensors = {**dict(restored.state), **restored.other}
    expected = state(restored.progress.step)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return restored.progress.step


def test_checkpoint_comes_back_as_it_was_saved(make):
    progress = Progress(7, 1000, 90, 3, 12.625, 0.1 + 0.2)
    saved = state(7)
    writing = make()
    writing.save(progress, saved)
    writing.wait()
    restored = make().load()
    assert restored.progress == progress
    assert restored.other.keys() == {"sampler/scores"}
    tensors = {**dict(restored.state), **restored.other}
    assert tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_checkpoints_where_nothing_was_saved_are_none(make):
    assert make().load() is None


def test_checkpoint_loaded_is_the_newest_by_step_not_by_time(make):
    checkpoints = make()
    save(checkpoints, 9, 100, 20)
    assert loaded_step(checkpoints) == 100


def state_file(checkpoint: Path) -> Path:
    [path] = checkpoint.glob("state-*-00001-of-00001.safetensors")
    return path


def cut_state(checkpoint: Path) -> None:
    path = state_file(checkpoint)
    path.write_bytes(path.read_bytes()[:-5])


def change_a_byte(checkpoint: Path) -> None:
    path = state_file(checkpoint)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lose_state(checkpoint: Path) -> None:
    state_file(checkpoint).unlink()


def lose_progress(checkpoint: Path) -> None:
    (checkpoint / "progress.json").unlink()


def lose_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()


def cut_manifest(checkpoint: Path) -> None:
    path = checkpoint / MANIFEST
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    "harm",
    [cut_state, change_a_byte, lose_state, lose_progress, lose_manifest, cut_manifest],
    ids=lambda harm: harm.__name__,
)
def test_checkpoint_that_is_torn_is_passed_over_for_the_one_before(harm, make, folder):
    checkpoints = make()
    save(checkpoints, 4, 8, 12)
    harm(folder / "step-000000012")
    assert loaded_step(checkpoints) == 8
    harm(folder / "step-000000008")
    assert loaded_step(checkpoints) == 4
    harm(folder / "step-000000004")
    assert loaded_step(checkpoints) is None


def test_checkpoint_of_another_training_is_passed_over(make):
    save(make("mine"), 4)
    save(make("other"), 8)
    assert loaded_step(make("mine")) == 4
    assert loaded_step(make("other")) == 8
    assert loaded_step(make("third")) is None


@pytest.mark.parametrize("keep", [1, 3])
def test_checkpoints_keep_the_newest_only(keep, make, folder):
    save(make(keep=keep), 2, 4, 6, 8, 10)
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == [f"step-{step:09d}" for step in (2, 4, 6, 8, 10)][-keep:]
    assert loaded_step(make()) == 10


def test_checkpoints_beside_a_torn_later_one_keep_the_one_just_written(make, folder):
    save(make(keep=1), 50)
    save(make(keep=2), 100)
    lose_manifest(folder / "step-000000100")
    resumed = make(keep=1)
    assert loaded_step(resumed) == 50
    save(resumed, 60)
    assert loaded_step(resumed) == 60
    assert not (folder / "step-000000050").exists()


def test_checkpoint_writes_what_comes_before_it_first(make, folder):
    checkpoints = make()
    seen = []
    checkpoints.save(Progress(step=4), state(4), before=lambda: seen.append(folder.exists()))
    checkpoints.wait()
    assert seen == [False]


class Obstacle:
    """A file where the checkpoint's folder belongs, until the `n`-th attempt."""

    def __init__(self, path: Path, until: int) -> None:
        self.path, self.until, self.attempts = path, until, 0

    def __call__(self) -> None:
        self.attempts += 1
        self.path.parent.mkdir(exist_ok=True)
        if self.attempts < self.until:
            raise OSError(f"{self.path.name} cannot be reached")


def test_checkpoint_on_storage_that_fails_twice_is_written_the_third_time(make, folder):
    checkpoints = make()
    obstacle = Obstacle(folder / "step-000000004", until=3)
    checkpoints.save(Progress(step=4), state(4), before=obstacle)
    checkpoints.wait()
    assert obstacle.attempts == 3
    assert loaded_step(checkpoints) == 4


def test_checkpoint_on_storage_that_keeps_failing_raises_after_five_attempts_at_the_next_save(
    make, folder
):
    checkpoints = make()
    save(checkpoints, 2)
    obstacle = Obstacle(folder / "step-000000004", until=1000)
    checkpoints.save(Progress(step=4), state(4), before=obstacle)
    with pytest.raises(TrainingError, match=r"checkpoint of step 4 failed 5 times.*step-000000004"):
        checkpoints.save(Progress(step=6), state(6))
    assert obstacle.attempts == 5
    assert loaded_step(make()) == 2


def test_checkpoint_whose_writing_is_wrong_by_our_own_fault_is_not_tried_again(make):
    calls = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("a bug")

    checkpoints = make()
    checkpoints.save(Progress(step=4), state(4), before=fail)
    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.wait()
    assert len(calls) == 1


def record(ledger: Ledger, *steps: int, loss: float = 0.5) -> None:
    for step in steps:
        draws = make_draws([1, 2], prompts=[0, 1], names=f"e{step}")
        ledger.add(StepPlan(step, (), draws, np.arange(2), 6, 3), [loss, loss + 1])


def read(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.iterdir()) for row in pq.read_table(path).to_pylist()]


def test_ledger_has_a_row_for_every_slot_and_a_part_for_every_stretch(tmp_path):
    ledger = Ledger(Storage.open(str(tmp_path)), 0)
    record(ledger, 0, 1)
    write_first = ledger.take(2)
    record(ledger, 2)
    write_second = ledger.take(3)
    assert list(tmp_path.iterdir()) == []  # written with the checkpoint, not before
    write_second()
    write_first()
    names = sorted(path.name for path in (tmp_path / "ledger").iterdir())
    assert names == ["steps-000000000-000000002.parquet", "steps-000000002-000000003.parquet"]
    rows = read(tmp_path / "ledger")
    assert [(row["step"], row["slot"]) for row in rows] == [
        (s, i) for s in range(3) for i in (0, 1)
    ]
    assert rows[3] == {
        "step": 1, "slot": 1, "example_id": "e11", "prompt_id": "p1", "loss": 1.5,
        "answer_tokens": 2,
    }  # fmt: skip


def test_ledger_swept_keeps_what_lies_before_the_step_it_begins_with(tmp_path):
    """As after a notice to leave, whose part was written and whose checkpoint was not."""
    storage = Storage.open(str(tmp_path))
    for first, last in ((0, 4), (4, 6), (4, 8)):
        ledger = Ledger(storage, first, ["p0", "p1"])
        record(ledger, *range(first, last))
        ledger.take(last)()
        storage.child("sampling").write_bytes(f"step-{last:09d}.parquet", b"")
    Ledger(storage, 4).prune()
    assert [path.name for path in (tmp_path / "ledger").iterdir()] == [
        "steps-000000000-000000004.parquet"
    ]
    assert [path.name for path in (tmp_path / "sampling").iterdir()] == ["step-000000004.parquet"]


def test_ledger_of_a_stretch_trained_again_overwrites_its_part(tmp_path):
    storage = Storage.open(str(tmp_path))
    for loss in (9.0, 0.25):  # the second attempt starts from the same checkpoint
        ledger = Ledger(storage, 4)
        record(ledger, 4, 5, loss=loss)
        ledger.take(6)()
    rows = read(tmp_path / "ledger")
    assert [(row["step"], row["slot"], row["loss"]) for row in rows] == [
        (4, 0, 0.25), (4, 1, 1.25), (5, 0, 0.25), (5, 1, 1.25),
    ]  # fmt: skip


def test_ledger_without_steps_writes_no_part(tmp_path):
    ledger = Ledger(Storage.open(str(tmp_path)), 4)
    ledger.take(4)()
    assert list(tmp_path.iterdir()) == []
