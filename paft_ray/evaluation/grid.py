"""Ray Data: subjects x prompts x examples, scored by actors that hold the base model.

The grid is cut into units (one subject, one prompt, a few examples) before it is distributed, so
that the worker count changes no result. An actor gets some units of a subject at a time, and keeps
those that it finished every ten seconds as parts, so that a killed evaluation continues. Where only
a part of the grid is scored, every look at it is cut like this, and goes to the actors of the look
before, which hold the model already. Models behind endpoints come last, asked by this process
(`endpoint_runner`).
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paft_ray.config.backend import TRANSFORMERS
from paft_ray.evaluation.actor_pool import LOGPROBS, ScoringActors
from paft_ray.evaluation.actors import PACKING, SECONDS
from paft_ray.evaluation.endpoint import Questions
from paft_ray.evaluation.endpoint_runner import answer_counts, score_by_endpoint
from paft_ray.evaluation.estimate_cells import FIRST_LOOK, LOOKS, balanced_cells, next_cells
from paft_ray.evaluation.parity import compare, spread_pairs
from paft_ray.evaluation.units import SERVED, Grid, Subject, cut
from paft_ray.prompts.pool import Prompt
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage
from paft_ray.storage.parts import Parts

logger = logging.getLogger(__name__)

LOOK = "look"
"""Column of the number of the look at which a pair was scored, from 0."""


@dataclass(frozen=True, slots=True)
class GridScores:
    """The scores of a grid, and the time that scoring took."""

    table: pa.Table
    """`variant`, `seed` and the columns of `scores.SCORES_SCHEMA`, in the order of the grid's
    subjects, prompts and examples; where a part was scored, first by look (`LOOK`)."""
    seconds_per_example: Mapping[str, float]
    """Label to wall-clock seconds of one actor for an example under a prompt, without loading."""
    packing: Mapping[str, str] = field(default_factory=dict)
    """Label to whether its rows were packed, and why not; without labels of earlier versions."""
    endpoints: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Label of a model behind an endpoint, and of what is made of one, to the counts of the answers
    that it was asked for."""
    prompts_per_answer: Mapping[str, int] = field(default_factory=dict)
    """Label of a comparator to the prompts that it reads for an answer."""
    under_one: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Label of a model under one prompt to the records of how it was found, one for each seed."""
    trained_prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """Label of a variant to the one prompt that it was trained on, where models answered under it
    too."""
    under_trained: pa.Table | None = None
    """Their answers, as `table` has those under test prompts."""
    paraphrases: Mapping[str, Any] | None = None
    """What became of the paraphrases of examples: see `paraphrased.write_paraphrases`."""
    parity: Mapping[str, Any] | None = None
    """How far the backend lies from transformers, where it is another: see `parity.compare`."""

    @property
    def by_split(self) -> pa.Table:
        """Both tables with `split`: `test`, and `train` under the prompts of `trained_prompts`."""
        both = (("test", self.table), ("train", self.under_trained))
        return pa.concat_tables(
            (_with_split(table, split) for split, table in both if table is not None),
            promote_options="default",
        )


def _with_split(table: pa.Table, split: str) -> pa.Table:
    return table.append_column("split", pa.array([split] * table.num_rows, pa.string()))


def score_grid(context: RunContext, grid: Grid, stage: Stage) -> GridScores:
    """Score a whole grid; `stage` shows how many pairs of prompt and example are done.

    Raises:
        DataError: An example does not fit `task.max_length` under a prompt.
    """
    stage.expect(len(grid.subjects) * grid.asked)
    wanted = [np.ones(grid.shape, bool)] * len(grid.subjects)
    return _to_scores(grid.subjects, _score(context, grid, wanted, stage))


def score_part(context: RunContext, grid: Grid, share: float, stage: Stage) -> GridScores:
    """Score a part of a grid, in several looks; see `estimate_cells`.

    Args:
        context: The run.
        grid: The whole grid; the answers of each subject decide what is scored of it.
        share: Part of the pairs of prompt and example to score.
        stage: Shows how many pairs are done.

    Raises:
        DataError: An example does not fit `task.max_length` under a prompt.
    """
    seed, count = context.config.seed, len(grid.subjects)
    classes_E = None if context.task.choices is None else [e.answer for e in grid.examples]
    first_PE = balanced_cells(seed, *grid.shape, FIRST_LOOK * share, classes_E)
    stage.expect(count * max(int(first_PE.sum()), round(share * first_PE.size)))
    observed, correct = ([np.zeros(grid.shape, bool) for _ in range(count)] for _ in range(2))
    looks: list[_Scored] = [[] for _ in range(LOOKS)]
    for base in sorted({s.base for s in grid.subjects}, key=lambda base: (base == SERVED, base)):
        own = [index for index, subject in enumerate(grid.subjects) if subject.base == base]
        actors = ScoringActors(grid, stage, stay=True)
        for look, scored in enumerate(looks):
            wanted = [np.zeros(grid.shape, bool)] * count
            for index in own:
                wanted[index] = first_PE
                if look:
                    seen = correct[index], observed[index]
                    wanted[index] = next_cells(seed, look, *seen, share, classes_E)
            for index, table in _score(context, grid, wanted, stage, actors=actors):
                correct[index] |= _correct(table, grid)
                number = pa.array([look] * table.num_rows, pa.int8())
                scored.append((index, table.append_column(LOOK, number)))
            observed = [old_PE | new_PE for old_PE, new_PE in zip(observed, wanted, strict=True)]
        actors.end()
    in_order = [sorted(scored, key=itemgetter(0)) for scored in looks]
    return _to_scores(grid.subjects, [part for scored in in_order for part in scored])


def check_parity(context: RunContext, grid: Grid, stage: Stage) -> dict[str, Any]:
    """Score some pairs of every subject by transformers and by the run's backend.

    Returns:
        See `parity.compare`.
    """
    grid = replace(grid, conditions=grid.conditions[:1])
    wanted = spread_pairs(context.config.seed, grid)
    stage.expect(2 * sum(int(mask_PE.sum()) for mask_PE in wanted))
    plain = replace(grid, others=[by_transformers(each) for each in grid.others])
    ours = _by_subject(_score(by_transformers(context), plain, wanted, stage, LOGPROBS))
    theirs = _by_subject(_score(context, grid, wanted, stage, LOGPROBS))
    found = compare(grid.subjects, ours, theirs, context.scoring_dtype)
    far = ", ".join(found["beyond"])
    backend = context.config.evaluation.backend.type
    outcome = f"{far}: BEYOND THE TOLERANCE" if far else "within the tolerance"
    stage.finish(f"{found['pairs']} pairs by {backend} and transformers, {outcome}")
    return found


def by_transformers(context: RunContext) -> RunContext:
    """The context with transformers as the backend."""
    evaluation = context.config.evaluation.model_copy(update={"backend": TRANSFORMERS})
    config = context.config.model_copy(update={"evaluation": evaluation})
    return replace(context, config=config)


def _by_subject(scored: "_Scored") -> list[pa.Table]:
    together = groupby(scored, key=itemgetter(0))
    return [pa.concat_tables([_bare(table) for _, table in own]) for _, own in together]


def _bare(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


_Scored = list[tuple[int, pa.Table]]
"""The index of a unit's subject and the unit's part, for every unit."""


def _score(
    context: RunContext,
    grid: Grid,
    wanted: Sequence[NDArray[np.bool_]],
    stage: Stage,
    kind: str = "scores",
    actors: ScoringActors | None = None,
) -> _Scored:
    """Score the wanted pairs of every subject, [P, E]; stored parts are not scored again.

    `actors` are of the only base model whose pairs are wanted; by default each gets its own.
    """
    units = cut(context, grid, wanted, kind)
    parts = Parts(context.run_folder.child("scores"))
    finished = parts.finished()
    missing = [unit for unit in units if unit["key"] not in finished]
    stage.advance(sum(len(unit["examples"]) for unit in units if unit["key"] in finished))
    for base, of_base in enumerate((context, *grid.others)):
        if wanted_now := [u for u in missing if grid.subjects[u["subject"]].base == base]:
            own = actors or ScoringActors(grid, stage, kind)
            own.score(of_base, wanted_now, parts)
            if actors is None:
                own.end()
    for index, subject in enumerate(grid.subjects):
        own = [unit for unit in missing if unit["subject"] == index]
        if subject.endpoint is not None and own:
            questions = Questions.of(context, subject.endpoint)
            score_by_endpoint(questions, own, grid, (context.storage, parts), stage)
    tables = parts.read(unit["key"] for unit in units)
    return [(unit["subject"], table) for unit, table in zip(units, tables, strict=True)]


def _from_metadata(table: pa.Table, key: bytes, default: str) -> str:
    return (table.schema.metadata or {}).get(key, default.encode()).decode()


def _correct(scores: pa.Table, grid: Grid) -> NDArray[np.bool_]:
    """A mask of one subject's right answers: shape [P, E], False where there is none."""
    prompt_of = {prompt.id: p for p, prompt in enumerate(grid.prompts)}
    example_of = {example.id: e for e, example in enumerate(grid.examples)}
    correct_PE = np.zeros(grid.shape, bool)
    for row in scores.select(["prompt_id", "example_id", "correct"]).to_pylist():
        correct_PE[prompt_of[row["prompt_id"]], example_of[row["example_id"]]] = row["correct"]
    return correct_PE


