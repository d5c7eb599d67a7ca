"""What verbs do with rows without an answer: they train, and refuse to grade what is not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories import run_config, write_reviews
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import Options, prepare
from paft_ray.pipeline.plan import describe_plan
from paft_ray.pipeline.verbs import VERBS
from paft_ray.runs.context import RunContext
from paft_ray.training.identity import training_fingerprint

CONSENSUS = {"type": "consensus", "prompts": 3}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Reviews with their sentiment, and others without."""
    labelled = write_reviews(tmp_path / "labelled.jsonl")
    rows = [{"review": f"a play {n} that I saw", "label": ""} for n in range(30)]
    path = tmp_path / "unlabelled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return labelled, path


def configured(tiny_model: Path, path: Any, tmp_path: Path, **changes: Any) -> Config:
    changes = {"train": {"objective": CONSENSUS}, **changes}
    config = run_config(tiny_model, "rows", tmp_path / "storage", **changes)
    config["task"]["path"] = path
    return load_config(config)


def checked(verb: str, config: Config, **options: Any) -> RunContext:
    with prepare(VERBS[verb], config, Options(**options)) as work:
        return work.context


def test_objectives_learn_from_the_rows_that_they_can(tiny_model, files, tmp_path) -> None:
    both = [str(path) for path in files]
    variants = [
        {"type": "paft", "name": "supervised", "train": {"objective": {"type": "cross_entropy"}}},
        {"type": "paft"},
    ]
    config = configured(
        tiny_model, both, tmp_path, variants=variants,
        train={"objective": CONSENSUS, "steps": None, "epochs": 1},
    )  # fmt: skip
    context = checked("run", config)
    labelled = len(context.task.train)
    assert len(context.task.unlabelled) == 30
    plan = describe_plan(context)
    assert plan["rows"] == {"unlabelled": 30}
    assert plan["training"]["supervised"].startswith(f"{-(-labelled // 4)} steps")
    assert plan["training"]["paft"].startswith(f"{-(-(labelled + 30) // 4)} steps")
    assert any("30 examples have no answer" in warning for warning in context.warnings)


def test_objectives_that_need_answers_refuse_rows_without(tiny_model, files, tmp_path) -> None:
    config = configured(tiny_model, [str(path) for path in files], tmp_path, train={})
    with pytest.raises(DataError, match=r"line 1: the answer \(column 'label'\) is ''.*consensus"):
        checked("run", config)


def test_without_any_answer_a_model_is_trained_and_not_measured(
    tiny_model, files, tmp_path
) -> None:
    config = configured(tiny_model, str(files[1]), tmp_path, task={"answer": None})
    context = checked("train", config)
    assert len(context.task.learned_by(config.train.objective)) == 30
    assert describe_plan(checked("plan", config))["evaluation"]["answers"] == 0
    for verb, options in (("run", {}), ("evaluate", {}), ("export", {"lm_eval": True})):
        with pytest.raises(ConfigError, match="30 rows without an answer and no test rows"):
            checked(verb, config, **options)
    searched = configured(
        tiny_model, str(files[1]), tmp_path, task={"answer": None},
        tuning={"space": {"train.learning_rate": {"type": "uniform", "low": 1e-5, "high": 1e-3}}},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no validation rows"):
        checked("tune", searched)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": [{"type": "single_prompt"}]}, "single_prompt is chosen on validation"),
        *(
            ({"evaluation": {"subjects": [{**subject, "of": "base"}]}}, "is chosen on validation")
            for subject in (
                {"type": "best_prompt", "prompts": 4},
                {"type": "optimized_prompt", "budget": 20, "llm": {"type": "fake"}},
            )
        ),
        (
            {"train": {"objective": CONSENSUS, "validation": {"every_steps": 2}}},
            "train.validation scores on",
        ),
        (
            {"prompts": {"generation": {"llms": [{"type": "fake"}]}, "probe": {}}},
            "prompts.probe tries prompts",
        ),
    ],
)
def test_what_needs_graded_rows_besides_refuses(
    tiny_model, files, tmp_path, changes, message
) -> None:
    config = configured(
        tiny_model, str(files[1]), tmp_path, task={"test_path": str(files[0])}, **changes
    )
    with pytest.raises(ConfigError, match=message):
        checked("run", config)


def test_file_without_answers_is_trained_on_and_a_labelled_one_measured(
    tiny_model, files, tmp_path
) -> None:
    config = configured(tiny_model, str(files[1]), tmp_path, task={"test_path": str(files[0])})
    task = checked("run", config).task
    assert (len(task.train), len(task.unlabelled), len(task.test)) == (0, 30, 120)


def test_fingerprint_of_a_training_moves_with_the_rows_without_answers(
    tiny_model, files, tmp_path
) -> None:
    found = set()
    for paths in ([str(files[0])], [str(path) for path in files]):
        context = checked("run", configured(tiny_model, paths, tmp_path))
        own = context.config.of_training(context.config.trainings[0])
        found.add(training_fingerprint(context, own, []))
    assert len(found) == 2
