"""The plan of a step: the same for every rank, whole, and predicting the answers and no more."""

import json
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from plans import plans_of_all
from transformers import PreTrainedTokenizerBase

from paft_ray.config import SamplingConfig
from paft_ray.config.errors import DataError
from paft_ray.config.variation import (
    ChoicesVariation,
    DemonstrationsVariation,
    NoiseVariation,
    VariationConfig,
)
from paft_ray.models.load import load_tokenizer
from paft_ray.models.packing import Row
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import Varying
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.tasks.example import lettered, letters
from paft_ray.training.batch_plan import Planner, Ranks, StepPlan, plans
from paft_ray.training.ledger import Ledger
from paft_ray.training.prompt_weights import BlockWeights
from paft_ray.training.sampler import PromptSampler

WORDS = ["good", "bad", "the", "film", "movie", "was", "is", "and", "very", "not", "story"]
ANSWERS = ["good", "very bad", "the film was fine", "not"]
TEXTS = ["Tell how it feels: {text}\nAnswer:", "{text}\n\nlabel:\n", "Read {text} -> "]
PROMPTS = tuple((f"prompt-{index}", parse(text, ("text",))) for index, text in enumerate(TEXTS))


def make_examples(count: int = 30) -> list[Example]:
    rng = random.Random(1)
    return [
        Example(
            id=f"{number:016x}",
            fields={"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 25)))},
            answer=rng.choice(ANSWERS),
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def make_planner(tokenizer: PreTrainedTokenizerBase) -> Callable[..., Planner]:
    def make(
        max_length: int = 90, overlong: str = "refuse", end: bool = True, **changes
    ) -> Planner:
        settings = {
            "examples": make_examples(),
            "prompts": PROMPTS,
            "encoder": TextEncoder(
                tokenizer,
                "none",
                max_length,
                overlong,
                end_id=tokenizer.eos_token_id if end else None,
            ),
            "sampler": PromptSampler(seed=3, prompts=len(PROMPTS)),
            "seed": 3,
            "batch_size": 6,
            "row_tokens": 96,
            "packing": True,
        }
        return Planner(**{**settings, **changes})

    return make


def test_plan_with_bound_prompts_shows_an_example_the_same_prompt_in_every_epoch(make_planner):
    planner = make_planner(sampler=PromptSampler(3, len(PROMPTS), SamplingConfig(unit="bound")))
    shown: dict[str, set[str]] = {}
    for step in range(15):  # three passes over 30 examples, in batches of 6
        for draw in planner.plan(step).draws:
            shown.setdefault(draw.example_id, set()).add(draw.prompt_id)
    assert len(shown) == 30
    assert all(len(prompts) == 1 for prompts in shown.values())
    assert len(set.union(*shown.values())) == len(PROMPTS)


def sequences(row: Row) -> list[tuple[int, list[int], list[int]]]:
    """A row taken apart by positions that restart: slot, tokens read, tokens asked for."""
    starts = np.flatnonzero(row.position_ids_T == 0)
    parts = np.split(row.input_ids_T, starts[1:])
    return [
        (slot, parts[index].tolist(), row.targets_A[row.members_A == index].tolist())
        for index, slot in enumerate(row.members)
    ]


def contents(*plans: StepPlan) -> list[tuple[int, list[int], list[int]]]:
    """What all ranks read and predict, by slot."""
    return sorted(s for plan in plans for row in plan.rows for s in sequences(row) if row.members)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_plan_on_any_number_of_ranks_is_the_same_work(make_planner, ranks, packing):
    planner = make_planner(packing=packing)
    for step in range(8):
        alone, shared = planner.plan(step), plans_of_all(planner, step, ranks)
        for plan in shared:
            assert list(alone.draws) == list(plan.draws)
            assert (alone.answer_tokens, alone.tokens) == (plan.answer_tokens, plan.tokens)
        assert contents(alone) == contents(*shared)
        members = [slot for plan in shared for row in plan.rows for slot in row.members]
        assert sorted(members) == list(range(planner.batch_size))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("batch_size", "ranks"), [(6, 2), (7, 3), (2, 5), (1, 4)])
def test_plan_gives_every_rank_as_many_rows_topped_up_with_inert_ones(
    make_planner, batch_size, ranks, packing
):
    planner = make_planner(batch_size=batch_size, packing=packing)
    for step in range(8):
        found = plans_of_all(planner, step, ranks)
        assert len({len(plan.rows) for plan in found}) == 1
        rows = [row for plan in found for row in plan.rows]
        assert all(rows)
        assert sum(bool(row.members) for row in rows) <= batch_size
        for row in rows:
            assert row.tokens >= 1
            assert len(row.keep_U) >= 1  # an inert row too has a real forward pass
        counted = sum(row.tokens for row in rows if row.members)
        assert {plan.tokens for plan in found} == {counted}
        if ranks > batch_size:
            assert sum(not row.members for row in rows) >= ranks - batch_size


def test_plan_packs_rows_up_to_row_tokens_and_never_over(make_planner):
    planner = make_planner(row_tokens=96, batch_size=12)
    packed = 0
    for step in range(10):
        for ranks in (1, 2, 3):
            for row in (r for plan in plans_of_all(planner, step, ranks) for r in plan.rows):
                assert row.tokens <= 96
                packed += len(row.members) > 1
    assert packed > 0
    unpacked = make_planner(row_tokens=96, batch_size=12, packing=False)
    rows = [row for plan in plans_of_all(unpacked, 0, 2) for row in plan.rows]
    assert all(len(row.members) == 1 for row in rows)


@pytest.mark.parametrize("end", [True, False])
def test_plan_predicts_exactly_the_answer_after_the_rendered_prompt(make_planner, tokenizer, end):
    planner = make_planner(end=end)
    examples = {example.id: example for example in planner.examples}
    templates = dict(PROMPTS)
    for step in range(6):
        plan, other = plans_of_all(planner, step, 2)
        for slot, read, asked in contents(plan, other):
            draw = plan.draws[slot]
            example = examples[draw.example_id]
            context = templates[draw.prompt_id].render(example.fields).rstrip(" ")
            delimiter = "" if context.endswith("\n") else " "
            tail = "<end>" if end else ""
            assert tokenizer.decode(asked) == delimiter + example.answer + tail
            assert tokenizer.decode([*read, asked[-1]]) == context + tokenizer.decode(asked)
            assert draw.answer_tokens == len(asked)


def test_plan_asks_for_each_token_at_the_position_before_it(make_planner):
    plan = make_planner(batch_size=12).plan(0)
    checked = 0
    for row in plan.rows:
        at_A = row.keep_U[row.gather_A]
        for member in range(len(row.members)):
            at = at_A[row.members_A == member]
            targets = row.targets_A[row.members_A == member]
            assert at.tolist() == list(range(at[0], at[0] + len(at)))
            # a sequence ends where its last token is asked for
            last = len(row.input_ids_T) - 1
            assert at[-1] == last or row.position_ids_T[at[-1] + 1] == 0
            assert row.input_ids_T[at[1:]].tolist() == targets[:-1].tolist()
            checked += 1
    assert checked == 12


def test_plan_draws_what_sampler_and_order_of_examples_say(make_planner):
    planner = make_planner()
    prompt_of = {id: index for index, (id, _) in enumerate(PROMPTS)}
    seen = []
    for step in range(5):  # 5 steps of 6 examples are one epoch of 30
        draws = planner.plan(step).draws
        for slot, draw in enumerate(draws):
            assert prompt_of[draw.prompt_id] == planner.sampler.index(step, slot)
        seen += [draw.example_id for draw in draws]
    assert sorted(seen) == [example.id for example in planner.examples]
    assert seen != sorted(seen)


def test_plans_made_ahead_come_in_order_and_equal_the_planner(make_planner):
    planner = make_planner()
    ahead = list(plans(planner, 3, 9))
    assert [plan.step for plan in ahead] == [3, 4, 5, 6, 7, 8]
    for plan in ahead:
        expected = planner.plan(plan.step)
        assert list(plan.draws) == list(expected.draws)
        assert contents(plan) == contents(expected)
    assert list(plans(planner, 9, 9)) == []


def test_plans_with_an_overlong_example_raise_when_its_step_is_reached(make_planner):
    examples = make_examples(12)
    planner = make_planner(examples=examples, batch_size=2)
    bad = planner.plan(2).draws[0].example_id
    index = next(i for i, example in enumerate(examples) if example.id == bad)
    examples[index] = Example(bad, {"text": "film " * 200}, "good")
    iterator = plans(planner, 0, 6)
    assert [next(iterator).step, next(iterator).step] == [0, 1]
    with pytest.raises(DataError, match=rf"example {bad} under prompt prompt-\d has \d+ tokens"):
        next(iterator)


def test_plan_with_overlong_trim_cuts_and_counts_only_the_long_example(make_planner, tokenizer):
    examples = [*make_examples(5), Example("f" * 16, {"text": "film " * 200}, "very bad")]
    refusing = make_planner(examples=examples)
    with pytest.raises(DataError, match=r"task.max_length \(90\)"):
        refusing.plan(0)
    plan = make_planner(examples=examples, overlong="trim").plan(0)
    assert [d.trimmed for d in plan.draws] == [d.example_id == "f" * 16 for d in plan.draws]
    slot = next(slot for slot, draw in enumerate(plan.draws) if draw.trimmed)
    _, read, asked = contents(plan)[slot]
    assert 80 < len(read) + 1 <= 90
    assert tokenizer.decode(asked) in (" very bad<end>", "very bad<end>")


@pytest.mark.parametrize("ranks", [1, 3])
def test_views_of_an_example_share_a_row_and_have_draws_of_their_own(
    make_planner: Callable[..., Planner], ranks: int
):
    planner = make_planner(views=2, row_tokens=192)
    plan, *others = plans_of_all(planner, 4, ranks)
    rows = [row for each in (plan, *others) for row in each.rows]
    assert len(plan.draws) == 12
    assert sorted(i for row in rows for i in row.members) == list(range(12))
    for slot, draw in enumerate(plan.draws):
        assert draw.example_id == plan.draws[slot % 6].example_id
    assert any(plan.draws[s].prompt_id != plan.draws[s + 6].prompt_id for s in range(6))
    for row in rows:
        places = [plan.slot_of[i] % 6 for i in row.members]
        assert all(places.count(place) == 2 for place in places)


@pytest.mark.parametrize("end", [True, False])
def test_choices_are_all_read_and_the_right_one_is_named(
    make_planner: Callable[..., Planner], end: bool
):
    planner = make_planner(choices_of=lambda example: tuple(ANSWERS), end=end, row_tokens=400)
    plan = planner.plan(0)
    assert plan.slot_of.tolist() == [slot for slot in range(6) for _ in ANSWERS]
    for slot, draw in enumerate(plan.draws):
        example = next(e for e in planner.examples if e.id == draw.example_id)
        assert ANSWERS[draw.owner] == example.answer
        alone = make_planner(end=end).draw(0, [slot])[0][1]
        assert draw.answer_tokens == alone.answer_tokens


def test_answer_prefix_cuts_targets_and_what_follows_them(make_planner: Callable[..., Planner]):
    whole, cut = make_planner(), make_planner(answer_prefix=2)
    for slot in range(6):
        [([long], _)], [([short], draw)] = whole.draw(3, [slot]), cut.draw(3, [slot])
        assert short.targets == long.targets[:2]
        assert draw.answer_tokens == len(short.targets) <= 2
        assert short.input_ids == long.input_ids[: len(short.input_ids)]
        assert len(short.input_ids) == short.positions[-1] + 1


def test_weights_of_a_step_decide_its_draws_and_are_asked_for_in_order(
    make_planner: Callable[..., Planner],
):
    asked = []

    def weigh(step: int) -> BlockWeights:
        asked.append(step)
        return BlockWeights(step, np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.5, 1.0]))

    iterator = plans(make_planner(), 2, 6, weigh=weigh)
    first = next(iterator)
    assert asked == [2, 3]  # one step ahead, and no more
    assert {draw.prompt_id for draw in first.draws} == {"prompt-1"}
    assert {draw.weight for draw in first.draws} == {0.5}
    assert [plan.step for plan in iterator] == [3, 4, 5]
    assert asked == [2, 3, 4, 5]


