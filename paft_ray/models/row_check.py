"""The check that rows do not mix: one intervention test per loaded model, before it is used.

Tokens of some sequences of a row are changed: the log-probabilities of the others must stay equal
bit by bit. Every sequence must also score in the row as it does alone under the model's own
attention, which catches positions and masks that are wrong in rows only. Read are the rows that
scoring and training build: packed ones, ones with shared beginnings where the model attends in
blocks, and long ones where the model has a limit (a window, a chunk, a sparse choice of keys, its
most positions) that a row can exceed. A model that fails reads one sequence a row, under its own
attention. Batches of generated texts are checked likewise, but none that exceeds a limit.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, one_line
from paft_ray.models.attention import attends_in_blocks
from paft_ray.models.files import context_length
from paft_ray.models.logprobs import ForwardPass, inference, score_sequences
from paft_ray.models.narrow import full_shape, in_fp32
from paft_ray.models.packing import ROWS, TokenSequence

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    AnyModel = PeftModel | PreTrainedModel

logger = logging.getLogger(__name__)

_ROUNDING = 1e-4
"""Largest difference that arithmetic may make, as a share of what other tokens make: packed rows
add in another order, and experts multiply what is sent to them together."""
_COARSE_ROUNDING = 0.1  # the same in 16 bits
_LEAST_ROUNDING = 5e-6  # in nats, where other tokens make no difference to speak of
# errors of models that cannot read packed rows at all
_FORBIDDEN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_SPARSE = re.compile(r"topk|sparse")  # a choice of keys, which other texts change by chance
# names of numbers of tokens beyond which a model reads otherwise, or not at all
_LIMIT = re.compile(
    r"window|chunk|topk|top_k|sparse|max_position|n_positions|n_ctx|max_seq|floor_scale"
)
_SHORT, _COMMON, _VOCABULARY, _WRITTEN = 12, 6, 20_000, 4  # tokens

_Scores = list[np.ndarray]  # for each sequence the log-probabilities of its targets


def check_rows(model: "AnyModel", row_tokens: int, longest: int) -> str:
    """Try whether a model keeps the sequences of a row apart, in fp32.

    Args:
        model: The model; an adapter is tried with noise added to its weights, as most begin without
            any effect.
        row_tokens: Most tokens in a row.
        longest: Most tokens in a sequence.

    Returns:
        Why it has to read one sequence a row, with `read_apart`; empty where it keeps them apart.

    Raises:
        ConfigError: Later tokens change earlier predictions: the model is not causal.
    """
    training = model.training
    model.eval()  # dropout would differ between two passes
    try:
        perturbed = _perturbed(model) if hasattr(model, "peft_config") else nullcontext()
        with in_fp32(model), perturbed:
            _require_causal(model)
            reason = _mixing(model, row_tokens, longest)
    finally:
        model.train(training)
    if reason:
        logger.warning("%s reads one sequence a row: %s", _name(model), reason)
    return reason


@dataclass(frozen=True, slots=True)
class Together:
    """What a model may read and write together, as its checks found it."""

    rows: str = ""
    """Why it reads one sequence a row; empty where rows are packed, or were not to be."""
    batches: str = ""
    """Why it writes one text at a time; empty where it writes several, or none."""

    def describe(self) -> str:
        """Return what is not done together, and why; empty where all is."""
        rows = f"{ROWS}, as {self.rows}" if self.rows else ""
        batches = f"one text at a time, as {self.batches}" if self.batches else ""
        return "; ".join(filter(None, (rows, batches)))

    @classmethod
    def of(
        cls,
        model: "AnyModel",
        config: Config,
        row_tokens: int,
        writes_with: "PreTrainedTokenizerBase | None" = None,
    ) -> Self:
        """Check a model, and give it its own attention where rows mix.

        Args:
            model: See `check_rows`.
            config: Says whether rows are to be packed, and how long sequences are.
            row_tokens: Most tokens in a row.
            writes_with: The tokenizer where texts are generated.
        """
        longest = config.task.max_length
        rows = check_rows(model, row_tokens, longest) if config.train.packing else ""
        if rows:
            read_apart(model)
        batches = "" if writes_with is None else check_batches(model, writes_with)
        return cls(rows, batches)


def read_apart(model: "AnyModel") -> None:
    """Let a model read with its own attention, instead of that for packed rows."""
    if attends_in_blocks(model):
        _base(model).set_attn_implementation("sdpa")


def check_batches(model: "AnyModel", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Try whether a model writes the same for texts of several lengths together and alone.

    Returns:
        Why it has to write one text at a time; empty where batches are right.
    """
    sparse = any(map(_SPARSE.search, _base(model).config.get_text_config().to_dict()))
    lengths = (4, 24, 12, 6, *((16, 9, 7, 20, 11, 5, 14, 26) if sparse else ()))
    texts = [_draw(model, n, seed=n) for n in lengths]
    alone = [_continue(model, tokenizer, [text])[0] for text in texts]
    other = _continue(model, tokenizer, [_draw(model, 4, seed=1)])[0]
    try:
        together = _continue(model, tokenizer, texts)
    except _FORBIDDEN as error:
        reason = f"it cannot write several texts together ({_message(error)})"
    else:
        moved = max(map(_moved_while_equal, alone, together))
        if moved <= _allowed(model, alone[0][1][:1], other[1][:1]):
            return ""
        reason = f"others in a batch move its log-probabilities by {moved:.1g}"
    logger.warning("%s writes one text at a time: %s", _name(model), reason)
    return reason


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sequences that fill one row, and the same with other tokens in the first and the last."""

    sequences: list[TokenSequence]
    changed: list[TokenSequence]
    kept: slice
    """The sequences that are not changed."""


def _mixing(model: "AnyModel", row_tokens: int, longest: int) -> str:
    for lengths in _row_lengths(model, row_tokens, longest):
        for common in (0, _COMMON) if attends_in_blocks(model) else (0,):
            rows = _make_rows(model, lengths, common)
            tokens = sum(len(sequence.input_ids) for sequence in rows.sequences)
            alone = _alone(model, rows.sequences)
            try:
                row, changed = (
                    _score(model, sequences, ForwardPass(_arithmetic(model), tokens))
                    for sequences in (rows.sequences, rows.changed)
                )
            except _FORBIDDEN as error:
                return f"it cannot read packed rows ({_message(error)})"
            allowed = _allowed(model, row[:1], changed[:1])
            kept = rows.kept
            if (moved := _largest(row[kept], changed[kept])) > allowed * _has_experts(model):
                return f"other sequences of a row move its log-probabilities by {moved:.1g}"
            if (moved := _largest(row, alone)) > allowed:
                return f"log-probabilities in a packed row and alone differ by {moved:.1g}"
    return ""


def _row_lengths(model: "AnyModel", row_tokens: int, longest: int) -> Iterator[list[int]]:
    """Lengths of the sequences of rows to try, the shortest first."""
    short = max(4, min(_SHORT, longest - _COMMON, row_tokens // 4))
    yield [short, short + 3, short - 1, short]
    settings = _base(model).config.get_text_config().to_dict()
    if limit := max((n for n in _limits(settings) if n + 4 * short <= row_tokens), default=0):
        # one of the sequences exceeds the limit itself, if any may
        piece = min(longest, limit + 2 * short, context_length(settings) or longest) - _COMMON
        pieces = -(-(limit + short) // piece)
        yield [short, *[piece] * pieces, short, short]


def _limits(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _limits(value)
        elif isinstance(value, int) and not isinstance(value, bool) and _LIMIT.search(key):
            yield value


def _make_rows(model: "AnyModel", lengths: Sequence[int], common: int) -> _Rows:
    """Make sequences of these lengths; with a common beginning each has two answers."""
    begin = _draw(model, common, seed=1)
    ends, answers = {0, len(lengths) - 1}, 2 if common else 1
    made: list[list[TokenSequence]] = []
    for change in (False, True):
        sequences = []
        for number, length in enumerate(lengths):
            other = 1000 * (change and number in ends)
            context = begin + _draw(model, length, seed=2 + number + other)
            for answer in range(answers):
                ids = context + _draw(model, 2 * (answers - 1), seed=100 + answer + other)
                sequences.append(_predict(model, ids, len(context) - 1 if common else 0, number))
        made.append(sequences)
    return _Rows(made[0], made[1], slice(answers, -answers))


def _predict(model: "AnyModel", ids: list[int], first: int, seed: int) -> TokenSequence:
    """Predict a few tokens from the places after `first`, and from the last ones."""
    last = range(len(ids))
    places = sorted({*last[first : first + 4], *last[-4:]} - {*last[:first]})
    targets = _draw(model, len(places), seed=200 + seed)
    return TokenSequence(tuple(ids), tuple(places), tuple(targets), tuple(range(len(places))))


def _draw(model: "AnyModel", count: int, seed: int) -> list[int]:
    """Draw tokens, the same ones for the same seed."""
    rows = full_shape(_base(model).get_input_embeddings().weight)[0]
    known = getattr(_base(model).config.get_text_config(), "vocab_size", rows)
    most = min(rows, known, _VOCABULARY)
    return np.random.default_rng(seed).integers(most // 8, most, count).tolist()


def _score(model: "AnyModel", sequences: Sequence[TokenSequence], reading: ForwardPass) -> _Scores:
    scores = score_sequences(model, sequences, reading)
    return [np.array([v for _, v in sorted(of_sequence.items())]) for of_sequence in scores]


def _alone(model: "AnyModel", sequences: Sequence[TokenSequence]) -> _Scores:
    """Score each sequence by itself, as the model reads it without any of our attention."""
    longest = max(len(sequence.input_ids) for sequence in sequences)
    blocks = attends_in_blocks(model)
    before = _base(model).config._attn_implementation
    read_apart(model)
    try:
        return _score(model, sequences, ForwardPass(_arithmetic(model), longest, packing=False))
    finally:
        if blocks:
            _base(model).set_attn_implementation(before)


def _require_causal(model: "AnyModel") -> None:
    """Raise where the end of a text changes what is predicted before it."""
    ids, places = _draw(model, 2 * _SHORT, seed=3), tuple(range(2 * _SHORT))
    other = ids[:_SHORT] + _draw(model, _SHORT, seed=4)
    targets = tuple(_draw(model, 2 * _SHORT, seed=5))
    texts = [TokenSequence(tuple(own), places, targets, places) for own in (ids, other)]
    [first], [second] = (_alone(model, [text]) for text in texts)
    allowed = _allowed(model, [first[_SHORT:]], [second[_SHORT:]])
    if _largest([first[:_SHORT]], [second[:_SHORT]]) > allowed:
        raise ConfigError(
            f"model.path: {_name(model)} is no causal language model: what follows a token changes "
            "its prediction; name a decoder model"
        )


def _arithmetic(model: "AnyModel") -> str:
    """Return the dtype of autocast: fp32 wherever the attention can."""
    return "bfloat16" if "flash" in str(_base(model).config._attn_implementation) else "float32"


def _allowed(model: "AnyModel", one: _Scores, other: _Scores) -> float:
    """Return the largest difference that is rounding, from what other tokens make."""
    exact = next(model.parameters()).dtype == torch.float32 and _arithmetic(model) == "float32"
    return max(_LEAST_ROUNDING, (_ROUNDING if exact else _COARSE_ROUNDING) * _largest(one, other))


def _largest(one: _Scores, other: _Scores) -> float:
    moved = max(float(np.max(np.abs(a - b))) for a, b in zip(one, other, strict=True))
    return moved if np.isfinite(moved) else float("inf")


def _has_experts(model: "AnyModel") -> bool:
    names = (name for name, _ in model.named_modules())
    return any("expert" in name or "router" in name for name in names)


_Continuation = tuple[list[int], list[np.ndarray]]
"""The greedy tokens after a text, and the log-probabilities [V] at each of them."""


def _continue(
    model: "AnyModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[list[int]]
) -> list[_Continuation]:
    batch = tokenizer.pad({"input_ids": list(texts)}, padding_side="left", return_tensors="pt")
    with in_fp32(model), inference(model, "float32"):
        output: Any = model.generate(  # pyright: ignore[reportCallIssue]
            **batch.to(next(model.parameters()).device),
            max_new_tokens=_WRITTEN,
            min_new_tokens=_WRITTEN,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logprobs = [logits_BV.float().log_softmax(-1).cpu().numpy() for logits_BV in output.logits]
    tokens = output.sequences[:, -_WRITTEN:].tolist()
    return [(own, [step[n] for step in logprobs]) for n, own in enumerate(tokens)]


def _moved_while_equal(one: _Continuation, other: _Continuation) -> float:
    """Return the largest difference up to the first token that differs."""
    equal = [a == b for a, b in zip(one[0], other[0], strict=True)]
    steps = 1 + (equal.index(False) if False in equal else _WRITTEN - 1)
    return _largest(one[1][:steps], other[1][:steps])


@contextmanager
def _perturbed(model: torch.nn.Module) -> Iterator[None]:
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


def _message(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return one_line(error)


def _base(model: "AnyModel") -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model  # pyright: ignore


def _name(model: "AnyModel") -> str:
    return type(_base(model)).__name__
