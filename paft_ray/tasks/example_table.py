"""Examples as an Arrow file, which all processes of a node map into memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa

from paft_ray.tasks.example import Example

_OWN = ("id", "answer", "where")
_OPTIONS = "options"
_FIELD = "field:"
"""Prefix of the columns of fields."""


class ExampleTable(Sequence[Example]):
    """The examples of a file that `write_examples` made; rows are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Map the file; nothing is read.

        Raises:
            OSError: There is no such file, or it is none of these.
        """
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._own = [table.column(name) for name in _OWN]
        named = table.column_names
        self._options = table.column(_OPTIONS) if _OPTIONS in named else None
        self._fields = {
            name.removeprefix(_FIELD): table.column(name)
            for name in table.column_names
            if name.startswith(_FIELD)
        }

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._own[0])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        """Return one example, or several."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        id, answer, where = (column[index].as_py() for column in self._own)
        options = () if self._options is None else tuple(self._options[index].as_py())
        fields = {slot: column[index].as_py() for slot, column in self._fields.items()}
        return Example(id, fields, answer, where, options)

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples in their order."""
        return (self[index] for index in range(len(self)))


def write_examples(examples: Sequence[Example]) -> bytes:
    """Return the content of an Arrow file with these examples, which have the same fields."""
    slots = list(examples[0].fields) if examples else []
    columns = {name: [getattr(example, name) for example in examples] for name in _OWN}
    columns |= {f"{_FIELD}{slot}": [e.fields[slot] for e in examples] for slot in slots}
    # large: a column of many texts may be longer than 2 GiB
    arrays = {name: pa.array(column, pa.large_string()) for name, column in columns.items()}
    if any(example.options for example in examples):
        kind = pa.large_list(pa.large_string())
        arrays[_OPTIONS] = pa.array([list(example.options) for example in examples], kind)
    table = pa.table(arrays)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
