"""Answer log-likelihoods of rows, for training, probes and evaluation.

Shapes: T tokens of a row, U positions whose logits are needed, A answer tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paft_ray.models.attention import attends_in_blocks, block_arguments, inner_attention
from paft_ray.models.head import (
    Answers,
    FullPrecisionLinear,
    chunk_size,
    chunked_logprobs,
    long_head,
)
from paft_ray.models.packing import Row, TokenSequence, build_row, deal_batches, deal_rows
from paft_ray.models.said import Likelihoods
from paft_ray.models.sharing import share_rows
from paft_ray.models.tokenization import Encoded, choice_sequences
from paft_ray.models.transfer import copy_to
from paft_ray.models.varlen import flash_arguments, uses_flash


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """Arithmetic and rows with which a model reads sequences."""

    dtype: str
    """`float32` or `bfloat16` (autocast)."""
    row_tokens: int
    """Most tokens in one row."""
    packing: bool = True
    """Put several sequences into a row; if the model attends in blocks, they share beginnings."""
    virtual_tokens: int = 0
    """See `answer_logprobs`."""
    padded: bool = False
    """Read sequences that are not packed in batches."""


def answer_logprobs(
    forward: Callable[..., Any],
    row: Row,
    device: torch.device,
    virtual_tokens: int = 0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Compute the log-probability of every answer token of a row, in fp32: shape [A].

    The output head runs only on positions that predict an answer token. The sequences of a row do
    not attend to each other: `position_ids` restart, no attention mask is given, and no cache is
    built (with one, transformers silently lets them).

    Args:
        forward: The model, or a DeepSpeed engine around it.
        row: Tokens to read and to predict.
        device: The model's device.
        virtual_tokens: Logits that a prompt-learning adapter puts before those of the text; the row
            then holds one sequence, or is padded.
        temperature: What logits are divided by.
    """
    if row.padded:
        inputs = _batch(row, virtual_tokens)
    else:
        inputs = _Inputs(
            {"input_ids": row.input_ids_T[None], **_positions(forward, row, virtual_tokens)},
            row.keep_U + virtual_tokens,
        )
    head = long_head(forward, len(row.keep_U))
    if head is not None:
        return _in_chunks(forward, head, inputs, row, device, temperature)
    moved: Any = copy_to(device, (inputs, (row.gather_A, row.targets_A)))
    inputs, (gather_A, targets_A) = moved
    output = forward(**inputs.given, logits_to_keep=inputs.keep_K, use_cache=False)
    logits_AV = inputs.needed(output.logits).float()[gather_A]
    if temperature != 1:
        logits_AV = logits_AV / temperature
    return -torch.nn.functional.cross_entropy(logits_AV, targets_A, reduction="none")


def _in_chunks(
    forward: Callable[..., Any],
    head: FullPrecisionLinear,
    inputs: "_Inputs",
    row: Row,
    device: torch.device,
    temperature: float,
) -> torch.Tensor:
    """Let the head compute log-probabilities in the place of logits, see `head`."""
    answers = Answers.of(row.gather_A, row.targets_A, len(row.keep_U), chunk_size(head))
    moved: Any = copy_to(device, (inputs, answers))
    inputs, answers = moved

    def instead(hidden_BKI: torch.Tensor) -> torch.Tensor:
        found_A = chunked_logprobs(head, inputs.needed(hidden_BKI), answers, temperature)
        return found_A[None, :, None]

    head.instead = instead
    try:
        output = forward(**inputs.given, logits_to_keep=inputs.keep_K, use_cache=False)
    finally:
        head.instead = None
    return output.logits[0, :, 0]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A model's arguments for a row; arrays, and then tensors."""

    given: dict[str, Any]
    keep_K: Any
    """Positions of the text, or of all texts of a batch, whose logits are computed."""
    take_U: Any = None
    """In a batch, for each place whose logits are needed its index into them, flat."""

    def needed(self, states_BKX: torch.Tensor) -> torch.Tensor:
        """Return the logits, or what they are made of, that are needed: [U, X]."""
        if states_BKX.shape[1] != len(self.keep_K):  # some models return all
            states_BKX = states_BKX[:, self.keep_K]
        if self.take_U is None:
            return states_BKX[0]
        return states_BKX.flatten(0, 1)[self.take_U]


