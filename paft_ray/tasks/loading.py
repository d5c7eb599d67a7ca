"""Turns rows into a `Task`: columns into fields and answers, ids from content, splits.

An example's id comes from its fields and answer alone, and its place in its split from id and seed
alone. Which split it is in is the part of `split`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paft_ray.config import BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.errors import DataError
from paft_ray.config.task import CHOICES_SLOT
from paft_ray.tasks.builtin import PUBLISHED, TaskOutline
from paft_ray.tasks.example import SPLITS, Example, RowCounts, SplitName, Task, lettered, letters
from paft_ray.tasks.gradable import (
    refuse_one_place,
    refuse_unreadable,
    refuse_unreadable_choices,
)
from paft_ray.tasks.grading import Grader, open_graders
from paft_ray.tasks.row_choices import read_choices
from paft_ray.tasks.sources import Source, open_source
from paft_ray.tasks.split import Rows, Ties, deal, first_of_each, text_key, tie
from paft_ray.tasks.tables import Row, shown
from paft_ray.tasks.values import column_value, composed, spellings, text_of

logger = logging.getLogger(__name__)


def load_task(config: BuiltinTaskConfig | CustomTaskConfig, seed: int, test: bool = True) -> Task:
    """Read a task's rows and split them into train, validation and test.

    Where the source has a test split, test examples come from it, and rows of the rest with the
    same text leave; where `task.splits` names a validation split, the same holds for that.

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
    graders = open_graders(config.grade, config.has_choices, outline.answer_pattern)
    source = open_source(config, outline, test)
    rest = _collect(source.rows, outline, config.group)
    own: dict[SplitName, _Collected] = {}
    if source.test is not None:
        own["test"] = _collect(source.test, outline, config.group)
    if source.validation is not None:
        own["validation"] = _collect(source.validation, outline, config.group)
    splits, ties = _split(config, outline, seed, rest.rows, own)
    read = [rest, *own.values()]
    names = _names(outline, [e for each in read for e in each.rows.examples.values()], graders)
    unused = source.unused if isinstance(config, CustomTaskConfig) else ()
    counts = _counts(read, ties, splits, unused)
    if not test:
        splits.pop("test")
    _refuse_empty(splits, source, config, ties, counts)
    train = splits["train"]
    if config.examples_per_class is not None:
        train = tuple(first_of_each(train, config.examples_per_class, names))
        counts = counts.by_class(train)
    if repeated := counts.duplicates:
        logger.info("%s: %d rows repeat another one and were left out", source.where, repeated)
    return Task(
        name=outline.name,
        description=outline.description,
        slots=(*outline.columns, *([CHOICES_SLOT] if outline.shows_choices else [])),
        option_slots=dict(outline.option_slots),
        choices=names,
        choices_as=None if outline.row_choices is None else outline.choices_as,
        train=train[: config.max_train_examples],
        validation=splits["validation"],
        test=splits.get("test", ()),
        rows=counts,
        answer_pattern=outline.answer_pattern,
        relevance_words=outline.relevance_words,
        top_threshold=outline.top_threshold,
        graders=graders,
        instructions=outline.instructions,
    )


def _counts(
    read: "Sequence[_Collected]",
    ties: Ties,
    splits: Mapping[SplitName, Sequence[Example]],
    unused: Iterable[str],
) -> RowCounts:
    """What became of the rows that were read."""
    distinct = sum(len(each.rows.examples) for each in read)
    sizes = {split: len(splits[split]) for split in SPLITS}
    return RowCounts(
        duplicates=sum(each.duplicates for each in read),
        tied=ties.same_text,
        contradicting=ties.contradicting,
        in_held_out=distinct - sum(sizes.values()),
        empty_fields=sum(each.empty_fields for each in read),
        groups=ties.groups,
        unused_splits=", ".join(unused),
        sizes=sizes,
    )


def _names(
    outline: TaskOutline, examples: Sequence[Example], graders: Sequence[Grader]
) -> tuple[str, ...] | None:
    """What may be answered, where that is the same for all rows or letters; else None.

    Raises:
        DataError: Answers could not be graded as they should.
    """
    names = outline.choices
    if outline.shows_choices:
        refuse_one_place(examples)
        names = letters(max((len(example.options) for example in examples), default=0))
    refuse_unreadable(examples, graders)
    refuse_unreadable_choices(names or (), graders)
    return names


