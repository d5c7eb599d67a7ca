"""Rows that are too long are refused with file and line, before Ray where that can be known."""

import json
import re
from pathlib import Path

import pytest

from factories import make_prompt, run_config, write_prompts, write_reviews
from paft_ray.cli import call
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.loading import load_config
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import TextEncoder
from paft_ray.pipeline import perform
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.pool import PromptPool
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import Varying
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.training.lengths import check_evaluated_lengths, check_lengths
from paft_ray.training.sampler import example_index

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
        task={"max_length": 100, "validation_share": 0.1, "test_share": 0.1,
              **changes.pop("task", {})},
        train={**limits, **changes.pop("train", {})},
        evaluation={**limits, **changes.pop("evaluation", {})},
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


SHOWN = {"variation": {"demonstrations": {"shots": 4}}}


@pytest.mark.parametrize(
    ("verb", "changes"),
    [
        ("run", {"evaluation": SHOWN}),
        ("plan", {"evaluation": SHOWN}),
        ("evaluate", {"evaluation": SHOWN, "variants": []}),
        ("train", {"train": {"variation": {"demonstrations": {"shots": 8}}}}),
    ],
)
def test_demonstrations_that_make_a_question_too_long_are_refused_before_ray(
    verb, changes, tmp_path, tiny_model, capfd
):
    err = refused(verb, tmp_path, tiny_model, capfd, words=2, **changes)
    assert re.search(r" under prompt .+ after [48] demonstrations has \d+", err), err
    assert "more than task.max_length (100)" in err


def test_demonstrations_are_not_cut_for_want_of_room(tmp_path, tiny_model, capfd):
    changes = {"task": {"overlong": "trim", "max_length": 60}, "evaluation": SHOWN}
    err = refused("run", tmp_path, tiny_model, capfd, words=2, **changes)
    assert "after 4 demonstrations does not fit task.max_length (60)" in err
    assert "which are never cut" in err


def checked(model: Path, reviews: Path, folder: Path, pool: PromptPool, **changes) -> RunContext:
    """Check lengths as a run does, once its pool is known."""
    config = load_config(run_config(model, reviews, folder / "storage", **changes))
    storage = Storage.open(str(folder))
    context = RunContext.create(config, load_task(config.task, config.seed), storage)
    check_lengths(context, pool, perform.ModelCheckProcess())
    return context


def test_training_is_refused_for_what_it_draws_and_for_nothing_else(
    tmp_path, tiny_model, review_file
):
    pool = PromptPool((make_prompt("Decide: {review} ="),), (), ())
    train = {"variation": {"demonstrations": {"shots": 3}}, "steps": 50, "batch_size": 4}

    def check(longest: int) -> RunContext:
        task = {"max_length": longest}
        return checked(tiny_model, review_file, tmp_path, pool, task=task, train=train)

    context = check(512)
    config, examples = context.config, context.task.train
    shown = config.train.variation.demonstrations
    assert shown is not None
    varying = Varying(context.task, config.train.variation, 0, examples)
    encoder = TextEncoder.from_config(load_tokenizer(str(tiny_model)), config)
    lengths = []
    for position in range(200):
        example = examples[example_index(0, position, len(examples))]
        one = varying.put(parse(pool.train[0].text, ("review",)), example, *divmod(position, 4))
        lengths += [e.length for e in encoder.encode(one.render, one.example.fields, one.choices)]
    check(max(lengths))
    with pytest.raises(DataError, match=rf"after 3 demonstrations has {max(lengths)} tokens"):
        check(max(lengths) - 1)


def test_prompt_by_a_person_is_checked_as_a_training_prompt_is(tmp_path, tiny_model, review_file):
    pool = PromptPool((make_prompt("{review} ="),), (), ())
    by_a_person = {"variants": [{"type": "human_prompt"}]}
    by_a_person["task"] = {"max_length": 60, "instructions": ["Read with care and " * 20 + "say."]}
    checked(tiny_model, review_file, tmp_path, pool, task=by_a_person["task"])
    with pytest.raises(DataError, match="under prompt human_prompt has"):
        checked(tiny_model, review_file, tmp_path, pool, **by_a_person)


def test_test_examples_are_checked_under_the_training_prompts_of_an_ensemble(
    tmp_path, tiny_model, review_file
):
    long = make_prompt(f"{'please read with care ' * 20}{{review}} =")
    pool = PromptPool((make_prompt("{review} ="), long), (), (make_prompt("{review} :", "test"),))
    several = {"subjects": [{"type": "ensemble", "of": "base", "prompts": 2}]}

    def check(**evaluation) -> None:
        config = run_config(
            tiny_model, review_file, tmp_path / "storage", evaluation=evaluation, variants=[],
            task={"max_length": 60},
        )  # fmt: skip
        context = RunContext.create(
            load_config(config),
            load_task(load_config(config).task, 0),
            Storage.open(str(tmp_path)),
        )
        check_evaluated_lengths(context, pool, perform.ModelCheckProcess())

    check()
    with pytest.raises(DataError, match=rf"under prompt {long.id}"):
        check(**several)


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
