"""Finished parts of long work, so that interrupted work continues with the missing ones.

A file holds one part and is named by its key, or several that were finished together (`several-*`).
Where there are many such files, a reader joins them into large ones (`joined-*`), which name the
files that they replace; on disks these are then removed, which object stores take long for. No file
is ever there in pieces.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import CONNECTIONS, Storage, to_parquet

T = TypeVar("T")

_ENDING = ".parquet"
_SEVERAL, _JOINED = "several-", "joined-"
_INDEX, _REPLACED = b"parts", b"replaced"
"""Keys in a file's metadata: key, rows and metadata of each part; names of the files replaced."""
_MANY = 256
"""Files from which on they are joined."""
_TOGETHER = 512
"""Parts in a file that joins others."""

_Tables = Mapping[str, pa.Table]
"""Parts by key, with their metadata."""


@dataclass(frozen=True)
class Parts:
    """Finished parts, Parquet files in a folder that one process at a time reads."""

    folder: Storage

    def finished(self) -> set[str]:
        """Keys of the finished parts."""
        with _many_at_a_time() as each:
            found, left = self._look(each, self._read_schema)
            keys = {key for schema in found.values() for key, _, _ in _index(schema)}
            return keys | {_key(name) for name in left}

    def write(self, parts: _Tables) -> None:
        """Write finished parts, with metadata, in one file where all have the same columns."""
        by_columns: dict[pa.Schema, dict[str, pa.Table]] = {}
        for key, table in parts.items():
            by_columns.setdefault(table.schema.remove_metadata(), {})[key] = table
        for same in by_columns.values():
            if len(same) == 1:
                [(key, table)] = same.items()
                self.folder.write_bytes(_name(key), to_parquet(table))
            else:
                self._write_together(_SEVERAL, same)

    def read(self, keys: Iterable[str]) -> list[pa.Table]:
        """The parts of these keys, in their order; files are joined where there are many.

        Many are read at a time: an object store takes some 30 ms for each, and a large evaluation
        has tens of thousands of parts.
        """
        wanted = list(keys)
        with _many_at_a_time() as each:
            tables, _ = self._look(each, self.folder.read_table)
            files = {name: _split(table) for name, table in tables.items()}
            found = {key: part for parts in files.values() for key, part in parts.items()}
            single = [_name(key) for key in dict.fromkeys(wanted) if key not in found]
            for name, table in zip(single, each(self.folder.read_table, single), strict=True):
                files[name] = {_key(name): table}
                found |= files[name]
            apart = {name: p for name, p in files.items() if not name.startswith(_JOINED)}
            if len(apart) >= _MANY:
                self._join(apart)
            if self.folder.is_local:
                old = {name for table in tables.values() for name in _replaced(table.schema)}
                old = old & {*self.folder.names()} | (
                    apart.keys() if len(apart) >= _MANY else set()
                )
                each(self.folder.delete, old)
        return [found[key] for key in wanted]

    def _look(self, each: "_Each", read: Callable[[str], T]) -> tuple[dict[str, T], list[str]]:
        """Read the files of several parts that no other replaces; also names those of one part."""
        names = [name for name in self.folder.names() if name.endswith(_ENDING)]
        joined = [name for name in names if name.startswith(_JOINED)]
        found = dict(zip(joined, each(read, joined), strict=True))
        replaced = {name for file in found.values() for name in _replaced(_schema(file))}
        rest = [name for name in names if name not in replaced and name not in found]
        several = [name for name in rest if name.startswith(_SEVERAL)]
        found |= zip(several, each(read, several), strict=True)
        return found, [name for name in rest if name not in found]

    def _read_schema(self, name: str) -> pa.Schema:
        return pq.read_schema(pa.BufferReader(self.folder.read_bytes(name)))

    def _join(self, files: Mapping[str, _Tables]) -> None:
        """Write the parts of files into large ones that replace them."""
        by_columns: dict[pa.Schema, list[str]] = {}
        for name, parts in files.items():
            columns = next(iter(parts.values())).schema.remove_metadata()
            by_columns.setdefault(columns, []).append(name)
        for names in by_columns.values():
            parts, replaced = dict[str, pa.Table](), list[str]()
            for name in names:
                parts |= files[name]
                replaced.append(name)
                if len(parts) >= _TOGETHER or name == names[-1]:
                    self._write_together(_JOINED, parts, replaced)
                    parts, replaced = {}, []

    def _write_together(self, kind: str, parts: _Tables, replaced: Sequence[str] = ()) -> None:
        index = [[key, part.num_rows, _text(part.schema.metadata)] for key, part in parts.items()]
        bare = [table.replace_schema_metadata(None) for table in parts.values()]
        about = {_INDEX: json.dumps(index), _REPLACED: json.dumps(list(replaced))}
        table = pa.concat_tables(bare).replace_schema_metadata(about)
        self.folder.write_bytes(_name(kind + fingerprint(list(parts))), to_parquet(table))


_Each = Callable[[Callable[[str], T], Iterable[str]], list[T]]
"""Calls a function with each name, and returns what it returned."""


@contextmanager
def _many_at_a_time() -> Iterator[_Each]:
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="parts") as threads:
        yield lambda function, names: list(threads.map(function, names))


def _schema(file: pa.Table | pa.Schema) -> pa.Schema:
    return file.schema if isinstance(file, pa.Table) else file


def _index(schema: pa.Schema) -> list[tuple[str, int, dict[str, str] | None]]:
    return json.loads(schema.metadata[_INDEX])


def _replaced(schema: pa.Schema) -> list[str]:
    return json.loads(schema.metadata[_REPLACED])


def _split(file: pa.Table) -> dict[str, pa.Table]:
    parts: dict[str, pa.Table] = {}
    start = 0
    for key, rows, metadata in _index(file.schema):
        parts[key] = file.slice(start, rows).replace_schema_metadata(metadata)
        start += rows
    return parts


def _name(key: str) -> str:
    return key + _ENDING


def _key(name: str) -> str:
    return name.removesuffix(_ENDING)


def _text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str] | None:
    if metadata is None:
        return None
    return {key.decode(): value.decode() for key, value in metadata.items()}
