"""Ray Data: from answers to unique candidates where there are too many for one process.

Units of answers are parsed and linted where there is a CPU, deduplicated by `scale`, and streamed
into the pool's tables; the driver keeps the `max_unique` candidates whose hashes come first.
"""

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paft_ray.cluster.remote import own_errors
from paft_ray.config import PromptsConfig
from paft_ray.prompts.generate.requests import Unit
from paft_ray.prompts.generate.runner import Asked, parse_unit
from paft_ray.prompts.pool import (
    ORIGIN,
    Candidate,
    Origin,
    PoolBuild,
    Rejected,
    assemble_pool,
    lint_candidate,
    piece_of,
    rejects_to_table,
)
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

_ROWS = pa.schema(
    [
        ("id", pa.string()),
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
"""A candidate or, with a stage, a reject; `given` is a candidate's text before lint cleaned it."""


class TableFile:
    """A Parquet file that grows by tables, so that no table has to be held whole."""

    def __init__(self, schema: pa.Schema) -> None:
        """No rows yet; used as a context, whose end deletes the file."""
        self.schema = schema
        self.rows = 0
        self.reasons: Counter[str] = Counter()
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
        """Write some rows behind those that are there."""
        self.rows += table.num_rows
        if "reason" in self.schema.names:
            pairs = zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True)
            self.reasons.update(f"{stage}: {reason}" for stage, reason in pairs)
        self._writer.write_table(table.select(self.schema.names).cast(self.schema))

    def content(self) -> bytes:
        """The file, which takes no more rows."""
        self._writer.close()
        return self._path.read_bytes()


def build_in_bulk(
    files: Sequence[Candidate],
    asked: Asked | None,
    task: Task,
    config: PromptsConfig,
    seed: int,
    candidates: TableFile,
    rejects: TableFile,
) -> PoolBuild:
    """Lint, deduplicate, split and compose, as `pool.build_pool` does with few.

    Args:
        files: Candidates from files.
        asked: What LLMs were asked.
        task: For slots and layouts.
        config: Rules.
        seed: The run's seed.
        candidates: Takes every candidate.
        rejects: Takes what lint and deduplication reject; the result has the split's.

    Raises:
        PoolError: Too few survive for the splits asked for.
    """
    import ray.data

    from paft_ray.prompts.scale import deduplicate_dataset

    slim = replace(task, train=(), validation=(), test=())
    units = asked.tallies if asked else ()
    items: list[dict[str, Any]] = [{"unit": asdict(unit)} for unit in units]
    items += [
        {"files": [asdict(c) for c in files[start : start + 1000]], "start": start}
        for start in range(0, len(files), 1000)
    ]
    with own_errors():
        rows = (
            ray.data.from_items([{"item": json.dumps(item)} for item in items])
            .map_batches(
                _Linter,
                batch_size=4,
                batch_format="pandas",
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_linters()),
                fn_constructor_args=(asked, slim, config),
            )
            .materialize()
        )
        linted = 0
        for batch in _batches(rows):
            stages = batch["stage"].to_pylist()
            shown = batch.filter(pa.array([s not in ("generation", "parse") for s in stages]))
            candidates.add(shown.set_column(1, "text", shown["given"]))
            rejects.add(batch.filter(pa.array([stage is not None for stage in stages])))
            linted += stages.count(None)
        good = rows.map_batches(_only_good, batch_format="pyarrow")
        unique = deduplicate_dataset(
            good, config.dedup.similarity, column="instruction", group_column="layout"
        )
        best: list[tuple[str, str, Candidate]] = []
        kept = 0
        for batch in _batches(unique):
            rejects.add(
                _duplicates(batch.filter(pa.array([not k for k in batch["kept"].to_pylist()])))
            )
            over = []
            for row in batch.filter(batch["kept"]).to_pylist():
                kept += 1
                candidate = Candidate(row["text"], row["kind"], Origin(**row["origin"]))
                heapq.heappush(best, (_reversed(fingerprint(row["text"])), row["id"], candidate))
                if len(best) > config.max_unique:
                    over.append(heapq.heappop(best)[2])
            detail = f"prompts.max_unique {config.max_unique}"
            rejects.add(
                rejects_to_table(
                    Rejected(c.text, "dedup", "beyond_max_unique", c.origin, detail) for c in over
                )
            )
    survivors = sorted(
        (candidate for _, _, candidate in best),
        key=lambda c: (c.text, c.kind, fingerprint(asdict(c.origin))),
    )
    counts = {"candidates": candidates.rows, "linted": linted, "unique": kept}
    return assemble_pool(survivors, (), counts, task, config, seed)


def _reversed(digits: str) -> str:
    """Hex digits that sort the other way, for a heap that gives up the largest."""
    return f"{(1 << 64) - 1 - int(digits, 16):016x}"


def _linters() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _batches(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=16_384, batch_format="pyarrow", prefetch_batches=0)


def _only_good(batch: pa.Table) -> pa.Table:
    return batch.filter(pa.array([stage is None for stage in batch["stage"].to_pylist()]))


def _duplicates(batch: pa.Table) -> pa.Table:
    rows = [
        Rejected(
            row["text"],
            "dedup",
            "duplicate" if row["similarity"] == 1 else "near_duplicate",
            Origin(**row["origin"]),
            f"similarity {row['similarity']:.2f} to candidate {row['repeats']}",
        )
        for row in batch.to_pylist()
    ]
    return rejects_to_table(rows)


class _Linter:
    """Parses and lints units of answers."""

    def __init__(self, asked: Asked | None, task: Task, config: PromptsConfig) -> None:
        self._asked, self._task, self._config = asked, task, config

    def __call__(self, batch: Any) -> pa.Table:
        rows = [row for item in batch["item"] for row in self._lint(json.loads(item))]
        return pa.Table.from_pylist(rows, _ROWS)

    def _lint(self, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        entries: Iterable[Candidate | Rejected]
        if "unit" in item:
            assert self._asked is not None
            unit = Unit(**item["unit"])
            entries, where = parse_unit(self._asked, unit), [item["unit"]]
        else:
            files = [Candidate(c["text"], c["kind"], Origin(**c["origin"])) for c in item["files"]]
            entries, where = files, ["files", item["start"]]
        for number, entry in enumerate(entries):
            given, kind = entry.text, getattr(entry, "kind", None)
            if isinstance(entry, Candidate):
                entry = lint_candidate(entry, self._task, self._config.lint)
            row: dict[str, Any] = {
                "id": fingerprint("candidate", where, number),
                "text": entry.text,
                "given": given,
                "kind": kind,
                "origin": asdict(entry.origin),
            }
            if isinstance(entry, Rejected):
                row |= {"stage": entry.stage, "reason": entry.reason, "detail": entry.detail}
            else:
                piece = piece_of(entry, self._task)
                row |= {"instruction": piece.instruction, "layout": piece.layout or ""}
            yield row
