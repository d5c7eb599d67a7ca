"""Ray Data: prompts x examples x models over actors that hold the base model.

The grid is cut into units (one model, one prompt, a few examples) before it is distributed, so
that the worker count changes no result; a finished unit is kept as a part, so that a killed
evaluation goes on where it was. Where only a part of the grid is scored, each look at it is cut so.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paft_ray.cluster.remote import own_errors
from paft_ray.cluster.resources import cpus_per_worker
from paft_ray.config import Config
from paft_ray.config.affects import affecting, take
from paft_ray.config.loading import dump_config
from paft_ray.evaluation.estimate_cells import FIRST_LOOK, LOOKS, balanced_cells, next_cells
from paft_ray.models.base_model import BaseSource, local_copy, locate_base
from paft_ray.prompts.pool import Prompt
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task

logger = logging.getLogger(__name__)

_UNIT_EXAMPLES = 64
LOOK = "look"
"""Column of the number of the look at which a pair was scored, from 0."""
_SECONDS = b"seconds"
"""Under which a part's metadata tells how long its scoring took."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model of the grid."""

    label: str
    """`base`, or the name of a variant."""
    seed: int
    """Of its training; the run's own for the base model."""
    identity: str
    """Fingerprint of its weights, empty for the base model."""
    weights: Storage | None = None
    """The folder `adapter/`, or `model/` where all weights were trained; None for the base."""


@dataclass(frozen=True, slots=True)
class GridScores:
    """What was found, and what it took."""

    table: pa.Table
    """`variant`, `seed` and the columns of `scorer.SCORES_SCHEMA`, ordered by model, prompt and
    example as they were given; where a part was scored, by look before that, which is `LOOK`."""
    seconds_per_example: Mapping[str, float]
    """By label: wall-clock seconds of one actor for an example under a prompt, loading
    models left out."""


def score_grid(
    context: RunContext,
    models: Sequence[Subject],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    stage: Stage,
) -> GridScores:
    """Score every model under every prompt on every example.

    Args:
        context: The run.
        models: Base model and variants.
        prompts: Which wordings.
        examples: Which questions.
        stage: Told how many prompt-example pairs are done.

    Raises:
        DataError: An example does not fit `task.max_length` under a prompt.
    """
    stage.expect(len(models) * len(prompts) * len(examples))
    whole_PE = np.ones((len(prompts), len(examples)), bool)
    asked = [whole_PE] * len(models)
    return _as_grid(models, _score(context, models, prompts, examples, stage, asked))


def score_part(
    context: RunContext,
    models: Sequence[Subject],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    stage: Stage,
    share: float,
) -> GridScores:
    """Score a part of the pairs, in several looks; see `cells`.

    Args:
        context: The run.
        models: Base model and variants, each of which is looked at by its own answers.
        prompts: Which wordings.
        examples: Which questions.
        stage: Told how many prompt-example pairs are done.
        share: Part of the pairs.

    Raises:
        DataError: An example does not fit `task.max_length` under a prompt.
    """
    seed, shape = context.config.seed, (len(prompts), len(examples))
    classes_E = None if context.task.choices is None else [e.answer for e in examples]
    first_PE = balanced_cells(seed, *shape, FIRST_LOOK * share, classes_E)
    stage.expect(len(models) * max(int(first_PE.sum()), round(share * first_PE.size)))
    asked, scored = [first_PE] * len(models), []
    observed, correct = ([np.zeros(shape, bool) for _ in models] for _ in range(2))
    for look in range(LOOKS):
        if look:
            asked = [
                next_cells(seed, look, correct_PE, observed_PE, share, classes_E)
                for correct_PE, observed_PE in zip(correct, observed, strict=True)
            ]
        for index, table in _score(context, models, prompts, examples, stage, asked):
            correct[index] |= _correct(table, prompts, examples)
            number = pa.array([look] * table.num_rows, pa.int8())
            scored.append((index, table.append_column(LOOK, number)))
        observed = [seen_PE | more_PE for seen_PE, more_PE in zip(observed, asked, strict=True)]
    return _as_grid(models, scored)


_Scored = list[tuple[int, pa.Table]]
"""Of every unit which model it is of, and its part."""


def _score(
    context: RunContext,
    models: Sequence[Subject],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    stage: Stage,
    asked: Sequence[NDArray[np.bool_]],
) -> _Scored:
    """What every model is asked [P, E]; what is there already is not scored again."""
    units = _cut(context, models, prompts, examples, asked)
    parts = Parts(context.run_folder.child("scores"))
    finished = parts.finished()
    todo = [unit for unit in units if unit["key"] not in finished]
    stage.advance(sum(len(u["examples"]) for u in units) - sum(len(u["examples"]) for u in todo))
    if todo:
        _run(context, todo, models, parts, stage)
    tables = parts.read(unit["key"] for unit in units)
    return [(unit["model"], table) for unit, table in zip(units, tables, strict=True)]


