"""Prompt files: every format is read, every fault is named with file and line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paft_ray.config.errors import DataError
from paft_ray.prompts.files import read_prompt_files

TEXTS = ["Is it kind? {x}\nAnswer:", 'A "quoted", one {x}', "Größe {x} 好"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_read_jsonl_extra_keys_blank_lines_and_bom_are_fine(tmp_path):
    lines = "\n\n".join(json.dumps({"text": text, "by": 1}) for text in TEXTS)
    assert read_prompt_files(write(tmp_path / "p.jsonl", "\ufeff" + lines + "\n")) == TEXTS


def test_read_csv_quoted_fields_may_span_lines(tmp_path):
    rows = "".join('1,"' + text.replace('"', '""') + '"\r\n' for text in TEXTS)
    assert read_prompt_files(write(tmp_path / "p.CSV", "id,text\r\n" + rows)) == TEXTS


def test_read_parquet_takes_the_column_text(tmp_path):
    pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), tmp_path / "p.parquet")
    assert read_prompt_files(str(tmp_path / "p.parquet")) == TEXTS


def test_read_text_is_one_template_a_line(tmp_path):
    path = write(tmp_path / "p.txt", "Is it kind? {x}\\nAnswer:\n\n  {x}? \n")
    assert read_prompt_files(path) == ["Is it kind? {x}\\nAnswer:", "  {x}? "]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"text": "a"}\n{"text": ', r"p.jsonl, line 2: not valid JSON"),
        ("p.jsonl", '\n["a"]', r"p.jsonl, line 2: \['a'\] is no JSON object: write"),
        ("p.jsonl", '{"prompt": "a"}', r"p.jsonl, line 1: 'text' is missing"),
        ("p.jsonl", '{"text": 3}', r"line 1: 'text' is of type int; every row needs"),
        ("p.jsonl", '{"text": "  "}', r"line 1: 'text' is empty"),
        ("p.jsonl", "[" * 100_000, r"line 1: not valid JSON"),
        ("p.jsonl", b'{"text": "\xff"}', r"p.jsonl, line 1: not UTF-8"),
        ("p.jsonl", "\n", r"p.jsonl: holds no template; add some"),
        ("p.csv", "prompt\na\n", r"p.csv: no column 'text' among \['prompt'\]; rename"),
        ("p.csv", "", r"p.csv: no column 'text' among \[\]"),
        ("p.csv", 'text\na\n""\n', r"p.csv, line 3: 'text' is empty"),
        ("p.csv", 'text\na\n"b', r"p.csv, line 3: not valid CSV"),
        ("p.parquet", "text", r"p.parquet: this is|p.parquet, after row 0: not a readable Parquet"),
        ("p.txt", " \n", r"p.txt: holds no template"),
        ("p.yaml", "text", r"p.yaml: the ending '.yaml' is none of .jsonl, .csv"),
    ],
)
def test_read_faulty_file_is_an_error_with_file_line_and_remedy(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_prompt_files(write(tmp_path / name, content))


def test_read_parquet_null_text_names_the_row(tmp_path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p.parquet, row 2: 'text' is missing"):
        read_prompt_files(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}/absent.jsonl", "absent.jsonl: no such file; name an existing one"),
        ("{tmp}", "a folder; name each file"),
        ("s3://bucket/p.jsonl", "s3://bucket/p.jsonl: not a local path; copy the file"),
    ],
)
def test_read_path_that_names_no_local_file_is_an_error(tmp_path, path, message):
    with pytest.raises(DataError, match=message):
        read_prompt_files(path.replace("{tmp}", str(tmp_path)))


@pytest.mark.parametrize(
    "content", ["text\nSay, kindly, if {x}\n", "text,by\nSay {x},me,too\n", "text,by\nSay {x}\n"]
)
def test_row_with_another_number_of_cells_than_the_header_is_refused(tmp_path, content):
    """An unquoted comma would cut the prompt, and nobody would know."""
    with pytest.raises(DataError, match=r"p\.csv, line 2: .*number of cells.* quote"):
        read_prompt_files(write(tmp_path / "p.csv", content))


def test_read_json_list_tsv_and_compressed_text(tmp_path):
    listed = json.dumps([{"text": text} for text in TEXTS], indent=1)
    assert read_prompt_files(write(tmp_path / "p.json", listed)) == TEXTS
    assert read_prompt_files(write(tmp_path / "p.tsv", "text\tby\nA, b {x}\tme\n")) == ["A, b {x}"]
    packed = gzip.compress(("text\n" + "x" * 200_000 + "\n").encode())
    assert read_prompt_files(write(tmp_path / "p.csv.gz", packed)) == ["x" * 200_000]
