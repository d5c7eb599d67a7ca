"""Prompt templates from files: JSONL, CSV, Parquet or plain text, with errors that name the line.

Covered: reading and checking that every row holds a text. Not covered: whether the text is a
usable template, which is `template.lint`'s part.
"""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paft_ray.config.errors import DataError
from paft_ray.config.loading import resolve_path

_FIELD = "text"


def read_prompt_files(path: str) -> list[str]:
    r"""The templates of one file, in its order.

    The ending decides: `.jsonl` has objects with `text`, `.csv` and `.parquet` a column `text`,
    and `.txt` one template a line, in which a literal `\n` stands for a line end. Empty lines of
    text and JSONL files are passed over.

    Raises:
        DataError: No such file, an unknown ending, a row without text, or no template at all.
        ConfigError: `pkg:` names a package that is not installed.
    """
    local = resolve_path(path)
    if local is None:
        raise DataError(f"{path}: not a local path; copy the file here and name it by its path")
    read = _READERS.get(local.suffix.lower())
    if local.is_dir():
        raise DataError(f"{path}: a folder; name each file in it under prompts.files")
    if not local.exists():
        raise DataError(f"{path}: no such file; name an existing one under prompts.files")
    if read is None:
        known = ", ".join(_READERS)
        raise DataError(f"{path}: the ending {local.suffix!r} is none of {known}; rename the file")
    try:
        texts = read(local, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check its permissions") from error
    if not texts:
        raise DataError(f"{path}: holds no template; add some, or take it out of prompts.files")
    return texts


def _read_jsonl(local: Path, path: str) -> list[str]:
    texts = []
    with local.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: not valid JSON ({error}); write one object a line"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f'{where}: {type(row).__name__}, not an object; write {{"text": ...}}'
                )
            texts.append(_text_of(row, where))
    return texts


def _read_csv(local: Path, path: str) -> list[str]:
    with local.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)
        try:
            _require_column(rows.fieldnames or (), path)
            return [_text_of(row, f"{path}, line {rows.line_num}") for row in rows]
        except csv.Error as error:
            raise DataError(
                f"{path}, line {rows.line_num}: not valid CSV ({error}); quote the field"
            ) from error


def _read_parquet(local: Path, path: str) -> list[str]:
    try:
        names = pq.read_schema(local).names
        _require_column(names, path)
        column = pq.read_table(local, columns=[_FIELD])[_FIELD].to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}); write it anew") from error
    return [
        _text_of({_FIELD: text}, f"{path}, row {number}")
        for number, text in enumerate(column, start=1)
    ]


def _read_text(local: Path, path: str) -> list[str]:
    with local.open(encoding="utf-8-sig") as stream:
        lines = (line.rstrip("\n") for line in stream)
        return [line for line in lines if line.strip()]


def _require_column(names: object, path: str) -> None:
    columns = list(names) if isinstance(names, list | tuple) else []
    if _FIELD not in columns:
        raise DataError(f"{path}: no column {_FIELD!r} among {columns}; rename the one you mean")


def _text_of(row: Mapping[str, object], where: str) -> str:
    text = row.get(_FIELD)
    if not isinstance(text, str) or not text.strip():
        found = "empty" if isinstance(text, str) else f"of type {type(text).__name__}"
        if text is None:
            found = "missing"
        raise DataError(f"{where}: {_FIELD!r} is {found}; every row needs a text, or delete it")
    return text


_READERS: Mapping[str, Callable[[Path, str], list[str]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