def _correct(
    scores: pa.Table, prompts: Sequence[Prompt], examples: Sequence[Example]
) -> NDArray[np.bool_]:
    """Whether one model's answers are right: shape [P, E], False where there is none."""
    prompt_of = {prompt.id: p for p, prompt in enumerate(prompts)}
    example_of = {example.id: e for e, example in enumerate(examples)}
    correct_PE = np.zeros((len(prompts), len(examples)), bool)
    for row in scores.select(["prompt_id", "example_id", "correct"]).to_pylist():
        correct_PE[prompt_of[row["prompt_id"]], example_of[row["example_id"]]] = row["correct"]
    return correct_PE


def _as_grid(models: Sequence[Subject], scored: _Scored) -> GridScores:
    tables = [_of_model(table, models[index]) for index, table in scored]
    return GridScores(pa.concat_tables(tables), _seconds_per_example(models, scored))


def _of_model(scores: pa.Table, model: Subject) -> pa.Table:
    rows = scores.num_rows
    named = scores.append_column("variant", pa.array([model.label] * rows, pa.string()))
    named = named.append_column("seed", pa.array([model.seed] * rows, pa.int64()))
    return named.replace_schema_metadata(None)


def _seconds_per_example(models: Sequence[Subject], scored: _Scored) -> dict[str, float]:
    """By label, over all of its units; the table itself holds no times, so that runs compare."""
    spent: dict[str, tuple[float, int]] = {}
    for index, table in scored:
        label = models[index].label
        seconds, rows = spent.get(label, (0.0, 0))
        own = float((table.schema.metadata or {}).get(_SECONDS, "nan"))
        spent[label] = (seconds + own, rows + table.num_rows)
    return {label: s / rows for label, (s, rows) in spent.items() if not math.isnan(s)}


def _cut(
    context: RunContext,
    models: Sequence[Subject],
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    asked: Sequence[NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    """Units in the order of the result, as plain rows for Ray Data."""
    fixed = _score_identity(context)
    return [
        {
            "key": fingerprint("scores", fixed, model.identity, prompt.text, chunk),
            "model": index,
            "prompt_id": prompt.id,
            "text": prompt.text,
            "examples": chunk,
        }
        for index, (model, asked_PE) in enumerate(zip(models, asked, strict=True))
        for prompt, asked_E in zip(prompts, asked_PE, strict=True)
        for chunk in _chunks(examples, asked_E)
    ]


def _score_identity(context: RunContext) -> list[Any]:
    """What all scores of a run have in common: whatever moves the score of a model's answer."""
    (_, chat_template, *limits, rows, packing, new_tokens, kept_tokens), later = take(
        affecting(context.config, "scores"),
        *("model.dtype", "model.chat_template", "task.max_length", "task.overlong"),
        *("evaluation.row_tokens", "train.packing", "evaluation.max_new_tokens"),
        "evaluation.generation_tokens",
    )
    choices = context.task.choices
    return [
        context.model_identity,
        context.scoring_dtype,
        chat_template,
        [*limits, list(choices or ())],
        [rows, packing, new_tokens],
        *([kept_tokens] if choices is None else []),
        *([later] if later else []),
    ]


def _chunks(examples: Sequence[Example], asked_E: NDArray[np.bool_]) -> Iterator[list[str]]:
    """Ids of the examples that are asked, a unit's at a time."""
    ids = [example.id for example, asked in zip(examples, asked_E, strict=True) if asked]
    for start in range(0, len(ids), _UNIT_EXAMPLES):
        yield ids[start : start + _UNIT_EXAMPLES]


def _run(
    context: RunContext,
    units: list[dict[str, Any]],
    models: Sequence[Subject],
    parts: Parts,
    stage: Stage,
) -> None:
    import ray.data

    config = context.config
    workers = config.evaluation.workers
    cpus = cpus_per_worker(workers, "evaluation.workers")
    base = locate_base(config.model.path, config.model.revision, context.storage)
    dataset = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        _ScoreActor,
        batch_size=1,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=min(workers.num, len(units))),
        num_cpus=cpus,
        num_gpus=workers.gpus or None,
        fn_constructor_args=(
            dump_config(config),
            context.task,
            base,
            context.scoring_dtype,
            max(1, int(cpus)),
            models,
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
        models: Sequence[Subject],
        parts: Parts,
    ) -> None:
        from paft_ray.evaluation.predictors import ModelPredictor, set_threads

        set_threads(threads)
        tree = Config.model_validate(config)
        device = "cuda" if tree.evaluation.workers.gpus > 0 else "cpu"
        self._scorer = ModelPredictor(tree, task, base.local(), dtype, device)
        self._examples = {
            example.id: example
            for split in (task.train, task.validation, task.test)
            for example in split
        }
        self._models = models
        self._parts = parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from paft_ray.evaluation.predictors import scores_table

        [key], [model] = batch["key"], batch["model"]
        [prompt_id], [text], [ids] = batch["prompt_id"], batch["text"], batch["examples"]
        examples = [self._examples[id] for id in ids]
        trained = self._models[model]
        weights = trained.weights and local_copy(trained.weights, trained.identity)
        self._scorer.load(weights)
        started = time.perf_counter()
        scores = self._scorer.score(weights, prompt_id, text, examples)
        seconds = str(time.perf_counter() - started)
        self._parts.write(key, scores_table(scores).replace_schema_metadata({_SECONDS: seconds}))
        return {"done": [len(examples)]}
