"""Graders: texts and what they are worth, from the sources that define them."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from paft_ray.config.errors import ConfigError, GradeError
from paft_ray.config.grade import GradeConfigs
from paft_ray.tasks.example import Example
from paft_ray.tasks.grading import (
    Grade,
    RankedGrader,
    TextGrader,
    last_number,
    normalise,
    open_graders,
)


def grader(config: object) -> TextGrader:
    [found] = open_graders(TypeAdapter(GradeConfigs).validate_python(config), False, None)
    assert isinstance(found, TextGrader)
    return found


def grade(config: object, answer: str, text: str) -> Grade:
    return grader(config).grade(Example("e", {}, answer), text, "here")


@pytest.mark.parametrize(
    ("answer", "text", "exact", "f1"),
    [
        # normalize_answer, exact_match_score and f1_score of SQuAD's evaluate-v1.1.py
        ("Denver Broncos", "denver broncos", 1, 1),
        ("Denver Broncos", "The Denver Broncos.", 1, 1),
        ("the Broncos", "Broncos", 1, 1),
        ("Levi's Stadium", "levis stadium", 1, 1),
        ("an apple a day", "apple   day", 1, 1),
        ("Santa Clara, California", "Santa Clara", 0, 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("golden", "gold", 0, 0),
        ("theatre", "re", 0, 0),
        ("10-5", "105", 1, 1),
        ("dog dog cat", "dog", 0, 0.5),
        ("Santa Clara", "", 0, 0),
    ],
)
def test_exact_and_f1_follow_squad(answer: str, text: str, exact: float, f1: float):
    assert grade("exact", answer, text).value == exact
    assert grade("f1", answer, text).value == pytest.approx(f1)


def test_what_two_texts_may_differ_in():
    assert normalise(" The (big) Dog! ", "squad") == "big dog"
    assert normalise(" The Dog ", "case") == "the dog"
    assert normalise(" The Dog ", "none") == "The Dog"
    combining = "e\N{COMBINING ACUTE ACCENT}"
    assert normalise(combining, "none") == normalise("\N{LATIN SMALL LETTER E WITH ACUTE}", "none")
    loose = {"type": "exact", "normalisation": "case"}
    assert grade(loose, "Yes", "yes").value == 1
    assert grade(loose, "Yes", "yes.") == Grade(0.0, "yes.", begins_right=True)
    assert grade({"type": "exact", "normalisation": "none"}, "Yes", "yes").value == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # what `#### (\-?[0-9\.\,]+)` of GSM8K's own dataset.py finds
        ("So she makes 9 * 2 = $18 every day.\n#### 18", "18"),
        ("#### 1,250", "1250"),
        ("#### -5", "-5"),
        ("#### 70000\nand 12 more", "70000"),
        ("#### 18\n\nQuestion: and now?\nAnswer: #### 5", "18"),
        # what lm-evaluation-harness' flexible-extract finds, less its `$`, `,` and last dot
        ("The answer is 18.", "18"),
        ("She earns $1,234.50", "1234.5"),
        ("first 3, then 42 apples", "42"),
        ("it costs $ 7 in all", "7"),
        # our own
        ("it fell by 10-3", "3"),
        ("to -3 degrees", "-3"),
        ("to -$3.50", "-3.5"),
        ("\N{MINUS SIGN}4", "-4"),
        ("about 3/4 of it", "3/4"),
        ("4/0 of 5 is 5", "5"),
        (".5 l", "1/2"),
        ("1.5e3", "1500"),
        ("1e999999999 is too much", "999999999"),
        ("12,34", "34"),
        ("1,00,000 rupees", "100000"),
        ("50%", "50"),
        ("####", None),
        ("none at all", None),
        ("9" * 5000, None),
        ("#### none, but 7", "7"),
    ],
)
def test_last_number(text: str, number: str | None):
    assert last_number(text) == (None if number is None else Fraction(number))


def test_numbers_are_compared_by_value_and_within_a_tolerance():
    assert grade("number", "#### 1,250", "It is $1250.00.") == Grade(1.0, "1250")
    assert grade("number", "0.5", "1/2").value == 1
    assert grade("number", "3", "no number") == Grade(0.0, "")
    assert grade({"type": "number", "tolerance": 0.01}, "3.14", "3.15").value == 1
    assert grade({"type": "number", "tolerance": 0.01}, "3.14", "3.1501").value == 0


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-1e9, max_value=1e9))
def test_a_number_is_read_as_it_was_written(number):
    assert last_number(f"so it is {number:f}.") == Fraction(number)
    assert last_number(f"so it is {number:,f} in all") == Fraction(number)


def test_pattern_takes_the_group_of_its_last_match():
    config = {"type": "pattern", "pattern": r"answer is (\w+)"}
    assert grade(config, "B", "The answer is A. No, the answer is b.") == Grade(1.0, "b")
    assert grade(config, "the answer is B", "the answer is C").value == 0
    assert grade(config, "B", "B") == Grade(0.0, "")


def test_contains_looks_for_whole_words():
    assert grade("contains", "Santa Clara", "It was in santa clara, I think").value == 1
    assert grade("contains", "1", "10 of them").value == 0
    assert grade("contains", "C++", "write C++ or c").value == 1


def test_ranked_grader_takes_the_likeliest_and_the_first_of_two():
    example, choices = Example("e", {}, "yes"), ("no", "yes")
    assert RankedGrader().grade(example, choices, (-1.0, -1.0), (-1.0, -1.0)) == Grade(0.0, "no")
    long = RankedGrader(length_normalised=True).grade(example, choices, (-1.0, -1.2), (-1.0, -1.2))
    assert long == Grade(1.0, "yes")


@pytest.mark.parametrize(
    ("config", "answer"),
    [("exact", "the"), ("f1", "!"), ("number", "none"), ("contains", "a")],
)
def test_answers_of_which_nothing_is_left_are_known(config: str, answer: str):
    assert not grader(config).reads(answer)
    assert grader(config).reads("12 dogs")


CODE = """
import math, sys, time
def score(fields, answer, text):
    print("what a function prints goes elsewhere")
    if text == "raise":
        raise ValueError("no such thing")
    if text == "hang":
        time.sleep(60)
    if text == "exit":
        sys.stdout.flush(); import os; os._exit(3)
    if text == "read":
        return len(sys.stdin.read() or sys.stdin.readline())
    if text == "fork":
        import os
        if os.fork() == 0:
            return 0.9  # falls through, in a process that nobody asked
        os.wait()
        return 0.2
    return {"nan": math.nan, "7": 7, "huge": 10**400, "text": "0.5", "none": None,
            "below": -0.01}.get(text, len(set(text) & set(answer + fields["word"])) / 10)
