"""The prompt pool: from candidates to training, validation and test prompts that share nothing.

Covered: the records, `build_pool` (lint, deduplicate, split, compose; nothing is dropped without
a `Rejected`), the immutable `PromptPool` with `take`, and its tables on storage. Not covered:
where candidates come from (`prompts.files`, `prompts.build`) and the split itself
(`prompts.split`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import pyarrow as pa

from paft_ray.config import LintConfig, PromptsConfig
from paft_ray.config.errors import ArtifactError, PoolError
from paft_ray.prompts.coverage import covering_order
from paft_ray.prompts.dedup import deduplicate
from paft_ray.prompts.layouts import compose, enumerate_layouts, instruction_of, layout_of
from paft_ray.prompts.lint import LintResult, lint, lint_instruction, other_work
from paft_ray.prompts.split import NO_LAYOUT, Piece, TooFewError, place_instructions, split_pieces
from paft_ray.prompts.template import TOO_SHORT, count_words
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage, to_parquet
from paft_ray.tasks.example import SPLITS, SplitName, Task

POOL_FILE = "pool.parquet"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a candidate came from: an LLM, or a file."""

    llm: str | None = None
    """The author, as a reader knows it."""
    strategy: str | None = None
    """`zero_shot` or `few_shot`."""
    decoding_temperature: float | None = None
    seed: int | None = None
    """The LLM's decoding seed."""
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that somebody wrote and nobody checked yet."""

    text: str
    kind: Literal["instruction", "template"]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that is not in the pool, and why."""

    text: str
    stage: str
    """`lint`, `dedup` or `split`, or an earlier one of the caller's."""
    reason: str
    origin: Origin
    detail: str = ""
    """What exactly, for a reader."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template that may be used, and what is known of it."""

    id: str
    """Sixteen hex digits of the text."""
    text: str
    instruction: str
    """The wording without slots and layout."""
    layout: str
    """Key of the layout, see `layouts.layout_of`."""
    split: SplitName
    cluster: str
    """The component of similar wording or like layout that it belongs to."""
    origin: Origin
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptPool:
    """The prompts of every split: training prompts in an order of which every beginning covers the
    whole as well as it can, held-out ones in the order of their ids.
    """

    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of all texts and their splits."""
        return fingerprint("prompts", [[prompt.id for prompt in self.prompts(s)] for s in SPLITS])

    def prompts(self, split: SplitName) -> tuple[Prompt, ...]:
        """The prompts of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def take(self, n: int) -> "PromptPool":
        """The pool with only its first `n` training prompts; held-out prompts stay the same.

        Raises:
            PoolError: There are fewer, or `n` is not positive.
        """
        if n < 1:
            raise PoolError(f"prompts.pool_size ({n}) is less than 1: raise it, or leave it out")
        if n > len(self.train):
            raise PoolError(
                f"prompts.pool_size ({n}) is more than the {len(self.train)} training prompts of "
                "this pool: lower it, or raise prompts.generation.per_llm"
            )
        return replace(self, train=self.train[:n])

    def to_table(self) -> pa.Table:
        """One row per prompt, by split."""
        rows = []
        for prompt in (p for split in SPLITS for p in self.prompts(split)):
            row = asdict(prompt)
            row["prompt_id"], row["scores"] = row.pop("id"), list(prompt.scores.items())
            rows.append(row)
        return pa.Table.from_pylist(rows, _POOL_SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table) -> "PromptPool":
        """The pool that `to_table` wrote.

        Raises:
            ArtifactError: A column is missing.
        """
        if missing := [name for name in _POOL_SCHEMA.names if name not in table.column_names]:
            raise ArtifactError(
                f"{POOL_FILE}: columns {missing} are missing; delete the pool and build it again"
            )
        splits: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
        for row in table.select(_POOL_SCHEMA.names).to_pylist():
            row["id"], row["origin"] = row.pop("prompt_id"), Origin(**row["origin"])
            row["scores"] = dict(row["scores"] or ())
            splits[row["split"]].append(Prompt(**row))
        return cls(**{split: tuple(prompts) for split, prompts in splits.items()})

    def save(self, writer: ArtifactWriter) -> None:
        """Write the pool as a file of an artifact; committing it is the caller's part."""
        writer.add(POOL_FILE, to_parquet(self.to_table()))


