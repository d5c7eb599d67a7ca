"""What a model is tried with and compared by: rows, the same with other tokens in some, rounding.

Rows are short ones and, where the model has a limit (a window, a chunk, a sparse choice of keys,
its most positions), one that exceeds it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paft_ray.config.errors import one_line
from paft_ray.models.attention import BLOCK_ATTENTION
from paft_ray.models.files import context_length
from paft_ray.models.load import virtual_tokens
from paft_ray.models.logprobs import ForwardPass, score_sequences
from paft_ray.models.narrow import full_shape
from paft_ray.models.packing import TokenSequence

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    AnyModel = PeftModel | PreTrainedModel

_ROUNDING = 1e-4
"""Largest difference that arithmetic may make, as a share of what other tokens make: packed rows
add in another order, and experts multiply what is sent to them together."""
_COARSE_ROUNDING = 0.1  # the same in 16 bits
_LEAST_ROUNDING = 5e-6  # in nats, where other tokens make no difference to speak of
# errors of models that cannot read packed rows at all
FORBIDDEN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
# names of numbers of tokens beyond which a model reads otherwise, or not at all
_LIMIT = re.compile(
    r"window|chunk|topk|top_k|sparse|max_position|n_positions|n_ctx|max_seq|floor_scale"
)
SHORT, COMMON, _VOCABULARY = 12, 6, 20_000  # tokens

Scores = list[np.ndarray]  # for each sequence the log-probabilities of its targets


@dataclass(frozen=True, slots=True)
class Rows:
    """Sequences that fill one row, and the same with other tokens in the first and the last."""

    sequences: list[TokenSequence]
    changed: list[TokenSequence]
    kept: slice
    """The sequences that are not changed."""


def row_lengths(model: "AnyModel", row_tokens: int, longest: int) -> Iterator[list[int]]:
    """Lengths of the sequences of rows to try, the shortest first."""
    short = max(4, min(SHORT, longest - COMMON, row_tokens // 4))
    yield [short, short + 3, short - 1, short]
    settings = base_model(model).config.get_text_config().to_dict()
    if limit := max((n for n in _limits(settings) if n + 4 * short <= row_tokens), default=0):
        # one of the sequences exceeds the limit itself, if any may
        piece = min(longest, limit + 2 * short, context_length(settings) or longest) - COMMON
        pieces = -(-(limit + short) // piece)
        yield [short, *[piece] * pieces, short, short]


def _limits(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _limits(value)
        elif isinstance(value, int) and not isinstance(value, bool) and _LIMIT.search(key):
            yield value


def make_rows(model: "AnyModel", lengths: Sequence[int], common: int) -> Rows:
    """Make sequences of these lengths; with a common beginning each has two answers."""
    begin = draw(model, common, seed=1)
    ends, answers = {0, len(lengths) - 1}, 2 if common else 1
    made: list[list[TokenSequence]] = []
    for change in (False, True):
        sequences = []
        for number, length in enumerate(lengths):
            other = 1000 * (change and number in ends)
            context = begin + draw(model, length, seed=2 + number + other)
            for answer in range(answers):
                ids = context + draw(model, 2 * (answers - 1), seed=100 + answer + other)
                sequences.append(predict(model, ids, len(context) - 1 if common else 0, number))
        made.append(sequences)
    return Rows(made[0], made[1], slice(answers, -answers))


def predict(model: "AnyModel", ids: list[int], first: int, seed: int) -> TokenSequence:
    """Predict a few tokens from the places after `first`, and from the last ones."""
    last = range(len(ids))
    places = sorted({*last[first : first + 4], *last[-4:]} - {*last[:first]})
    targets = draw(model, len(places), seed=200 + seed)
    return TokenSequence(tuple(ids), tuple(places), tuple(targets), tuple(range(len(places))))


def draw(model: "AnyModel", count: int, seed: int) -> list[int]:
    """Draw tokens, the same ones for the same seed."""
    rows = full_shape(base_model(model).get_input_embeddings().weight)[0]
    known = getattr(base_model(model).config.get_text_config(), "vocab_size", rows)
    most = min(rows, known, _VOCABULARY)
    return np.random.default_rng(seed).integers(most // 8, most, count).tolist()


@contextmanager
def perturbed(model: torch.nn.Module) -> Iterator[None]:
    """Add noise to the adapter in the block: most adapters begin without any effect."""
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * noise.to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])


def base_model(model: "AnyModel") -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model  # pyright: ignore


def score(model: "AnyModel", sequences: Sequence[TokenSequence], reading: ForwardPass) -> Scores:
    """Score sequences, one or several together."""
    scores = score_sequences(model, sequences, reading)
    return [np.array([v for _, v in sorted(of_sequence.items())]) for of_sequence in scores]


def usable_arithmetic(model: "AnyModel") -> str:
    """Return the dtype of autocast to try a model in: fp32 wherever its attention can."""
    name = str(base_model(model).config._attn_implementation)
    if name in ("eager", "sdpa", "flex_attention", BLOCK_ATTENTION):
        return "float32"
    text = make_rows(model, [SHORT], 0).sequences
    try:
        score(model, text, ForwardPass("float32", SHORT, False, virtual_tokens(model)))
    except FORBIDDEN as error:
        describe_error(error)  # raises where memory was short
        return "bfloat16"
    return "float32"


def allowed_rounding(model: "AnyModel", dtype: str, one: Scores, other: Scores) -> float:
    """Return the largest difference that is rounding, from what other tokens make."""
    exact = next(model.parameters()).dtype == torch.float32 and dtype == "float32"
    return max(
        _LEAST_ROUNDING, (_ROUNDING if exact else _COARSE_ROUNDING) * largest_difference(one, other)
    )


def largest_difference(one: Scores, other: Scores) -> float:
    moved = max(float(np.max(np.abs(a - b))) for a, b in zip(one, other, strict=True))
    return moved if np.isfinite(moved) else float("inf")


def describe_error(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return one_line(error)


def model_name(model: "AnyModel") -> str:
    return type(base_model(model)).__name__
