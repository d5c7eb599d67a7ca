"""The check that rows do not mix: one intervention test per loaded model, before it is used.

Tokens of some sequences of a row are changed: the log-probabilities of the others must stay equal
bit by bit. Every sequence must also score in the row as it does alone under the model's own
attention, which catches positions and masks that are wrong in rows only. Read are the rows that
scoring and training build: packed ones, ones with shared beginnings where the model attends in
blocks, and long ones where the model has a limit (a window, a chunk, a sparse choice of keys, its
most positions) that a row can exceed. A model that fails reads one sequence a row, under its own
attention. Batches of generated texts are checked likewise, but none that exceeds a limit.

All is computed in fp32, or in bf16 where the attention refuses fp32. Kernels whose results depend
on shapes are no exception: changed rows have the shapes of unchanged ones. A kernel that is not
deterministic gives other numbers each time: then each of the two rows is read several times, and
the mean over passes must not move by more than passes over the same row differ. A leak below that
noise is not seen; noise above what rounding may make is a reason not to pack.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.models.attention import (
    BLOCK_ATTENTION,
    VARLEN_ATTENTION,
    attends_in_blocks,
    inner_attention,
)
from paft_ray.models.load import virtual_tokens
from paft_ray.models.logprobs import ForwardPass
from paft_ray.models.narrow import in_fp32
from paft_ray.models.packing import BATCHES, ROWS, TokenSequence
from paft_ray.models.row_probes import (
    COMMON,
    FORBIDDEN,
    SHORT,
    Rows,
    Scores,
    allowed_rounding,
    base_model,
    describe_error,
    draw,
    largest_difference,
    make_rows,
    model_name,
    perturbed,
    row_lengths,
    score,
    usable_arithmetic,
)
from paft_ray.models.text_check import check_batches

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    AnyModel = PeftModel | PreTrainedModel

logger = logging.getLogger(__name__)

_REPEATS = 4
"""Passes from which the noise of a kernel is known."""


def check_rows(model: "AnyModel", row_tokens: int, longest: int) -> str:
    """Try whether a model keeps the sequences of a row apart.

    A model that mixes them under the attention of `varlen` gets that of `blocks`.

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
    with _trying(model):
        reading = ForwardPass(usable_arithmetic(model), row_tokens)
        _require_causal(model, reading)
        reason = _mixing(model, reading, longest)
        if reason and inner_attention(model) == VARLEN_ATTENTION:
            logger.warning("%s attends in blocks, not by varlen: %s", model_name(model), reason)
            use_blocks(model)
            reason = _mixing(model, replace(reading, dtype=usable_arithmetic(model)), longest)
    if reason:
        logger.warning("%s cannot pack its rows: %s", model_name(model), reason)
    return reason


def check_padded(model: "AnyModel", row_tokens: int, longest: int) -> str:
    """Try whether a model reads sequences alike in a batch, padded behind them, and alone.

    Args:
        model: See `check_rows`; with the attention that it reads batches with.
        row_tokens: Most tokens in a batch, padding included.
        longest: Most tokens in a sequence.

    Returns:
        Why it has to read one sequence at a time; empty where batches are right.
    """
    with _trying(model):
        reading = ForwardPass(
            usable_arithmetic(model), row_tokens, False, virtual_tokens(model), padded=True
        )
        reason = _mixing(model, reading, longest)
    if reason:
        logger.warning("%s reads one sequence at a time: %s", model_name(model), reason)
    return reason


@contextmanager
def _trying(model: "AnyModel") -> Iterator[None]:
    training = model.training
    model.eval()  # dropout would differ between two passes
    try:
        noise = perturbed(model) if hasattr(model, "peft_config") else nullcontext()
        with in_fp32(model), noise:
            yield
    finally:
        model.train(training)


@dataclass(frozen=True, slots=True)
class Together:
    """What a model may read and write together, as its checks found it."""

    rows: str = ""
    """Why it cannot pack rows; empty where rows are packed, or were not to be."""
    batches: str = ""
    """Why it writes one text at a time; empty where it writes several, or none."""
    padded: bool = False
    """Whether it reads sequences that it cannot pack in padded batches, not one by one."""

    def describe(self) -> str:
        """Return what is not done together, and why; empty where all is."""
        rows = f"{self.reading}, as {self.rows}" if self.rows else ""
        batches = f"one text at a time, as {self.batches}" if self.batches else ""
        return "; ".join(filter(None, (rows, batches)))

    @property
    def reading(self) -> str:
        """How sequences are read that are not packed."""
        return BATCHES if self.padded else ROWS

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
        if not config.train.packing:
            use_blocks(model)
        elif rows:
            read_apart(model)
        padded = bool(rows) and may_pad(model) and not check_padded(model, row_tokens, longest)
        batches = "" if writes_with is None else check_batches(model, writes_with)
        return cls(rows, batches, padded)


