"""Whether a backend computes what transformers does: log-probabilities of some pairs by both.

Pairs of prompt and example are spread over all subjects; of each, every choice is scored, or the
right answer where answers are free text. What differs is the rounding of each token, so that
answers are compared per token; and as two adapters may lie no further apart than bf16 rounds, each
subject also with the others. Covered: adapters that are not the trained ones, or are only partly
applied, other token ids, other arithmetic. Not covered: texts, of which rounding can change the
wording.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.models.tokenization import Question, TextEncoder
from paft_ray.tasks import Task

if TYPE_CHECKING:
    from paft_ray.evaluation.predictors import Predictor
    from paft_ray.evaluation.scores import Asked

PAIRS = 64
"""Pairs of prompt and example that are scored by both."""
_LEAST = 4
"""Pairs of a subject, where there are many subjects."""
TOLERANCE = {"float32": 0.001, "bfloat16": 0.2}
"""Arithmetic to the largest mean, over a subject's answers, of the difference per token in nats.

Measured of SmolLM2 on CPUs: 0.00002 and 0.12, on unlikely answers of two tokens."""
_NEARER = 0.8
"""Below this part of its distance from its own model, a backend's values are another model's: two
adapters may lie no further apart than bf16 rounds."""

LOGPROBS_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("example_id", pa.string()),
        ("logprobs", pa.list_(pa.float64())),
        ("tokens", pa.list_(pa.int64())),
    ]
)
"""Of each pair: log-likelihoods of its answers in nats, with their ends, and their lengths."""


def spread_pairs(seed: int, grid: Grid) -> list[NDArray[np.bool_]]:
    """The pairs that are compared, a mask [P, E] for each subject, the same for all."""
    size = grid.shape[0] * grid.shape[1]
    each = min(size, max(_LEAST, -(-PAIRS // len(grid.subjects))))
    mask = np.zeros(size, bool)
    mask[np.random.default_rng(seed).choice(size, each, replace=False)] = True
    return [mask.reshape(grid.shape)] * len(grid.subjects)


def answer_logprobs(
    predictor: "Predictor",
    model: Any,
    encoder: TextEncoder,
    task: Task,
    asked: "Asked",
    adapted: bool,
) -> pa.Table:
    """Log-likelihoods of the answers to some examples under a prompt, with `LOGPROBS_SCHEMA`."""
    encoded = encoder.encode_all(
        [
            Question(
                one.render,
                one.example.fields,
                one.choices or [one.example.answer],
                asked.where(one.example),
            )
            for one in asked.puts(task)
        ]
    )
    found = predictor.likelihoods(model, encoded, adapted)
    rows = [
        {
            "prompt_id": asked.prompt_id,
            "example_id": example.id,
            "logprobs": list(likelihoods.whole),
            "tokens": [len(answer.answer_ids) for answer in answers],
        }
        for example, answers, likelihoods in zip(asked.examples, encoded, found, strict=True)
    ]
    return pa.Table.from_pylist(rows, LOGPROBS_SCHEMA)


def compare(
    subjects: Sequence[Subject], ours: Sequence[pa.Table], theirs: Sequence[pa.Table], dtype: str
) -> dict[str, Any]:
    """What the summary says about a backend: how far it lies from transformers.

    `models` holds per label, as the worst of its trainings, the `mean` and the `largest` difference
    per token in nats, the number of `pairs`, `alike`, the share of pairs whose likeliest answer is
    the same (None where only one was scored), and `nearer_to`, another label of whose values by
    transformers the backend's are clearly nearer (None for none). `beyond` names the labels above
    `tolerance`, or nearer to another.

    Args:
        subjects: All of them; those of several seeds have the same label.
        ours: Each subject's pairs by transformers, with `LOGPROBS_SCHEMA`, the same for all.
        theirs: The same by the backend.
        dtype: Arithmetic of both.

    Raises:
        DataError: A log-likelihood is not finite.
    """
    known = [_Values.of(s.label, *both) for s, *both in zip(subjects, ours, theirs, strict=True)]
    models: dict[str, dict[str, Any]] = {}
    for number, (subject, values) in enumerate(zip(subjects, known, strict=True)):
        others = [
            (other.label, them)
            for place, (other, them) in enumerate(zip(subjects, known, strict=True))
            if place != number and other.base == subject.base
        ]
        found = values.differences(others)
        before = models.get(subject.label)
        models[subject.label] = found if before is None else _worse(before, found)
    tolerance = TOLERANCE[dtype]
    return {
        "dtype": dtype,
        "tolerance": tolerance,
        "pairs": sum(model["pairs"] for model in models.values()),
        "models": models,
        "beyond": [
            label
            for label, model in models.items()
            if model["mean"] > tolerance or model["nearer_to"] is not None
        ],
    }


@dataclass(frozen=True, slots=True)
class _Values:
    """Log-likelihoods per token of a subject's answers, in nats: shape [A], all pairs' in order."""

    ours_A: NDArray[np.float64]
    theirs_A: NDArray[np.float64]
    pair_A: NDArray[np.int64]
    """The pair of each answer."""

    @classmethod
    def of(cls, label: str, ours: pa.Table, theirs: pa.Table) -> Self:
        """Those of two tables with `LOGPROBS_SCHEMA`.

        Raises:
            DataError: They are of other tokens, or not finite.
        """
        one, other = (
            table.sort_by([("prompt_id", "ascending"), ("example_id", "ascending")])
            for table in (ours, theirs)
        )
        if not one.drop_columns("logprobs").equals(other.drop_columns("logprobs")):
            raise DataError(f"{label}: the backend read other tokens than transformers does")
        a_A, b_A, tokens_A = (
            np.array([v for row in column.to_pylist() for v in row], float)
            for column in (one["logprobs"], other["logprobs"], one["tokens"])
        )
        if not (np.isfinite(a_A).all() and np.isfinite(b_A).all()):
            raise DataError(
                f"{label}: log-likelihoods are not finite; look at the adapter and at model.dtype"
            )
        lengths = [len(row) for row in one["tokens"].to_pylist()]
        return cls(a_A / tokens_A, b_A / tokens_A, np.repeat(np.arange(len(lengths)), lengths))

    def differences(self, others: Sequence[tuple[str, Self]]) -> dict[str, Any]:
        """The entry of `models` for this subject; `others` are of the same base model."""
        apart_A = np.abs(self.theirs_A - self.ours_A)
        mean = float(apart_A.mean())
        to_others = [(np.abs(self.theirs_A - them.ours_A).mean(), label) for label, them in others]
        distance, nearest = min(to_others, default=(np.inf, None))
        pairs = range(int(self.pair_A.max()) + 1)
        of_pairs = [self.pair_A == pair for pair in pairs]
        alike = [self.ours_A[m].argmax() == self.theirs_A[m].argmax() for m in of_pairs]
        return {
            "mean": mean,
            "largest": float(apart_A.max()),
            "pairs": len(pairs),
            "alike": float(np.mean(alike)) if len(pairs) < len(self.pair_A) else None,
            "nearer_to": nearest if distance < _NEARER * mean else None,
        }


def _worse(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Of two trainings of a variant what stands for both."""
    return {
        "mean": max(one["mean"], other["mean"]),
        "largest": max(one["largest"], other["largest"]),
        "pairs": one["pairs"] + other["pairs"],
        "alike": None if one["alike"] is None else min(one["alike"], other["alike"]),
        "nearer_to": one["nearer_to"] or other["nearer_to"],
    }
