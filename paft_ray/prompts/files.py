"""Prompt templates from files: JSONL, CSV, Parquet or plain text, with errors that name the line.

Covered: reading and checking that every row holds a text. Not covered: whether the text is a
usable template, which is `lint`'s part.
"""

from pathlib import Path

from paft_ray.config.errors import DataError
from paft_ray.config.loading import resolve_path
from paft_ray.tasks.tables import Messages, Row, Table, read_csv, read_jsonl, read_parquet

_FIELD = "text"
_READERS = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
_TEXT = ".txt"
_MESSAGES = Messages(
    json="{where}: not valid JSON ({error}); write one object a line",
    row='{where}: {type}, not an object; write {{"text": ...}}',
    csv="{name}, line {number}: not valid CSV ({error}); quote the field",
    parquet="{name}: not a Parquet file ({error}); write it anew",
    encoding="{name}: not UTF-8 ({reason}); save it as UTF-8",
    column="{name}: no column {column!r} among {columns}; rename the one you mean",
)


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
    if local.is_dir():
        raise DataError(f"{path}: a folder; name each file in it under prompts.files")
    if not local.exists():
        raise DataError(f"{path}: no such file; name an existing one under prompts.files")
    kind = local.suffix.lower()
    if kind not in (*_READERS, _TEXT):
        known = ", ".join((*_READERS, _TEXT))
        raise DataError(f"{path}: the ending {local.suffix!r} is none of {known}; rename the file")
    try:
        texts = _texts(local, path, kind)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check its permissions") from error
    if not texts:
        raise DataError(f"{path}: holds no template; add some, or take it out of prompts.files")
    return texts


def _texts(local: Path, path: str, kind: str) -> list[str]:
    with local.open(encoding="utf-8-sig") as stream:  # whatever it is, it has to be readable
        if kind == _TEXT:
            return [line.rstrip("\n") for line in stream if line.strip()]
    rows = _READERS[kind](Table(local, path, _MESSAGES, _FIELD))
    return [_text_of(row) for row in rows]


def _text_of(row: Row) -> str:
    text = row.values.get(_FIELD)
    if not isinstance(text, str) or not text.strip():
        found = "empty" if isinstance(text, str) else f"of type {type(text).__name__}"
        if text is None:
            found = "missing"
        raise DataError(f"{row.where}: {_FIELD!r} is {found}; every row needs a text, or delete it")
    return text
