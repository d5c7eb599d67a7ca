"""Parts are read in their order, many at a time."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage


def test_parts_come_in_order_though_many_are_read_at_a_time(tmp_path: Path, monkeypatch) -> None:
    parts = Parts(Storage.open(str(tmp_path)))
    keys = [f"{n:03}" for n in range(100)]
    for key in keys:
        parts.write({key: pa.table({"key": [key]})})
    assert parts.finished() == set(keys)
    together, read = threading.Barrier(8), Storage.read_table

    def wait_for_others(self: Storage, name: str, columns: Any = None) -> pa.Table:
        if int(name[:3]) >= 8:
            return read(self, name, columns)
        together.wait(30)  # fails where eight are not read at a time
        return read(self, name, columns)

    monkeypatch.setattr(Storage, "read_table", wait_for_others)
    assert [table["key"][0].as_py() for table in parts.read(reversed(keys))] == keys[::-1]


def table(key: str, **columns: list) -> pa.Table:
    return pa.table({"key": [key] * 3, **columns}).replace_schema_metadata({"about": f"{key}ü"})


def assert_whole(parts: Parts, tables: dict[str, pa.Table]) -> None:
    assert parts.finished() == set(tables)
    for key, found in zip(tables, parts.read(tables), strict=True):
        assert found.equals(tables[key], check_metadata=True)


def test_parts_written_together_are_one_file_for_each_set_of_columns(tmp_path: Path) -> None:
    parts = Parts(Storage.open(str(tmp_path)))
    tables = {key: table(key) for key in "abc"}
    older = {key: table(key, seed=[1, 2, 3]) for key in "de"}
    parts.write({**tables, **older})
    assert len(parts.folder.names()) == 2
    assert_whole(parts, {**tables, **older})
    parts.write({})
    assert len(parts.folder.names()) == 2


def test_many_small_files_are_joined_once_and_their_parts_found_as_before(tmp_path: Path) -> None:
    parts = Parts(Storage.open(str(tmp_path)))
    tables = {f"{n:04}": table(f"{n:04}") for n in range(515)}
    keys = list(tables)
    for key in keys[:400]:  # as earlier versions, and slow actors, do
        parts.write({key: tables[key]})
    for start in range(400, 515, 5):
        parts.write({key: tables[key] for key in keys[start : start + 5]})
    assert_whole(parts, tables)
    names = parts.folder.names()
    assert len(names) == 2
    assert_whole(parts, tables)
    assert parts.folder.names() == names
    more = {key: table(key) for key in ("x", "y")}
    for key in more:
        parts.write({key: more[key]})
    assert_whole(parts, {**tables, **more})


@pytest.mark.parametrize("local", [True, False])
def test_what_a_killed_process_left_of_joining_is_read_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    """Files that others replace stay on object stores, and are not read there."""
    monkeypatch.setattr(Storage, "is_local", local)
    parts = Parts(Storage.open(str(tmp_path)))
    tables = {f"{n:04}": table(f"{n:04}") for n in range(1025)}
    for key, each in tables.items():
        parts.write({key: each})
    for name in ("write_bytes", "delete") if local else ("write_bytes",):
        original, calls = getattr(Storage, name), []

        def once(self: Storage, *args: Any, original=original, calls=calls) -> None:
            calls.append(args)
            if len(calls) > 1:
                raise OSError("killed")
            original(self, *args)

        monkeypatch.setattr(Storage, name, once)
        with pytest.raises(OSError, match="killed"):
            parts.read(tables)
        monkeypatch.setattr(Storage, name, original)
        assert parts.finished() == set(tables)
    (tmp_path / ".writing-1234-joined-x.parquet").write_bytes(b"half")
    for _ in range(2):
        assert_whole(parts, tables)
    read, original = [], Storage.read_bytes

    def note(self: Storage, name: str) -> bytes:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Storage, "read_bytes", note)
    assert_whole(parts, tables)
    assert len(set(read)) <= 4
    assert len(parts.folder.names()) == (len(set(read)) if local else len(set(read)) + 1025)
