"""Learning from texts that the model writes: the loss, what is written, and what comes of it."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_program import PEFT, make_planner, train_config

from paft_ray.config import GRPO, ExpectedReward, TrainConfig
from paft_ray.models.load import load_base, load_tokenizer, make_trainable
from paft_ray.models.packing import TokenSequence, build_row
from paft_ray.models.sampling import Sampled
from paft_ray.tasks import Example
from paft_ray.tasks.grading import Grade, TextGrader
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.engine import Engine
from paft_ray.training.local import train_locally
from paft_ray.training.objective import row_loss
from paft_ray.training.reinforcement.advantages import advantages
from paft_ray.training.reinforcement.rewards import Rewarded, Rewards
from paft_ray.training.reinforcement.rollouts import Policy, Rollout, asked_at
from paft_ray.training.reinforcement.steps import Writer, batch_plan, rollout_plans
from plans import make_draws


@dataclass(frozen=True, slots=True)
class Begins(TextGrader):
    """1 where a text begins with one of some characters."""

    characters: str

    def grade(self, example: Example, text: str, where: str) -> Grade:
        right = text.lstrip()[:1] in tuple(self.characters)
        return Grade(float(right), text)


def rewards(characters: str) -> Rewards:
    return Rewards((Begins("begins", characters),), (1.0,))


def grpo(**settings) -> GRPO:
    return GRPO.model_validate({"type": "grpo", "rollouts": 6, "max_new_tokens": 4, **settings})


def engine_of(folder, **settings) -> tuple[Engine, TrainConfig]:
    train = train_config({"train": {"row_tokens": 200, **settings}})
    model = make_trainable(load_base(str(folder)), PEFT, seed=5)
    return Engine(model, train, "float32", deepspeed=False), train


def test_try(tiny_model):
    import time
    engine, train = engine_of(tiny_model, objective=grpo(rollouts=16, max_new_tokens=1, truncated="keep").model_dump(), batch_size=32, steps=40, learning_rate=0.03)
    planner = replace(make_planner(str(tiny_model), train, True), batch_size=32)
    found = []
    t = time.time()
    train_locally(engine, planner, train, found.append, rewards("abcdefgh"))
    print(time.time() - t)
    for f in found[::5]+found[-1:]:
        print({str(k): round(float(v), 4) for k, v in f.items()if "second" not in str(k)})
    assert 0
