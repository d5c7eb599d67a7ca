"""Parts are read in their order, many at a time."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage


def test_parts_come_in_order_though_many_are_read_at_a_time(tmp_path: Path, monkeypatch) -> None:
    parts = Parts(Storage.open(str(tmp_path)))
    keys = [f"{n:03}" for n in range(100)]
    for key in keys:
        parts.write(key, pa.table({"key": [key]}))
    assert parts.finished() == set(keys)
    together, read = threading.Barrier(8), Storage.read_table

    def wait_for_others(self: Storage, name: str, columns: Any = None) -> pa.Table:
        if int(name[:3]) >= 8:
            return read(self, name, columns)
        together.wait(30)  # fails where eight are not read at a time
        return read(self, name, columns)

    monkeypatch.setattr(Storage, "read_table", wait_for_others)
    assert [table["key"][0].as_py() for table in parts.read(reversed(keys))] == keys[::-1]
