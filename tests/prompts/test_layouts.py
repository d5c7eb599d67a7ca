"""Layouts: the grammar is large and well formed, and a layout is read off any template."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.config import LintConfig
from paft_ray.prompts.layouts import (
    INSTRUCTION,
    compose,
    enumerate_layouts,
    instruction_of,
    layout_of,
)
from paft_ray.prompts.lint import lint
from paft_ray.tasks.example import Task


def make_task(slots, options=None, choices=None):
    return Task("demo", "Say it.", slots, options or {}, choices, (), (), ())


REVIEW = make_task(("sentence",), choices=("negative", "positive"))
PIQA = make_task(("goal", "sol1", "sol2"), {"sol1": "A", "sol2": "B"}, ("A", "B"))
LETTERS = {letter: letter for letter in "ABCD"}
RACE = make_task(("article", "question", *LETTERS), LETTERS, tuple(LETTERS))
BOOLQ = make_task(("passage", "question"), choices=("yes", "no"))
MATHS = make_task(("question",))
TASKS = {"review": REVIEW, "piqa": PIQA, "race": RACE, "boolq": BOOLQ, "maths": MATHS}
LAYOUTS = {name: enumerate_layouts(task) for name, task in TASKS.items()}

each_task = pytest.mark.parametrize("name", TASKS)


@each_task
def test_grammar_has_hundreds_of_layouts_all_different(name):
    layouts = LAYOUTS[name]
    assert len(layouts) >= 300
    for attribute in ("id", "skeleton", "key"):
        assert len({getattr(layout, attribute) for layout in layouts}) == len(layouts)


def test_grammar_depends_on_slots_options_and_choices_alone():
    other = replace(PIQA, name="other", description="Else.", relevance_words=("x",))
    assert enumerate_layouts(other) == LAYOUTS["piqa"]
    assert enumerate_layouts(replace(PIQA, slots=("aim", "sol1", "sol2"))) != LAYOUTS["piqa"]


@each_task
def test_skeleton_holds_instruction_and_every_slot_once_and_ends_with_a_cue(name):
    braces = [INSTRUCTION, *("{" + slot + "}" for slot in TASKS[name].slots)]
    for layout in LAYOUTS[name]:
        assert sorted(re.findall(r"\{.*?\}", layout.skeleton)) == sorted(braces)
        assert layout.skeleton == layout.skeleton.rstrip()
        assert not layout.skeleton.endswith("}")


@each_task
def test_grammar_varies_order_separators_names_and_cues(name):
    task, keys = TASKS[name], [layout.key for layout in LAYOUTS[name]]
    first = "{" + task.slots[0] + "}"
    assert {key.index(INSTRUCTION) < key.index(first) for key in keys} == {True, False}
    for mark in ("\n\n", " | ", "\n###\n", f'"{first}"', f": {first}", f">{first}<", "**"):
        assert any(mark in key for key in keys), mark
    assert len({re.split(r"\n| \| |\} ", key)[-1] for key in keys}) >= 5


def test_options_stand_behind_their_letters_in_letter_order():
    swapped = make_task(("sol2", "goal", "sol1"), PIQA.option_slots, ("A", "B"))
    for layout in enumerate_layouts(swapped):
        assert re.search(r"\(?A[.:)] \{sol1\}\s(\| )?\(?B[.:)] \{sol2\}", layout.skeleton)


def test_grammar_slot_that_is_called_instruction_is_not_mistaken_for_the_wording():
    task = make_task(("instruction", "input"))
    layouts = enumerate_layouts(task)
    assert len(layouts) >= 300
    for layout in layouts:
        text = compose("Do as you are told.", layout)
        assert text.count("{instruction}") == text.count("{input}") == text.count("told.") == 1


def test_compose_inserts_the_instruction_verbatim():
    layout = LAYOUTS["review"][0]
    text = compose(r"Say \1 or {nothing}  twice. ", layout)
    assert text == layout.skeleton.replace(INSTRUCTION, r"Say \1 or {nothing}  twice. ")


SENTENCES = [
    "Decide whether the review is good or bad.",
    "Which of these makes more sense?",
    "Judge the sentiment",
    "Classify the sentence shown below:",
    "Read the text carefully. Then answer with A or B.",
    'Say "yes" or "no"',
    "Pick the better one, A or B.",
    "You're an expert (in films); what's the verdict",
    "Task: decide what is right",
]


@each_task
@pytest.mark.parametrize(("start", "sentence"), list(enumerate(SENTENCES)))
def test_layout_of_composed_prompt_is_the_layout_it_was_composed_with(name, start, sentence):
    slots = TASKS[name].slots
    for layout in LAYOUTS[name][start :: len(SENTENCES)]:
        text = compose(sentence, layout)
        assert layout_of(text, slots) == layout.key
        assert sentence in instruction_of(text, slots)
        assert lint(text, TASKS[name], LintConfig()).problem is None


words = st.lists(
    st.sampled_from(["read", "the", "text", "which", "answer", "it", "should", "A", "B", "is"]),
    min_size=3,
    max_size=12,
).map(lambda middle: " ".join(["decide", *middle, "here"]))


@settings(deadline=None)
@given(words, words, st.sampled_from([".", "?", "!"]), st.data())
def test_layout_of_does_not_depend_on_the_wording(one, other, end, data):
    name = data.draw(st.sampled_from(sorted(TASKS)))
    layout = data.draw(st.sampled_from(LAYOUTS[name]))
    first, second = one + end, other.capitalize() + end
    keys = {layout_of(compose(text, layout), TASKS[name].slots) for text in (first, second)}
    assert keys == {layout.key}


@settings(deadline=None)
@given(st.text(max_size=300))
def test_layout_of_any_text_gives_a_key_and_an_instruction(text):
    assert isinstance(layout_of(text, PIQA.slots), str)
    assert isinstance(instruction_of(text, PIQA.slots), str)


@pytest.mark.parametrize(
    ("text", "key", "instruction"),
    [
        (
            "Find the most sensible answer to this: {goal} \nA. {sol1}\nB. {sol2}\n Answer:",
            "{instruction} {goal}\na. {sol1}\nb. {sol2}\nanswer:",
            "Find the most sensible answer to this:",
        ),
        (
            "Use your head.Question: {goal}\nA. {sol1}\nB. {sol2}\nThink twice about it. Answer:",
            "{instruction} question: {goal}\na. {sol1}\nb. {sol2}\n{instruction} answer:",
            "Use your head. Think twice about it.",
        ),
        (
            "In the case of {goal}, which is best? A. {sol1} B. {sol2} Answer format: A/B Answer:",
            "{instruction} {goal} {instruction} a. {sol1} b. {sol2} answer format: a/b answer:",
            "In the case of which is best?",
        ),
        (
            "What is the right resolution? (A) {sol1} or (B) {sol2}. Goal: {goal} Reply A or B",
            "{instruction} (a) {sol1} {instruction} (b) {sol2} goal: {goal} reply a or b",
            "What is the right resolution? or",
        ),
        (
            "### Goal\n{goal}\n\n<a>{sol1}</a>\n<b>{sol2}</b>\n\n**Choose the sensible one!**",
            "### goal\n{goal}\n\n<a>{sol1}</a>\n<b>{sol2}</b>\n\n** {instruction} **",
            "Choose the sensible one!",
        ),
    ],
)
def test_layout_of_wild_template_keeps_names_letters_lines_and_cue(text, key, instruction):
    assert layout_of(text, PIQA.slots) == key
    assert instruction_of(text, PIQA.slots) == instruction


def test_layout_of_case_and_spacing_do_not_matter():
    loose = "Please say how it feels.  \r\nSENTENCE:   {sentence}   \n  Sentiment:"
    tight = "Tell me what the tone is!\nSentence: {sentence}\nsentiment:"
    assert layout_of(loose, REVIEW.slots) == layout_of(tight, REVIEW.slots)


@pytest.mark.parametrize(
    "other",
    [
        "{sentence}\nDecide how this feels.\nAnswer:",
        "Decide how this feels. {sentence}\nAnswer:",
        "Decide how this feels.\n\n{sentence}\nAnswer:",
        "Decide how this feels.\nText: {sentence}\nAnswer:",
        'Decide how this feels.\n"{sentence}"\nAnswer:',
        "Decide how this feels.\n{sentence}\nSentiment:",
        "Decide how this feels.\n{sentence}\nAnswer: ->",
    ],
)
def test_layout_of_order_separator_name_quotes_and_cue_matter(other):
    base = "Decide how this feels.\n{sentence}\nAnswer:"
    assert layout_of(base, REVIEW.slots) != layout_of(other, REVIEW.slots)


def test_instruction_of_template_without_wording_is_its_names():
    assert instruction_of("Review: {sentence}\nSentiment:", REVIEW.slots) == "Review: Sentiment:"