def test_every_rank_raises_what_one_finds_too_long(make_planner: Callable[..., Planner]):
    examples = [*make_examples(5), Example("f" * 16, {"text": "film " * 200}, "good")]
    planner = make_planner(examples=examples)
    shares = [planner.share(0, rank, 3) for rank in range(3)]
    assert sum(not share.sequences for share in shares) == 1  # only one tokenised it
    for rank, share in enumerate(shares):
        with pytest.raises(DataError, match=f"example {'f' * 16} under prompt"):
            planner.deal(0, share, [each.table for each in shares], rank)


def test_rank_tokenises_its_share_and_what_it_reads_and_no_more(
    make_planner: Callable[..., Planner], monkeypatch: pytest.MonkeyPatch
):
    planner, asked = make_planner(batch_size=24), []
    draw = Planner.draw

    def counted(self: Planner, step: int, slots: Sequence[int], *rest: BlockWeights):
        asked.append(len(slots))
        return draw(self, step, slots, *rest)

    monkeypatch.setattr(Planner, "draw", counted)
    found = plans_of_all(planner, 0, 8)
    assert asked[:8] == [3] * 8
    assert sum(asked[8:]) <= sum(len(row.members) for plan in found for row in plan.rows) == 24


def test_plans_of_ranks_that_exchange_in_threads_are_those_of_all(
    make_planner: Callable[..., Planner],
):
    planner, barrier, tables = make_planner(), threading.Barrier(2), {}

    def exchange_of(rank: int):
        def exchange(mine: np.ndarray) -> list[np.ndarray]:
            tables[rank] = mine
            barrier.wait()
            found = [tables[0], tables[1]]
            barrier.wait()
            return found

        return exchange

    iterators = [plans(planner, 0, 4, Ranks(rank, 2, exchange_of(rank))) for rank in range(2)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(list, iterators))
    for step in range(4):
        expected = plans_of_all(planner, step, 2)
        assert [contents(plans[step]) for plans in found] == [contents(plan) for plan in expected]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_padded_plans_hold_the_same_sequences_in_as_many_batches_for_every_rank(
    make_planner, ranks
):
    planner = make_planner(packing=False)
    alone = plans_of_all(planner, 1, ranks)
    padded = plans_of_all(replace(planner, padded=True), 1, ranks)

    def read(plans: list[StepPlan]) -> list[tuple[int, ...]]:
        rows = [row for plan in plans for row in plan.rows if row.members]
        tokens = [
            np.split(row.input_ids_T, np.flatnonzero(row.position_ids_T == 0)) for row in rows
        ]
        return sorted(tuple(own.tolist()) for row in tokens for own in row if len(own))

    assert read(padded) == read(alone)
    assert len({len(plan.rows) for plan in padded}) == 1
    assert len(padded[0].rows) < len(alone[0].rows)
    assert all(row.padded for plan in padded for row in plan.rows if row.members)
    assert padded[0].tokens == alone[0].tokens


