"""Shapes of data that people bring: read as they mean them, or refused with the place."""

import datetime
import decimal
import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paft_ray.config import CustomTaskConfig
from paft_ray.config.errors import DataError
from paft_ray.tasks import load_task
from paft_ray.tasks.example import SPLITS
from paft_ray.tasks.tables import Row
from paft_ray.tasks.values import column_value

COUNT = 40


def task_of(path, **changes):
    settings = {
        "type": "custom",
        "name": "shapes",
        "description": "Say which of the two it is.",
        "path": path if isinstance(path, list) else str(path),
        "fields": {"text": "text"},
        "answer": "label",
        "choices": ["a", "b"],
    }
    return load_task(CustomTaskConfig.model_validate({**settings, **changes}), seed=0)


def examples_of(task):
    return [example for split in SPLITS for example in task.examples(split)]


def answers_of(task):
    return {e.fields["text"]: e.answer for e in examples_of(task)}


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_paths_lead_into_structs_lists_and_texts():
    values = {
        "q.x": "literal", "q": {"x": "nested", "a b.c": [{"t": 1}, {"t": 2}]},
        "written": '{"text": ["u", null, true]}', "none": None,
    }  # fmt: skip
    row = Row(values, "f, line 1")
    assert column_value(row, "q.x") == "literal"
    assert column_value(row, "q.a b.c[1].t") == 2
    assert column_value(row, "written.text[0]") == "u"
    assert column_value(row, "written.text[1]") is None
    assert column_value(row, "none.text[0]") is None
    for path in ("q.y", "q.a b.c[2].t", "q.a b.c[0].no", "written.text[0][0]"):
        with pytest.raises(DataError, match=r"f, line 1: column .* (no entry|no list)"):
            column_value(row, path)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ((0, 1), {"0": "a", "1": "b"}),
        ((0.0, 1.0), {"0": "a", "1": "b"}),
        (("0.0", "1.0"), {"0": "a", "1": "b"}),
        ((0, 1), {"0.0": "a", "1.0": "b"}),
        (("TRUE", "FALSE"), {"true": "a", "false": "b"}),
        ((True, False), {"True": "a", "False": "b"}),
    ],
)
def test_labels_are_found_however_numbers_and_truth_are_spelled(tmp_path, cells, labels):
    rows = [{"text": f"t{n}", "label": cells[n % 2]} for n in range(COUNT)]
    found = answers_of(task_of(write_lines(tmp_path / "r.jsonl", rows), labels=labels))
    assert found == {f"t{n}": "ab"[n % 2] for n in range(COUNT)}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("labels", [{}, {"schön": "é", "Übel": "ô"}])
def test_answer_in_another_unicode_form_is_the_choice_as_the_configuration_writes_it(
    tmp_path, form, labels
):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    choices = [unicodedata.normalize(form, choice) for choice in ("é", "ô")]
    said = [unicodedata.normalize(other, text) for text in (labels or choices)]
    rows = [{"text": f"t{n}", "label": f" {said[n % 2]} "} for n in range(COUNT)]
    path = write_lines(tmp_path / "r.jsonl", rows)
    mapped = {unicodedata.normalize(form, label): choice for label, choice in labels.items()}
    mapped = {label: unicodedata.normalize(form, choice) for label, choice in mapped.items()}
    found = answers_of(task_of(path, choices=choices, **({"labels": mapped} if labels else {})))
    assert found == {f"t{n}": choices[n % 2] for n in range(COUNT)}


def test_null_in_one_of_several_fields_is_read_as_empty_and_counted(tmp_path):
    rows = [{"text": f"t{n}", "more": None, "label": "ab"[n % 2]} for n in range(COUNT)]
    path = write_lines(tmp_path / "r.jsonl", rows)
    task = task_of(path, fields={"text": "text", "more": "more"})
    assert task.rows.empty_fields == COUNT
    assert {e.fields["more"] for e in examples_of(task)} == {""}


