"""Rows of a task from files, saved data sets, or the Hugging Face hub.

Covered: tables (through `tables`); folders saved by Hugging Face `datasets` (`Dataset`,
`DatasetDict`, or a folder of such folders, one per split); data sets on the hub; which split of
them serves as which. Not covered: the meaning of a row (`loading`).
"""

import glob
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_ray.config import BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.hub import require_hub
from paft_ray.config.loading import resolve_path
from paft_ray.tasks.builtin import TaskOutline
from paft_ray.tasks.example import SPLITS, SplitName
from paft_ray.tasks.tables import (
    COMPRESSIONS,
    NARROW,
    READ_TOGETHER,
    TABLE_ENDINGS,
    Row,
    Table,
    read_table,
    shortest,
    shown,
    table_kind,
)
from paft_ray.tasks.values import NamedLabel


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one split of one file or data set."""

    rows: Iterator[Row]
    place: Path | None = None
    """The file, or the folder of the split; None on the hub."""


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of a task, by what they are for."""

    rows: Iterable[Row]
    """Rows to split, of which parts with rows of their own get none."""
    validation: Iterable[Row] | None
    """Rows of the source's own validation split, where it is used."""
    test: Iterable[Row] | None
    """Rows of the source's own test split; empty where it has one that is not to be read."""
    where: str
    unused: tuple[str, ...] = ()
    """Splits of the source that nothing is read from."""


def open_source(
    config: BuiltinTaskConfig | CustomTaskConfig, outline: TaskOutline, with_test: bool
) -> Source:
    """Find the rows of a task; they are read when they are taken.

    Raises:
        DataError: There is no such source or split, or the same rows are to train and to test.
        ConfigError: `task.path` names a Python package that is not installed.
    """
    if config.path is None:
        assert outline.hub_name is not None
        where = f"data set {outline.hub_name}"
        require_hub("task.path", where)
        hub = read_hub(outline.hub_name, outline.hub_config)
        return _of_splits([(where, hub, ())], outline, with_test)
    paths = _local_paths(config.path, "task.path")
    sources = [(str(path), read_rows(path), declared_splits(path)) for path in paths]
    if not isinstance(config, CustomTaskConfig):
        return _of_splits(sources, outline, with_test)
    if config.splits is None and config.test_path is None:
        return _of_splits(sources, outline, with_test)
    if config.splits is None:
        train = [_only_split(splits, outline.train_split, name) for name, splits, _ in sources]
        parts: dict[SplitName, list[Part]] = {"train": train}
    else:
        parts = _named_parts(sources, config.splits, with_test)
    if config.test_path is not None:
        parts["test"] = [
            _only_split(read_rows(path), outline.test_split, str(path))
            for path in (_local_paths(config.test_path, "task.test_path") if with_test else ())
        ]
        for role in SPLITS[:2]:
            _refuse_shared(parts.get(role, ()), parts["test"])
    return Source(
        _rows_of(parts["train"]),
        _rows_of(parts["validation"]) if "validation" in parts else None,
        _rows_of(parts["test"]) if "test" in parts else None,
        _together(name for name, _, _ in sources),
    )


_Named = tuple[str, Mapping[str, Part], tuple[str, ...]]
"""Name of a source, its splits, and the splits that it lists."""


def _of_splits(sources: Sequence[_Named], outline: TaskOutline, with_test: bool) -> Source:
    """Rows by the usual names of splits."""
    where = _together(name for name, _, _ in sources)
    [(name, splits, declared), *others] = sources
    if others or outline.train_split not in splits:
        parts = [_only_split(splits, outline.train_split, name) for name, splits, _ in sources]
        return Source(_rows_of(parts), None, None, where)
    train = splits[outline.train_split]
    if not with_test and outline.test_split in declared:
        return Source(train.rows, None, (), where)
    if outline.test_split in splits:
        unused = sorted(set(splits) - {outline.train_split, outline.test_split})
        return Source(train.rows, None, splits[outline.test_split].rows, where, tuple(unused))
    rows = _only_split(splits, outline.train_split, name).rows
    return Source(rows, None, None, where, tuple(sorted(set(splits) - {outline.train_split})))


def _named_parts(
    sources: Sequence[_Named], names: Mapping[SplitName, str], with_test: bool
) -> dict[SplitName, list[Part]]:
    """Parts by the splits that `task.splits` names."""
    found: dict[SplitName, list[Part]] = {role: [] for role in names}
    for where, splits, declared in sources:
        for role, name in names.items():
            if role == "test" and not with_test and name in {*splits, *declared}:
                continue
            if name not in splits:
                have = ", ".join(filter(None, sorted(splits))) or "no splits with names"
                raise DataError(
                    f"{where}: task.splits.{role} is {name!r}, which is none of its splits "
                    f"({have}): name one of them"
                )
            found[role].append(splits[name])
    return found


def _rows_of(parts: Iterable[Part]) -> Iterator[Row]:
    return itertools.chain.from_iterable(part.rows for part in parts)


