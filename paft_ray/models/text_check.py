"""The check that texts are continued alike together and alone, before a model writes several."""

import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from paft_ray.models.attention import attends_in_blocks
from paft_ray.models.logprobs import inference
from paft_ray.models.narrow import in_fp32
from paft_ray.models.row_probes import (
    FORBIDDEN,
    allowed_rounding,
    base_model,
    describe_error,
    draw,
    largest_difference,
    model_name,
    usable_arithmetic,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    AnyModel = PeftModel | PreTrainedModel

logger = logging.getLogger(__name__)

_SPARSE = re.compile(r"topk|sparse")  # a choice of keys, which other texts change by chance
_WRITTEN = 4  # tokens

_Continuation = tuple[list[int], list[np.ndarray]]
"""The greedy tokens after a text, and the log-probabilities [V] at each of them."""


def check_batches(model: "AnyModel", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Try whether a model writes the same for texts of several lengths together and alone.

    Returns:
        Why it has to write one text at a time; empty where batches are right.
    """
    sparse = any(map(_SPARSE.search, base_model(model).config.get_text_config().to_dict()))
    lengths = (4, 24, 12, 6, *((16, 9, 7, 20, 11, 5, 14, 26) if sparse else ()))
    texts = [draw(model, n, seed=n) for n in lengths]
    # attention inside sequences is not used here, and what replaces it computes in fp32
    dtype = "float32" if attends_in_blocks(model) else usable_arithmetic(model)
    write = partial(_continue, model, tokenizer, dtype)
    alone = [write([text])[0] for text in texts]
    other = write([draw(model, 4, seed=1)])[0]
    try:
        together = write(texts)
    except FORBIDDEN as error:
        reason = f"it cannot write several texts together ({describe_error(error)})"
    else:
        moved = max(map(_moved_while_equal, alone, together))
        if moved <= allowed_rounding(model, dtype, alone[0][1][:1], other[1][:1]):
            return ""
        reason = f"others in a batch move its log-probabilities by {moved:.1g}"
    logger.warning("%s writes one text at a time: %s", model_name(model), reason)
    return reason


def _continue(
    model: "AnyModel",
    tokenizer: "PreTrainedTokenizerBase",
    dtype: str,
    texts: Sequence[list[int]],
) -> list[_Continuation]:
    batch = tokenizer.pad({"input_ids": list(texts)}, padding_side="left", return_tensors="pt")
    with in_fp32(model), inference(model, dtype):
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
    return largest_difference(one[1][:steps], other[1][:steps])
