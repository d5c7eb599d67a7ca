"""Rows of a task from a file, a saved data set, or the Hugging Face hub.

Covered: JSONL, CSV and Parquet files (through `tables`); folders saved by Hugging Face `datasets`
(`Dataset`, `DatasetDict`, or a folder of such folders, one per split); data sets on the hub. Not
covered: the meaning of a row (`loading`).
"""

import ast
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paft_ray.config.errors import DataError
from paft_ray.tasks.tables import (
    READ_TOGETHER,
    Messages,
    Row,
    Table,
    read_csv,
    read_jsonl,
    read_parquet,
    shown,
)

logger = logging.getLogger(__name__)

_INDEXED = re.compile(r"(?P<column>.+)\[(?P<index>\d+)\]")
_MESSAGES = Messages(
    json="{where}: not valid JSON ({error}): write one object per line, in UTF-8",
    row="{where}: {value} is no JSON object: write one object per line",
    csv="{name}, after line {number}: not valid CSV ({error}): write UTF-8, and double quotes "
    "inside quoted cells",
    parquet="{name}, after row {number}: not a readable Parquet file ({error}): write it again",
)


def read_rows(path: Path) -> dict[str, Iterator[Row]]:
    """Rows of a file or of a saved data set, by split; a single split has an empty name.

    Raises:
        DataError: The file is missing or of an unknown kind; while rows are taken, a row is broken.
    """
    if path.is_dir():
        return _saved_rows(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; task.path names JSONL, CSV, Parquet, or a folder "
            "saved by Hugging Face datasets"
        )
    readers = {
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".json": read_jsonl,
        ".csv": _csv_rows,
        ".parquet": read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'no ending'!r} is no kind of file that rows are read from; "
            f"use one of {', '.join(readers)}"
        )
    return {"": reader(Table(path, str(path), _MESSAGES))}


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
    """A row's value in a column; `column[2]` is an entry of a list, which may be written as text.

    Raises:
        DataError: There is no such column or entry, or it is empty.
    """
    value = row.values.get(column)
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


def _csv_rows(table: Table) -> Iterator[Row]:
    for row in read_csv(table):
        if None in row.values or None in row.values.values():
            raise DataError(
                f"{row.where}: the row has another number of cells than the header's "
                f"{sum(column is not None for column in row.values)}: quote cells that hold commas "
                "or newlines"
            )
        yield row


def declared_splits(path: Path) -> tuple[str, ...]:
    """The splits that a saved data set lists, whether or not their files exist."""
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
    for batch in dataset.iter(batch_size=READ_TOGETHER):
        columns = list(batch)
        for cells in zip(*batch.values(), strict=True):
            number += 1
            yield Row(dict(zip(columns, cells, strict=True)), f"{where}, row {number}")
