"""Files of the rows in the table of inputs, described by a few words each.

A description is the file's text, or a mapping:

    text: the text; `encoding`, `newline`, `bom`, `compress` (gzip, zst), `cut` change its bytes
    hex: bytes
    rows: a list of objects, or a number of made-up reviews; `as` csv, jsonl, json, parquet or
        dataset, `rename` columns, `more` rows, `index` as of pandas, `after` is a last raw line
    model: true for a copy of the tiny model
    json: changes of a JSON file that is there
    folder: true; pipe: true; link: target; gone: true removes what is there

The text LONG stands for 200,000 characters.
"""

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Description = Mapping[str, Any]


def write_file(path: Path, about: str | Description, tiny_model: Path) -> None:
    """Write one described file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(about, str):
        about = {"text": about}
    if "model" in about:
        shutil.copytree(tiny_model, path)
    elif "folder" in about:
        path.mkdir()
    elif "link" in about:
        path.symlink_to(about["link"])
    elif "pipe" in about:
        os.mkfifo(path)
    elif "gone" in about:
        path.unlink()
    elif "json" in about:
        tree = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(_without_null(tree | about["json"])), encoding="utf-8")
    elif about.get("as") == "dataset":
        _write_dataset(path, about)
    else:
        path.write_bytes(_wrapped(_content(about), about))


def _without_null(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


def _content(about: Description) -> bytes:
    if "hex" in about:
        return bytes.fromhex(about["hex"]) * about.get("times", 1)
    if "rows" in about:
        if about["as"] == "parquet":
            return _parquet(_rows(about), about)
        text = _TEXTS[about["as"]](_rows(about), about) + about.get("after", "")
    else:
        text = about["text"] * about.get("times", 1)
    text = text.replace("\n", about.get("newline", "\n"))
    mark = b"\xef\xbb\xbf" if about.get("bom") else b""
    return mark + text.encode(about.get("encoding", "utf-8"), "surrogatepass")


def _wrapped(data: bytes, about: Description) -> bytes:
    compress = about.get("compress")
    if compress == "gzip":
        data = gzip.compress(data)
    elif compress:
        import pyarrow as pa

        data = pa.compress(data, codec={"zst": "zstd"}.get(compress, compress), asbytes=True)
    return data[: about.get("cut", len(data))]


def _rows(about: Description) -> list[dict[str, Any]]:
    rows = about["rows"]
    if isinstance(rows, int):
        labels = about.get("labels", ["positive", "negative"])
        rows = [
            {"review": f"review number {n} of a film", "label": labels[n % len(labels)]}
            for n in range(rows)
        ]
    if about.get("index"):
        rows = [{"": number, **row} for number, row in enumerate(rows)]
    names = about.get("rename", {})
    rows = [*rows, *about.get("more", ())]
    rows = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    long = "very good " * 20_000
    return [{k: long if v == "LONG" else v for k, v in row.items()} for row in rows]


def _csv(rows: list[dict[str, Any]], about: Description) -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(
        stream, columns, delimiter=about.get("delimiter", ","), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _jsonl(rows: list[dict[str, Any]], about: Description) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _json(rows: list[dict[str, Any]], about: Description) -> str:
    tree: Any = rows if "under" not in about else {about["under"]: rows}
    return json.dumps(tree, ensure_ascii=False, indent=about.get("indent"))


_TEXTS = {"csv": _csv, "jsonl": _jsonl, "json": _json}


def _table(rows: list[dict[str, Any]], about: Description) -> Any:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    for column, kind in about.get("types", {}).items():
        place = table.column_names.index(column)
        values = table.column(column)
        new = values.dictionary_encode() if kind == "dictionary" else values.cast(_type(kind))
        table = table.set_column(place, column, new)
    return table


def _type(kind: str) -> Any:
    import pyarrow as pa

    known = {
        "decimal": pa.decimal128(12, 2),
        "timestamp": pa.timestamp("ms"),
        "date": pa.date32(),
        "large_string": pa.large_string(),
        "binary": pa.binary(),
        "double": pa.float64(),
        "bool": pa.bool_(),
    }
    return known[kind]


def _parquet(rows: list[dict[str, Any]], about: Description) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(_table(rows, about), sink, compression=about.get("codec", "snappy"))
    return sink.getvalue()


def _write_dataset(path: Path, about: Description) -> None:
    """A data set as `save_to_disk` writes it; `splits` makes a DatasetDict of equal parts."""
    import datasets

    datasets.disable_progress_bars()  # the test's own: what is judged is what the command prints
    rows = _rows(about)
    table = datasets.Dataset.from_list(rows)
    if names := about.get("class_names"):
        table = table.cast_column("label", datasets.ClassLabel(names=names))
    if splits := about.get("splits"):
        size = len(rows) // len(splits)
        parts = {s: table.select(range(n * size, (n + 1) * size)) for n, s in enumerate(splits)}
        datasets.DatasetDict(parts).save_to_disk(str(path))
    else:
        table.save_to_disk(str(path))
