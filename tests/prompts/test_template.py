"""Templates: hostile text is harmless, bad prompts are named, good ones pass."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paft_ray.config import LintConfig
from paft_ray.config.errors import TemplateError
from paft_ray.prompts import lint as linting
from paft_ray.prompts.files import holds_escapes
from paft_ray.prompts.layouts import layout_of
from paft_ray.prompts.lint import lint, lint_instruction, other_work
from paft_ray.prompts.template import clean, count_words, is_flattened, parse
from paft_ray.tasks.example import Task

LINT = LintConfig()


def make_task(slots=("sentence",), options=None, choices=("negative", "positive"), words=()):
    return Task("demo", "Say it.", slots, options or {}, choices, (), (), (), relevance_words=words)


REVIEW = make_task()
PIQA = make_task(("goal", "sol1", "sol2"), {"sol1": "A", "sol2": "B"}, ("A", "B"))
MATHS = make_task(("question",), choices=None)


class Guarded(str):
    """A field whose attributes must never be looked at by a template."""

    __slots__ = ()

    def __getattribute__(self, name):
        raise AssertionError(f"a template reached for {name}")

    def __format__(self, spec):
        raise AssertionError("a template formatted a field")


def authors(name):
    root = os.environ.get("PAFT_SHARED_DATA")
    folder = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    path = folder / "paft_authors" / f"{name}_candidates.jsonl"
    if not path.exists():
        pytest.skip(f"the authors' prompts are not at {path}; set PAFT_SHARED_DATA")
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_render_replaces_every_known_slot_with_its_field():
    template = parse("Goal: {goal}\nA. {sol1}\nB. {sol2}\nAnswer:", PIQA.slots)
    fields = {"goal": "open a jar", "sol1": "twist", "sol2": "sing"}
    assert template.slots == ("goal", "sol1", "sol2")
    assert template.render(fields) == "Goal: open a jar\nA. twist\nB. sing\nAnswer:"


def test_render_field_that_looks_like_a_slot_is_not_replaced_again():
    template = parse("{goal} {sol1} {sol2}", PIQA.slots)
    fields = {"goal": "{sol1}", "sol1": "{goal}{sol2}", "sol2": "{"}
    assert template.render(fields) == "{sol1} {goal}{sol2} {"


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{goal.__class__}", "{goal.__class__}"),
        ("{goal!r:>999999999}", "{goal!r:>999999999}"),
        ("{0} {} {goal", "{0} {} {goal"),
        ("{{goal}}{{other}}", "{goal}{other}"),
        ("{{ goal }} {goal}", "{ goal } X"),
        ("{{{goal}}}", "{{goal}}"),
        ('{{"a": {goal}}} {{goal}', '{{"a": X}} {X'),
        ('{"a": {"b": [1, {"c": "{goal}"}]}}', '{"a": {"b": [1, {"c": "X"}]}}'),
        ("\\frac{a}{b} x^{2} {goal}}", "\\frac{a}{b} x^{2} X}"),
        ("}{goal}{", "}X{"),
        ("%(goal)s $goal ${goal}", "%(goal)s $goal $X"),
        ("{ goal }{Goal}", "{ goal }{Goal}"),
    ],
)
def test_render_hostile_text_stays_text(text, rendered):
    assert parse(text, ("goal",)).render({"goal": Guarded("X")}) == rendered


@settings(deadline=None)
@given(st.text(alphabet="{}gol!.:0_ []\\n", max_size=60), st.text(max_size=20))
@example("{goal!s}{goal.x}{goal[0]}{goal}}", "{goal}")
def test_render_any_text_without_names_in_two_braces_replaces_exactly_the_slots(text, value):
    text = text.replace("{{", "{ {")
    template = parse(text, ("goal",))
    assert template.render({"goal": value}) == value.join(text.split("{goal}"))


@settings(deadline=None)
@given(st.text(max_size=200))
@example("{goal!r:>99} \x00 \ud800 {{sol1}} [insert")
def test_lint_any_text_gives_a_verdict_and_a_storable_text(text):
    results = [lint(text, PIQA, LINT, authored=authored) for authored in (False, True)]
    for result in (*results, lint_instruction(text, PIQA, LINT)):
        result.text.encode("utf-8")
        assert result.problem is None or result.detail


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("Judge.\n\n{demonstrations}\n\n{text} =", "Judge.\n\nT ="),
        ("{demonstrations}\n\n{text} =", "T ="),
        ("See {demonstrations} and {text} =", "See and T ="),
        ("{text}{demonstrations}\n=", "T\n="),
        ("Say {{demonstrations}} of {text}", "Say {demonstrations} of T"),
    ],
)
def test_slot_of_demonstrations_leaves_nothing_behind_where_there_are_none(text, rendered):
    template = parse(text, ("text",))
    assert template.render({"text": "T"}) == rendered and template.slots == ("text",)
    assert layout_of(text, ("text",)) == layout_of(rendered.replace("T", "{text}"), ("text",))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Judge this.\n{demonstrations}\n{text} =", None),
        ("Judge this.\n{text}\n{demonstrations}\nAnswer:", None),
        ("Judge this.\n{demonstrations}{demonstrations}\n{text} =", "repeated_slot"),
        ("Judge this: {text}. Answer: {demonstrations}", "misplaced_slot"),
        ("Judge this.\n{ demonstrations }\n{text} =", "unknown_slot"),
    ],
)
def test_only_a_user_s_template_may_say_where_demonstrations_stand(text, problem):
    task = make_task(("text",))
    assert lint(text, task, LINT).problem == problem
    assert lint(text, task, LINT, authored=True).problem in ("unknown_slot", "repeated_slot")


def test_hostile_repetition_of_that_slot_takes_no_time():
    template = parse("{demonstrations} " * 20_000 + "{text}", ("text",))
    assert template.slots == ("text",)


def test_render_field_missing_is_an_error_that_names_the_slot():
    with pytest.raises(TemplateError, match=r"slot 'goal'.*fields are only \['sol1'\]"):
        parse("{goal}", PIQA.slots).render({"sol1": "x"})


def cleaned(text: str) -> str:
    return clean(text, escapes=True)


def test_clean_undoes_escapes_line_ends_and_trailing_spaces():
    assert cleaned("A \r\nB\\nC\\\\nD\\r\\nE\\tF  \n\n\n\nG \ufeff\n") == "A\nB\nC\nD\nE\tF\n\nG"


def test_clean_latex_is_not_taken_for_an_escape():
    assert cleaned(r"Let \theta \neq \nabla f \times 2") == r"Let \theta \neq \nabla f \times 2"


@settings(deadline=None)
@given(st.text(alphabet="ab \t\r\n\\nt\x00\u200b\xa0", max_size=40))
def test_clean_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)
    assert cleaned(cleaned(text)) == cleaned(text)


@pytest.mark.parametrize(
    "text",
    [
        r"Split {x} at \n or \t.", r"Separate words by \n. Say it of {x}", r"Match \d+\n in {x}",
        r"C:\new\table of {x}", r"Match \n{2,} in {x}", r"Write `\n` behind {x}", "\\\\nx {x}",
        "Review: {x}\nSay \\nothing:", r"Let \nu be {x}",
    ],
)  # fmt: skip
def test_clean_leaves_backslashes_alone_where_nothing_is_escaped(text):
    assert not is_flattened(text)
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        r"Review: {x}\nLabel:", r"{x}\nwas it good?", r"{x} \n is it kind", r"Say. \n\n {x}",
        r"review: {x}. say\nlabel:", r"Which?\n1. {x}\n2. {y}", r"Is it so? {x}.\n判断", r"A\r\nB",
        "Text: {x}\\nLabel:\n",
    ],
)  # fmt: skip
def test_text_that_was_put_on_one_line_is_known(text):
    assert is_flattened(text)


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\\",
        "[",
        "<a",
        "answer ",
        "\n",
        "A.",
        "A. ",
        "is ",
        "the answer is ",
        "a,",
        '"',
        ".",
        "{",
        "{{",
        "{a",
        "{{a.",
        "{a }",
        "[a]",
        "[/a]",
        "[a][/a]",
        "<a></a>",
        "[a, ",
        "answer: 1.",
        "[a-z",
        "\t",
    ],
)
def test_lint_huge_repetitive_text_gets_its_verdict_in_linear_time(piece):
    # quadratic work on 100,000 characters would run into the timeout
    roomy, filler = LintConfig(max_characters=10**7), piece * (100_000 // len(piece))
    text = f"{filler} {{goal}} A. {{sol1}} B. {{sol2}}{filler}x"
    assert lint(text, PIQA, roomy, authored=True).text.endswith("x")
    numbers = f"{{question}}\nThe answer: 1{filler}x"
    assert lint(numbers, MATHS, roomy, authored=True).text.endswith("x")
    assert lint_instruction(f"{filler}x {filler}x", PIQA, roomy).text.endswith("x")


@pytest.mark.parametrize(
    ("task", "text", "problem"),
    [
        (REVIEW, " \n ", linting.EMPTY),
        (REVIEW, "I'm sorry, but I can't write {sentence}.", linting.REFUSAL),
        (REVIEW, "As an AI language model I {sentence}", linting.REFUSAL),
        (REVIEW, "Is this kind? {text}", linting.UNKNOWN_SLOT),
        (REVIEW, "Is {sentence} kind? {label}", linting.UNKNOWN_SLOT),
        (REVIEW, "Is { sentence } kind?", linting.UNKNOWN_SLOT),
        (REVIEW, "Is {sentence.__class__} kind?", linting.UNKNOWN_SLOT),
        (REVIEW, "Is {sentence!r:>999999999} kind?", linting.MISSING_SLOT),
        (REVIEW, "Is {{sentence}} kind?", linting.ESCAPED_SLOT),
        (REVIEW, "Is {{{ sentence }}} kind?", linting.ESCAPED_SLOT),
        (REVIEW, "Is this kind?", linting.MISSING_SLOT),
        (REVIEW, "{sentence}\nIs {sentence} kind?", linting.REPEATED_SLOT),
        (REVIEW, "{sentence}\nSentiment: positive", linting.ANSWER_GIVEN),
        (REVIEW, "{sentence}\nThe sentiment of this review is negative.", linting.ANSWER_GIVEN),
        (REVIEW, "{sentence}\nThis film sounds very positive.", linting.ANSWER_GIVEN),
        (REVIEW, "{sentence}", linting.TOO_SHORT),
        (REVIEW, "kind " * 400 + "{sentence}", linting.TOO_LONG),
        (PIQA, "{goal} A. {sol1} B. {sol2} Answer: A", linting.ANSWER_GIVEN),
        (PIQA, "{goal} A. {sol1} B. {sol2} The answer is B.", linting.ANSWER_GIVEN),
        (PIQA, "{goal}\nA. {sol1}\nB. {sol2}\nAnswer: (B)\nExplain why.", linting.ANSWER_GIVEN),
        (PIQA, "{goal} A. {sol1} The right answer is: B. {sol2}", linting.ANSWER_GIVEN),
        (PIQA, "{goal}\nB. {sol1}\nA. {sol2}\nAnswer:", linting.MISLABELLED_OPTION),
        (PIQA, "{goal}\n1. {sol1}\n2. {sol2}\nAnswer:", linting.UNLABELLED_OPTION),
        (MATHS, "{question}\nAnswer: 42", linting.ANSWER_GIVEN),
    ],
)
def test_lint_bad_template_is_refused_with_its_reason(task, text, problem):
    for authored in (False, True):
        result = lint(text, task, LINT, authored=authored)
        assert (result.problem, bool(result.detail)) == (problem, True)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("Rate {txt} now.", "{txt}; write {text}, or {{txt}} for braces that are text"),
        (
            "Rate {text} as {label}.",
            "{label}; write {title}, or {{label}} for braces that are text",
        ),
        ("Rate {{text}} under {title}.", "{{text}}; write {text}"),
    ],
)
def test_lint_name_in_braces_that_is_no_slot_says_what_to_write(text, detail):
    assert lint(text, make_task(("title", "text")), LINT).detail == detail


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Is {sentence} kind? [describe the scale here]", linting.UNFILLED_BRACKET),
        ("{sentence}\nAnswer: [insert answer]", linting.UNFILLED_BRACKET),
        ("{sentence}\nAnswer: <your answer>", linting.UNFILLED_BRACKET),
        ("[Your task]\n{sentence}\nAnswer:", linting.UNFILLED_BRACKET),
        ("What does the film [title] of {sentence} say?", linting.UNFILLED_BRACKET),
        ("Judge {sentence} as {movie critic} would.", linting.UNKNOWN_SLOT),
    ],
)
def test_lint_what_asks_to_be_filled_in_is_text_only_in_a_user_s_own_template(text, problem):
    assert lint(text, REVIEW, LINT).problem is None
    result = lint(text, REVIEW, LINT, authored=True)
    assert (result.problem, bool(result.detail)) == (problem, True)


@pytest.mark.parametrize("authored", [False, True])
@pytest.mark.parametrize(
    "piece",
    [
        '{"label": "positive"}', '{"a": {"b": ["c", {}]}}', '{{"label": ...}}', "{0}", "x^{2}",
        "{", "}", "}{", "{{", "{}", "{ }", "{positive|negative}", "{yes, no}", "{{label}}",
        "{{ label }}", "List[str]", "[A-Za-z]", "[^a-z]+", '["yes", "no"]', "[a, b]", "[1, 2]",
        "<answer>", "<answer>yes</answer>", "x[0]", "{sentence!r}", "[0-9]{4}", "a < b > c",
    ],
)  # fmt: skip
def test_lint_braces_and_brackets_that_are_no_slots_are_text(piece, authored):
    text = f"Is this kind? Say it like {piece}\n{{sentence}}\nIt is"
    result = lint(text, REVIEW, LINT, authored=authored)
    assert (result.problem, result.detail) == (None, "")
    shown = piece.replace("{{label}}", "{label}").replace("{{ label }}", "{ label }")
    rendered = parse(result.text, REVIEW.slots).render({"sentence": "X"})
    assert rendered == text.replace("{sentence}", "X").replace(piece, shown)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (REVIEW, "{sentence}\nSentiment:"),
        (REVIEW, "Is this positive or negative? {sentence}"),
        (REVIEW, "{sentence}\nThe sentiment of this sentence is"),
        (REVIEW, "{sentence}\nAnswer with positive or negative."),
        (REVIEW, "{sentence}\nIf the author is pleased, the answer is positive."),
        (REVIEW, "{sentence}\nAnswer [positive/negative]:"),
        (REVIEW, "[Sentence]\n{sentence}\n[Sentiment]"),
        (REVIEW, "Judge: [Sentence] {sentence} [/Sentence] Label:"),
        (REVIEW, "How kind is this? | [Sentence]: {sentence} | Label:"),
        (REVIEW, "<review>{sentence}</review>\nLabel:"),
        (REVIEW, "<b>Judge</b> [{sentence}] -> [1]"),
        (REVIEW, "Labels: positive, negative\n{sentence}\nOutput: "),
        (PIQA, "{goal} \\nA. {sol1}\\nB. {sol2}\\n Answer format: A/B \\nAnswer:"),
        (PIQA, "{goal}\nA. {sol1}\nB. {sol2}\nYour answer should be either 'A' or 'B'.Answer:"),
        (PIQA, "Say which is better for {goal}, A: {sol1} or B: {sol2}?"),
        (PIQA, "What is the answer: A. {sol1} or B. {sol2}? {goal}"),
        (PIQA, "{goal} (a) {sol1} (b) {sol2} The right answer is option"),
        (PIQA, "{goal} A. {sol1} B. {sol2} Reply in the format Answer: A"),
        (MATHS, "{question}\nEnd with #### and the number."),
    ],
)
def test_lint_good_template_passes(task, text):
    result = lint(text, task, LINT)
    assert (result.problem, result.detail) == (None, "")


def test_lint_returns_the_cleaned_text():
    text = "Kind? {sentence} \\nAnswer: "
    assert lint(text, REVIEW, LINT).text == "Kind? {sentence} \\nAnswer:"
    assert lint(text, REVIEW, LINT, escapes=True).text == "Kind? {sentence}\nAnswer:"
    assert lint(text, REVIEW, LINT, authored=True).text == "Kind? {sentence}\nAnswer:"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", linting.EMPTY),
        ("Classify {sentence} now please.", linting.REPEATED_SLOT),
        ("Classify {text} now please.", linting.UNKNOWN_SLOT),
        ("Classify {{sentence}} now please.", linting.ESCAPED_SLOT),
        ("Classify the [text] as you like.", linting.UNFILLED_BRACKET),
        ("Judge the sentiment of <sentence> here.", linting.UNFILLED_BRACKET),
        ("The sentiment of the review is positive.", linting.ANSWER_GIVEN),
        ("Sentiment: negative", linting.ANSWER_GIVEN),
        ("Judge sentiment.", linting.TOO_SHORT),
        ("Think about what to do next.", linting.OFF_TOPIC),
        ("Read the sentiment and then translate the review into French.", linting.OFF_TOPIC),
        ("Please write a short poem about the sentiment.", linting.OFF_TOPIC),
        ("Write an instruction about the sentiment.", linting.ASKS_FOR_A_PROMPT),
        ("Sentiment " * 200, linting.TOO_LONG),
    ],
)
def test_lint_instruction_bad_one_is_refused_with_its_reason(text, problem):
    task = make_task(words=("sentiment", "feel"))
    result = lint_instruction(text, task, LINT)
    assert (result.problem, bool(result.detail)) == (problem, True)


@pytest.mark.parametrize(
    "text",
    [
        "Is the sentiment positive?",
        "Tell whether the sentiment is positive.",
        "What are the author's feelings, positive or negative?",
        "Decide on the sentiment: is it positive or negative",
        "Read the review\nand name its sentiment.",
    ],
)
def test_lint_instruction_good_one_passes_on_one_line(text):
    task = make_task(words=("sentiment", "feel"))
    result = lint_instruction(text, task, LINT)
    assert (result.problem, result.text) == (None, " ".join(text.split()))


def test_lint_instruction_of_any_topic_passes_where_relevance_is_off():
    task, config = make_task(words=("sentiment", "feel")), LintConfig(relevance=False)
    assert lint_instruction("Think about what to do next.", task, config).problem is None


def test_other_work_is_not_other_where_the_task_is_that_work():
    task = replace(make_task(words=()), description="Summarise a report in one sentence.")
    assert other_work("Please summarize what is written here.", task) is None
    assert other_work("Please translate what is written here.", task)


def test_lint_instruction_without_relevance_words_every_topic_passes():
    assert lint_instruction("Think about what to do next.", REVIEW, LINT).problem is None


def test_count_words_chinese_counts_characters():
    assert (count_words("判断情感"), count_words("don't re-read it")) == (4, 3)


def test_lint_authors_piqa_prompts_only_those_with_the_goal_twice_are_refused():
    results = [
        lint(text, PIQA, LINT, escapes=holds_escapes("p.jsonl", text)) for text in authors("piqa")
    ]
    assert Counter(r.problem for r in results) == {None: 333, linting.REPEATED_SLOT: 6}
    assert all(r.text.count("{goal}") == 2 for r in results if r.problem)


def test_lint_authors_hellaswag_prompts_all_pass():
    letters = {letter: letter for letter in "ABCD"}
    task = make_task(("ctx", *letters), letters, tuple(letters))
    for text in authors("hellaswag"):
        assert lint(text, task, LINT, escapes=holds_escapes("p.jsonl", text)).problem is None


@pytest.mark.parametrize("name", ["piqa", "hellaswag"])
def test_what_was_published_on_one_line_is_read_as_before(name):
    for text in authors(name):
        assert clean(text, escapes=holds_escapes("p.jsonl", text)) == cleaned(text)
