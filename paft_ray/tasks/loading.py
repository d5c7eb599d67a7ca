"""Turns rows into a `Task`: columns into slots, ids from content, splits by hash.

An example's id comes from its fields and answer alone, and its split and its place in that split
from id and seed alone: adding, removing or reordering rows moves no other example.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paft_ray.config import BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.hub import require_hub
from paft_ray.config.loading import resolve_path
from paft_ray.tasks.builtin import PUBLISHED, TaskOutline
from paft_ray.tasks.example import Example, SplitName, Task
from paft_ray.tasks.sources import (
    Row,
    column_value,
    declared_splits,
    read_hub,
    read_rows,
    shown,
    text_of,
)

logger = logging.getLogger(__name__)


def load_task(config: BuiltinTaskConfig | CustomTaskConfig, seed: int, test: bool = True) -> Task:
    """Read a task's rows and split them into train, validation and test.

    Where the source has a test split, test examples come from it and validation examples from the
    rest; otherwise all rows are split three ways.

    Args:
        config: The task's section of the configuration.
        seed: Seed of the split; the same seed splits the same examples alike.
        test: Read test examples. Without, there are none, the source's test split is not read, and
            training examples that it repeats are kept.

    Raises:
        DataError: Rows cannot be read or do not fit the task, or a split would be empty.
        ConfigError: `task.path` names a Python package that is not installed.
    """
    outline = task_outline(config)
    source = _open_source(config, outline, test)
    rest, duplicates = _collect(source.rows, outline)
    if source.test is None:
        splits = _deal(rest.values(), seed, config.validation_share, config.test_share)
    else:
        own_test, repeated = _collect(source.test if test else (), outline)
        kept = [example for identity, example in rest.items() if identity not in own_test]
        duplicates += repeated + len(rest) - len(kept)
        splits = _deal(kept, seed, config.validation_share, 0.0)
        splits["test"] = _in_order(own_test.values(), seed)
    if not test:
        splits.pop("test")
    _refuse_empty(splits, source, config)
    if duplicates:
        logger.info("%s: %d rows repeat another one and were left out", source.where, duplicates)
    return Task(
        name=outline.name,
        description=outline.description,
        slots=tuple(outline.columns),
        option_slots=dict(outline.option_slots),
        choices=outline.choices,
        train=splits["train"][: config.max_train_examples],
        validation=splits["validation"],
        test=splits.get("test", ()),
        duplicates=duplicates,
        answer_pattern=outline.answer_pattern,
        relevance_words=outline.relevance_words,
        top_threshold=outline.top_threshold,
        instructions=outline.instructions,
    )


def task_outline(config: BuiltinTaskConfig | CustomTaskConfig) -> TaskOutline:
    """The description of a configured task, without its rows."""
    if isinstance(config, BuiltinTaskConfig):
        return PUBLISHED[config.name]
    return TaskOutline(
        name=config.name,
        description=config.description,
        columns=config.fields,
        answer=config.answer,
        choices=config.choices,
        labels=config.labels or {},
        instructions=config.instructions,
    )


def example_id(fields: Mapping[str, str], answer: str) -> str:
    """Sixteen hex digits that name an example by its content."""
    content = json.dumps(
        {"answer": answer, "fields": dict(fields)},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def split_of(identity: str, seed: int, validation_share: float, test_share: float) -> SplitName:
    """The split that an example belongs to, from its id and the seed alone."""
    place = _uniform(identity, seed, "split")
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


@dataclass(frozen=True, slots=True)
class _Source:
    rows: Iterable[Row]
    test: Iterable[Row] | None
    """Rows of the source's own test split."""
    where: str


def _open_source(
    config: BuiltinTaskConfig | CustomTaskConfig, outline: TaskOutline, with_test: bool
) -> _Source:
    declared: tuple[str, ...] = ()
    if config.path is None:
        assert outline.hub_name is not None
        where = f"data set {outline.hub_name}"
        require_hub("task.path", where)
        splits = read_hub(outline.hub_name, outline.hub_config)
    else:
        path = _local(config.path, "task.path")
        where, splits, declared = str(path), read_rows(path), declared_splits(path)
    test_path = config.test_path if isinstance(config, CustomTaskConfig) else None
    if test_path is not None:
        test: Iterable[Row] = ()
        if with_test:
            path = _local(test_path, "task.test_path")
            test = _only_split(read_rows(path), outline.test_split, str(path))
        return _Source(_only_split(splits, outline.train_split, where), test, where)
    if not with_test and outline.train_split in splits and outline.test_split in declared:
        return _Source(splits[outline.train_split], (), where)
    if outline.train_split in splits and outline.test_split in splits:
        unused = sorted(set(splits) - {outline.train_split, outline.test_split})
        if unused:
            logger.info("%s: splits that are not used: %s", where, ", ".join(unused))
        return _Source(splits[outline.train_split], splits[outline.test_split], where)
    return _Source(_only_split(splits, outline.train_split, where), None, where)