def _split(
    config: BuiltinTaskConfig | CustomTaskConfig,
    outline: TaskOutline,
    seed: int,
    rest: Rows,
    own: "Mapping[SplitName, _Collected]",
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


def example_id(fields: Mapping[str, str], answer: str, options: Sequence[str] = ()) -> str:
    """Sixteen hex digits that name an example by its content."""
    content = json.dumps(
        {"answer": answer, "fields": dict(fields), **({"choices": options} if options else {})},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Collected:
    """The rows of one source as examples."""

    rows: Rows
    duplicates: int
    """Rows that repeat another one."""
    empty_fields: int
    """Fields without a value, which are read as empty."""


def _collect(rows: Iterable[Row], outline: TaskOutline, group: str | None) -> _Collected:
    """The examples of rows, each once."""
    examples: dict[str, Example] = {}
    keys: dict[str, bytes] = {}
    groups: dict[str, list[str]] = {}
    count = empty = 0
    for row in rows:
        count += 1
        found = {slot: _field(row, column, outline) for slot, column in outline.columns.items()}
        fields = {slot: text or "" for slot, text in found.items()}
        found_fields = dict(fields)
        if not any(fields.values()):
            raise DataError(
                f"{row.where}: column {', '.join(map(repr, outline.columns.values()))} holds no "
                "value or is empty; an example needs a text: fill it in or remove the row"
            )
        empty += sum(text is None for text in found.values())
        options: tuple[str, ...] = ()
        if outline.row_choices is not None:
            once = not outline.shows_choices
            options, place = read_choices(row, outline.row_choices, outline.answer, once)
            answer = options[place]
            if outline.shows_choices:
                fields[CHOICES_SLOT] = lettered(options)
                answer = letters(len(options))[place]
        else:
            answer = _answer(row, outline)
        identity = example_id(fields, answer, options)
        if identity not in examples:
            examples[identity] = Example(identity, fields, answer, row.where, options)
            keys[identity] = text_key(found_fields)
        if group is not None:
            groups.setdefault(identity, []).append(_group(row, group))
    return _Collected(Rows(examples, keys, groups), count - len(examples), empty)


def _group(row: Row, column: str) -> str:
    value = column_value(row, column)
    text = (text_of(value) or "").strip()
    if not text:
        raise DataError(
            f"{row.where}: the group (column {column!r}) is {shown(value)}; task.group needs a "
            "text or number in every row: mend the row, or name another column"
        )
    return text


def _field(row: Row, column: str, outline: TaskOutline) -> str | None:
    value = column_value(row, column)
    text = None if value is None else text_of(value)
    if text is None and value is not None:
        raise DataError(
            f"{row.where}: column {column!r} is {shown(value)}, which is no single text or number; "
            f"name one entry of it, as in {column}[0] or {column}.name"
        )
    return None if text is None else _rewrite(text, outline.field_rewrites)


def _answer(row: Row, outline: TaskOutline) -> str:
    value = column_value(row, outline.answer)
    text = None if value is None else text_of(value)
    if text is None or not text.strip():
        found = "holds no value" if value is None else f"is {shown(value)}"
        raise DataError(
            f"{row.where}: the answer (column {outline.answer!r}) {found}; it must be a text that "
            "is not empty: fill it in, mend the row or remove it"
        )
    text = _choice(value, text.strip(), outline)
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


def _choice(value: object, text: str, outline: TaskOutline) -> str:
    """The choice that an answer stands for, or its text where it stands for none.

    Characters that Unicode composes in two ways are the same, as in what two systems wrote.
    """
    if outline.choices is None:
        return outline.labels.get(text, text)
    if isinstance(value, str) and not outline.labels and text in outline.choices:
        return text
    for form in (str, composed):  # to the letter first
        labels = {form(label): form(choice) for label, choice in outline.labels.items()}
        choices = {form(choice): choice for choice in outline.choices[::-1]}
        said = list(spellings(value, frozenset((*labels, *choices)), form))
        mapped = [labels[each] for each in said if each in labels]
        if (
            found := next((each for each in (*mapped, *said) if each in choices), None)
        ) is not None:
            return choices[found]
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
