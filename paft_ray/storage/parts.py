"""Finished parts of long work, so that interrupted work continues with the missing ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from paft_ray.storage.paths import Storage, to_parquet


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
        """The parts of these keys, in their order."""
        for key in keys:
            yield self.folder.read_table(f"{key}.parquet")
