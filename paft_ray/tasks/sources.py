"""Rows of a task from where they lie: a file, a saved data set, the Hugging Face hub.

Covered: JSONL, CSV and Parquet files; folders saved by Hugging Face `datasets`, whether `Dataset`,
`DatasetDict` or a folder of such folders, one per split; data sets on the hub. Not covered: what
a row means, which is `load`. Rows are read one at a time, and each knows its file and line.
"""

import ast
import csv
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_ray.config.errors import DataError

logger = logging.getLogger(__name__)

_INDEXED = re.compile(r"(?P<column>.+)\[(?P<index>\d+)\]")
_READ_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    values: Mapping[str, Any]
    """Column name to value, as the source holds it."""
    where: str
    """File and line, or data set and row counted from 1, for messages."""


def read_rows(path: Path) -> dict[str, Iterator[Row]]:
    """Rows of a file or of a saved data set, by split; the name is empty where there is but one.

    Raises:
        DataError: Nothing is there, or its kind is unknown; while rows are taken, a row is broken.
    """
    if path.is_dir():
        return _saved_rows(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; task.path names JSONL, CSV, Parquet, or a folder "
            "saved by Hugging Face datasets"
        )
    readers = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _jsonl_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'no ending'!r} is no kind of file that rows are read from; "
            f"use one of {', '.join(readers)}"
        )
    return {"": reader(path)}


def read_hub(name: str, config: str | None) -> dict[str, Iterator[Row]]:
    """Rows of a data set on the Hugging Face hub (or in its local cache), by split.

    Raises:
        DataError: The hub cannot be reached, or has no such data set.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        loaded = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"data set {name!r} cannot be read from the Hugging Face hub ({shown(error)}): "
            "check the network and HF_HUB_OFFLINE, or set task.path to a local copy"
        ) from error
    return {str(split): _dataset_rows(rows, f"{name}, {split}") for split, rows in loaded.items()}


def column_value(row: Row, column: str) -> Any:
    """A row's value in a column; `column[2]` is an entry of a list, which may be spelled as text.

    Raises:
        DataError: There is no such column or entry, or it holds nothing.
    """
    value, indexed = row.values.get(column), None
    if column not in row.values:
        indexed = _INDEXED.fullmatch(column)
        if indexed is None or indexed["column"] not in row.values:
            raise DataError(
                f"{row.where}: there is no column {column!r} among {_names(row.values)}; "
                "every row needs it: mend the data, or map another column in task.fields"
            )
        value = _entry(row, indexed["column"], int(indexed["index"]))
    if value is None or value != value:
        raise DataError(
            f"{row.where}: column {column!r} holds no value; every row needs one: "
            "fill it in or remove the row"
        )
    return value


def text_of(value: Any) -> str | None:
    """A cell's value as text, whole floats as integers; None where it is no single value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int | float) else None


def shown(value: Any) -> str:
    """A value for a message: on one line, and short."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, values)) if len(values) <= 12 else f"{len(values)} columns"


def _entry(row: Row, column: str, index: int) -> Any:
    value = row.values[column]
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(
                f"{row.where}: column {column!r} is {shown(row.values[column])}, which is no "
                "list: write it as a JSON list or as ['a', 'b']"
            ) from error
    if not isinstance(value, list | tuple) or index >= len(value):
        raise DataError(
            f"{row.where}: column {column!r} is {shown(value)}, which has no entry {index}: "
            "every row needs a list that is long enough"
        )
    return value[index]


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: not valid JSON ({shown(error)}): write one object per line, in UTF-8"
                ) from error
            if not isinstance(values, dict):
                raise DataError(
                    f"{where}: {shown(values)} is no JSON object: write one object per line"
                )
            yield Row(values, where)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise DataError(
                        f"{where}: the row has another number of cells than the header's "
                        f"{len(reader.fieldnames or ())}: quote cells that hold commas or newlines"
                    )
                yield Row(values, where)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, after line {reader.line_num}: not valid CSV ({shown(error)}): "
                "write UTF-8, and double quotes inside quoted cells"
            ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_READ_TOGETHER):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{path}, row {number}")
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            f"{path}, after row {number}: not a readable Parquet file ({shown(error)}): write it "
            "again"
        ) from error


def declared_splits(path: Path) -> tuple[str, ...]:
    """The splits that a saved data set says it has, whether or not they are there."""
    about = path / "dataset_dict.json"
    try:
        return tuple(json.loads(about.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _saved_rows(folder: Path) -> dict[str, Iterator[Row]]:
    """Splits of a folder that holds a `DatasetDict`, a `Dataset`, or a `Dataset` per subfolder."""
    if (folder / "state.json").is_file():
        return {"": _dataset_rows(_load_saved(folder), str(folder))}
    splits = sorted(p.parent for p in folder.glob("*/state.json"))
    if not splits:
        deeper = ", ".join(sorted({p.parents[1].name for p in folder.glob("*/*/state.json")}))
        raise DataError(
            f"{folder}: no data set saved by Hugging Face datasets is in this folder"
            f"{f', but in its {deeper}' if deeper else ''}; name the folder that "
            "save_to_disk wrote, or a JSONL, CSV or Parquet file"
        )
    return {split.name: _dataset_rows(_load_saved(split), str(split)) for split in splits}


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: the saved data set cannot be read ({shown(error)}): save it again with "
            "save_to_disk"
        ) from error


def _dataset_rows(dataset: Any, where: str) -> Iterator[Row]:
    number = 0
    for batch in dataset.iter(batch_size=_READ_TOGETHER):
        columns = list(batch)
        for cells in zip(*batch.values(), strict=True):
            number += 1
            yield Row(dict(zip(columns, cells, strict=True)), f"{where}, row {number}")
