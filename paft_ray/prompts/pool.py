"""The prompt pool: from candidates to training, validation and test prompts that share nothing.

Covered: the records, `assemble_pool` (split and compose; nothing is dropped without a `Rejected`),
the immutable `PromptPool` with `take`, and its tables on storage. Not covered: where candidates
come from (`prompts.files`, `prompts.build`), which of them are used (`prompts.candidates`), and the
split itself (`prompts.split`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import pyarrow as pa

from paft_ray.config import PromptsConfig
from paft_ray.config.errors import ArtifactError, PoolError
from paft_ray.prompts.coverage import covering_order
from paft_ray.prompts.layouts import compose, enumerate_layouts, instruction_of, layout_of
from paft_ray.prompts.shown import rendered, sampled
from paft_ray.prompts.split import NO_LAYOUT, Piece, TooFewError, place_instructions, split_pieces
from paft_ray.prompts.stock import STOCK, wording_of
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage, to_parquet
from paft_ray.tasks.example import SPLITS, Example, SplitName, Task

POOL_FILE = "pool.parquet"


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a candidate: an LLM, or a file."""

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
    """A prompt that was written and not checked yet."""

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
    """A template of the pool, with its split, origin and scores."""

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


def training_prompt(text: str, slots: Sequence[str], origin: Origin) -> Prompt:
    """A template of a task's slots that no pool holds, as a prompt to train or to ask with."""
    return Prompt(
        id=fingerprint(text),
        text=text,
        instruction=instruction_of(text, slots),
        layout=layout_of(text, slots),
        split="train",
        cluster="",
        origin=origin,
    )


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
        """The prompts of one split.

        Raises:
            PoolError: There is no such split.
        """
        if split not in SPLITS:
            raise PoolError(f"split: {split!r}: use one of {', '.join(SPLITS)}")
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def take(self, n: int, field: str = "prompts.pool_size") -> "PromptPool":
        """The pool with only its first `n` training prompts; held-out prompts stay the same.

        Args:
            n: How many.
            field: Where that was asked for, for the error.

        Raises:
            PoolError: There are fewer, or `n` is not positive.
        """
        if n < 1:
            raise PoolError(f"{field} ({n}) is less than 1: raise it, or leave it out")
        if n > len(self.train):
            raise PoolError(
                f"{field} ({n}) is more than the {len(self.train)} training prompts of "
                "this pool: lower it, or raise prompts.generation.per_llm"
            )
        return replace(self, train=self.train[:n])

    def sample(
        self, count: int = 3, split: SplitName = "train", seed: int = 0
    ) -> tuple[Prompt, ...]:
        """Some prompts of a split to look at, none twice, the same ones for the same seed.

        Raises:
            PoolError: The split has fewer, or `count` is not positive.
        """
        return sampled(self.prompts(split), count, seed)

    def render(
        self,
        example: Example | Mapping[str, str],
        count: int = 1,
        split: SplitName = "train",
        seed: int = 0,
    ) -> tuple[str, ...]:
        """An example, or its fields by slot, under each prompt of `sample(count, split, seed)`.

        Raises:
            PoolError: See `sample`.
            TemplateError: The fields are not the slots of a prompt.
        """
        fields = example.fields if isinstance(example, Example) else example
        if not isinstance(fields, Mapping):
            raise PoolError(f"example: {fields!r} has no slots: give its fields by slot, a dict")
        return tuple(rendered(self.sample(count, split, seed), fields))

    def to_table(self) -> pa.Table:
        """A table with a row per prompt, by split."""
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
class Survivors:
    """The candidates after lint and deduplication."""

    candidates: tuple[Candidate, ...]
    counts: Mapping[str, int]
    """The funnel so far: `candidates`, `linted`, `unique`."""
    reasons: Mapping[tuple[str, str], int]
    """How many were rejected, by stage and reason."""


@dataclass(frozen=True, slots=True)
class PoolBuild:
    """The result of `assemble_pool`."""

    pool: PromptPool
    rejected: tuple[Rejected, ...]
    """By the split."""
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
    """A table with a row per rejected candidate."""
    return pa.Table.from_pylist([asdict(reject) for reject in rejected], REJECTS_SCHEMA)


def assemble_pool(found: Survivors, task: Task, config: PromptsConfig, seed: int) -> PoolBuild:
    """Split unique candidates and compose the pool's prompts.

    Every candidate ends in the pool or is rejected.

    Raises:
        PoolError: Too few survive for the configured splits.
    """
    unique = found.candidates
    rejected: list[Rejected] = []
    pieces = [piece_of(candidate, task) for candidate in unique]
    try:
        assignments = split_pieces(pieces, config.split, seed)
    except TooFewError as error:
        raise _too_few(str(error), found, rejected) from error
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
    order = covering_order(train, config.coverage)
    by_split["train"] = tuple(by_split["train"][index] for index in order)
    if (len(by_split["test"]), len(by_split["validation"])) != (
        config.split.test,
        config.split.validation,
    ):
        reason = "no layout of the grammar suits some held-out instructions"
        raise _too_few(reason, found, rejected)
    counts = {**found.counts, **{split: len(found) for split, found in by_split.items()}}
    return PoolBuild(PromptPool(**by_split), tuple(rejected), counts)


def piece_of(candidate: Candidate, task: Task) -> Piece:
    """A candidate as it is compared and split: the wording, and the layout of a template."""
    text, author = candidate.text, candidate.origin.llm or candidate.origin.file
    if candidate.kind == "instruction":
        return Piece(text, None, author)
    wording = instruction_of(text, task.slots)
    if (candidate.origin.file or "").startswith(STOCK):
        wording = wording_of(wording, task)
    return Piece(wording, layout_of(text, task.slots), author)


def _too_few(reason: str, found: Survivors, rejected: Sequence[Rejected]) -> PoolError:
    counts = Counter(found.reasons)
    counts.update((reject.stage, reject.reason) for reject in rejected)
    top = [f"{count} {stage} {name}" for (stage, name), count in counts.most_common(3)]
    why = ", ".join(top) or "none"
    return PoolError(
        f"{len(found.candidates)} of {found.counts['candidates']} candidate prompts survived "
        f"(rejected: {why}); {reason}: raise prompts.generation.per_llm, add prompts.files, or "
        "lower prompts.split.test and prompts.split.validation"
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
