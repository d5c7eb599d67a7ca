"""Finished parts of long work, each there whole or not at all."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from paft_ray.storage.paths import Storage, to_parquet


@dataclass(frozen=True)
class Parts:
    """Finished parts of a long piece of work, one Parquet file each, named by a key.

    A part is there whole or not at all, so work that was cut off goes on with the missing keys.
    """

    folder: Storage

    def finished(self) -> set[str]:
        """Keys of the parts that are there."""
        suffix = ".parquet"
        return {n.removesuffix(suffix) for n in self.folder.names() if n.endswith(suffix)}

    def write(self, key: str, table: pa.Table) -> None:
        """Keep one finished part."""
        self.folder.write_bytes(f"{key}.parquet", to_parquet(table))

    def read(self, keys: Iterable[str]) -> Iterator[pa.Table]:
        """The parts of these keys, in the order asked for."""
        for key in keys:
            yield self.folder.read_table(f"{key}.parquet")
