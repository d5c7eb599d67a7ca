"""The scores table as dense arrays of answers, for figures and report; pure.

Shapes: M models (one per training, and the base model), S seeds of a label, P prompts, E examples.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.figures import FURTHER
from paft_ray.evaluation.metrics import AnswerGrid
from paft_ray.evaluation.scores import further_grades, grades_of

COLUMNS = ("variant", "seed", "split", "prompt_id", "example_id", "prediction", "correct")
"""Columns of every scores table."""
MORE_COLUMNS = ("grade", "axis", "draw")
"""Columns that change what an answer counts for; tables of earlier versions have none of them."""
NUMBERS = ("generated_tokens", "unended", "begins_right")
"""Columns of numbers and truth values that only some scores tables have, all of free text."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of some models on test prompts; prompts and examples are sorted by id."""

    models: tuple[tuple[str, int], ...]
    """Label and seed of each model, sorted; once for each draw of demonstrations, where there are
    any, so that figures are means over draws and their intervals tell how much draws differ."""
    draws: tuple[int, ...]
    """Number of the draw of demonstrations of each model."""
    prompt_ids: tuple[str, ...]
    example_ids: tuple[str, ...]
    grade_MPE: NDArray[np.float64]
    """What the answer is worth, from 0 to 1; nan where nothing was scored."""
    prediction_MPE: NDArray[np.int32]
    """Index into `predictions`, -1 where nothing was scored."""
    predictions: tuple[str, ...]
    """The different predictions, sorted; the empty one stands for those that could not be read."""
    confidence_MPE: NDArray[np.float64] | None
    """Probability of the answer among the choices, nan where it is not known; None where no model
    has it of all its answers."""
    numbers_MPE: Mapping[str, NDArray[np.float64]]
    """By column of `NUMBERS`, and by further grade, its values, nan where they are not known; of
    those that some model has of all its answers."""
    even_MPE: NDArray[np.bool_]
    """Whether a pair was chosen for scoring without regard to other answers."""

    def of(self, label: str) -> list[int]:
        """Indices of a label's models, by seed."""
        return [m for m, (name, _) in enumerate(self.models) if name == label]

    def accuracy(self, label: str) -> NDArray[np.float64]:
        """Accuracy per seed and prompt: shape [S, P], nan where nothing was scored."""
        grade_SPE = self.grade_MPE[self.of(label)]
        scored_SP = self.scored_MPE[self.of(label)].sum(axis=2)
        return np.where(scored_SP > 0, np.nansum(grade_SPE, 2) / np.maximum(scored_SP, 1), np.nan)

    def knows(self, values_MPE: NDArray[np.float64], model: int) -> bool:
        """Return whether values are known of all answers of a model."""
        return not np.isnan(values_MPE[model][self.scored_MPE[model]]).any()

    @property
    def scored_MPE(self) -> NDArray[np.bool_]:  # noqa: N802
        """A mask of what was scored."""
        return ~np.isnan(self.grade_MPE)

    def grades(self, label: str) -> NDArray[np.float64]:
        """The grades of a label's models, by seed: shape [S, P, E]."""
        return self.grade_MPE[self.of(label)]

    def grid(self, model: int) -> AnswerGrid:
        """The answers of one model that was scored as a whole."""
        confidence = self.confidence_MPE
        return AnswerGrid(
            self.grade_MPE[model],
            self.prediction_MPE[model],
            confidence[model] if confidence is not None and self.knows(confidence, model) else None,
            {name: v[model] for name, v in self.numbers_MPE.items() if self.knows(v, model)},
        )


