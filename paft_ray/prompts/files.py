"""Prompt templates from files: tables or plain text, with errors that name the line.

Covered: reading and checking that every row holds a text. Not covered: whether the text is a
usable template, which is `lint`'s part.
"""

from collections.abc import Iterator
from pathlib import Path

from paft_ray.config.errors import DataError
from paft_ray.config.loading import resolve_path
from paft_ray.prompts.stock import STOCK, stock_templates
from paft_ray.prompts.template import is_flattened
from paft_ray.tasks.example import Task
from paft_ray.tasks.tables import TABLE_ENDINGS, Row, Table, read_lines, read_table, table_kind

_FIELD = "text"
_TEXT = ".txt"


def read_templates(location: str, task: Task) -> list[str]:
    """The templates of an entry of `prompts.files`: a file, or a part of the stock for this task.

    Raises:
        DataError: See `read_prompt_files` and `stock_templates`.
        ConfigError: `pkg:` names a package that is not installed.
    """
    in_stock = location.startswith(STOCK)
    return stock_templates(location, task) if in_stock else read_prompt_files(location)


def read_prompt_files(path: str) -> list[str]:
    r"""The templates of one file, in its order.

    The ending decides: tables (`.jsonl`, `.csv`, `.parquet` and the others that tasks are read
    from) have a column `text`, and `.txt` has one template a line, in which a literal `\n` stands
    for a line end. Empty lines of text and JSONL files are passed over.

    Raises:
        DataError: No such file, an unknown ending, a row without text, or no template at all.
        ConfigError: `pkg:` names a package that is not installed.
    """
    local = resolve_path(path)
    if local is None:
        raise DataError(f"{path}: not a local path; copy the file here and name it by its path")
    if local.is_dir():
        raise DataError(f"{path}: a folder; name each file in it")
    if not local.exists():
        raise DataError(f"{path}: no such file; name an existing one")
    texts = list(_texts(local, path))
    if not texts:
        raise DataError(f"{path}: holds no template; add some, or leave it out")
    return texts


def holds_escapes(path: str, text: str) -> bool:
    r"""Return whether a literal `\n` in a template of a file stands for a line end.

    It does in plain text, which has no other way to write one. Tables hold texts as they are, but
    for those that were flattened before they came there.
    """
    return path.lower().endswith(_TEXT) or is_flattened(text)


def _texts(local: Path, path: str) -> Iterator[str]:
    if local.suffix.lower() == _TEXT:
        lines = (line.rstrip("\r\n") for _, line in read_lines(Table(local, path)))
        return (line for line in lines if line.strip())
    if table_kind(local) is None:
        known = ", ".join((*TABLE_ENDINGS, _TEXT))
        raise DataError(f"{path}: the ending {local.suffix!r} is none of {known}; rename the file")
    return (_text_of(row) for row in read_table(Table(local, path, _FIELD)))


def _text_of(row: Row) -> str:
    text = row.values.get(_FIELD)
    if not isinstance(text, str) or not text.strip():
        found = "empty" if isinstance(text, str) else f"of type {type(text).__name__}"
        if text is None:
            found = "missing"
        raise DataError(f"{row.where}: {_FIELD!r} is {found}; every row needs a text, or delete it")
    return text
