"""Ways to put a question: what each axis changes, and what it leaves alone."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config.variation import (
    ChoicesVariation,
    DemonstrationsVariation,
    NoiseVariation,
    VariationConfig,
)
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import Question, TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import (
    PLAIN,
    Condition,
    Varying,
    conditions,
    draw_demonstrations,
    noisy,
    put,
)
from paft_ray.tasks.example import Example, Task, lettered, letters

OPTIONS = ("red", "green", "blue")


def example(number: int, right: int = 1) -> Example:
    fields = {"question": f"question {number}", "choices": lettered(OPTIONS)}
    return Example(f"{number:016x}", fields, letters(3)[right], options=OPTIONS)


def task(**changes) -> Task:
    known = {
        "name": "own", "description": "Answer.", "slots": ("question", "choices"),
        "option_slots": {}, "choices": letters(3), "choices_as": "letters",
        "train": (), "validation": (), "test": (),
    }  # fmt: skip
    return Task(**{**known, **changes})


ROWS = task()
TEMPLATE = parse("Please choose the best answer.\n{question}\n{choices}\nAnswer:", ROWS.slots)
PAIRS = task(
    slots=("goal", "one", "two"), option_slots={"one": "A", "two": "B"}, choices=("A", "B"),
    choices_as=None,
)  # fmt: skip


def asked(condition: Condition, one: Example, *position: int | str) -> str:
    found = put(ROWS, TEMPLATE, one, condition, *(position or (0,)))
    return found.render(found.example.fields)


def test_plain_condition_changes_nothing():
    one = example(1)
    assert put(ROWS, TEMPLATE, one, PLAIN, 1) == (
        put(ROWS, TEMPLATE, one, PLAIN, 2)
    ) and put(ROWS, TEMPLATE, one, PLAIN, 1).example is one  # fmt: skip
    assert PLAIN.identity == [] and asked(PLAIN, one) == TEMPLATE.render(one.fields)


@given(st.integers(0, 2), st.integers(0, 10**6))
def test_order_moves_choices_and_the_right_answer_with_them(right: int, position: int):
    condition = replace(PLAIN, axis="order", shuffled=True)
    found = put(ROWS, TEMPLATE, example(1, right), condition, position)
    shown = re.findall(r"([A-C])\. (\w+)", found.render(found.example.fields))
    assert sorted(text for _, text in shown) == sorted(OPTIONS)
    assert [text for _, text in shown] != list(OPTIONS)  # a level of an axis is never the given one
    assert dict(shown)[found.example.answer] == OPTIONS[right]
    assert found.choices == letters(3)
    again = put(ROWS, TEMPLATE, example(1, right), condition, position)
    assert again.example == found.example


def test_order_swaps_the_contents_of_option_slots():
    one = Example("1" * 16, {"goal": "g", "one": "x", "two": "y"}, "A")
    template = parse("{goal} A: {one} B: {two}", PAIRS.slots)
    found = put(PAIRS, template, one, replace(PLAIN, axis="order", shuffled=True), 5)
    assert found.render(found.example.fields) == "g A: y B: x" and found.example.answer == "B"


def test_orders_of_a_training_are_all_equally_likely():
    varying = Varying(ROWS, VariationConfig(choices=ChoicesVariation(order="shuffled")), 0)
    seen = Counter()
    for step in range(600):
        seen[varying.put(TEMPLATE, example(1), step, 0).example.options] += 1
    assert len(seen) == 6 and min(seen.values()) > 60


@given(st.integers(0, 10**6), st.integers(0, 7), st.integers(0, 99))
def test_wording_of_a_training_is_a_function_of_position_and_the_ledger_names_it(
    step: int, place: int, seed: int
):
    one, other = example(1), example(2)
    kept = {one.id: {1: {"question": "Other words 1?"}, 3: {"question": "Still others 1?"}}}
    choices = ChoicesVariation(order="shuffled")
    varying = Varying(ROWS, VariationConfig(choices=choices), seed, (), kept)
    found = varying.put(TEMPLATE, one, step, place)
    again = Varying(ROWS, VariationConfig(choices=choices), seed, (), kept)
    assert again.put(TEMPLATE, one, step, place).example == found.example
    wording = json.loads(varying.describe(TEMPLATE, one, step, place)).get("paraphrase", 0)
    own = {0: one.fields, **kept[one.id]}
    assert found.example.fields["question"] == own[wording]["question"]
    plain = replace(varying, paraphrases=None)
    drawn = plain.put(TEMPLATE, one, step, place).example
    assert (found.example.options, found.example.answer) == (drawn.options, drawn.answer)
    assert (
        varying.put(TEMPLATE, other, step, place).example.fields["question"]
        == (other.fields["question"])
    )


def test_wordings_of_a_training_are_all_equally_likely():
    one = example(1)
    kept = {one.id: {1: {"question": "Other words 1?"}, 3: {"question": "Still others 1?"}}}
    varying = Varying(ROWS, VariationConfig(), 0, (), kept)
    seen = Counter(varying.wording(one, step, place) for step in range(300) for place in range(2))
    assert seen.keys() == {0, 1, 3} and min(seen.values()) > 150


@pytest.mark.parametrize(
    ("names", "shown", "answer"),
    [("digits", "1. red\n2. green\n3. blue", "2"), ("lowercase", "a) red\nb) green\nc) blue", "b")],
)
def test_choices_have_other_names(names: str, shown: str, answer: str):
    found = put(ROWS, TEMPLATE, example(1), Condition(names=names), 0)  # pyright: ignore
    assert shown in found.render(found.example.fields)
    assert found.example.answer == answer and answer in (found.choices or ())


@given(st.integers(0, 10**6), st.floats(0.1, 1))
def test_noise_leaves_slots_choices_numbers_and_the_cue_alone(position: int, rate: float):
    condition = Condition(noise_rate=rate, noise_kinds=("typos", "case", "spaces", "punctuation"))
    found = put(ROWS, TEMPLATE, example(7), condition, position)
    text = found.render(found.example.fields)
    assert text.endswith(f"\n{lettered(OPTIONS)}\nAnswer:")
    assert "7" in text and found.example.answer == "B" and found.choices == letters(3)
    assert put(ROWS, TEMPLATE, example(7), condition, position).example == found.example


def test_noise_touches_the_share_of_words_that_is_asked_for():
    words = " ".join(["wording"] * 4000)
    for rate in (0.05, 0.5):
        for kind in ("typos", "case", "spaces", "punctuation"):
            condition = Condition(noise_rate=rate, noise_kinds=(kind,))
            changed = noisy(words, condition, np.random.default_rng(0))
            pieces = changed.split(" ")
            touched = sum(piece not in ("", "wording") for piece in pieces)
            if kind == "spaces":  # two pieces of a word, or a space more
                touched = touched / 2 + pieces.count("")
            assert touched / 4000 == pytest.approx(rate, abs=0.03), kind
    kept = noisy(words, Condition(noise_rate=1, noise_kinds=("case",)), np.random.default_rng(0),
                 frozenset(["wording"]))  # fmt: skip
    assert kept == words


def test_noise_touches_the_instruction_too():
    condition = Condition(noise_rate=1.0, noise_kinds=("case",))
    text = asked(condition, example(1))
    assert not text.startswith("Please choose the best answer.")
    assert text.casefold().startswith("please choose the best answer.")


def test_demonstrations_are_solved_examples_in_front_put_like_the_question():
    shown = (example(2, 0), example(3, 2))
    condition = Condition(names="digits", demonstrations=shown)
    parts = asked(condition, example(1)).split("\n\n")
    assert len(parts) == 3
    assert parts[0].endswith("Answer: 1") and parts[1].endswith("Answer: 3")
    assert "question 2" in parts[0] and "question 3" in parts[1]
    assert parts[2] == asked(Condition(names="digits"), example(1))


def test_demonstrations_stand_in_their_slot_and_the_instruction_is_said_once():
    shown = (example(2, 0), example(3, 2))
    text = "Please choose the best answer.\n\n{demonstrations}\n\n{question}\n{choices}\nAnswer:"
    one = put(ROWS, parse(text, ROWS.slots), example(1), Condition(demonstrations=shown), 0)
    said = one.render(one.example.fields)
    first, *solved, own = said.split("\n\n")
    assert first == "Please choose the best answer." and said.count("Please") == 1
    assert [each.split("\n")[0] for each in (*solved, own)] == [
        "question 2", "question 3", "question 1",
    ]  # fmt: skip
    assert solved[0].endswith("Answer: A") and own.endswith("Answer:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Say it.\n{demonstrations}{question} =", "Say it.\nquestion 2 = C\n\nquestion 1 ="),
        ("Say it:{demonstrations}\n{question} =", "Say it:\n\nquestion 2 = C\nquestion 1 ="),
        ("{demonstrations}<q>{question} =", "<q>question 2 = C\n\n<q>question 1 ="),
        ("{question} = {demonstrations}", "question 1 = question 2 = C"),
        ("{demonstrations} {question} =", "question 2 = C question 1 ="),
    ],
)
def test_demonstrations_are_set_apart_from_what_stands_right_beside_their_slot(
    text: str, said: str
):
    task = replace(ROWS, slots=("question",))
    shown = Condition(demonstrations=(example(2, 2),))
    one = put(task, parse(text, task.slots), example(1), shown, 0)
    assert one.render(one.example.fields) == said
    plain = put(task, parse(text, task.slots), example(1), PLAIN, 0)
    assert "\n\n" not in plain.render(plain.example.fields)


def test_demonstrations_behind_a_field_are_put_through_the_whole_prompt():
    text = "{question}\n{demonstrations}\n{choices}\nAnswer:"
    one = put(ROWS, parse(text, ROWS.slots), example(1), Condition(demonstrations=(example(2),)), 0)
    choices = lettered(OPTIONS)
    assert one.render(one.example.fields) == (
        f"question 1\nquestion 2\n{choices}\nAnswer: B\n{choices}\nAnswer:"
    )


def test_only_the_question_is_cut_and_never_a_demonstration(tiny_model):
    fields = {"question": "the film was good " * 40, "choices": ""}
    long = Example("1" * 16, fields, "A", options=OPTIONS)
    shown = (example(2, 0), example(3, 2))
    template = parse("{question}\n{choices}\nAnswer:", ROWS.slots)
    one = put(ROWS, template, long, Condition(demonstrations=shown), 0)
    encoder = TextEncoder(load_tokenizer(str(tiny_model)), max_length=150, overlong="trim")
    question = Question(one.render, one.example.fields, ["A"])
    [encoded], fields = encoder.encode_all([question])[0], encoder.trimmed_fields(question)
    assert encoded.trimmed and encoded.length <= 150
    text = one.render(fields)
    assert text.startswith(one.render({"question": "", "choices": ""}).removesuffix("\n\nAnswer:"))
    assert text.count("question") == 2 and len(text) < len(one.render(long.fields))


def test_an_example_is_never_its_own_demonstration():
    pool = [example(number) for number in range(6)]
    fields = {**pool[0].fields, "question": " QUESTION  0", "choices": "in another order"}
    twin = replace(pool[0], id="f" * 16, fields=fields)
    shown = DemonstrationsVariation(shots=5)
    for position in range(50):
        drawn = draw_demonstrations([*pool, twin], shown, pool[0], position)
        assert len({one.id for one in drawn}) == 5
        assert not {one.id for one in drawn} & {pool[0].id, twin.id}


def test_crossed_design_draws_a_level_of_every_axis_as_a_function_of_position():
    variation = VariationConfig(
        choices=ChoicesVariation(order="shuffled", names=("letters", "digits")),
        noise=NoiseVariation(rate=0.5),
        demonstrations=DemonstrationsVariation(shots=2, draws=3),
        design="crossed",
    )
    source = [example(number, number % 3) for number in range(10, 40)]
    apart = variation.model_copy(update={"design": "separate"})
    found = conditions(ROWS, variation, 0, source)
    assert found[:-2] == conditions(ROWS, apart, 0, source)
    seen: Counter[tuple[str, ...]] = Counter()
    for number, crossed in product(range(300), found[-2:]):
        one = put(ROWS, TEMPLATE, example(1), crossed, 0, number)
        assert one.example == put(ROWS, TEMPLATE, example(1), crossed, 0, number).example
        drawn = json.loads(one.condition.level)
        assert drawn.pop("crossed") == crossed.level and one.condition.axis == "crossed"
        assert set(drawn) == {"order", "names", "noise", "demonstrations"}
        seen[tuple(drawn.values())] += 1
        text = one.render(one.example.fields)
        assert ("1. " in text.split("\n\n")[-1]) == (drawn["names"] == "digits")
        assert (one.example.options != OPTIONS) == (drawn["order"] == "shuffled")
        assert drawn["demonstrations"] == f"draw {one.condition.draw + 1}"
        shown = found[one.condition.draw].demonstrations
        assert one.condition.demonstrations == shown and len(text.split("\n\n")) == 3
    assert len(seen) == 24 and max(seen.values()) < 60
    assert found[-1].identity != found[-2].identity


def test_conditions_vary_one_axis_at_a_time():
    variation = VariationConfig(
        choices=ChoicesVariation(order="shuffled", names=("letters", "digits")),
        noise=NoiseVariation(rate=0.1),
        demonstrations=DemonstrationsVariation(shots=2, draws=3, examples_per_class=4),
    )
    source = [example(number, number % 3) for number in range(60)]
    found = conditions(ROWS, variation, 0, source)
    assert [(one.axis, one.level) for one in found] == [
        ("", ""), ("", ""), ("", ""), ("order", "shuffled"), ("names", "digits"),
        ("noise", "10% of words"),
    ]  # fmt: skip
    assert [one.draw for one in found[:3]] == [0, 1, 2]
    assert len({str(one.demonstrations) for one in found[:3]}) == 3
    assert all(one.demonstrations == found[0].demonstrations for one in found[3:])
    few = {one.id for one in source[:12]}
    assert all({shown.id for shown in one.demonstrations} <= few for one in found)
    assert conditions(ROWS, VariationConfig(), 0, source) == [PLAIN]
    assert len({str(one.identity) for one in found}) == 6
