"""Paraphrases of examples on storage, mapped into the memory of the processes of all nodes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paft_ray.runs.examples import checked_copy, store_once
from paft_ray.storage.paths import Storage

_KIND = "paraphrases"
_FILE = "paraphrases.arrow"

Wordings = Mapping[int, Mapping[str, str]]
"""An example's rewritten fields by the number of the wording, from 1."""


class ParaphraseTable(Mapping[str, Wordings]):
    """The wordings of examples by id; rows are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Map a file that `store_paraphrases` wrote."""
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._path = path
        self._columns = [table.column(name) for name in ("paraphrase", "slot", "text")]
        self._rows: dict[str, range] = {}
        """Rows of an example, which stand together."""
        for row, id in enumerate(table.column("example_id").to_pylist()):
            first = self._rows[id].start if id in self._rows else row
            self._rows[id] = range(first, row + 1)

    def __reduce__(self) -> tuple[type["ParaphraseTable"], tuple[Path]]:
        """Pickle for another process of this node."""
        return ParaphraseTable, (self._path,)

    def __getitem__(self, id: str) -> Wordings:
        """Return the wordings of one example."""
        found: dict[int, dict[str, str]] = {}
        for row in self._rows[id]:
            number, slot, text = (column[row].as_py() for column in self._columns)
            found.setdefault(number, {})[slot] = text
        return found

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        """Yield the examples' ids."""
        return iter(self._rows)


@dataclass(frozen=True, slots=True)
class StoredParaphrases:
    """Paraphrases on storage; pickles small."""

    folder: Storage
    identity: str
    """Fingerprint of the file."""

    def open(self) -> ParaphraseTable:
        """Return the paraphrases, mapped into this process.

        Raises:
            ArtifactError: This node's copy is not what was written.
        """
        return ParaphraseTable(checked_copy(self.folder, self.identity, _KIND, _FILE))


def store_paraphrases(storage: Storage, table: pa.Table) -> StoredParaphrases:
    """Write a table of paraphrases (`rewrite.table_of`), where it is not there already."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    return StoredParaphrases(*store_once(storage, data, _KIND, _FILE))
