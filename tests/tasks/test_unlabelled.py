"""Rows without an answer: where they go, what they never reach, and when they are refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import run_config
from paft_ray.config import CustomTaskConfig
from paft_ray.config.errors import DataError
from paft_ray.config.loading import load_config
from paft_ray.config.objectives import CrossEntropy
from paft_ray.runs.context import Identities
from paft_ray.tasks import Task, load_task
from paft_ray.tasks.split import text_key


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def custom(path: Path, **changes) -> CustomTaskConfig:
    return CustomTaskConfig.model_validate(
        {
            "type": "custom",
            "name": "mine",
            "description": "Say which colour it is.",
            "path": str(path),
            "fields": {"thing": "thing"},
            "answer": "colour",
            "choices": ["red", "blue"],
            **changes,
        }
    )


def labelled(count: int, start: int = 0) -> list[dict]:
    return [{"thing": f"a {n}", "colour": "red" if n % 2 else "blue"} for n in range(start, count)]


def held_out(task: Task) -> set[bytes]:
    return {text_key(example.fields) for example in (*task.validation, *task.test)}


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
def test_rows_with_an_empty_cell_are_examples_of_their_own_kind_and_counted(tmp_path, empty):
    rows = [*labelled(20), {"thing": "b 1", "colour": empty}, {"thing": "b 2", "colour": empty}]
    path = write(tmp_path / "rows.jsonl", [*rows, rows[-1]])
    task = load_task(custom(path), seed=0, unlabelled=True)
    assert sorted(e.fields["thing"] for e in task.unlabelled) == ["b 1", "b 2"]
    assert {e.answer for e in task.unlabelled} == {""}
    graded = (*task.train, *task.validation, *task.test)
    assert {e.answer for e in graded} == {"red", "blue"}
    assert len(graded) == 20
    assert (task.rows.unlabelled, task.rows.duplicates, task.rows.in_held_out) == (2, 1, 0)
    [sentence] = task.rows.sentences()
    assert "2 examples have no answer" in sentence
    assert task.learned_by(CrossEntropy()) == task.train
    with pytest.raises(DataError, match=r"line 21: the answer .*fill it in"):
        load_task(custom(path), seed=0)


def test_labelled_rows_are_split_as_without_the_others_and_keep_their_identity(tmp_path):
    whole = write(tmp_path / "a.jsonl", labelled(30))
    more = write(tmp_path / "b.jsonl", [*labelled(30), {"thing": "b", "colour": None}])
    alone, both = (load_task(custom(p), seed=3, unlabelled=True) for p in (whole, more))
    for split in ("train", "validation", "test"):
        assert alone.examples(split) == both.examples(split)
    assert alone == load_task(custom(whole), seed=3)
    assert not alone.unlabelled


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["red", "blue", ""])), min_size=40),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_no_text_of_a_held_out_split_is_learned_from(tmp_path_factory, drawn, grouped, seed):
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"thing": f"t {n} {i % 9}", "colour": c, "of": f"g{n}"} for i, (n, c) in
            enumerate(drawn)]  # fmt: skip
    path = write(folder / "rows.jsonl", rows)
    changes = {"group": "of"} if grouped else {}
    try:
        task = load_task(custom(path, **changes), seed, unlabelled=True)
    except DataError:  # too few of them have an answer
        return
    texts = [example.fields["thing"] for example in task.unlabelled]
    assert held_out(task).isdisjoint(text_key(e.fields) for e in task.unlabelled)
    if grouped:
        groups = {e.fields["thing"].split()[1] for e in (*task.validation, *task.test)}
        assert groups.isdisjoint(text.split()[1] for text in texts)
    counts = task.rows
    found = sum(counts.sizes.values()) + counts.unlabelled + counts.in_held_out + counts.duplicates
    assert found == len(rows)


def test_file_without_any_answer_is_learned_from_and_a_test_file_is_graded(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"thing": f"b {n}", "colour": ""} for n in range(9)])
    test = write(tmp_path / "test.jsonl", [*labelled(4), {"thing": "b 3", "colour": "red"}])
    task = load_task(custom(path, test_path=str(test)), seed=0, unlabelled=True)
    assert (len(task.train), len(task.validation), len(task.test)) == (0, 0, 5)
    assert (len(task.unlabelled), task.rows.in_held_out) == (8, 1)
    limited = load_task(
        custom(path, test_path=str(test), max_train_examples=3), seed=0, unlabelled=True
    )
    assert limited.unlabelled == task.unlabelled[:3]
    assert (limited.rows.unlabelled, limited.rows.beyond_unlabelled) == (3, 5)
    assert any(said.startswith("5 further examples") for said in limited.rows.sentences())


def test_rows_without_an_answer_that_find_no_room_are_said(tmp_path):
    rows = [*labelled(40), *({"thing": f"c {n}", "colour": ""} for n in range(9))]
    path = write(tmp_path / "rows.jsonl", rows)
    task = load_task(custom(path, max_train_examples=20), seed=0, unlabelled=True)
    assert (len(task.train), task.unlabelled) == (20, ())
    assert (task.rows.unlabelled, task.rows.beyond_unlabelled) == (0, 9)
    [said] = [said for said in task.rows.sentences() if "without an answer" in said]
    assert said.startswith("9 examples")


def test_test_row_without_an_answer_is_refused_as_ever(tmp_path):
    path = write(tmp_path / "rows.jsonl", labelled(20))
    test = write(tmp_path / "test.jsonl", [{"thing": "x", "colour": None}])
    with pytest.raises(DataError, match=r"test.jsonl, line 1: the answer"):
        load_task(custom(path, test_path=str(test)), seed=0, unlabelled=True)


def test_no_column_of_answers_makes_all_rows_unlabelled(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"thing": f"b {n}"} for n in range(5)])
    task = load_task(custom(path, answer=None), seed=0, unlabelled=True)
    assert len(task.unlabelled) == 5
    assert not task.train + task.validation + task.test
    assert task.choices == ("red", "blue")
    assert task.rows.shares() == "train 0.0%, validation 0.0%, test 0.0%"


@pytest.mark.parametrize("given_as", ["letters", "texts"])
def test_choices_of_a_row_without_an_answer_are_read_without_one(tmp_path, given_as):
    rows = [{"thing": f"a {n}", "is": ["x", "y"], "colour": "xy"[n % 2]} for n in range(20)]
    rows.append({"thing": "b", "is": ["x", "y", "z"], "colour": None})
    path = write(tmp_path / "rows.jsonl", rows)
    config = custom(path, choices={"column": "is"}, choices_as=given_as)
    task = load_task(config, seed=0, unlabelled=True)
    [example] = task.unlabelled
    assert example.options == ("x", "y", "z")
    expected = ("A", "B", "C") if given_as == "letters" else ("x", "y", "z")
    assert task.choices_of(example) == expected
    if given_as == "letters":
        assert example.fields["choices"] == "A. x\nB. y\nC. z"
        assert task.choices == ("A", "B", "C")


def test_identity_of_a_task_moves_with_its_unlabelled_rows_and_not_without(tmp_path):
    config = load_config(run_config("model", tmp_path / "r.jsonl", tmp_path))
    whole = write(tmp_path / "a.jsonl", labelled(30))
    more = write(tmp_path / "b.jsonl", [*labelled(30), {"thing": "b", "colour": None}])
    plain, asked, found = (
        Identities(config, load_task(custom(path), seed=3, unlabelled=kept)).task
        for path, kept in ((whole, False), (whole, True), (more, True))
    )
    assert plain == asked != found
