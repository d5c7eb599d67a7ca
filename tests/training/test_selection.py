"""The best step of a training: which it is, that it stays, also where a training is killed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.config import ValidationConfig
from paft_ray.config.errors import TrainingError
from paft_ray.storage.paths import Storage
from paft_ray.training.selection import Best, Selection, best_of
from paft_ray.training.state.checkpoint import Checkpoints, Progress, WriteLimits
from paft_ray.training.validation import read_results, write_result

TOTAL = 12


class Driven:
    """A training of 12 steps without a model: scores that are known, real checkpoints."""

    def __init__(self, folder: Path, right: list[int], every: int = 12, **settings: object) -> None:
        """Score `right[step]` of 8 answers after every second step, and save every so many."""
        self.config = ValidationConfig.model_validate({"every_steps": 2, **settings})
        self.folder, self.right, self.every = Storage.open(str(folder)), right, every
        limits = WriteLimits(pauses_s=(0.0,))
        self.checkpoints = Checkpoints(self.folder.child("checkpoints"), "x", 1, limits=limits)
        steps = self.config.steps(TOTAL)
        self.selection = Selection(self.config, steps, self.folder, self.checkpoints)
        restored = self.selection.load()
        self.step = 0 if restored is None else restored.progress.step
        if restored is not None:
            assert dict(restored.state)["weight/a"].item() == self.step

    def train(self, killed_at: int = TOTAL + 1) -> tuple[int, Best | None]:
        """Train to the end, or until the process is killed in a step before it is saved."""
        while self.step < self.selection.until(self.step, TOTAL):
            self.step += 1
            checkpoint = self.step % self.every == 0 or self.step == TOTAL
            if self.step in self.config.steps(TOTAL):
                correct_PE = (np.arange(8) < self.right[self.step]).reshape(2, 4)
                write_result(self.folder, self.step, correct_PE)
                wanted = self.selection.add(self.step, correct_PE)
                checkpoint = checkpoint or wanted.checkpoint or wanted.end
            if self.step == killed_at:
                return self.step, None
            if checkpoint:
                state = {"weight/a": torch.tensor(float(self.step))}
                self.checkpoints.save(Progress(self.step), state)
        self.checkpoints.wait()
        return self.step, self.selection.best

    @property
    def saved(self) -> list[int]:
        return [int(name[-9:]) for name in self.folder.child("checkpoints").names()]


def scores(*right: int) -> list[int]:
    """Right answers by step, from those after steps 2, 4, ..."""
    return [0, *(number for each in right for number in (0, each))]


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ({}, None),
        ({2: 0.5, 4: 0.75, 6: 0.25}, Best(4, 0.75, 1)),
        ({2: 0.5, 4: 0.5, 6: 0.5}, Best(2, 0.5, 2)),
        ({6: 0.5, 2: 0.25, 4: 0.5}, Best(4, 0.5, 1)),
    ],
)
def test_best_step_is_the_earliest_of_the_highest(figures, best) -> None:
    assert best_of(figures) == best


def test_best_checkpoint_stays_and_its_weights_are_there_at_the_end(tmp_path: Path) -> None:
    driven = Driven(tmp_path, scores(1, 5, 3, 5, 2, 4), every=3)
    assert driven.train() == (12, Best(4, 5 / 8, 4))
    assert driven.saved == [4, 12]
    assert dict(driven.checkpoints.load_step(4).state)["weight/a"].item() == 4


@pytest.mark.parametrize(
    ("patience", "end"), [(1, 6), (2, 8), (3, 12), (None, 12)]
)  # the third score after 4 is better again
def test_patience_ends_a_training_after_so_many_scores_that_are_no_better(
    patience: int | None, end: int, tmp_path: Path
) -> None:
    driven = Driven(tmp_path, scores(1, 5, 5, 3, 6, 4), patience=patience)
    steps, best = driven.train()
    assert steps == end
    assert best is not None
    assert best.step == (4 if end < 10 else 10)


def test_without_keep_best_no_checkpoint_is_kept_besides(tmp_path: Path) -> None:
    driven = Driven(tmp_path, scores(7, 1, 1, 1, 1, 1), keep_best=False, patience=2)
    assert driven.train() == (6, Best(2, 7 / 8, 2))
    assert driven.saved == [6]


def test_figure_is_that_of_the_goal(tmp_path: Path) -> None:
    """The mean rises, the worst of two prompts does not."""
    driven = Driven(tmp_path, scores(1, 2, 3, 4, 3, 2), goal={"type": "worst"})
    assert driven.train()[1] == Best(2, 0.0, 5)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=6, max_size=6),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([1, 3, 5, 12]),
    st.lists(st.integers(1, 12), max_size=3),
)
def test_training_that_was_killed_any_number_of_times_makes_the_same_choice(
    tmp_path_factory: pytest.TempPathFactory,
    right: list[int],
    patience: int | None,
    every: int,
    kills: list[int],
) -> None:
    whole = Driven(tmp_path_factory.mktemp("whole"), scores(*right), every, patience=patience)
    expected = whole.train()
    folder = tmp_path_factory.mktemp("killed")
    for step in [*kills, TOTAL + 1]:
        killed = Driven(folder, scores(*right), every, patience=patience)
        killed.train(step)
        killed.checkpoints.wait()
    last = Driven(folder, scores(*right), every, patience=patience)
    assert last.step == expected[0]
    assert last.train() == expected
    assert last.saved == whole.saved
    results = [read_results(Storage.open(each.folder.path())) for each in (whole, last)]
    assert list(results[0]) == list(results[1])


def test_scores_of_steps_that_are_trained_again_do_not_count(tmp_path: Path) -> None:
    """As where fewer ranks train on: a score that was not saved turns out otherwise."""
    first = Driven(tmp_path, scores(1, 2, 8, 3, 3, 3))
    first.train(killed_at=6)
    first.checkpoints.wait()
    second = Driven(tmp_path, scores(1, 2, 1, 3, 3, 3))
    assert second.step == 4
    assert second.train() == (12, Best(8, 3 / 8, 2))


def tear(folder: Path, step: int) -> None:
    [path] = (folder / f"checkpoints/step-{step:09d}").glob("state-*")
    path.write_bytes(path.read_bytes()[:-1])


def test_checkpoint_whose_best_one_is_torn_is_passed_over(tmp_path: Path) -> None:
    right = scores(1, 5, 3, 4, 2, 4)
    driven = Driven(tmp_path, right, every=3)
    driven.train(killed_at=8)
    driven.checkpoints.wait()
    assert driven.saved == [4, 6]
    tear(tmp_path, 4)
    again = Driven(tmp_path, right, every=3)
    assert again.step == 0
    assert again.train() == (12, Best(4, 5 / 8, 4))
    tear(tmp_path, 4)
    with pytest.raises(TrainingError, match=r"step-000000004 is torn.*run the same command"):
        again.checkpoints.load_step(4)


def test_checkpoint_without_the_results_before_it_is_passed_over(tmp_path: Path) -> None:
    driven = Driven(tmp_path, scores(1, 2, 3, 4, 5, 6))
    driven.train()
    driven.folder.child("validation").delete("step-00000004.json")
    assert Driven(tmp_path, scores(1, 2, 3, 4, 5, 6)).step == 0
