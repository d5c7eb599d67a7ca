"""Turns answers and files into unique candidates: parsed, linted, deduplicated, counted.

The same functions of tables run in this process or on Ray, see `dedup.deduplicate`; of many
candidates this process sees one batch after another, and keeps the `max_unique` whose hashes come
first.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paft_ray.config import LintConfig, PromptsConfig
from paft_ray.prompts.dedup.deduplicate import Columns, InProcess, deduplicate
from paft_ray.prompts.files import holds_escapes
from paft_ray.prompts.generate.requests import Unit
from paft_ray.prompts.generate.results import Generated, parse_unit
from paft_ray.prompts.layouts import instruction_of
from paft_ray.prompts.lint import TOO_SHORT, LintResult, lint, lint_instruction, other_work
from paft_ray.prompts.pool import (
    ORIGIN,
    Candidate,
    Origin,
    Rejected,
    Survivors,
    piece_of,
    rejects_to_table,
)
from paft_ray.prompts.template import count_words
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

_ROWS = pa.schema(
    [
        ("id", pa.large_string()),
        ("text", pa.string()),
        ("kind", pa.string()),
        ("origin", ORIGIN),
        ("instruction", pa.string()),
        ("layout", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("given", pa.string()),
    ]
)
"""A candidate or, with a stage, a reject; `given` is a candidate's text before lint cleaned it.

