"""Rewards that cannot be used, met by one rank of two in the middle of a training."""

import json
from pathlib import Path

import pytest
import yaml
from small_reinforcement import BATCH, ROLLOUTS, UPDATES, place, reinforced, run
from small_training import TellingScreen

from paft_ray.cli import call
from paft_ray.config.errors import GradeError
from paft_ray.pipeline.perform import open_context
from paft_ray.training.sampler import example_index

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FAULTY = '''
import json, pathlib, time

FAULT = json.loads(pathlib.Path(__file__).with_name("fault.json").read_text())


def fails():
    raise KeyError("no key")


KINDS = {
    "raises": fails,
    "sleeps": lambda: time.sleep(600),
    "nan": lambda: float("nan"),
    "huge": lambda: 10**400,
    "text": lambda: "0.5",
}


def score(fields, answer, text):
    """A share of vowels, but for one review."""
    if FAULT["review"] in (fields["review"], "any"):
        return KINDS[FAULT["kind"]]()
    return sum(c in "aeiou" for c in text) / max(1, len(text))
'''


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", "raised KeyError: 'no key'"),
        ("sleeps", "did not answer within 5 s"),
        ("nan", "returned nan"),
        ("huge", "returned 1000000000"),
        ("text", "returned '0.5'"),
    ],
)
def test_reward_that_cannot_be_used_ends_all_ranks_before_the_step_and_is_named(
    kind: str, said: str, tiny_model: Path, review_file: Path, tmp_path: Path, ray_cluster: None
) -> None:
    home, screen = place(tmp_path / kind, []), TellingScreen()
    (home / "rewards.py").write_text(FAULTY, encoding="utf-8")
    (home / "fault.json").write_text(json.dumps({"kind": kind, "review": ""}), encoding="utf-8")
    config = reinforced(home, tiny_model, review_file, 2)
    examples = open_context(config).task.train
    second = BATCH // ROLLOUTS + 1  # the second question of the second batch: rank 1 writes it
    example = examples[example_index(config.seed, second, len(examples))]
    fault = {"kind": kind, "review": example.fields["review"]}
    (home / "fault.json").write_text(json.dumps(fault), encoding="utf-8")
    with pytest.raises(GradeError) as caught:
        run(config, screen)
    told = str(caught.value)
    assert said in told
    assert example.id in told
    assert "under prompt" in told
    assert "for the text '" in told
    assert screen.lines == []  # nobody was taken for one that hangs
    folder = home / "storage/runs/small/training/paft-s1"
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"step-{UPDATES:09d}"]
    assert not (folder / "adapter").exists()


@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_command_with_a_faulty_reward_ends_with_1_and_two_lines(
    small_run: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    (tmp_path / "fault.json").write_text('{"kind": "nan", "review": "any"}', encoding="utf-8")
    small_run["train"] |= {
        "batch_size": 8,
        "objective": {
            "type": "grpo",
            "max_new_tokens": 4,
            "rewards": [{"type": "python", "path": f"{tmp_path / 'faulty.py'}:score"}],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run), encoding="utf-8")
    assert call(["train", str(path)]) == 1
    err = capfd.readouterr().err.strip().splitlines()
    [line] = [line for line in err if line.startswith("error:")]
    assert "score returned nan for the text" in line
