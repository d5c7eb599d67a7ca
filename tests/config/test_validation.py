"""`train.validation`: what it may be with, and that a run without it is what it was."""

from pathlib import Path
from typing import Any

import pytest

from factories import make_prompt, run_config
from paft_ray.config import Config, ValidationConfig
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.runs.context import RunContext
from paft_ray.runs.settings import check_settings
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.training.identity import training_fingerprint


def config_of(reviews: Path, tmp_path: Path, validation: Any, **changes: Any) -> Config:
    train = {"validation": validation, **changes.pop("train", {})}
    prompts = {
        "generation": {"llms": [{"type": "fake"}]},
        "split": {"validation": changes.pop("prompts", 4)},
    }
    tree = run_config("none", reviews, tmp_path, train=train, prompts=prompts, **changes)
    return load_config(tree)


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [(3, 9, (3, 6, 9)), (3, 10, (3, 6, 9, 10)), (3, 2, (2,)), (1, 3, (1, 2, 3))],
)
def test_model_is_scored_every_so_many_steps_and_after_the_last(every, total, steps) -> None:
    assert ValidationConfig(every_steps=every).steps(total) == steps


@pytest.mark.parametrize(
    ("validation", "prompts", "said"),
    [
        ({}, 0, r"prompts\.split\.validation is 0: raise it"),
        ({"prompts": 5}, 4, r"train\.validation\.prompts \(5\) is more than the 4"),
        ({"goal": {"type": "p05"}}, 19, r"goal: p05 needs 20 validation prompts or more, not 19"),
        ({"goal": {"type": "p05"}, "prompts": 5}, 20, "needs 20 .*, not 5"),
        ({"goal": {"type": "mean_minus_std"}}, 1, "mean_minus_std needs 2"),
        ({"patience": 0}, 4, r"train\.validation\.patience: 0"),
        ({"every_step": 1}, 4, "did you mean 'every_steps'"),
    ],
)
def test_validation_that_cannot_be_is_refused(
    validation: dict, prompts: int, said: str, review_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(review_file, tmp_path, {"every_steps": 2, **validation}, prompts=prompts)


@pytest.mark.parametrize(
    ("validation", "prompts"),
    [
        ({"goal": {"type": "p05"}}, 20),
        ({"goal": {"type": "mean_minus_std"}}, 2),
        ({"goal": {"type": "worst"}, "prompts": 1}, 1),
    ],
)
def test_goal_with_enough_prompts_is_accepted(
    validation: dict, prompts: int, review_file: Path, tmp_path: Path
) -> None:
    config = config_of(review_file, tmp_path, {"every_steps": 2, **validation}, prompts=prompts)
    assert config.train.validation is not None


def test_settings_that_leave_nothing_to_choose_are_said(review_file: Path, tmp_path: Path) -> None:
    validation = {"every_steps": 5, "examples": 10_000}
    config = config_of(review_file, tmp_path, validation, train={"steps": 5})
    said = "\n".join(check_settings(config, load_task(config.task, 0)))
    assert "train.validation.examples: 10000, of" in said
    assert "train.validation.every_steps: 5, of 5 steps" in said


def test_search_scores_trials_by_itself(review_file: Path, tmp_path: Path) -> None:
    from paft_ray.tuning.settings import check_search

    space = {"train.learning_rate": {"type": "choice", "values": [0.1, 0.2]}}
    config = config_of(review_file, tmp_path, {"every_steps": 2}, tuning={"space": space})
    task = load_task(config.task, 0)
    context = RunContext.create(config, task, Storage.open(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"train\.validation: a search scores trials by itself"):
        check_search(context)


def test_search_has_no_finalist_of_one_prompt(review_file: Path, tmp_path: Path) -> None:
    from paft_ray.tuning.settings import check_search

    space = {"train.learning_rate": {"type": "choice", "values": [0.1, 0.2]}}
    more = {"variants": [{"type": "single_prompt"}], "evaluation": {"trained_prompts": True}}
    config = config_of(review_file, tmp_path, None, tuning={"space": space}, **more)
    context = RunContext.create(config, load_task(config.task, 0), Storage.open(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"evaluation\.trained_prompts: the finalists"):
        check_search(context)


def test_space_of_a_search_has_no_validation(review_file: Path, tmp_path: Path) -> None:
    space = {"train.validation.patience": {"type": "choice", "values": [1, 2]}}
    with pytest.raises(ConfigError, match=r"train\.validation\.patience cannot be searched"):
        config_of(review_file, tmp_path, None, tuning={"space": space})


def test_training_is_named_by_what_chooses_its_weights(
    review_file: Path, tmp_path: Path, tiny_model: Path
) -> None:
    prompts = (make_prompt("{review} ->", "validation"), make_prompt("{review} =", "validation"))

    def name(validation: Any, number: int = 2, **changes: Any) -> str:
        model = {"path": str(tiny_model)}
        config = config_of(review_file, tmp_path, validation, model=model, **changes)
        task = load_task(config.task, 0)
        context = RunContext.create(config, task, Storage.open(str(tmp_path)))
        return training_fingerprint(context, config, (), prompts[:number])

    every = {"every_steps": 2}
    new_tokens: dict[str, Any] = {"evaluation": {"max_new_tokens": 7}}
    assert name(None) == name(None, number=0) == name(None, **new_tokens)
    names = [
        name(None),
        name(every),
        name({"every_steps": 3}),
        name({**every, "patience": 2}),
        name({**every, "goal": {"type": "worst"}}),
        name(every, number=1),
        name(every, **new_tokens),
    ]
    assert len(set(names)) == len(names)
