"""Ray Data: prompts x examples x models over actors that hold the base model.

The grid is cut into units (one model, one prompt, a few examples) before it is distributed, so
that the worker count changes no result; a finished unit is kept as a part, so that a killed
evaluation goes on where it was. Where only a part of the grid is scored, each look at it is cut so.
"""

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.artifacts import Parts, Storage, fingerprint
from paft_ray.cluster import cpus_per_worker, own_errors
from paft_ray.config import Config
from paft_ray.evaluation.cells import FIRST_LOOK, LOOKS, balanced_cells, next_cells
from paft_ray.loading import dump_config
from paft_ray.modeling.base import BaseSource, locate_base
from paft_ray.prompts.pool import Prompt
from paft_ray.screen import Stage
from paft_ray.session import Session
from paft_ray.tasks import Example, Task

logger = logging.getLogger(__name__)

_UNIT_EXAMPLES = 64
_SECONDS = b"seconds"
"""Under which a part's metadata tells how long its scoring took."""


@dataclass(frozen=True, slots=True)
class GridModel:
    """One model of the grid."""

    label: str
    """`base`, or the name of a variant."""
    seed: int
    """Of its training; the run's own for the base model."""
    identity: str
    """Fingerprint of the training, empty for the base model."""
    weights: Storage | None = None
    """The folder `adapter/`, or `model/` where all weights were trained; None for the base."""


@dataclass(frozen=True, slots=True)
class GridScores:
    """What was found, and what it took."""

    table: pa.Table
    """`variant`, `seed` and the columns of `scorer.SCORES_SCHEMA`, ordered by model, prompt and
    example as they were given."""
    seconds_per_example: Mapping[str, float]
    """By label: wall-clock seconds of one actor for an example under a prompt, loading the
    base model left out."""


def score_grid(
    session: Session,
    models: Sequence[GridModel],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    stage: Stage,
) -> GridScores:
    """Score every model under every prompt on every example.

    Args:
        session: The run.
        models: Base model and variants.
        prompts: Which wordings.
        examples: Which questions.
        stage: Told how many prompt-example pairs are done.

    Raises:
        DataError: An example does not fit `task.max_length` under a prompt.
    """
    stage.expect(len(models) * len(prompts) * len(examples))
    whole_PE = np.ones((len(prompts), len(examples)), bool)
    return _score(session, models, prompts, examples, stage, [[whole_PE]] * len(models))


def score_part(
    session: Session,
    models: Sequence[GridModel],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    stage: Stage,
    share: float,
) -> GridScores:
    """Score a part of the pairs, in several looks; see `cells`.

    Args:
        session: The run.
        models: Base model and variants, each of which is looked at by its own answers.
        prompts: Which wordings.
        examples: Which questions.
        stage: Told how many prompt-example pairs are done.
        share: Part of the pairs.

    Raises:
        DataError: An example does not fit `task.max_length` under a prompt.
    """
    seed = session.config.seed
    classes_E = None if session.task.choices is None else [e.answer for e in examples]
    first_PE = balanced_cells(seed, len(prompts), len(examples), FIRST_LOOK * share, classes_E)
    stage.expect(len(models) * max(int(first_PE.sum()), round(share * first_PE.size)))
    looks = [[first_PE] for _ in models]
    scores = _score(session, models, prompts, examples, stage, looks)
    for look in range(1, LOOKS):
        for model, seen in zip(models, looks, strict=True):
            correct_PE = _correct(scores.table, model, prompts, examples)
            observed_PE = np.any(seen, axis=0)
            seen.append(next_cells(seed, look, correct_PE, observed_PE, share, classes_E))
        scores = _score(session, models, prompts, examples, stage, looks)
    return scores


def _score(
    session: Session,
    models: Sequence[GridModel],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    stage: Stage,
    looks: Sequence[Sequence[NDArray[np.bool_]]],
) -> GridScores:
    """What every model is asked in its looks, of shape [P, E] each; what is there is not scored."""
    units = _cut(session, models, prompts, examples, looks)
    parts = Parts(session.run_folder.child("scores"))
    finished = parts.finished()
    todo = [unit for unit in units if unit["key"] not in finished]
    stage.reach(sum(len(u["examples"]) for u in units) - sum(len(u["examples"]) for u in todo))
    if todo:
        weights = [model.weights for model in models]
        _run(session, todo, weights, parts, stage)
    tables, owners = list(parts.read(u["key"] for u in units)), [models[u["model"]] for u in units]
    return GridScores(
        pa.concat_tables(map(_of_model, tables, owners)), _seconds_per_example(tables, owners)
    )


def _correct(
    scores: pa.Table, model: GridModel, prompts: Sequence[Prompt], examples: Sequence[Example]
) -> NDArray[np.bool_]:
    """Whether a model's answers are right: shape [P, E], False where there is none."""
    rows = scores.filter((pc.field("variant") == model.label) & (pc.field("seed") == model.seed))
    correct_PE = np.zeros((len(prompts), len(examples)), bool)
    prompt_of = {prompt.id: p for p, prompt in enumerate(prompts)}
    example_of = {example.id: e for e, example in enumerate(examples)}
    right = rows.filter(pc.field("correct")).select(["prompt_id", "example_id"]).to_pylist()
    for row in right:
        correct_PE[prompt_of[row["prompt_id"]], example_of[row["example_id"]]] = True
    return correct_PE


