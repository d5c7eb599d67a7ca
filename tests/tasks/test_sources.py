"""Rows from files, saved data sets and the hub, and errors where they are broken."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paft_ray.config.errors import DataError
from paft_ray.tasks.sources import read_rows
from paft_ray.tasks.tables import Row
from paft_ray.tasks.values import column_value, text_of

VALUES = [
    {"text": 'a, "b"', "label": "1"},
    {"text": "two\nlines", "label": "01"},
    {"text": "ünï \U0001f600", "label": "true"},
]


def rows_of(path: Path, split: str = "") -> list[Row]:
    return list(read_rows(path)[split].rows)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, values: list[dict], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(values[0]))
        writer.writeheader()
        writer.writerows(values)
    return path


def saved(values: list[dict]):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(values)


def test_jsonl_yields_every_row_with_its_line(tmp_path):
    text = "\n".join(json.dumps(v) for v in VALUES).replace("\n", "\n\n", 1)
    rows = rows_of(write(tmp_path / "a.jsonl", "\ufeff" + text))
    assert [r.values for r in rows] == VALUES
    assert [r.where for r in rows] == [f"{tmp_path / 'a.jsonl'}, line {n}" for n in (1, 3, 4)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_yields_every_cell_as_the_text_it_is(tmp_path, encoding):
    rows = rows_of(write_csv(tmp_path / "a.csv", VALUES, encoding))
    assert [r.values for r in rows] == VALUES
    assert rows[1].where.endswith("line 4")  # the row ends there: it holds a line end


def test_parquet_yields_every_row_with_its_number(tmp_path):
    values = [{"text": f"t{n}", "options": ["a", str(n)]} for n in range(2500)]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet")
    assert [r.values for r in rows] == values
    assert rows[-1].where.endswith("row 2500")


def test_saved_dataset_yields_every_row(tmp_path):
    values = [{"text": f"t{n}", "options": ["a", str(n)]} for n in range(1500)]
    saved(values).save_to_disk(tmp_path / "set")
    rows = rows_of(tmp_path / "set")
    assert [r.values for r in rows] == values
    assert rows[-1].where.endswith("row 1500")


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_number_of_few_bits_has_the_digits_that_were_written(tmp_path, kind):
    numbers = [33.1, 0.1, 3.0, None]
    column = pa.array(numbers, pa.float64()).cast(
        {"float32": pa.float32(), "float16": pa.float16()}[kind]
    )
    pq.write_table(pa.table({"n": column}), tmp_path / "a.parquet")
    assert [row.values["n"] for row in rows_of(tmp_path / "a.parquet")] == numbers
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"n": datasets.Value(kind)})
    datasets.Dataset.from_dict({"n": numbers}, features).save_to_disk(tmp_path / "set")
    assert [row.values["n"] for row in rows_of(tmp_path / "set")] == numbers


@pytest.mark.parametrize(
    "settings", [{"type": "pandas"}, {"type": "numpy"}, {"type": "arrow"}, {"columns": ["text"]}]
)
def test_format_that_was_saved_with_a_dataset_changes_no_value(tmp_path, settings):
    values = [{"text": f"t{n}", "label": n % 2} for n in range(5)]
    saved(values).with_format(**settings).save_to_disk(tmp_path / "set")
    found = [row.values for row in rows_of(tmp_path / "set")]
    assert found == values
    assert {type(row["label"]) for row in found} == {int}


def test_saved_dataset_dict_yields_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = {"train": saved(VALUES), "test": saved(VALUES[:1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    assert {split: len(list(p.rows)) for split, p in read_rows(tmp_path / "set").items()} == {
        "train": 3,
        "test": 1,
    }


def test_folder_around_one_saved_dataset_yields_it_under_its_name(tmp_path):
    saved(VALUES).save_to_disk(tmp_path / "set" / "validation")
    splits = read_rows(tmp_path / "set")
    assert list(splits) == ["validation"]
    assert [r.values for r in splits["validation"].rows] == VALUES


BROKEN = [
    ("a.jsonl", '{"a": 1}\n{"a": \n', ["line 2", "not valid JSON", "one object per line"]),
    ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["line 2", "not UTF-8", "save"]),
    ("a.jsonl", '{"a": 1}\n[1, 2]\n', ["line 2", "[1, 2]", "no JSON object"]),
    ("a.csv", "a,b\n1,2\n1\n", ["line 3", "another number of cells", "2", "quote"]),
    ("a.csv", "a,b\n1,2\n1,2,3\n", ["line 3", "another number of cells", "2", "quote"]),
    ("a.csv", b"a,b\n1,2\n1,\xff\n", ["line 3", "not UTF-8", "save"]),
    ("a.csv", 'a,b\n1,2\n"1" x,2\n', ["line 3", "not valid CSV", "double quotes"]),
    ("a.parquet", b"PAR1 no more", ["row 0", "not a readable Parquet", "write it again"]),
    ("a.xlsx", "x", ["'.xlsx'", ".jsonl", ".csv", ".parquet"]),
    ("a", "x", ["'no ending'", "use one of"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BROKEN)
def test_broken_file_is_refused_with_place_rule_and_remedy(tmp_path, name, content, parts):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_rows_before_a_broken_one_are_readable(tmp_path):
    rows = read_rows(write(tmp_path / "a.jsonl", '{"a": 1}\nnonsense\n'))[""].rows
    assert next(rows).values == {"a": 1}
    with pytest.raises(DataError, match="line 2"):
        next(rows)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: no such file.*task\.path names"):
        read_rows(tmp_path / "no.jsonl")


def test_folder_without_a_data_set_is_refused(tmp_path):
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=r"no data set saved .* save_to_disk .*\*\.parquet"):
        read_rows(tmp_path)
    saved(VALUES).save_to_disk(tmp_path / "plain" / "validation")
    with pytest.raises(DataError, match=r"no data set saved .* but in its plain; name"):
        read_rows(tmp_path)


@pytest.mark.parametrize("torn", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_torn_saved_dataset_is_refused(tmp_path, torn):
    saved(VALUES).save_to_disk(tmp_path / "set")
    whole = (tmp_path / "set" / torn).read_bytes()
    write(tmp_path / "set" / torn, whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"set: .*(cannot be read|save it again)"):
        rows_of(tmp_path / "set")


def test_hub_when_offline_is_refused_with_a_remedy_and_without_torch():
    """In a process of its own, since the hub's libraries read the environment when imported."""
    code = (
        "import sys\n"
        "from paft_ray.config.errors import DataError\n"
        "from paft_ray.tasks.sources import read_hub\n"
        "try:\n"
        "    read_hub('nobody/nothing', 'main')\n"
        "except DataError as error:\n"
        "    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (message,) = done.stdout.splitlines()
    assert "'nobody/nothing'" in message
    assert "HF_HUB_OFFLINE" in message
    assert "task.path" in message


def test_column_value_prefers_a_column_of_exactly_that_name():
    row = Row({"a[0]": "exact", "a": ["entry"]}, "x, line 1")
    assert column_value(row, "a[0]") == "exact"
    assert column_value(Row({"a": ["entry"]}, "x, line 1"), "a[0]") == "entry"


@pytest.mark.parametrize("text", ["['a', 'b']", '["a", "b"]', "('a', 'b')"])
def test_column_value_reads_a_list_that_is_spelled_as_text(text):
    assert column_value(Row({"c": text}, "x, line 1"), "c[1]") == "b"


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "[x for x in 'ab']", "[open('x')]", "[" * 5000, "['a' 1"]
)
def test_column_value_never_evaluates_text(text):
    with pytest.raises(DataError, match=r"line 1: .*no list"):
        column_value(Row({"c": text}, "x, line 1"), "c[0]")


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "true"), (["a"], None), ({}, None)],
)
def test_text_of_gives_single_values_as_text(value, text):
    assert text_of(value) == text
