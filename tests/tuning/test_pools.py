"""What is held out of all pools of a search is trained on in none, nor is anything like it."""

import random
from dataclasses import replace

import pytest

from paft_ray.config import TuningConfig
from paft_ray.config.errors import PoolError
from paft_ray.prompts.dedup.similarity import similarity
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import Origin, Prompt, PromptPool
from paft_ray.tuning.pools import generation_samples, hold_out

WORDS = [
    "judge", "tell", "mood", "film", "review", "decide", "opinion", "sentence", "classify",
    "writer", "praise", "blame", "tone", "rate", "verdict", "critic",
]  # fmt: skip


def make_pool(seed: int, train: int = 30, held_out: int = 5) -> PromptPool:
    rng = random.Random(seed)

    def prompts(split, count: int) -> tuple[Prompt, ...]:
        found = []
        for number in range(count):
            instruction = " ".join(rng.sample(WORDS, 4))
            layout = f"layout {rng.randrange(90)}"
            name = f"{seed}-{split}-{number}"
            cluster = f"{split} {number // 2}"
            found.append(Prompt(name, name, instruction, layout, split, cluster, Origin()))
        return tuple(found)

    return PromptPool(
        prompts("train", train), prompts("validation", held_out), prompts("test", held_out)
    )


@pytest.mark.parametrize("seed", range(8))
def test_held_out_prompts_are_the_same_and_like_nothing_that_is_trained_on(seed: int) -> None:
    limit = 0.5
    pools = {str(number): make_pool(10 * seed + number) for number in range(3)}
    found = hold_out(pools, limit, seed)
    first = found["0"]
    assert 0 < len(first.test) <= 5 and 0 < len(first.validation) <= 5
    for key, pool in found.items():
        assert (pool.test, pool.validation) == (first.test, first.validation)
        held_out = [*pool.test, *pool.validation]
        for prompt in pool.train:
            assert all(prompt.layout != other.layout for other in held_out)
            assert all(similarity(prompt.instruction, o.instruction) < limit for o in held_out)
        lost = {p.cluster for p in pools[key].train if first_like(p, held_out, limit)}
        kept = [p for p in pools[key].train if p.cluster not in lost]
        assert list(pool.train) == kept  # in their order, and none more than need be is lost
    assert not any(first_like(prompt, first.test, limit) for prompt in first.validation)
    assert {p.id[:2] for p in first.test} != {"0-"}  # from all pools together


def test_held_out_prompts_depend_on_no_order() -> None:
    pools = {str(number): make_pool(number) for number in range(3)}
    backwards = dict(reversed(pools.items()))
    assert hold_out(pools, 0.5, 0)["1"] == hold_out(backwards, 0.5, 0)["1"]


def test_pool_of_which_nothing_is_left_is_refused() -> None:
    pool = make_pool(0)
    same_layout = PromptPool(
        tuple(replace(prompt, layout="one") for prompt in pool.train),
        pool.validation,
        tuple(replace(prompt, layout="one") for prompt in pool.test),
    )
    with pytest.raises(PoolError, match=r"all 30 training prompts"):
        hold_out({"a": same_layout, "b": make_pool(1)}, 0.5, 0)


def test_a_pool_is_built_for_every_way_to_generate_and_none_for_sizes() -> None:
    tuning = TuningConfig.model_validate(
        {
            "space": {
                "prompts.pool_size": {"type": "lograndint", "low": 1, "high": 9},
                "prompts.generation.temperature": {"type": "choice", "values": [0.3, 1.0]},
                "prompts.generation.per_llm": {"type": "randint", "low": 4, "high": 5},
                "train.learning_rate": {"type": "uniform", "low": 0.1, "high": 1},
            }
        }
    )
    found = generation_samples(tuning)
    assert [tuple(sample.values()) for sample in found] == [(0.3, 4), (0.3, 5), (1.0, 4), (1.0, 5)]