def _together(names: Iterable[str]) -> str:
    """One name for several sources."""
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _refuse_shared(train: Iterable[Part], test: Iterable[Part]) -> None:
    """Refuse a file that is to train and to test, also by another name."""
    seen = {_file_identity(part.place): part.place for part in train if part.place is not None}
    for part in test:
        if part.place is not None and (same := seen.get(_file_identity(part.place))) is not None:
            also = "" if same == part.place else f" ({part.place} is the same file)"
            raise DataError(
                f"task.test_path: {same} is in task.path too{also}, so that every test row would "
                "be trained on: name other rows, or leave test_path out and test_share splits them"
            )


def _file_identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _only_split(splits: Mapping[str, Part], wanted: str, where: str) -> Part:
    if len(splits) == 1:
        return next(iter(splits.values()))
    if wanted not in splits:
        raise DataError(
            f"{where}: has the splits {', '.join(sorted(splits))} and none called {wanted!r}; "
            "name the folder of one split, or say in task.splits what each is for"
        )
    return splits[wanted]


def _local_paths(location: str | Sequence[str], field: str) -> list[Path]:
    """The files and folders that a field names: a path, a pattern, or a list of these."""
    if not isinstance(location, str):
        return [path for each in location for path in _local_paths(each, field)]
    try:
        path = resolve_path(location)
        inside = location.startswith("pkg:") or "://" in location
        if not inside and glob.has_magic(location) and not (path and path.exists()):
            pattern = str(Path(location).expanduser())
            # Path.glob takes no absolute pattern
            found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
            if not found:
                raise DataError(f"{field}: no file fits the pattern {location!r}: mend it")
            return found
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error
    if path is None:
        raise DataError(
            f"{field}: {location!r} is not in the local file system; name an existing file, or a "
            "folder saved by Hugging Face datasets"
        )
    return [path]


def _seen_from(path: Path) -> str:
    """Where a relative path was looked for."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def read_rows(path: Path) -> dict[str, Part]:
    """Rows of a file or of a saved data set, by split; a single split has an empty name.

    Raises:
        DataError: The file is missing or of an unknown kind; while rows are taken, a row is broken.
    """
    if path.is_dir():
        return _saved_rows(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder{_seen_from(path)}; task.path names JSONL, JSON, CSV, "
            "TSV or Parquet files, or a folder saved by Hugging Face datasets"
        )
    if table_kind(path) is None:
        raise DataError(
            f"{path}: {path.suffix or 'no ending'!r} is no kind of file that rows are read from; "
            f"use one of {', '.join(TABLE_ENDINGS)}, of which text may be compressed "
            f"({', '.join(COMPRESSIONS)})"
        )
    return {"": Part(read_table(Table(path, str(path))), path)}


def read_hub(name: str, config: str | None) -> dict[str, Part]:
    """Rows of a data set on the Hugging Face hub (or in its local cache), by split.

    Raises:
        DataError: The hub cannot be reached, or has no such data set.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        loaded = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"data set {name!r} cannot be read from the Hugging Face hub ({shown(error)}): "
            "check the network and HF_HUB_OFFLINE, or set task.path to a local copy"
        ) from error
    return {
        str(split): Part(_dataset_rows(rows, f"{name}, {split}")) for split, rows in loaded.items()
    }


def declared_splits(path: Path) -> tuple[str, ...]:
    """The splits that a saved data set lists, whether or not their files exist."""
    about = path / "dataset_dict.json"
    try:
        return tuple(json.loads(about.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _saved_rows(folder: Path) -> dict[str, Part]:
    """Splits of a folder that holds a `DatasetDict`, a `Dataset`, or a `Dataset` per subfolder."""
    if (folder / "state.json").is_file():
        return {"": Part(_dataset_rows(_load_saved(folder), str(folder)), folder)}
    splits = sorted(p.parent for p in folder.glob("*/state.json"))
    if not splits:
        deeper = ", ".join(sorted({p.parents[1].name for p in folder.glob("*/*/state.json")}))
        raise DataError(
            f"{folder}: no data set saved by Hugging Face datasets is in this folder"
            f"{f', but in its {deeper}' if deeper else ''}; name the folder that "
            f"save_to_disk wrote, or files, as in {folder}/*.parquet"
        )
    return {
        split.name: Part(_dataset_rows(_load_saved(split), str(split)), split) for split in splits
    }


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: the saved data set cannot be read ({shown(error)}): save it again with "
            "save_to_disk"
        ) from error


def _dataset_rows(dataset: Any, where: str) -> Iterator[Row]:
    from datasets import ClassLabel

    dataset = dataset.with_format(None)  # a format that was saved with it changes types
    names = {
        column: tuple(feature.names)
        for column, feature in dataset.features.items()
        if isinstance(feature, ClassLabel)
    }
    narrow = {c: f.dtype for c, f in dataset.features.items() if getattr(f, "dtype", "") in NARROW}
    number = 0
    for batch in dataset.iter(batch_size=READ_TOGETHER):
        columns = list(batch)
        for cells in zip(*batch.values(), strict=True):
            number += 1
            values = dict(zip(columns, cells, strict=True))
            for column, known in names.items():
                values[column] = _named(values[column], known)
            for column, dtype in narrow.items():
                values[column] = shortest(values[column], dtype)
            yield Row(values, f"{where}, row {number}")


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """A label with its name; one without, as of test rows whose labels are secret, stays as is."""
    known = isinstance(value, int) and 0 <= value < len(names)
    return NamedLabel(value, names) if known else value