def test_plan_that_varies_is_a_function_of_position_and_the_ledger_says_how(make_planner, tmp_path):
    task = Task("texts", "Say.", ("text",), {}, tuple(ANSWERS), (), (), ())
    variation = VariationConfig(
        noise=NoiseVariation(rate=0.3), demonstrations=DemonstrationsVariation(shots=1)
    )
    examples = make_examples()
    plain = make_planner(max_length=400, row_tokens=800)
    varied = make_planner(
        max_length=400, row_tokens=800, varying=Varying(task, variation, 3, examples)
    )
    first, again = varied.plan(2), varied.plan(2)
    assert all(
        (a.input_ids_T == b.input_ids_T).all() for a, b in zip(first.rows, again.rows, strict=True)
    )
    assert first.tokens > 1.5 * plain.plan(2).tokens
    drawn = [(draw.example_id, draw.prompt_id) for draw in plain.plan(2).draws]
    assert [(draw.example_id, draw.prompt_id) for draw in first.draws] == drawn
    ledger = Ledger(Storage.open(str(tmp_path)), 2, (), varied.describe)
    ledger.add(first, [0.0] * 6)
    ledger.take(3)()
    [file] = (tmp_path / "ledger").iterdir()
    for row in pq.read_table(file).to_pylist():
        told = json.loads(row["variation"])
        assert told["noise"] == 0.3 and told["answer"] in ANSWERS
        [shown] = told["demonstrations"]
        assert shown != row["example_id"] and shown in {example.id for example in examples}
    assert plain.describe(2, 0, first.draws[0]) is None