def _to_scores(subjects: Sequence[Subject], scored: _Scored) -> GridScores:
    """Join the parts without times, so that two runs can be equal; what older ones lack is null."""
    tables: list[pa.Table] = []
    spent: dict[str, tuple[float, int]] = {}
    packing: dict[str, str] = {}
    endpoints: dict[str, Counter[str]] = {}
    for index, part in scored:
        subject, rows = subjects[index], part.num_rows
        seconds, examples = spent.get(subject.label, (0.0, 0))
        own = float(_from_metadata(part, SECONDS, "nan"))
        if how := _from_metadata(part, PACKING, ""):
            packing[subject.label] = max(how, packing.get(subject.label, ""))
        if counts := answer_counts([part]):
            endpoints.setdefault(subject.label, Counter()).update(counts)
        spent[subject.label] = (seconds + own, examples + rows)
        table = part.append_column("variant", pa.array([subject.label] * rows, pa.string()))
        table = table.append_column("seed", pa.array([subject.seed] * rows, pa.int64()))
        tables.append(table.replace_schema_metadata(None))
    each = {label: seconds / rows for label, (seconds, rows) in spent.items()}
    known = {label: seconds for label, seconds in each.items() if not math.isnan(seconds)}
    table = pa.concat_tables(tables, promote_options="default")
    return GridScores(table, known, packing, endpoints=endpoints)
