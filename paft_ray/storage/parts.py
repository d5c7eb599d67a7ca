"""Finished parts of long work, so that interrupted work continues with the missing ones."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from paft_ray.storage.paths import Storage, to_parquet

_READERS = 32


@dataclass(frozen=True)
class Parts:
    """Finished parts, one Parquet file each, named by a key; a part is never there in pieces."""

    folder: Storage

    def finished(self) -> set[str]:
        """Keys of the finished parts."""
        suffix = ".parquet"
        return {n.removesuffix(suffix) for n in self.folder.names() if n.endswith(suffix)}

    def write(self, key: str, table: pa.Table) -> None:
        """Write one finished part."""
        self.folder.write_bytes(f"{key}.parquet", to_parquet(table))

    def read(self, keys: Iterable[str]) -> Iterator[pa.Table]:
        """The parts of these keys, in their order; many are read at a time.

        An object store takes some 30 ms for each, and a large evaluation has tens of thousands.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="parts") as threads:
            yield from threads.map(self.folder.read_table, (f"{key}.parquet" for key in keys))