"""


@pytest.fixture
def scored(tmp_path: Path) -> TextGrader:
    (tmp_path / "grade.py").write_text(CODE, encoding="utf-8")
    return grader({"type": "python", "path": f"{tmp_path / 'grade.py'}:score", "timeout_s": 0.5})


def test_a_function_of_ones_own_gets_fields_answer_and_text(scored: TextGrader):
    example = Example("e", {"word": "xyz"}, "ab")
    assert scored.grade(example, "abcx", "here") == Grade(0.3, "abcx")


def test_a_function_that_reads_or_forks_disturbs_no_other_grade(scored: TextGrader):
    example = Example("e", {"word": "xyz"}, "ab")
    for text, value in (("read", 0.0), ("fork", 0.2), ("abcx", 0.3), ("fork", 0.2), ("ab", 0.2)):
        assert scored.grade(example, text, "here").value == value, text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise", "raised ValueError: no such thing"),
        ("hang", "did not answer within 0.5 s"),
        ("exit", "ended its process (exit code 3)"),
        ("nan", "returned nan"),
        ("7", "returned 7"),
        ("huge", "returned 1000000"),
        ("text", "returned '0.5'"),
        ("none", "returned None"),
        ("below", "returned -0.01"),
    ],
)
def test_a_faulty_function_is_named_with_example_and_text(scored: TextGrader, text: str, said: str):
    example = Example("e", {"word": "xyz"}, "ab")
    with pytest.raises(GradeError) as raised:
        scored.grade(example, text, "data.jsonl:3: example e under prompt p")
    message = str(raised.value)
    assert said in message and "example e under prompt p" in message and repr(text) in message
    assert math.isclose(scored.grade(example, "abcx", "here").value, 0.3)  # goes on after it


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def other(): pass", "defines no function score"),
        ("import not_installed_anywhere", "ModuleNotFoundError"),
        ("def score(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("def score(answer, text): return 1", "has to take three arguments"),
        ("async def score(fields, answer, text): return 1", "is async"),
        ("input()", "EOFError"),
    ],
)
def test_a_file_without_the_function_is_refused_at_once(tmp_path: Path, code: str, said: str):
    (tmp_path / "grade.py").write_text(code, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        grader({"type": "python", "path": f"{tmp_path / 'grade.py'}:score"})
    with pytest.raises(ConfigError, match="cannot be read"):
        grader({"type": "python", "path": f"{tmp_path / 'nothing.py'}:score"})


def test_a_function_is_known_by_its_code_and_not_by_its_place(tmp_path: Path):
    codes = []
    for folder, more in (("a", ""), ("b", ""), ("c", "\n# other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "grade.py").write_text(f"def score(f, a, t): return 1{more}")
        found = grader({"type": "python", "path": f"{tmp_path / folder / 'grade.py'}:score"})
        codes.append(found.code.identity)  # pyright: ignore[reportAttributeAccessIssue]
    assert codes[0] == codes[1] != codes[2]


def test_the_process_of_a_function_does_not_find_our_modules(tmp_path: Path):
    (tmp_path / "grade.py").write_text("import grading\ndef score(f, a, t): return 1")
    with pytest.raises(ConfigError, match="No module named 'grading'"):
        grader({"type": "python", "path": f"{tmp_path / 'grade.py'}:score"})
