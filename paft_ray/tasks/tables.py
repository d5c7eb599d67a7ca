"""Rows of JSONL, JSON, CSV, TSV and Parquet files, one at a time, with their file and line.

The one reader of what users bring, for the rows of tasks and for prompts. Text files are UTF-8, and
may be compressed (`.csv.gz`). Not covered: what a row means.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from paft_ray.config.errors import DataError

READ_TOGETHER = 1024
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, NotImplementedError)
"""What readers of compressed and Parquet files raise; Arrow's own errors are among them."""
_NO_TEXT = {
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: let its name end in .zst",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: unpack it, or export it as CSV in UTF-8",
    b"PAR1": "a Parquet file: let its name end in .parquet",
}
"""The first bytes of files that are no text, to what they are and what helps."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    values: Mapping[str, Any]
    """Column name to value, as the source holds it."""
    where: str
    """File and line, or data set and row counted from 1, for messages."""


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows, which is read lazily; reading raises DataError where the file is broken."""

    path: Path
    name: str
    """The file's name in messages."""
    column: str | None = None
    """A column that CSV and Parquet must have; of Parquet only this one is read."""

    def check_regular(self) -> None:
        """Raise DataError for a pipe or device: files are read more than once, and to their end."""
        if not self.path.is_file():
            raise DataError(f"{self.name}: no regular file: copy its rows into one")

    def check_columns(self, columns: list[str]) -> None:
        """Raise DataError if a name stands twice, or `column` is not among these."""
        for name, count in Counter(columns).items():
            if count > 1 and name:
                raise DataError(
                    f"{self.name}: the column {name!r} stands {count} times in the header: rename "
                    "all but one"
                )
        if self.column is not None and self.column not in columns:
            raise DataError(
                f"{self.name}: no column {self.column!r} among {columns}; rename the one you mean"
            )


def shown(value: Any) -> str:
    """A value for a message, shortened to one line."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."


def table_kind(path: Path) -> str | None:
    """The ending that tells how a file is read, without that of its compression; None if none."""
    compressed = path.suffix.lower() in _COMPRESSED
    kind = (path.with_suffix("") if compressed else path).suffix.lower()
    return kind if kind in _READERS and not (compressed and kind == ".parquet") else None


def read_table(table: Table) -> Iterator[Row]:
    """The rows of a file, by its ending; see `TABLE_ENDINGS`.

    Raises:
        DataError: While rows are taken, the file or a row is broken.
    """
    kind = table_kind(table.path)
    assert kind is not None
    return _READERS[kind](table)


def read_lines(table: Table) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, compressed or not.

    Raises:
        DataError: It is no text in UTF-8.
    """
    number = 0
    try:
        with _open_binary(table) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = _first_line(line, table)
                text = line.decode()
                if "\0" in text:
                    raise DataError(
                        f"{table.name}, line {number}: holds NUL bytes, so it is UTF-16 or no "
                        "text: save it as UTF-8"
                    )
                yield number, text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table.name}, line {number}: not UTF-8 ({error.reason}): save the file as UTF-8"
        ) from error
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(
            f"{table.name}, after line {number}: cannot be read ({shown(error)}): check its "
            "permissions, or copy or write it again"
        ) from error


def _first_line(line: bytes, table: Table) -> bytes:
    for start, what in _NO_TEXT.items():
        if line.startswith(start):
            raise DataError(f"{table.name}: this is {what}")
    return line.removeprefix(b"\xef\xbb\xbf")


def _open_binary(table: Table) -> BinaryIO:
    table.check_regular()
    opened: Any = _COMPRESSED.get(table.path.suffix.lower(), open)(table.path, "rb")
    return opened


def _open_zstd(path: Path, mode: str) -> io.BufferedReader:
    import pyarrow as pa

    stream: Any = pa.CompressedInputStream(pa.OSFile(str(path), mode), "zstd")
    return io.BufferedReader(stream)


def _read_jsonl(table: Table) -> Iterator[Row]:
    """The objects of a file with one per line; empty lines are skipped."""
    return _objects(read_lines(table), table)


def _objects(lines: Iterable[tuple[int, str]], table: Table) -> Iterator[Row]:
    decode = json.JSONDecoder(object_pairs_hook=_without_repeats).decode
    for number, line in lines:
        if line.strip():
            where = f"{table.name}, line {number}"
            try:
                values = decode(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: not valid JSON ({shown(error)}): write one object per line"
                ) from error
            yield _object_row(values, where)