def _batch(row: Row, virtual_tokens: int) -> _Inputs:
    """Lay the sequences of a row under each other, padded behind, where nothing reads it."""
    starts = np.flatnonzero(row.position_ids_T == 0)
    member_T = np.cumsum(row.position_ids_T == 0) - 1
    shape = (len(starts), int(row.position_ids_T.max()) + 1)
    input_ids_BL = np.full(shape, row.input_ids_T[0])
    input_ids_BL[member_T, row.position_ids_T] = row.input_ids_T
    given = {"input_ids": input_ids_BL}
    if virtual_tokens:
        given["attention_mask"] = np.ones_like(input_ids_BL)
    keep_K, place_U = np.unique(row.position_ids_T[row.keep_U], return_inverse=True)
    return _Inputs(given, keep_K + virtual_tokens, member_T[row.keep_U] * len(keep_K) + place_U)


def _positions(forward: Any, row: Row, virtual_tokens: int) -> dict[str, Any]:
    """Return the arguments that keep the sequences of a row apart, as arrays."""
    if virtual_tokens:
        return {"attention_mask": np.ones_like(row.input_ids_T)[None]}
    kind = inner_attention(forward)
    if kind:
        apart = block_arguments(row.position_ids_T, row.parts, kind)
    else:
        apart = flash_arguments(row.position_ids_T) if uses_flash(forward) else {}
    if kind or (row.position_ids_T == 0).sum() > 1:
        return {"position_ids": row.position_ids_T[None], **apart}
    return {**apart}  # a model may count from another number, or know no positions


@contextmanager
def inference(model: torch.nn.Module, dtype: str) -> Iterator[None]:
    """Turn gradients off and, where `dtype` is bfloat16, autocast on."""
    device = next(model.parameters()).device.type
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, dtype == "bfloat16"):
        yield


def score_sequences(
    model: torch.nn.Module, sequences: Sequence[TokenSequence], reading: ForwardPass
) -> list[dict[int, float]]:
    """Compute the summed log-likelihood of every answer of every sequence.

    Returns:
        For each sequence, owner (index of a choice) to the sum of its tokens' log-probabilities.
    """
    device = next(model.parameters()).device
    sharing = reading.packing and attends_in_blocks(model)
    numbered = dict(enumerate(sequences))
    shared = share_rows(numbered, reading.row_tokens) if sharing else None
    if shared is not None:
        rows = [row.build(numbered) for row in shared[0] if row.contexts]
    else:
        lengths = [len(s.input_ids) for s in sequences]
        if reading.padded:
            [dealt] = deal_batches(lengths, reading.row_tokens, ranks=1)
        else:
            [dealt] = deal_rows(lengths, reading.row_tokens, ranks=1, packing=reading.packing)
        rows = [build_row(sequences, members, reading.padded) for members in dealt if members]
    scores: list[dict[int, float]] = [{} for _ in sequences]
    with inference(model, reading.dtype):
        for row in rows:
            logprobs_A = answer_logprobs(model, row, device, reading.virtual_tokens)
            values_A = logprobs_A.double().cpu().numpy()
            for value, member, owner in zip(values_A, row.members_A, row.owners_A, strict=True):
                sums = scores[row.members[int(member)]]
                sums[int(owner)] = sums.get(int(owner), 0.0) + float(value)
    return scores


def choice_logprobs(
    model: torch.nn.Module, encoded: Sequence[Sequence[Encoded]], reading: ForwardPass
) -> list[Likelihoods]:
    """Compute the log-likelihoods of the answers to each context."""
    per_context = [choice_sequences(answers, ends_apart=True) for answers in encoded]
    flat = [sequence for sequences in per_context for sequence in sequences]
    sums = iter(score_sequences(model, flat, reading))
    result = []
    for answers, sequences in zip(encoded, per_context, strict=True):
        owned = {owner: value for _ in sequences for owner, value in next(sums).items()}
        count = len(answers)
        text = tuple(owned[index] for index in range(count))
        whole = tuple(value + owned.get(count + index, 0.0) for index, value in enumerate(text))
        result.append(Likelihoods(whole, text))
    return result
