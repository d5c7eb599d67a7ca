"""What a run names to do next: commands that the command line takes."""

import shlex
from pathlib import Path

import pytest
import yaml

from factories import run_config
from paft_ray.cli.grammar import parse
from paft_ray.cli.next_commands import next_commands
from paft_ray.config.loading import load_config


@pytest.mark.parametrize(
    ("overrides", "verbs"),
    [
        ([], ["export", "run", "robustness"]),
        (["name=mine", "train.learning_rate=1e-4"], ["export", "run", "robustness"]),
        (["seeds=[0, 1]"], ["export", "runs", "robustness"]),
    ],
)
def test_next_commands_are_three_that_parse_and_repeat_what_was_given(
    overrides: list[str], verbs: list[str], tiny_model: Path, review_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a config.yaml"
    path.write_text(yaml.safe_dump(run_config(tiny_model, review_file, tmp_path / "storage")))
    config = load_config(path, overrides)
    head, *lines = filter(None, next_commands(config, str(path), overrides))
    assert head == "next:"
    parsed = [parse(shlex.split(line, comments=True)[1:]) for line in lines]
    assert [options.verb for options in parsed] == verbs
    exported = load_config(parsed[0].config, parsed[0].overrides)
    assert exported == config
    if verbs[1] == "run":
        seeded = load_config(parsed[1].config, parsed[1].overrides)
        assert (seeded.seeds, seeded.name) == ((0, 1, 2), f"{config.name}-seeds")
        assert seeded.train == config.train