def test_parquet_types_are_read_as_text_and_bytes_that_are_none_are_refused(tmp_path):
    table = {
        "text": pa.array([f"t{n}" for n in range(COUNT)], pa.large_string()),
        "label": pa.array(["ab"[n % 2] for n in range(COUNT)]).dictionary_encode(),
        "price": pa.array([decimal.Decimal("1.50")] * COUNT),
        "at": pa.array([datetime.datetime(2020, 1, 2, 3)] * COUNT),
        "raw": pa.array([b"\xff"] * COUNT),
    }
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    fields = {"text": "text", "price": "price", "at": "at"}
    example = examples_of(task_of(tmp_path / "r.parquet", fields=fields))[0]
    assert (example.fields["price"], example.fields["at"]) == ("1.50", "2020-01-02 03:00:00")
    with pytest.raises(DataError, match=r"r\.parquet, row 1: column 'raw' is b'.*no single text"):
        task_of(tmp_path / "r.parquet", fields={"raw": "raw"})


@pytest.mark.parametrize("names", [["b", "a"], ["1", "2"], ["e\u0301", "o\u0302"]])
def test_names_of_labels_go_before_their_numbers(tmp_path, names):
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"t{n}" for n in range(COUNT)], "label": [n % 2 for n in range(COUNT)]}
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    choices = [unicodedata.normalize("NFC", name) for name in names]
    found = answers_of(task_of(tmp_path / "set", choices=sorted(choices)))
    assert found == {f"t{n}": choices[n % 2] for n in range(COUNT)}


def test_named_splits_of_a_saved_data_set_serve_as_what_they_are_said_to(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(COUNT)]
    parts = {"tr": rows[:30], "dev": rows[28:34], "te": rows[33:]}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(
        str(tmp_path / "set")
    )
    task = task_of(tmp_path / "set", splits={"train": "tr", "validation": "dev", "test": "te"})
    assert [len(task.examples(split)) for split in SPLITS] == [28, 5, 7]
    assert task.rows.in_held_out == 3
    with pytest.raises(DataError, match=r"task\.splits\.train is 'no', .*dev, te, tr"):
        task_of(tmp_path / "set", splits={"train": "no"})


def test_list_and_pattern_of_files_are_read_together(tmp_path):
    rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(COUNT)]
    one, two = (write_lines(tmp_path / f"{k}.jsonl", rows[k::2]) for k in (0, 1))
    whole = task_of(write_lines(tmp_path / "whole.jsonl", rows))
    assert task_of([str(one), str(two)]).train == whole.train
    assert task_of(tmp_path / "[01].jsonl").train == whole.train
    with pytest.raises(DataError, match=r"task\.path: no file fits the pattern"):
        task_of(tmp_path / "*.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", "text,label\nx,a\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("r.csv", "text,label\nx,a\n".encode("utf-16-le"), "line 1: holds NUL bytes"),
        ("r.csv", b"text,label,label\nx,a,b\n", "'label' stands 2 times in the header"),
        ("r.csv", b"text;label\nx;a\n", r"line 2: .*'text;label'.*holds ';'"),
        ("r.csv", b"text;label\nx, y;a\n", r"line 2: .*header \(1\) \(this one holds ';'"),
        ("r.csv", b"text,label\nx, y,a\n", r"line 2: .*cells \(3\).*header \(2\): quote"),
        ("r.csv.gz", b"text,label\n", "cannot be read .*gzip"),
        ("r.jsonl", b'{"text": "x", "text": "y", "label": "a"}', "line 1: .*'text' stands twice"),
        ("r.json", b'[{"text": "x", "label": "a"},\n 3]', "line 2: 3 is no JSON object"),
        ("r.json", b'[{"text": "x", "label": "a"}', "line 1: not valid JSON"),
        ("r.jsonl", b'{"text": Infinity, "label": "a"}', "line 1: column 'text' is inf"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        task_of(tmp_path / name)
