"""Rows that are too long are refused with file and line, before Ray where that can be known."""

import json
from pathlib import Path

import pytest

from factories import make_prompt, run_config, write_prompts, write_reviews
from paft_ray.cli import call
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.loading import load_config
from paft_ray.models.load import load_tokenizer
from paft_ray.pipeline import perform
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.training.lengths import check_lengths

pytestmark = pytest.mark.usefixtures("warm_checks")

PROMPTS = [
    f"{'please read and decide how the writer feels ' * n}Classify the review {word}: {{review}} ="
    for n, word in enumerate(["now", "here", "well", "fast", "soon", "again"])
]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts Ray fails at once."""
    monkeypatch.setattr("ray.init", None)


def refused(
    verb: str, folder: Path, model: Path, capfd: pytest.CaptureFixture[str], words: int, **changes
) -> str:
    """What a verb says that is refused for line 7, which is so many words long."""
    reviews = write_reviews(folder / "reviews.jsonl")
    lines = reviews.read_text().splitlines()
    lines[6] = json.dumps({"review": "a good film " * words, "label": "positive"})
    reviews.write_text("\n".join(lines))
    limits = {"row_tokens": 200}
    config = run_config(
        model,
        reviews,
        folder / "storage",
        task={"max_length": 100, "validation_share": 0.1, "test_share": 0.1},
        train={"row_tokens": 200},
        evaluation=limits,
        **{"prompts": {"files": [str(write_prompts(folder / "prompts.jsonl", PROMPTS))],
                       "split": {"validation": 1, "test": 1}}, **changes},
    )  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    assert call([verb, str(path)]) == 2
    assert not (folder / "storage").exists()
    return capfd.readouterr().err


@pytest.mark.parametrize("verb", ["run", "train", "plan"])
def test_row_that_is_too_long_under_a_prompt_of_a_file_is_refused_before_ray(
    verb, tmp_path, tiny_model, capfd
):
    err = refused(verb, tmp_path, tiny_model, capfd, words=25)
    assert "reviews.jsonl, line 7: example" in err
    assert "more than task.max_length (100)" in err
    assert "task.overlong: trim" in err


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_row_that_is_too_long_by_itself_is_refused_before_an_llm_writes(
    verb, tmp_path, tiny_model, capfd
):
    prompts = {"generation": {"llms": [{"type": "fake"}]}}
    err = refused(verb, tmp_path, tiny_model, capfd, words=60, prompts=prompts)
    assert "reviews.jsonl, line 7: example" in err
    assert "under prompt that is as short as can be" in err


def test_prompt_that_an_llm_wrote_with_a_token_unknown_to_the_model_is_refused(
    tmp_path, tiny_model, review_file
):
    context = open_context(load_config(run_config(tiny_model, review_file, tmp_path / "storage")))
    texts = ("Say what {review} is =", "Judge this: {review} =")
    pool = PromptPool(tuple(map(make_prompt, texts)), (), ())
    checks = perform.ModelCheckProcess()
    check_lengths(context, pool, checks)
    checks.unknown_tokens = {load_tokenizer(str(tiny_model)).convert_tokens_to_ids("J"): "J"}
    with pytest.raises(ConfigError, match=r"no row for the token 'J'.*'Judge this"):
        check_lengths(context, pool, checks)


def test_example_that_is_too_long_under_a_validation_prompt_is_refused_where_it_is_scored(
    tmp_path, tiny_model, review_file
):
    limits = {"task": {"max_length": 60}, "prompts": {"files": ["none"]}}
    long = make_prompt(f"{'please read with care ' * 20}{{review}} =", "validation")
    pool = PromptPool((make_prompt("{review} ="),), (long,), ())

    def check(**train) -> None:
        config = run_config(tiny_model, review_file, tmp_path / "storage", train=train, **limits)
        checks = perform.ModelCheckProcess()
        context = RunContext.create(
            load_config(config),
            load_task(load_config(config).task, 0),
            Storage.open(str(tmp_path)),
        )
        check_lengths(context, pool, checks)

    check()
    with pytest.raises(DataError, match=rf"under prompt {long.id}"):
        check(validation={"every_steps": 2, "prompts": 1})
