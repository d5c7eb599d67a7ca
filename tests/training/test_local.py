"""Training in one process, without Ray and DeepSpeed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rank_program import PEFT, STEPS, make_planner, train_config

from paft_ray.config.errors import ConfigError
from paft_ray.models.load import load_base, make_trainable
from paft_ray.training.engine import Engine
from paft_ray.training.local import train_locally


@pytest.mark.slow
def test_training_runs_where_neither_ray_nor_deepspeed_is_installed(tiny_model: Path) -> None:
    program = Path(__file__).with_name("local_program.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tiny_model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == []
    assert len(found["losses"]) == STEPS
    assert sum(found["losses"][-5:]) < sum(found["losses"][:5])
    assert found["tokens"] > 0


def test_planner_of_other_batches_than_train_says_is_refused(tiny_model: Path) -> None:
    train = train_config({})
    model = make_trainable(load_base(str(tiny_model)), PEFT, seed=5)
    engine = Engine(model, train, "float32", deepspeed=False)
    planner = replace(make_planner(str(tiny_model), train, packing=True), batch_size=5)
    with pytest.raises(ConfigError, match="batches of 5 examples"):
        train_locally(engine, planner, train)
