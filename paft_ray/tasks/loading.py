"""Turns rows into a `Task`: examples in their splits, and what became of the rows.

An example's place in its split comes from its id and the seed alone. How a row becomes an example
is the part of `collecting`, which split it is in that of `split`.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from paft_ray.config import BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.errors import DataError
from paft_ray.config.task import CHOICES_SLOT
from paft_ray.tasks.builtin import PUBLISHED, TaskOutline
from paft_ray.tasks.collecting import Collected, collect
from paft_ray.tasks.example import SPLITS, Example, RowCounts, SplitName, Task, letters
from paft_ray.tasks.gradable import (
    refuse_one_place,
    refuse_unreadable,
    refuse_unreadable_choices,
)
from paft_ray.tasks.grading import Grader, open_graders
from paft_ray.tasks.sources import Source, open_source
from paft_ray.tasks.split import Rows, Ties, deal, first_of_each, tie
from paft_ray.tasks.tables import Row

logger = logging.getLogger(__name__)

_HELD_OUT: tuple[SplitName, ...] = ("test", "validation")


def load_task(
    config: BuiltinTaskConfig | CustomTaskConfig,
    seed: int,
    test: bool = True,
    unlabelled: bool = False,
) -> Task:
    """Read a task's rows and split them into train, validation and test.

    Where the source has a test split, test examples come from it, and rows of the rest with the
    same text leave; where `task.splits` names a validation split, the same holds for that.

    Args:
        config: The task's section of the configuration.
        seed: Seed of the split; the same seed splits the same examples alike.
        test: Read test examples. Without, there are none, the source's test split is not read, and
            training examples that it repeats are kept.
        unlabelled: Keep training rows without an answer, which are refused otherwise; those whose
            text or group is in a held-out split leave.

    Raises:
        DataError: Rows cannot be read or do not fit the task, or a split would be empty.
        ConfigError: `task.path` names a Python package that is not installed.
    """
    outline = task_outline(config)
    graders = open_graders(config.grade, config.has_choices, outline.answer_pattern)
    source = open_source(config, outline, test)
    rest = collect(source.rows, outline, config.group, unlabelled or outline.answer is None)
    own = _held_out(source, outline, config.group)
    splits, ties = _split(config, outline, seed, rest.rows, own)
    without = _in_order(_unlabelled(rest, own, splits).examples.values(), seed)
    names = _names(outline, read := [rest, *own.values()], graders)
    unused = source.unused if isinstance(config, CustomTaskConfig) else ()
    if outline.answer is None:
        unused = (*unused, *(name for name in _HELD_OUT if getattr(source, name) is not None))
    counts = _counts(read, ties, splits, unused, len(without))
    if not test:
        splits.pop("test")
    if rest.rows.examples or not without:  # else nothing is dealt; who needs graded rows refuses
        _refuse_empty(splits, source, config, ties, counts)
    train, kept, counts = _limited(splits["train"], without, config, names, counts)
    if more := counts.duplicates:
        logger.info("%s: %d rows repeat another one and were left out", source.where, more)
    return Task(
        name=outline.name,
        description=outline.description,
        slots=(*outline.columns, *([CHOICES_SLOT] if outline.shows_choices else [])),
        option_slots=dict(outline.option_slots),
        choices=names,
        choices_as=None if outline.row_choices is None else outline.choices_as,
        train=train,
        validation=splits["validation"],
        test=splits.get("test", ()),
        unlabelled=kept,
        rows=counts,
        answer_pattern=outline.answer_pattern,
        relevance_words=outline.relevance_words,
        top_threshold=outline.top_threshold,
        graders=graders,
        instructions=outline.instructions,
    )


def _limited(
    train: tuple[Example, ...],
    without: tuple[Example, ...],
    config: BuiltinTaskConfig | CustomTaskConfig,
    names: tuple[str, ...] | None,
    counts: RowCounts,
) -> tuple[tuple[Example, ...], tuple[Example, ...], RowCounts]:
    """The training examples that the task's limits leave, those without an answer, the counts."""
    if config.examples_per_class is not None:
        train = tuple(first_of_each(train, config.examples_per_class, names))
        counts = counts.by_class(train)
    train, most = train[: config.max_train_examples], config.max_train_examples
    kept = without if most is None else without[: most - len(train)]
    left_out = len(without) - len(kept)
    return train, kept, replace(counts, unlabelled=len(kept), beyond_unlabelled=left_out)


def _held_out(
    source: Source, outline: TaskOutline, group: str | None
) -> dict[SplitName, Collected]:
    """The examples of splits of the source's own, of which all have an answer; none without."""
    if outline.answer is None:
        return {}
    parts: dict[SplitName, Iterable[Row] | None] = {
        "test": source.test, "validation": source.validation,
    }  # fmt: skip
    return {
        split: collect(rows, outline, group) for split, rows in parts.items() if rows is not None
    }


