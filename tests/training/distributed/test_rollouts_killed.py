"""Trainings whose model writes what it learns from, killed and stopped through Ray Train."""

import random
import signal
from pathlib import Path

import pytest
from small_reinforcement import BATCH, ROLLOUTS, left, place, reinforced, run
from small_training import TellingScreen

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("num", [1, 2])
def test_training_killed_at_random_instants_ends_with_the_same_bits(
    tiny_model: Path, review_file: Path, tmp_path: Path, ray_cluster: None, num: int
) -> None:
    """Five times each: in the middle of sampling, or in half a second after a rank's last reward,
    in which the others are waited for, steps are taken, and a checkpoint is written."""
    own, rng = BATCH // num, random.Random(num)  # rewards of a rank in a batch
    sampling = [[rng.randint(1, 2 * own), 0.0, signal.SIGKILL] for _ in range(2)]
    update = [[own * rng.randint(1, 2), rng.random() / 2, signal.SIGKILL] for _ in range(3)]
    ends = []
    for name, kills in (("undisturbed", []), ("killed", [*sampling, *update])):
        home = place(tmp_path / name, kills)
        trained = run(reinforced(home, tiny_model, review_file, num))
        assert len(list(home.glob("sent-*"))) == len(kills)
        ends.append(left(Path(trained.folder.path())))
    for part, data in ends[0].items():
        assert data == ends[1][part], part


def test_stop_between_two_updates_ends_after_the_last_of_them_and_changes_nothing(
    tiny_model: Path, review_file: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """A worker is told to go while the first of two steps on its rollouts is about to be taken."""
    stop = [[2 * BATCH, 0.0, signal.SIGTERM]]
    ends, lines = [], []
    for name, signals in (("undisturbed", []), ("stopped", stop)):
        home, screen = place(tmp_path / name, signals), TellingScreen()
        config = reinforced(home, tiny_model, review_file, 1, prompts_per_question=ROLLOUTS)
        ends.append(left(Path(run(config, screen).folder.path())))
        lines += screen.lines
    [told] = lines
    assert told.endswith("4 steps are saved, starting anew")
    assert ends[0] == ends[1]
    for kind in ("ledger", "rollouts"):
        shown: dict[tuple[int, int], set[str]] = {}
        for row in ends[0][kind]:
            question = row["step"], row["slot"] // ROLLOUTS
            shown.setdefault(question, set()).add(row["prompt_id"])
        assert {len(prompts) for prompts in shown.values()} == {ROLLOUTS}