def may_pad(model: "AnyModel") -> bool:
    """Return whether batches may save time: on GPUs, which one sequence does not fill."""
    return next(model.parameters()).device.type != "cpu"


def read_apart(model: "AnyModel") -> None:
    """Let a model read with its own attention, instead of that for packed rows."""
    if attends_in_blocks(model):
        base_model(model).set_attn_implementation("sdpa")


def use_blocks(model: "AnyModel") -> None:
    """Let a model that reads rows by `varlen`, which is not tried or fails, attend in blocks."""
    if inner_attention(model) == VARLEN_ATTENTION:
        base_model(model).set_attn_implementation(BLOCK_ATTENTION)


def _mixing(model: "AnyModel", reading: ForwardPass, longest: int) -> str:
    """Say how the sequences of a row, or of a padded batch, mix; empty where they do not."""
    for lengths in row_lengths(model, reading.row_tokens, longest):
        for common in (0, COMMON) if attends_in_blocks(model) else (0,):
            rows = make_rows(model, lengths, common)
            if reason := _mixing_in(model, rows, reading):
                return reason
    return ""


def _mixing_in(model: "AnyModel", rows: Rows, reading: ForwardPass) -> str:
    one = "padded batch" if reading.padded else "packed row"
    sizes = [len(sequence.input_ids) for sequence in rows.sequences]
    tokens = max(sizes) * len(sizes) if reading.padded else sum(sizes)
    read = partial(score, model, reading=replace(reading, row_tokens=tokens))
    alone = _alone(model, rows.sequences, reading)
    try:
        row, changed = read(rows.sequences), read(rows.changed)
        allowed = allowed_rounding(model, reading.dtype, row[:1], changed[:1])
        moved = largest_difference(row[rows.kept], changed[rows.kept])
        if moved > allowed * _has_experts(model):
            again = largest_difference(row[rows.kept], read(rows.sequences)[rows.kept])
            moved, noise = _measure(read, rows) if again else (moved, 0.0)
            if not noise <= allowed:
                return f"passes over the same {one} differ by {noise:.1g}, so that no leak is seen"
            if not moved <= noise:
                return f"other sequences of a row move its log-probabilities by {moved:.1g}"
    except FORBIDDEN as error:
        several = "padded batches" if reading.padded else "packed rows"
        return f"it cannot read {several} ({describe_error(error)})"
    if (moved := largest_difference(row, alone)) > allowed:
        return f"log-probabilities in a {one} and alone differ by {moved:.1g}"
    return ""


def _measure(read: Callable[[Sequence[TokenSequence]], Scores], rows: Rows) -> tuple[float, float]:
    """Measure by how much changed sequences move the mean over passes, and passes differ."""
    passes = [
        np.stack([np.concatenate(read(sequences)[rows.kept]) for _ in range(_REPEATS)])
        for sequences in (rows.sequences, rows.changed)
    ]
    noise = max(float(np.ptp(own, axis=0).max()) for own in passes)
    return float(np.abs(passes[0].mean(0) - passes[1].mean(0)).max()), noise


def _alone(model: "AnyModel", sequences: Sequence[TokenSequence], reading: ForwardPass) -> Scores:
    """Score each sequence by itself, as the model reads it without any of our attention."""
    longest = max(len(sequence.input_ids) for sequence in sequences)
    blocks = attends_in_blocks(model)
    before = base_model(model).config._attn_implementation
    read_apart(model)
    try:
        apart = replace(reading, row_tokens=longest, packing=False, padded=False)
        return score(model, sequences, apart)
    finally:
        if blocks:
            base_model(model).set_attn_implementation(before)


def _require_causal(model: "AnyModel", reading: ForwardPass) -> None:
    """Raise where the end of a text changes what is predicted before it."""
    ids, places = draw(model, 2 * SHORT, seed=3), tuple(range(2 * SHORT))
    other = ids[:SHORT] + draw(model, SHORT, seed=4)
    targets = tuple(draw(model, 2 * SHORT, seed=5))
    texts = [TokenSequence(tuple(own), places, targets, places) for own in (ids, other)]
    [first], [second] = (_alone(model, [text], reading) for text in texts)
    allowed = allowed_rounding(model, reading.dtype, [first[SHORT:]], [second[SHORT:]])
    if largest_difference([first[:SHORT]], [second[:SHORT]]) > allowed:
        raise ConfigError(
            f"model.path: {model_name(model)} is no causal language model: what follows a token "
            "changes its prediction; name a decoder model"
        )


def _has_experts(model: "AnyModel") -> bool:
    names = (name for name, _ in model.named_modules())
    return any("expert" in name or "router" in name for name in names)