def _counts(
    read: "Sequence[Collected]",
    ties: Ties,
    splits: Mapping[SplitName, Sequence[Example]],
    unused: Iterable[str],
    unlabelled: int,
) -> RowCounts:
    """What became of the rows that were read."""
    distinct = sum(len(each.rows.examples) + len(each.unlabelled.examples) for each in read)
    sizes = {split: len(splits[split]) for split in SPLITS}
    return RowCounts(
        duplicates=sum(each.duplicates for each in read),
        tied=ties.same_text,
        contradicting=ties.contradicting,
        in_held_out=distinct - sum(sizes.values()) - unlabelled,
        empty_fields=sum(each.empty_fields for each in read),
        groups=ties.groups,
        unlabelled=unlabelled,
        unused_splits=", ".join(unused),
        sizes=sizes,
    )


def _names(
    outline: TaskOutline, read: Sequence[Collected], graders: Sequence[Grader]
) -> tuple[str, ...] | None:
    """What may be answered, where that is the same for all rows or letters; else None.

    Raises:
        DataError: Answers could not be graded as they should.
    """
    names = outline.choices
    examples = [example for each in read for example in each.rows.examples.values()]
    if outline.shows_choices:
        refuse_one_place(examples)
        every = [*examples, *(e for each in read for e in each.unlabelled.examples.values())]
        names = letters(max((len(example.options) for example in every), default=0))
    refuse_unreadable(examples, graders)
    refuse_unreadable_choices(names or (), graders)
    return names


def _split(
    config: BuiltinTaskConfig | CustomTaskConfig,
    outline: TaskOutline,
    seed: int,
    rest: Rows,
    own: "Mapping[SplitName, Collected]",
) -> tuple[dict[SplitName, tuple[Example, ...]], Ties]:
    """Deal `rest`, of which rows like those of held-out splits of the source's own have left."""
    held_out: dict[SplitName, Rows] = {}
    for split in own:  # test before validation
        rows = own[split].rows
        for other in held_out.values():
            rows = rows.without(other)
        held_out[split] = rows
    for other in held_out.values():
        rest = rest.without(other)
    shares: dict[SplitName, float] = {
        "test": config.test_share, "validation": config.validation_share,
    }  # fmt: skip
    shares = {split: share for split, share in shares.items() if split not in held_out}
    ties = tie(rest, seed)
    dealt = deal(ties.units, shares, outline.choices)
    splits: dict[SplitName, tuple[Example, ...]] = {
        split: _in_order(members, seed) for split, members in dealt.items()
    }
    splits |= {s: _in_order(rows.examples.values(), seed) for s, rows in held_out.items()}
    return splits, ties


def _unlabelled(
    rest: Collected,
    own: Mapping[SplitName, Collected],
    splits: Mapping[SplitName, Sequence[Example]],
) -> Rows:
    """The rows without an answer of which neither text nor group is in a held-out split."""
    found = rest.unlabelled
    for each in own.values():
        found = found.without(each.rows)
    held_out = {example.id for split in _HELD_OUT for example in splits[split]}
    dealt = {id: example for id, example in rest.rows.examples.items() if id in held_out}
    return found.without(replace(rest.rows, examples=dealt))


def task_outline(config: BuiltinTaskConfig | CustomTaskConfig) -> TaskOutline:
    """The description of a configured task, without its rows."""
    if isinstance(config, BuiltinTaskConfig):
        return PUBLISHED[config.name]
    return TaskOutline(
        name=config.name,
        description=config.description,
        columns=config.fields,
        answer=config.answer,
        choices=config.choices if isinstance(config.choices, tuple) else None,
        row_choices=config.row_choices,
        choices_as=config.choices_as,
        labels=config.labels or {},
        instructions=config.instructions,
    )


def _uniform(identity: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) from 64 bits of a hash; 53 of them fit a float."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{identity}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)


def _in_order(examples: Iterable[Example], seed: int) -> tuple[Example, ...]:
    return tuple(sorted(examples, key=lambda e: (_uniform(e.id, seed, "order"), e.id)))


def _refuse_empty(
    splits: Mapping[SplitName, tuple[Example, ...]],
    source: Source,
    config: BuiltinTaskConfig | CustomTaskConfig,
    ties: Ties,
    counts: RowCounts,
) -> None:
    total = sum(map(len, splits.values()))
    if total == 0:
        raise DataError(f"{source.where}: there are no rows; name a source that has some")
    for split, members in splits.items():
        if not members:
            left = ""
            if counts.in_held_out:
                left = f" ({counts.in_held_out} rows are in its test or validation rows too)"
            elif config.group is not None:
                largest = max((len(unit.examples) for unit in ties.units), default=0)
                left = f" (the largest of {len(ties.units)} groups has {largest} of them)"
            shares = f"validation_share {config.validation_share}"
            if source.test is None:
                shares += f" and test_share {config.test_share}"
            raise DataError(
                f"{source.where}: {total} examples leave the {split} split empty at task.{shares}"
                f"{left}: add rows, or change the shares"
            )
