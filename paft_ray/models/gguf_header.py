"""Reads the header of a GGUF file, in time that its size bounds; without torch.

The package gguf believes the counts that a file states: 100 bytes could state an array of 2^62
entries, or layers for hours of work. It also makes several objects of every token and merge, by way
of numpy's memory maps, which takes 5 s for 49,000 tokens and 16 s for 262,000: they are passed over
here, and where transformers reads a file, made in a tenth of the time.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ConfigError

_LONGEST_ARRAY = 10_000_000
"""More entries than any vocabulary or list of merges has."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Facts of a file's header."""

    architecture: str
    chat_template: str | None
    context_length: int | None


def is_gguf(location: str | Path) -> bool:
    """Return whether a name is that of a GGUF file."""
    return str(location).lower().endswith(".gguf")


def read_gguf(path: Path) -> GgufHeader:
    """Read and check the header of a file.

    Raises:
        ConfigError: It is broken, or no language model that the installed gguf knows.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; name an existing .gguf file")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"{path} is read with the package gguf, which is not installed: "
            "pip install 'paft_ray[gguf]'"
        )
    import gguf

    try:
        reader = _reader()(path)
        values = {n: f.contents() for n, f in reader.fields.items() if len(f.data) == 1}
    # the package raises any of these for what it does not expect
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise ConfigError(
            f"{path} is no readable GGUF file ({error}); it is broken or cut off: fetch it again"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is no readable GGUF file: nested too deeply") from error
    architecture = values.get("general.architecture")
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        raise ConfigError(
            f"{path} holds a model of architecture {architecture!r}, which the installed gguf does "
            "not know; upgrade gguf, or name a model folder"
        )
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise ConfigError(f"{path} has no tokenizer in it; use a GGUF of a language model")
    layers = values.get(f"{architecture}.block_count")
    if isinstance(layers, int) and not 0 < layers <= len(reader.tensors):
        raise ConfigError(
            f"{path} states {layers} layers, but holds {len(reader.tensors)} tensors; it is broken "
            "or cut off: fetch it again"
        )
    length = values.get(f"{architecture}.context_length")
    template = values.get("tokenizer.chat_template")
    return GgufHeader(
        str(architecture),
        None if template is None else str(template),
        length if isinstance(length, int) and length > 0 else None,
    )


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let the block parse a GGUF file once, and quickly: transformers does it for configuration,
    weights and tokenizer anew, and looks up the names of tensors anew for every module.
    """
    import gguf

    if hasattr(gguf.GGUFReader, "cache_info"):  # a block around this one
        yield
        return
    names = ("GGUFReader", "get_tensor_name_map")
    before = {name: getattr(gguf, name) for name in names}
    once = {"GGUFReader": _quick_reader(), "get_tensor_name_map": gguf.get_tensor_name_map}
    for name, function in once.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)


@functools.cache
def _quick_reader() -> type[Any]:
    """The package's reader, with the entries of arrays cut from the file as they lie there."""
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)  # slices of it are made ten times as fast

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            offset = int(orig_offs) + 12
            head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
            kind, entries = gguf.GGUFValueType(int(head[0][0])), int(head[1][0])
            if kind == gguf.GGUFValueType.STRING:
                end, own = self._strings(offset, entries)
                places = list(range(len(head) + 1, len(head) + 2 * entries, 2))
            elif kind in self.gguf_scalar_to_np:
                values = self._get(offset, self.gguf_scalar_to_np[kind], entries)
                own = [values[n : n + 1] for n in range(entries)]
                end, places = offset + values.nbytes, list(range(2, 2 + entries))
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [gguf.GGUFValueType.ARRAY, *([kind] if entries else [])]
            return end - int(orig_offs), [*head, *own], places, types

        def _strings(self, offset: int, entries: int) -> tuple[int, list[Any]]:
            """The place behind some strings, and for each its length and its bytes."""
            found: list[Any] = []
            for _ in range(entries):
                length = self._get(offset, np.uint64)
                end = offset + 8 + int(length[0])
                found += (length, self._plain[offset + 8 : end])
                offset = end
            return offset, found

    return Reader


@functools.cache
def _reader() -> type[Any]:
    """The package's reader, which refuses what lies behind the file's end, and absurd arrays."""
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise ValueError(f"it ends before byte {end}")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == gguf.GGUFValueType.ARRAY:
                entries = int(self._get(orig_offs + 4, np.uint64)[0])
                if entries > min(_LONGEST_ARRAY, len(self.data)):
                    raise ValueError(f"an array states {entries} entries")
                kind = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
                if kind != gguf.GGUFValueType.ARRAY:
                    end = self._end(int(orig_offs) + 12, kind, entries)
                    return end - int(orig_offs), [], [], [gguf.GGUFValueType.ARRAY]
            return super()._get_field_parts(orig_offs, raw_type)

        def _end(self, offset: int, kind: Any, entries: int) -> int:
            """The place behind an array's entries, which are not kept."""
            if kind == gguf.GGUFValueType.STRING:
                whole: Any = self.data
                data, end = memoryview(whole), len(whole)
                order = "little" if self.endianess == gguf.GGUFEndian.LITTLE else "big"
                for _ in range(entries):
                    length = int.from_bytes(data[offset : offset + 8], order)
                    offset += 8 + length
                    if offset > end:
                        break
            else:
                offset += entries * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
            if offset > len(self.data):
                raise ValueError(f"it ends before byte {offset}")
            return offset

    return Reader