@dataclass(frozen=True, slots=True)
class PoolBuild:
    """What `build_pool` made."""

    pool: PromptPool
    rejected: tuple[Rejected, ...]
    counts: Mapping[str, int]
    """The funnel: `candidates`, `linted`, `unique` (both of candidates), and prompts by split."""


def load_pool(folder: Storage) -> PromptPool:
    """The pool of a complete artifact.

    Raises:
        ArtifactError: It is missing or torn.
    """
    if load_manifest(folder, check=True) is None:
        raise ArtifactError(f"{folder.path()}: holds no complete pool; run `paft prompts` again")
    return PromptPool.from_table(folder.read_table(POOL_FILE))


def rejects_to_table(rejected: Iterable[Rejected]) -> pa.Table:
    """One row per rejected candidate."""
    return pa.Table.from_pylist([asdict(reject) for reject in rejected], REJECTS_SCHEMA)


def candidates_to_table(candidates: Iterable[Candidate]) -> pa.Table:
    """One row per candidate."""
    return pa.Table.from_pylist([asdict(candidate) for candidate in candidates], CANDIDATES_SCHEMA)


def build_pool(
    candidates: Sequence[Candidate], task: Task, config: PromptsConfig, seed: int
) -> PoolBuild:
    """Lint, deduplicate, split and compose; every candidate ends in the pool or is rejected.

    The result does not depend on the order of the candidates.

    Raises:
        PoolError: Too few survive for the splits asked for.
    """
    ordered = sorted(candidates, key=lambda c: (c.text, c.kind, fingerprint(asdict(c.origin))))
    linted: list[Candidate] = []
    rejected: list[Rejected] = []
    for candidate in ordered:
        result = lint_candidate(candidate, task, config.lint)
        (linted if isinstance(result, Candidate) else rejected).append(result)  # pyright: ignore
    unique = _deduplicate(linted, task, config.dedup.similarity, rejected)
    counts = {"candidates": len(candidates), "linted": len(linted), "unique": len(unique)}
    return assemble_pool(unique, rejected, counts, task, config, seed)


def assemble_pool(
    unique: Sequence[Candidate],
    rejected: Sequence[Rejected],
    counts: Mapping[str, int],
    task: Task,
    config: PromptsConfig,
    seed: int,
) -> PoolBuild:
    """Split unique candidates and compose the pool's prompts.

    Args:
        unique: What lint and deduplication left.
        rejected: What they did not, for the record and for the error.
        counts: The funnel so far: `candidates`, `linted`, `unique`.
        task: For slots and layouts.
        config: How to split and compose.
        seed: The run's seed.

    Raises:
        PoolError: Too few survive for the splits asked for.
    """
    rejected = list(rejected)
    unique, beyond = _first_by_hash(unique, config.max_unique)
    rejected += [
        Rejected(
            c.text, "dedup", "beyond_max_unique", c.origin, f"prompts.max_unique {len(unique)}"
        )
        for c in beyond
    ]
    pieces = [piece_of(candidate, task) for candidate in unique]
    try:
        assignments = split_pieces(pieces, config.split, seed)
    except TooFewError as error:
        raise _too_few(str(error), counts["candidates"], len(unique), rejected) from error
    layouts = enumerate_layouts(task) if any(piece.layout is None for piece in pieces) else ()
    placed = place_instructions(pieces, assignments, layouts, task.slots, config, seed)
    prompts: list[Prompt] = []
    for candidate, piece, assignment, chosen in zip(
        unique, pieces, assignments, placed, strict=True
    ):
        texts = [(compose(piece.instruction, layout), layout.key) for layout in chosen]
        if piece.layout is not None:
            texts = [(candidate.text, piece.layout)]
        if assignment.split is None or not texts:
            reason, detail = assignment.reason or NO_LAYOUT, assignment.detail
            rejected.append(Rejected(candidate.text, "split", reason, candidate.origin, detail))
            continue
        for text, layout in texts:
            prompts.append(
                Prompt(
                    id=fingerprint(text),
                    text=text,
                    instruction=piece.instruction,
                    layout=layout,
                    split=assignment.split,
                    cluster=assignment.cluster,
                    origin=candidate.origin,
                )
            )
    by_split = {
        split: tuple(sorted((p for p in prompts if p.split == split), key=lambda p: p.id))
        for split in SPLITS
    }
    train = [prompt.text for prompt in by_split["train"]]
    order = covering_order(train, config.coverage.path)
    by_split["train"] = tuple(by_split["train"][index] for index in order)
    if (len(by_split["test"]), len(by_split["validation"])) != (
        config.split.test,
        config.split.validation,
    ):
        reason = "no layout of the grammar suits some held-out instructions"
        raise _too_few(reason, counts["candidates"], len(unique), rejected)
    counts = {**counts, **{split: len(found) for split, found in by_split.items()}}
    return PoolBuild(PromptPool(**by_split), tuple(rejected), counts)