def test_views_of_an_example_have_their_choices_in_the_same_order(make_planner):
    options = ("red one", "green one", "blue one")
    fields = {"text": "which", "choices": lettered(options)}
    examples = [Example(f"{n:016x}", fields, "B", options=options) for n in range(6)]
    task = Task("t", "Say.", ("text", "choices"), {}, letters(3), (), (), (), choices_as="letters")
    prompts = tuple(
        (str(n), parse(text, task.slots))
        for n, text in enumerate(["{text}\n{choices}\nAnswer:", "Say: {text}\n{choices} ->"])
    )
    variation = VariationConfig(choices=ChoicesVariation(order="shuffled"))
    planner = make_planner(
        max_length=400, row_tokens=1600, examples=examples, prompts=prompts, views=2,
        sampler=PromptSampler(3, 2), choices_of=task.choices_of,
        varying=Varying(task, variation, 3),
    )  # fmt: skip
    owners = set()
    for step in range(8):
        draws = planner.plan(step).draws
        pairs = [(draws[place], draws[place + 6]) for place in range(6)]
        assert all(one.owner == other.owner for one, other in pairs)
        told = [planner.describe(step, slot, draws[slot]) for slot in range(12)]
        assert told[:6] == told[6:]
        owners |= {one.owner for one, _ in pairs}
    assert owners == {0, 1, 2}