def _local(location: str, field: str) -> Path:
    try:
        path = resolve_path(location)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error
    if path is None:
        raise DataError(
            f"{field}: {location!r} is not in the local file system; name an existing file, or a "
            "folder saved by Hugging Face datasets"
        )
    return path


def _only_split(splits: Mapping[str, Iterator[Row]], wanted: str, where: str) -> Iterator[Row]:
    if len(splits) == 1:
        return next(iter(splits.values()))
    if wanted not in splits:
        raise DataError(
            f"{where}: has the splits {', '.join(sorted(splits))} and none called {wanted!r}; "
            "name the folder of one split"
        )
    return splits[wanted]


def _collect(rows: Iterable[Row], outline: TaskOutline) -> tuple[dict[str, Example], int]:
    """The examples of rows by their ids, and how many rows repeat another one."""
    examples: dict[str, Example] = {}
    count = 0
    for row in rows:
        count += 1
        fields = {slot: _field(row, column, outline) for slot, column in outline.columns.items()}
        if not any(fields.values()):
            raise DataError(
                f"{row.where}: all of {', '.join(outline.columns)} are empty; an example needs a "
                "text: fill it in or remove the row"
            )
        answer = _answer(row, outline)
        identity = example_id(fields, answer)
        examples.setdefault(identity, Example(identity, fields, answer))
    return examples, count - len(examples)


def _field(row: Row, column: str, outline: TaskOutline) -> str:
    value = column_value(row, column)
    text = text_of(value)
    if text is None:
        raise DataError(
            f"{row.where}: column {column!r} is {shown(value)}, which is no single text or number; "
            f"name one entry of it, as in {column}[0]"
        )
    return _rewrite(text, outline.field_rewrites)


def _answer(row: Row, outline: TaskOutline) -> str:
    value = column_value(row, outline.answer)
    text = text_of(value)
    if text is None or not text.strip():
        raise DataError(
            f"{row.where}: the answer (column {outline.answer!r}) is {shown(value)}; it must be a "
            "text that is not empty: mend the row or remove it"
        )
    text = text.strip()
    text = outline.labels.get(text, outline.labels.get(str(value), text))
    if outline.choices is not None:
        if text not in outline.choices:
            raise DataError(
                f"{row.where}: the answer (column {outline.answer!r}) is {shown(value)}, which is "
                f"none of {', '.join(outline.choices)}: mend the row, or map it in task.labels"
            )
        return text
    text = _rewrite(text, outline.answer_rewrites)
    if outline.answer_pattern is not None and not re.search(outline.answer_pattern, text):
        raise DataError(
            f"{row.where}: the answer (column {outline.answer!r}) is {shown(value)}, in which "
            f"{outline.answer_pattern!r} finds no final answer: mend the row or remove it"
        )
    return text


def _rewrite(text: str, rewrites: Iterable[tuple[str, str]]) -> str:
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate can be stored nowhere
    for pattern, replacement in rewrites:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def _uniform(identity: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) from 64 bits of a hash; 53 of them fit a float."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{identity}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)


def _in_order(examples: Iterable[Example], seed: int) -> tuple[Example, ...]:
    return tuple(sorted(examples, key=lambda e: (_uniform(e.id, seed, "order"), e.id)))


def _deal(
    examples: Iterable[Example], seed: int, validation_share: float, test_share: float
) -> dict[SplitName, tuple[Example, ...]]:
    dealt: dict[SplitName, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        dealt[split_of(example.id, seed, validation_share, test_share)].append(example)
    return {split: _in_order(members, seed) for split, members in dealt.items()}


def _refuse_empty(
    splits: Mapping[SplitName, tuple[Example, ...]],
    source: _Source,
    config: BuiltinTaskConfig | CustomTaskConfig,
) -> None:
    total = sum(map(len, splits.values()))
    if total == 0:
        raise DataError(f"{source.where}: there are no rows; name a source that has some")
    for split, members in splits.items():
        if not members:
            shares = f"validation_share {config.validation_share}"
            if source.test is None:
                shares += f" and test_share {config.test_share}"
            raise DataError(
                f"{source.where}: {total} examples leave the {split} split empty at task.{shares}: "
                "add rows, or change the shares"
            )