def _first_by_hash(
    unique: Sequence[Candidate], most: int
) -> tuple[Sequence[Candidate], Sequence[Candidate]]:
    """At most so many candidates, chosen by the hashes of their texts, and the others."""
    if len(unique) <= most:
        return unique, ()
    chosen = set(sorted(range(len(unique)), key=lambda i: fingerprint(unique[i].text))[:most])
    kept = [candidate for index, candidate in enumerate(unique) if index in chosen]
    return kept, [candidate for index, candidate in enumerate(unique) if index not in chosen]


def lint_candidate(candidate: Candidate, task: Task, config: LintConfig) -> Candidate | Rejected:
    """The candidate with its text cleaned, or why it cannot be used."""
    if candidate.kind == "instruction":
        result = lint_instruction(candidate.text, task, config)
    else:
        result = lint(candidate.text, task, config)
        if result.problem is None and candidate.origin.llm is not None:
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


def _deduplicate(
    candidates: Sequence[Candidate], task: Task, threshold: float, rejected: list[Rejected]
) -> list[Candidate]:
    """The candidates to keep; the others are added to `rejected`.

    Duplicates are sought among candidates of one layout: the same instruction in another layout
    is another prompt, because the layout matters as much as the wording.
    """
    pieces = [piece_of(candidate, task) for candidate in candidates]
    groups: dict[str | None, list[int]] = {}
    for index, piece in enumerate(pieces):
        groups.setdefault(piece.layout, []).append(index)
    kept: list[int] = []
    for members in groups.values():
        result = deduplicate([pieces[index].instruction for index in members], threshold)
        kept += [members[position] for position in result.kept]
        for position, (other, similar) in sorted(result.dropped.items()):
            candidate = candidates[members[position]]
            reason = "duplicate" if similar == 1 else "near_duplicate"
            detail = f"similarity {similar:.2f} to {candidates[members[other]].text!r}"
            rejected.append(Rejected(candidate.text, "dedup", reason, candidate.origin, detail))
    return [candidates[index] for index in sorted(kept)]


def _instruction(candidate: Candidate, task: Task) -> str:
    if candidate.kind == "instruction":
        return candidate.text
    return instruction_of(candidate.text, task.slots)


def piece_of(candidate: Candidate, task: Task) -> Piece:
    """What is compared and split: the wording, and the layout of a template."""
    is_template = candidate.kind == "template"
    layout = layout_of(candidate.text, task.slots) if is_template else None
    return Piece(_instruction(candidate, task), layout, candidate.origin.llm)


def _too_few(reason: str, candidates: int, unique: int, rejected: Sequence[Rejected]) -> PoolError:
    top = Counter(f"{reject.stage} {reject.reason}" for reject in rejected).most_common(3)
    why = ", ".join(f"{count} {name}" for name, count in top) or "none"
    return PoolError(
        f"{unique} of {candidates} candidate prompts survived (rejected: {why}); {reason}: raise "
        "prompts.generation.per_llm, add prompts.files, or lower prompts.split.test and "
        "prompts.split.validation"
    )


ORIGIN = pa.struct(
    [
        ("llm", pa.string()),
        ("strategy", pa.string()),
        ("decoding_temperature", pa.float64()),
        ("seed", pa.int64()),
        ("file", pa.string()),
    ]
)
_POOL_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("instruction", pa.string()),
        ("layout", pa.string()),
        ("split", pa.string()),
        ("cluster", pa.string()),
        ("origin", ORIGIN),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("origin", ORIGIN),
        ("detail", pa.string()),
    ]
)
CANDIDATES_SCHEMA = pa.schema([("text", pa.string()), ("kind", pa.string()), ("origin", ORIGIN)])