def read_answers(
    scores: pa.Table,
    labels: Sequence[str],
    examples: Collection[str] = (),
    axis: pc.Expression | None = None,
) -> Answers:
    """The answers of some models on test prompts.

    Args:
        scores: With `COLUMNS`, one row per model, prompt and example, and `choice_logprobs`,
            `NUMBERS` or `look` where there are any.
        labels: Labels of the models to read.
        examples: Ids of examples that belong to the grid even where they were not scored.
        axis: Which of the rows about an axis of variation; by default those about none.

    Raises:
        DataError: Two rows are of the same model, prompt and example.
    """
    rows = scores.filter(pc.field("variant").isin(list(labels)) & (pc.field("split") == "test"))
    if "axis" in rows.column_names:
        rows = rows.filter(pc.field("axis").is_null() if axis is None else axis)
    variants, variant = _codes(rows["variant"])
    seeds, seed = np.unique(rows["seed"].to_numpy().astype(np.int64), return_inverse=True)
    width, draw = max(len(seeds), 1), _draws(rows)
    draws = int(draw.max(initial=0)) + 1
    found, model = np.unique((variant * draws + draw) * width + seed, return_inverse=True)
    models = tuple((variants[n // (width * draws)], int(seeds[n % width])) for n in found)
    prompt_ids, prompt = _codes(rows["prompt_id"])
    example_ids, example = _codes(rows["example_id"], examples)
    predictions, prediction = _codes(rows["prediction"])
    place = (model, prompt, example)
    shape = (len(models), len(prompt_ids), len(example_ids))
    _refuse_twice(place, shape, (models, prompt_ids, example_ids))

    def spread(values: NDArray[Any], rest: Any = 0) -> NDArray[Any]:
        """Spread one value per row to [M, P, E], `rest` where there is no row."""
        spread_MPE = np.full(shape, rest, values.dtype)
        spread_MPE[place] = values
        return spread_MPE

    numbers = {name: _numbers(rows, name) for name in NUMBERS}
    numbers |= {f"{FURTHER}{n}": grade_N for n, grade_N in enumerate(further_grades(rows))}

    def known(values_N: NDArray[np.float64]) -> bool:
        """Whether some model has a value in each of its rows."""
        return bool((np.bincount(model, np.isnan(values_N), len(models)) == 0).any())

    confidence_N = _confidence(rows)
    return Answers(
        models,
        tuple(int(n) // width % draws for n in found),
        prompt_ids,
        example_ids,
        spread(grades_of(rows), np.nan),
        spread(prediction.astype(np.int32), -1),
        predictions,
        spread(confidence_N, np.nan) if known(confidence_N) else None,
        {name: spread(values_N, np.nan) for name, values_N in numbers.items() if known(values_N)},
        spread(~(_numbers(rows, "look") > 0)),  # nan where all was scored
    )


def _refuse_twice(
    place: tuple[NDArray[np.int64], ...],
    shape: tuple[int, ...],
    names: tuple[Sequence[tuple[str, int]], Sequence[str], Sequence[str]],
) -> None:
    """Refuse two rows of one model, prompt and example."""
    count_MPE = np.zeros(shape, np.int32)
    np.add.at(count_MPE, place, 1)
    if (count_MPE > 1).any():
        raise DataError(_wrong_count(np.maximum(count_MPE, 1), *names))


def require_paired(answers: Answers, labels: Sequence[str], whole: bool = True) -> None:
    """Refuse models that were not all scored on the same prompts and examples.

    Args:
        answers: Answers of the models.
        labels: Their labels.
        whole: Whether every model must have answered every example under every prompt.

    Raises:
        DataError: A label has no scores, or a model lacks some that another one has.
    """
    for label in labels:
        if not answers.of(label):
            raise DataError(f"variant {label!r} has no scores: evaluate it first")
    scored_MPE = answers.scored_MPE
    for (label, _), scored_PE in zip(answers.models, scored_MPE, strict=True):
        if scored_PE.any(-1).all() and (scored_PE.any(0).all() or not whole):
            continue
        raise DataError(
            f"variant {label!r} was not evaluated on the same prompts and examples as the others: "
            "evaluate all variants again, together"
        )
    if whole and not scored_MPE.all():
        ids = answers.models, answers.prompt_ids, answers.example_ids
        raise DataError(_wrong_count(scored_MPE.astype(np.int32), *ids))


def _draws(rows: pa.Table) -> NDArray[np.int64]:
    """Number of the draw of demonstrations of every row; 0 without any."""
    if "draw" not in rows.column_names:
        return np.zeros(rows.num_rows, np.int64)
    return np.asarray(pc.fill_null(rows["draw"], 0)).astype(np.int64)


def _wrong_count(
    count_MPE: NDArray[np.int32],
    models: Sequence[tuple[str, int]],
    prompt_ids: Sequence[str],
    example_ids: Sequence[str],
) -> str:
    m, p, e = np.argwhere(count_MPE != 1)[0].tolist()
    label, seed = models[m]
    return (
        f"scores of variant {label!r}, seed {seed}: prompt {prompt_ids[p]} with example "
        f"{example_ids[e]} has {count_MPE[m, p, e]} rows, and each of the {count_MPE[m].size} "
        "pairs needs exactly one: evaluate again"
    )


def _codes(
    column: pa.ChunkedArray, more: Collection[str] = ()
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The different texts and `more`, sorted, and the index of each row's text."""
    filled = pc.fill_null(column.cast(pa.string()), "")
    encoded = filled.dictionary_encode().unify_dictionaries()
    chunks = encoded.chunks
    texts = chunks[0].dictionary.to_pylist() if chunks else []
    every = sorted({*texts, *more})
    places = {text: place for place, text in enumerate(every)}
    rank = np.array([places[text] for text in texts], np.int64)
    codes = [chunk.indices.to_numpy() for chunk in chunks]
    return tuple(every), rank[np.concatenate(codes)] if codes else np.zeros(0, np.int64)


def _confidence(rows: pa.Table) -> NDArray[np.float64]:
    """Largest softmax of the choices' log-likelihoods, nan where there are none: shape [rows]."""
    confidence_N = np.full(rows.num_rows, np.nan)
    if "choice_logprobs" not in rows.column_names:
        return confidence_N
    column = rows["choice_logprobs"].combine_chunks()
    logprobs = column.flatten().to_numpy().astype(np.float64)
    count_N = pc.fill_null(column.value_lengths(), 0).to_numpy(zero_copy_only=False)
    known_N = count_N > 0
    row = np.repeat(np.arange(known_N.sum()), count_N[known_N])
    first_N = (np.cumsum(count_N) - count_N)[known_N]
    likeliest_N = np.maximum.reduceat(logprobs, first_N) if len(first_N) else np.zeros(0)
    confidence_N[known_N] = 1 / np.bincount(row, np.exp(logprobs - likeliest_N[row]))
    return confidence_N


def _numbers(rows: pa.Table, column: str) -> NDArray[np.float64]:
    """A column of numbers or truth values, nan where there is none."""
    if column not in rows.column_names:
        return np.full(rows.num_rows, np.nan)
    return rows[column].cast(pa.float64()).to_numpy().astype(np.float64)
