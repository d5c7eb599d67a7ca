"""The prompts that each variant trains on, and that none of them is like a held-out one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from factories import make_prompt, run_config
from paft_ray.config.errors import ConfigError, PoolError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.pipeline.variants import prompts_by_variant
from paft_ray.prompts.given import human_prompt, user_prompt
from paft_ray.prompts.layouts import compose, enumerate_layouts
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext

INSTRUCTIONS = ("Say what the reviewer felt about it.", "Decide if this film was liked at all.")


@pytest.fixture
def make_session(tmp_path: Path, tiny_model: Path, review_file: Path) -> Callable[..., RunContext]:
    def make(*variants: dict, instructions: tuple[str, ...] = INSTRUCTIONS) -> RunContext:
        templates = tmp_path / "prompts.txt"
        templates.write_text("Judge this review: {review} Answer:\n" * 2, encoding="utf-8")
        config = run_config(
            tiny_model,
            review_file,
            tmp_path / "storage",
            task={"instructions": list(instructions)},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            train={"steps": 1, "batch_size": 2},
            variants=list(variants),
            tracking={"type": "none"},
        )
        return open_context(load_config(config))

    return make


def make_pool(*held_out: str) -> PromptPool:
    train = tuple(
        make_prompt(f"Number {i} asks you to weigh each word of it.\n{{review}}\n=> {i}")
        for i in range(20)
    )
    return PromptPool(train, (), tuple(make_prompt(text, "test") for text in held_out))


def test_each_variant_gets_the_prompts_that_its_name_promises(make_session):
    context = make_session(
        {"type": "paft"},
        {"type": "paft", "name": "paft_of_3", "pool_size": 3},
        {"type": "bound_prompts", "prompts": 5},
        {"type": "human_prompt"},
        {"type": "single_prompt", "prompt": "My own wording of the matter: {review} =>"},
    )
    pool = make_pool("Entirely other words, please: <r>{review}</r> Verdict:")
    prompts = prompts_by_variant(context, pool)
    assert prompts["paft"] == pool.train
    assert prompts["paft_of_3"] == pool.take(3).train
    assert prompts["bound_prompts"] == pool.take(5).train
    [own] = prompts["single_prompt"]
    assert own.text == "My own wording of the matter: {review} =>"
    [human] = prompts["human_prompt"]
    assert human.instruction == INSTRUCTIONS[0]


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"type": "paft", "pool_size": 21}, r"pool_size of paft \(21\) is more than the 20"),
        ({"type": "bound_prompts", "prompts": 30}, r"prompts of bound_prompts \(30\) is more"),
    ],
)
def test_more_prompts_than_the_pool_has_are_refused_by_their_field(make_session, variant, said):
    pool = make_pool("Entirely other words, please: <r>{review}</r> Verdict:")
    with pytest.raises(PoolError, match=said):
        prompts_by_variant(make_session(variant), pool)


def test_human_prompt_passes_over_what_is_held_out(make_session):
    context = make_session({"type": "human_prompt"})
    layouts = enumerate_layouts(context.task)
    first = compose(INSTRUCTIONS[0], layouts[0])
    assert human_prompt(context, make_pool("Other words: <r>{review}</r> Verdict:")).text == first
    layout_taken = make_pool(compose("Something else is asked of you here.", layouts[0]))
    assert human_prompt(context, layout_taken).layout == layouts[1].key
    wording_taken = make_pool(compose(INSTRUCTIONS[0], layouts[-1]))
    assert human_prompt(context, wording_taken).instruction == INSTRUCTIONS[1]


def test_human_prompt_without_one_that_is_not_held_out_is_refused(make_session):
    context = make_session({"type": "human_prompt"})
    held_out = (compose(text, enumerate_layouts(context.task)[-1]) for text in INSTRUCTIONS)
    with pytest.raises(PoolError, match="unlike all held-out prompts"):
        human_prompt(context, make_pool(*held_out))


def test_human_prompt_of_a_task_without_instructions_is_refused_before_the_start(make_session):
    with pytest.raises(ConfigError, match=r"variants\.0: human_prompt .* reviews has none"):
        make_session({"type": "human_prompt"}, instructions=())


def test_prompt_of_the_configuration_like_a_held_out_one_is_refused(make_session):
    context = make_session({"type": "paft"})
    pool = make_pool("Entirely other words, please: <r>{review}</r> Verdict:")
    with pytest.raises(PoolError, match="wording of held-out prompt"):
        user_prompt("Entirely other words, please:\n{review}", context, pool)