def _of_model(scores: pa.Table, model: GridModel) -> pa.Table:
    rows = scores.num_rows
    named = scores.append_column("variant", pa.array([model.label] * rows, pa.string()))
    named = named.append_column("seed", pa.array([model.seed] * rows, pa.int64()))
    return named.replace_schema_metadata(None)


def _seconds_per_example(
    tables: Sequence[pa.Table], owners: Sequence[GridModel]
) -> dict[str, float]:
    """By label, over all of its units; the table itself holds no times, so that runs compare."""
    spent: dict[str, tuple[float, int]] = {}
    for table, model in zip(tables, owners, strict=True):
        seconds, rows = spent.get(model.label, (0.0, 0))
        own = float((table.schema.metadata or {}).get(_SECONDS, "nan"))
        spent[model.label] = (seconds + own, rows + table.num_rows)
    return {label: s / rows for label, (s, rows) in spent.items() if not math.isnan(s)}


def _cut(
    session: Session,
    models: Sequence[GridModel],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    looks: Sequence[Sequence[NDArray[np.bool_]]],
) -> list[dict[str, Any]]:
    """Units in the order of the result, as plain rows for Ray Data."""
    config = session.config
    fixed = [
        session.model_identity,
        session.scoring_dtype,
        config.model.chat_template,
        [config.task.max_length, config.task.overlong, list(session.task.choices or ())],
        [config.evaluation.row_tokens, config.train.packing, config.evaluation.max_new_tokens],
    ]
    if session.task.choices is None:
        fixed.append(config.evaluation.generation_tokens)
    return [
        {
            "key": fingerprint("scores", fixed, model.identity, prompt.text, chunk),
            "model": index,
            "prompt_id": prompt.id,
            "text": prompt.text,
            "examples": chunk,
        }
        for index, (model, own) in enumerate(zip(models, looks, strict=True))
        for p, prompt in enumerate(prompts)
        for asked_PE in own
        for chunk in _chunks(examples, asked_PE[p])
    ]


def _chunks(examples: Sequence[Example], asked_E: NDArray[np.bool_]) -> Iterator[list[str]]:
    """Ids of the examples that are asked, a unit's at a time."""
    ids = [example.id for example, asked in zip(examples, asked_E, strict=True) if asked]
    for start in range(0, len(ids), _UNIT_EXAMPLES):
        yield ids[start : start + _UNIT_EXAMPLES]


def _run(
    session: Session,
    units: list[dict[str, Any]],
    weights: Sequence[Storage | None],
    parts: Parts,
    stage: Stage,
) -> None:
    import ray.data

    config = session.config
    workers = config.evaluation.workers
    cpus = cpus_per_worker(workers, "evaluation.workers")
    base = locate_base(config.model.path, config.model.revision, session.storage)
    dataset = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        _ScoreActor,
        batch_size=1,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=min(workers.num, len(units))),
        num_cpus=cpus,
        num_gpus=workers.gpus or None,
        fn_constructor_args=(
            dump_config(config),
            session.task,
            base,
            session.scoring_dtype,
            max(1, int(cpus)),
            weights,
            parts,
        ),
    )
    with own_errors():
        for batch in dataset.iter_batches(batch_size=1, prefetch_batches=0):
            stage.advance(int(batch["done"][0]))  # pyright: ignore[reportArgumentType]


class _ScoreActor:
    """Holds the base model, and one trained as a whole; scores units, keeps each as a part."""

    def __init__(
        self,
        config: Mapping[str, Any],
        task: Task,
        base: BaseSource,
        dtype: str,
        threads: int,
        weights: Sequence[Storage | None],
        parts: Parts,
    ) -> None:
        from paft_ray.evaluation.scorer import Scorer, set_threads

        set_threads(threads)
        tree = Config.model_validate(config)
        device = "cuda" if tree.evaluation.workers.gpus > 0 else "cpu"
        self._scorer = Scorer(tree, task, base.local(), dtype, device)
        self._examples = {
            example.id: example
            for split in (task.train, task.validation, task.test)
            for example in split
        }
        self._weights = weights
        self._local: dict[int, str] = {}
        self._parts = parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from paft_ray.evaluation.scorer import scores_table

        [key], [model] = batch["key"], batch["model"]
        [prompt_id], [text], [ids] = batch["prompt_id"], batch["text"], batch["examples"]
        examples = [self._examples[id] for id in ids]
        weights = self._folder(model)
        started = time.perf_counter()
        scores = self._scorer.score(weights, prompt_id, text, examples)
        seconds = str(time.perf_counter() - started)
        self._parts.write(key, scores_table(scores).replace_schema_metadata({_SECONDS: seconds}))
        return {"done": [len(examples)]}

    def _folder(self, model: int) -> str | None:
        folder = self._weights[model]
        if folder is None:
            return None
        if model not in self._local:
            self._local[model] = (
                folder.path()
                if folder.is_local
                else str(folder.fetch(Path(tempfile.mkdtemp(prefix="paft-weights-"))))
            )
        return self._local[model]