def _read_json(table: Table) -> Iterator[Row]:
    """The objects of a file that holds one list of them, or one per line."""
    lines = [line for _, line in read_lines(table)]
    text = "".join(lines)
    if not text.lstrip().startswith("["):
        yield from _objects(enumerate(lines, 1), table)
        return
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    counted, line = 0, 1
    place = _after_blanks(text, text.index("[") + 1)
    if text.startswith("]", place):
        place = _after_blanks(text, place + 1)
    else:
        while True:
            line, counted = line + text.count("\n", counted, place), place
            where = f"{table.name}, line {line}"
            try:
                values, place = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: not valid JSON ({shown(error)}): write a list of objects, or one "
                    "object per line"
                ) from error
            yield _object_row(values, where)
            place = _after_blanks(text, place)
            mark, place = text[place : place + 1], _after_blanks(text, place + 1)
            if mark == "]":
                break
            if mark != ",":
                raise DataError(
                    f"{where}: not valid JSON (a comma or ] is missing after this object): write "
                    "the file again"
                )
    if place < len(text):
        raise DataError(f"{table.name}: not valid JSON (text after the list): write it again")


def _after_blanks(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name!r} stands twice in one object")
    return found


def _object_row(values: Any, where: str) -> Row:
    if not isinstance(values, dict):
        raise DataError(f"{where}: {shown(values)} is no JSON object: write one object per line")
    return Row(values, where)


def _read_csv(table: Table, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a file with a header; cells are texts."""
    csv.field_size_limit(sys.maxsize)  # by default 131,072 characters
    reader = csv.reader(_csv_lines(table), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            number = reader.line_num
            where = f"{table.name}, line {number}"
            if header is None:
                table.check_columns(cells)
                header = cells
            elif cells:
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: the row has another number of cells ({len(cells)}) than the "
                        f"header ({len(header)}){other_separator(header)}: quote cells that hold "
                        'commas or newlines, as in "a, b"'
                    )
                yield Row(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:
        raise DataError(
            f"{table.name}, line {number + 1}: not valid CSV ({error}): quote the cell, and double "
            "quotes inside quoted cells"
        ) from error
    if header is None:
        table.check_columns([])


def other_separator(columns: Iterable[str]) -> str:
    """A hint where all columns were read as one; else empty."""
    [only, *others] = columns or [""]
    mark = next((mark for mark in (";", "\t", "|") if mark in only), None)
    if others or mark is None:
        return ""
    return f" (this one holds {mark!r}: separate cells by commas, or by tabs in a .tsv file)"


def _csv_lines(table: Table) -> Iterator[str]:
    for _, line in read_lines(table):
        if "\r" in line[:-2]:  # the only line ends of old files
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _read_tsv(table: Table) -> Iterator[Row]:
    return _read_csv(table, "\t")


NARROW = ("float32", "float16")
"""Types of numbers that have fewer digits than Python's."""
NARROW_OF_ARROW = {"float": "float32", "halffloat": "float16"}


def shortest(value: Any, dtype: str) -> Any:
    """A number of a column in few bits, with the digits that its author wrote: 33.1 as 33.1.

    Python would show all digits of the nearest number that few bits can hold.
    """
    import numpy as np

    return float(str(np.dtype(dtype).type(value))) if isinstance(value, float) else value


def _read_parquet(table: Table) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    table.check_regular()
    try:
        with pq.ParquetFile(table.path) as file:
            table.check_columns(file.schema_arrow.names)
            columns = None if table.column is None else [table.column]
            kinds = {f.name: NARROW_OF_ARROW.get(str(f.type), "") for f in file.schema_arrow}
            narrow = {column: dtype for column, dtype in kinds.items() if dtype}
            for batch in file.iter_batches(batch_size=READ_TOGETHER, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    for column in narrow.keys() & values.keys():
                        values[column] = shortest(values[column], narrow[column])
                    yield Row(values, f"{table.name}, row {number}")
    except DataError:
        raise
    except (*_UNREADABLE, pa.ArrowException) as error:
        raise DataError(
            f"{table.name}, after row {number}: not a readable Parquet file ({shown(error)}): "
            "write it again"
        ) from error


_COMPRESSED: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
_READERS: Mapping[str, Callable[[Table], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".ndjson": _read_jsonl,
    ".tsv": _read_tsv,
}
TABLE_ENDINGS = tuple(_READERS)
"""Endings of files that rows are read from; all but Parquet may be followed by a compression's."""
COMPRESSIONS = tuple(_COMPRESSED)
"""Endings of compressed files."""