Ids order candidates by given text, kind and origin, whatever process sees them, and end with the
cleaned text: the first one stands for all with its wording and layout.
"""
_NUL = "\0"
"""Separates the parts of an id; `clean` takes it out of texts."""


class TableFile:
    """A Parquet file that grows by tables, so that no table has to be held whole."""

    def __init__(self, schema: pa.Schema) -> None:
        """Start without rows; used as a context, whose end deletes the file."""
        self.schema = schema
        self.rows = 0
        self.reasons: Counter[tuple[str, str]] = Counter()
        """How many rows of rejects there are of each stage and reason."""

    def __enter__(self) -> "TableFile":
        self._folder = tempfile.TemporaryDirectory(prefix="paft-pool-")
        self._path = Path(self._folder.name) / "table.parquet"
        self._writer = pq.ParquetWriter(self._path, self.schema, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._folder.cleanup()

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        self.rows += table.num_rows
        if "reason" in self.schema.names:
            pairs = zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True)
            self.reasons.update(pairs)
        self._writer.write_table(table.select(self.schema.names).cast(self.schema))

    def content(self) -> bytes:
        """Close the file and return its content."""
        self._writer.close()
        return self._path.read_bytes()


def lint_all(
    files: Sequence[Candidate],
    generated: Generated | None,
    task: Task,
    config: LintConfig,
    execution: InProcess,
) -> Any:
    """Parse answers and lint candidates.

    Args:
        files: Candidates from files.
        generated: What LLMs answered.
        task: For slots and layouts.
        config: Rules of lint.
        execution: Where to compute.

    Returns:
        Rows for `keep_unique`.
    """
    items: list[dict[str, Any]] = [
        {"files": [asdict(c) for c in files[start : start + 1000]], "start": start}
        for start in range(0, len(files), 1000)
    ]
    items += [{"unit": asdict(unit)} for unit in (generated.tallies if generated else ())]
    slim = replace(task, train=(), validation=(), test=())
    source = replace(generated, tallies={}) if generated else None
    rows = execution.rows([{"item": json.dumps(item)} for item in items])
    return execution.hold(execution.map(partial(_lint_batch, source, slim, config), rows))


def keep_unique(
    rows: Any,
    config: PromptsConfig,
    execution: InProcess,
    candidates: TableFile,
    rejects: TableFile,
) -> Survivors:
    """Deduplicate what passed lint, among candidates of one layout.

    The same instruction in another layout is another prompt, because the layout matters as much
    as the wording.

    Args:
        rows: From `lint_all`.
        config: Rules of deduplication.
        execution: Where the rows are and where to compute.
        candidates: Takes every candidate.
        rejects: Takes what is not among the survivors.
    """
    for batch in execution.batches(rows):
        shown = batch.filter(batch["kind"].is_valid())
        candidates.add(shown.set_column(1, "text", shown["given"]))
    rows = execution.map(_in_order, rows)
    linted = 0
    for batch in execution.batches(rows):
        bad = batch.filter(batch["stage"].is_valid())
        rejects.add(bad)
        linted += len(batch) - len(bad)
    good = execution.map(_without_rejects, rows)
    columns = Columns("instruction", "id", "layout")
    best: list[tuple[str, Candidate]] = []
    unique = 0
    for batch in execution.batches(deduplicate(good, config.dedup.similarity, execution, columns)):
        rejects.add(_duplicates(batch))
        kept = batch.filter(batch["kept"]).to_pylist()
        unique += len(kept)
        best += [
            (row["id"], Candidate(row["text"], row["kind"], Origin(**row["origin"])))
            for row in kept
        ]
        best, beyond = _first_by_hash(sorted(best, key=lambda entry: entry[0]), config.max_unique)
        detail = f"prompts.max_unique {config.max_unique}"
        rejects.add(
            rejects_to_table(
                Rejected(c.text, "dedup", "beyond_max_unique", c.origin, detail) for _, c in beyond
            )
        )
    reasons = dict(rejects.reasons)
    counts = {"candidates": candidates.rows, "linted": linted, "unique": unique}
    return Survivors(tuple(candidate for _, candidate in best), counts, reasons)


def _in_order(rows: pa.Table) -> pa.Table:
    """Rejects and then candidates by layout, each by id, as they are listed in a block."""
    ids, layouts = rows["id"].to_pylist(), rows["layout"].to_pylist()
    order = sorted(range(len(ids)), key=ids.__getitem__)
    places: dict[str | None, int] = {None: -1}
    for index in order:
        places.setdefault(layouts[index], len(places))
    return rows.take(sorted(order, key=lambda index: places[layouts[index]]))


def _without_rejects(rows: pa.Table) -> pa.Table:
    return rows.filter(rows["stage"].is_null())


def _duplicates(batch: pa.Table) -> pa.Table:
    return rejects_to_table(
        Rejected(
            row["text"],
            "dedup",
            "duplicate" if row["similarity"] == 1 else "near_duplicate",
            Origin(**row["origin"]),
            f"similarity {row['similarity']:.2f} to {row['repeats'].rpartition(_NUL)[2]!r}",
        )
        for row in batch.filter(batch["repeats"].is_valid()).to_pylist()
    )


def _first_by_hash(
    best: list[tuple[str, Candidate]], most: int
) -> tuple[list[tuple[str, Candidate]], list[tuple[str, Candidate]]]:
    """Choose at most so many candidates by the hashes of their texts; return also the others."""
    if len(best) <= most:
        return best, []
    chosen = {id for id, _ in sorted(best, key=lambda entry: fingerprint(entry[1].text))[:most]}
    kept = [entry for entry in best if entry[0] in chosen]
    return kept, [entry for entry in best if entry[0] not in chosen]


def _lint_batch(
    generated: Generated | None, task: Task, config: LintConfig, items: pa.Table
) -> pa.Table:
    rows = [
        row
        for item in items["item"].to_pylist()
        for row in _lint_item(generated, task, config, json.loads(item))
    ]
    return pa.Table.from_pylist(rows, _ROWS)


def _lint_item(
    generated: Generated | None, task: Task, config: LintConfig, item: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    entries: Iterable[Candidate | Rejected]
    if "unit" in item:
        assert generated is not None
        entries, where = parse_unit(generated, Unit(**item["unit"])), [item["unit"]]
    else:
        files = [Candidate(c["text"], c["kind"], Origin(**c["origin"])) for c in item["files"]]
        entries, where = files, ["files", item["start"]]
    for number, entry in enumerate(entries):
        given, kind = entry.text, None
        row: dict[str, Any] = {"id": "", "given": given, "origin": asdict(entry.origin)}
        if isinstance(entry, Candidate):
            kind = entry.kind
            entry = lint_candidate(entry, task, config)
            unique = fingerprint("candidate", where, number)
            row["id"] = _NUL.join((given, kind, fingerprint(row["origin"]), unique, entry.text))
        row |= {"text": entry.text, "kind": kind}
        if isinstance(entry, Rejected):
            row |= {"stage": entry.stage, "reason": entry.reason, "detail": entry.detail}
        else:
            piece = piece_of(entry, task)
            row |= {"instruction": piece.instruction, "layout": piece.layout or ""}
        yield row


def lint_candidate(candidate: Candidate, task: Task, config: LintConfig) -> Candidate | Rejected:
    """Clean a candidate's text, or reject it."""
    if candidate.kind == "instruction":
        result = lint_instruction(candidate.text, task, config)
    else:
        authored = candidate.origin.llm is not None
        escapes = holds_escapes(candidate.origin.file or "", candidate.text)
        result = lint(candidate.text, task, config, authored=authored, escapes=escapes)
        if result.problem is None and authored:
            result = _lint_authored(result, task, config)
    if result.problem is None:
        return replace(candidate, text=result.text)
    return Rejected(candidate.text, "lint", result.problem, candidate.origin, result.detail)


def _lint_authored(result: LintResult, task: Task, config: LintConfig) -> LintResult:
    """A template by an LLM says as much as an instruction by one, and asks for this task."""
    instruction = instruction_of(result.text, task.slots)
    if (count := count_words(instruction)) < config.min_instruction_words:
        detail = f"{count} words of instruction; at least {config.min_instruction_words}"
        return replace(result, problem=TOO_SHORT, detail=detail)
    if config.relevance and (problem := other_work(instruction, task)):
        return replace(result, problem=problem[0], detail=problem[1])
    return result
