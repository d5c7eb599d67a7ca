"""Rows of JSONL, CSV and Parquet files, one at a time, with their file and line."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_ray.config.errors import DataError

READ_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    values: Mapping[str, Any]
    """Column name to value, as the source holds it."""
    where: str
    """File and line, or data set and row counted from 1, for messages."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Error messages for a broken file, as format strings."""

    json: str
    """With `where` and `error`."""
    row: str
    """For JSON that is no object; with `where`, `value` and its `type`."""
    csv: str
    """With `name`, `number` of the last line that was read, and `error`."""
    parquet: str
    """With `name`, `number` of the last row that was read, and `error`."""
    encoding: str = ""
    """For a file that is not UTF-8, with `name` and `reason`; empty for the format's message."""
    column: str = ""
    """For a file without the needed column; with `name`, `column` and its `columns`."""


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows, which is read lazily; reading raises DataError where the file is broken."""

    path: Path
    name: str
    """The file's name in messages."""
    messages: Messages
    column: str | None = None
    """A column that CSV and Parquet must have; of Parquet only this one is read."""

    def require_column(self, columns: list[str]) -> None:
        """Raise DataError if `column` is not among these."""
        if self.column is not None and self.column not in columns:
            text = self.messages.column
            raise DataError(text.format(name=self.name, column=self.column, columns=columns))

    def broken(self, text: str, error: Exception, **known: object) -> DataError:
        """The error for a fault: `text` is one of the messages, `known` its values."""
        if isinstance(error, UnicodeDecodeError) and self.messages.encoding:
            return DataError(self.messages.encoding.format(name=self.name, reason=error.reason))
        return DataError(text.format(name=self.name, error=shown(error), **known))


def shown(value: Any) -> str:
    """A value for a message, shortened to one line."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."


def read_jsonl(table: Table) -> Iterator[Row]:
    """The objects of a file with one per line; empty lines are skipped."""
    with table.path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{table.name}, line {number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise table.broken(table.messages.json, error, where=where) from error
            if not isinstance(values, dict):
                known = {"value": shown(values), "type": type(values).__name__}
                raise DataError(table.messages.row.format(where=where, **known))
            yield Row(values, where)


def read_csv(table: Table) -> Iterator[Row]:
    """The rows of a file with a header; cells are texts."""
    with table.path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            table.require_column(list(reader.fieldnames or ()))
            for values in reader:
                yield Row(values, f"{table.name}, line {reader.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            number = reader.line_num
            raise table.broken(table.messages.csv, error, number=number) from error


def read_parquet(table: Table) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(table.path) as file:
            table.require_column(file.schema_arrow.names)
            columns = None if table.column is None else [table.column]
            for batch in file.iter_batches(batch_size=READ_TOGETHER, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{table.name}, row {number}")
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise table.broken(table.messages.parquet, error, number=number) from error
