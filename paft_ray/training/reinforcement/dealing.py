"""Batch plans of texts that the model gave itself: dealt into rows, each with a weight.

Shapes: S slots of the global batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paft_ray.models.packing import (
    Row,
    TokenSequence,
    build_row,
    deal_batches,
    deal_rows,
    inert_row,
)
from paft_ray.models.sharing import share_rows
from paft_ray.models.tokenization import Encoded
from paft_ray.training.batch_plan import Planner, StepPlan
from paft_ray.training.draws import Draws
from paft_ray.training.engine import Engine
from paft_ray.training.prompt_weights import BlockWeights


@dataclass(frozen=True, slots=True)
class OwnText:
    """What one slot is trained on."""

    example: int
    """Index of the example."""
    prompt: int
    """Index of the prompt."""
    encoded: Encoded
    """The question under the prompt, and what is learned to follow it."""


def deal_texts(
    planner: Planner,
    engine: Engine,
    step: int,
    texts: Sequence[OwnText],
    weight_S: NDArray[np.float64],
    weights: BlockWeights,
    kept_S: NDArray[np.bool_] | None = None,
) -> StepPlan:
    """The plan of this rank for the texts of a batch, all of which are given by slot.

    Args:
        planner: Says how rows are made.
        engine: Says who this rank is.
        step: Of the plan.
        texts: By slot.
        weight_S: Of every slot in the loss.
        weights: Of prompts, as the batch was drawn with.
        kept_S: Slots that are read; all by default. The tokens of all count in the mean.
    """
    kept_S = np.ones(len(texts), bool) if kept_S is None else kept_S
    slots = np.flatnonzero(kept_S).tolist()
    sequences = {slot: texts[slot].encoded.sequence() for slot in slots}
    rows, tokens = _deal(planner, engine, sequences)
    token = int(texts[0].encoded.context_ids[0])
    table = {
        "example": np.array([text.example for text in texts]),
        "prompt": np.array([text.prompt for text in texts]),
        "answer_tokens": np.array([len(text.encoded.answer_ids) for text in texts]),
        "trimmed": np.array([int(text.encoded.trimmed) for text in texts]),
        "owner": np.zeros(len(texts), np.int64),
    }
    return StepPlan(
        step,
        tuple(inert_row(token) if row is None else row for row in rows or [None]),
        Draws(
            table,
            weights,
            lambda i: planner.examples[i].id,
            lambda i: planner.prompts[i][0],
            weight_S=weight_S,
        ),
        np.arange(len(texts)),
        tokens,
        int(table["answer_tokens"].sum()),
        weights,
    )


def _deal(
    planner: Planner, engine: Engine, sequences: Mapping[int, TokenSequence]
) -> tuple[list[Row | None], int]:
    """This rank's rows, None for one without sequences, and the tokens that all ranks read."""
    if planner.packing and not planner.padded and engine.shares_beginnings:
        shared = share_rows(sequences, planner.row_tokens, engine.ranks)
        if shared is not None:
            own = [row.build(sequences) if row.contexts else None for row in shared[engine.rank]]
            return own, sum(row.tokens for rows in shared for row in rows)
    lengths = [len(sequence.input_ids) for sequence in sequences.values()]
    deal = deal_batches if planner.padded else deal_rows
    packing = {} if planner.padded else {"packing": planner.packing}
    rows = deal(lengths, planner.row_tokens, engine.ranks, **packing)[engine.rank]
    slots = list(sequences)
    built = [
        build_row(sequences, [slots[n] for n in row], planner.padded) if row else None
        for row in rows
    ]
    return built, sum(lengths)
