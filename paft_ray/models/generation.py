"""Texts that a model writes, in batches.

Under bf16 arithmetic on GPUs keys and values of past tokens are kept in bf16, as which attention
reads them anyway, in half the memory of what rotation makes of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paft_ray.models.said import Continuation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Decoding:
    """The choice of each next token."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Probability of the likeliest tokens, from which is sampled."""
    seed: int = 0
    """Determines the samples, together with the composition of the batch."""


GREEDY = Decoding()


@dataclass(frozen=True, slots=True)
class Ending:
    """The ends of a generated text besides the model's own end tokens."""

    ids: tuple[int, ...] = ()
    """Further end tokens."""
    stop: tuple[str, ...] = ()
    """Texts at the first of which it stops."""

    def find(self, text: str) -> int:
        """Return the place of the first text to stop at; -1 for none."""
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return min(found, default=-1)

    def stopping(self, tokenizer: "PreTrainedTokenizerBase", start: int) -> dict[str, Any]:
        """Return the arguments by which `generate` stops at texts, `start` tokens on."""
        return {"stopping_criteria": _stops_at(tokenizer, self, start)} if self.stop else {}


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    contexts: Sequence[Sequence[int]],
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
) -> list[tuple[str, int]]:
    """Continue a batch of texts, see `continue_texts`.

    Returns:
        For each text its continuation, and the number of its tokens including the end token.
    """
    found = continue_texts(model, tokenizer, contexts, max_new_tokens, decoding=decoding)
    return [(continuation.text, continuation.tokens) for continuation in found]


def continue_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    contexts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ending: Ending = Ending(),
    decoding: Decoding = GREEDY,
) -> list[Continuation]:
    """Continue a batch of texts, given as token ids, by at most `max_new_tokens` tokens each."""
    batch = tokenizer.pad(
        {"input_ids": [list(context) for context in contexts]},
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    start = batch["input_ids"].shape[1]
    own: Any = model.generation_config.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    ends = end_ids(own, tokenizer, ending)
    settings: dict[str, Any] = {"do_sample": decoding.temperature > 0}
    if decoding.temperature > 0:
        settings |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    settings |= ending.stopping(tokenizer, start)
    torch.manual_seed(decoding.seed)
    with torch.inference_mode(), narrow_cache(model.device.type):
        output: Any = model.generate(  # pyright: ignore[reportCallIssue]
            **batch,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends or None,
            **settings,
        )
    return [finish(tokenizer, new_T, ends, ending) for new_T in output[:, start:].cpu().numpy()]


def end_ids(own: Any, tokenizer: "PreTrainedTokenizerBase", ending: Ending) -> list[int]:
    """Return all tokens at which a text ends.

    Args:
        own: The model's end token or tokens; None for those of the tokenizer.
        tokenizer: The model's.
        ending: Further ends.
    """
    end: Any = tokenizer.eos_token_id if own is None else own  # 0 is a token too
    first = [] if end is None else end if isinstance(end, list) else [end]
    return list(dict.fromkeys([*first, *ending.ids, *_stop_ids(tokenizer, ending)]))


def _stop_ids(tokenizer: "PreTrainedTokenizerBase", ending: Ending) -> list[int]:
    """Return the special tokens among the texts to stop at, which decoded texts leave out."""
    texts = {stop.strip() for stop in ending.stop}
    return [id for id, token in tokenizer.added_tokens_decoder.items() if token.content in texts]


def _stops_at(tokenizer: "PreTrainedTokenizerBase", ending: Ending, start: int) -> Any:
    """Return criteria by which each text of a batch stops, whatever the others do."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stops(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
            texts = tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
            return torch.tensor([ending.find(text) >= 0 for text in texts], device=input_ids.device)

    return StoppingCriteriaList([Stops()])


def finish(
    tokenizer: "PreTrainedTokenizerBase", new_T: np.ndarray, ends: Sequence[int], ending: Ending
) -> Continuation:
    """Cut generated tokens at the first of `ends` (`end_ids`), or text to stop at."""

    def decode(length: int) -> str:
        return str(tokenizer.decode(new_T[:length], skip_special_tokens=True))

    found = np.flatnonzero(np.isin(new_T, ends))
    length = int(found[0]) + 1 if len(found) else len(new_T)
    text = decode(length - len(found[:1]))
    place = ending.find(text)
    if place < 0:
        return Continuation(text, length, ended=len(found) > 0)
    length = next(n for n in range(1, length + 1) if ending.find(decode(n)) >= 0)
    return Continuation(text[:place], length, ended=True)


@contextmanager
def narrow_cache(device: str, also_on_cpus: bool = False) -> Iterator[None]:
    """Let caches that transformers makes in the block keep what autocast would make of it.

    Args:
        device: Type of the model's device. CPUs keep what they are given: some families compute
            attention there without autocast.
        also_on_cpus: Narrow it there too.
    """
    from transformers.cache_utils import Cache

    if not torch.is_autocast_enabled(device) or (device == "cpu" and not also_on_cpus):
        yield
        return
    original, dtype = Cache.update, torch.get_autocast_dtype(device)

    def update(self: Any, keys: torch.Tensor, values: torch.Tensor, *more: Any, **named: Any):
        return original(self, keys.to(dtype), values.to(dtype), *more, **named)

    Cache.update = update  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        Cache.update = original


USUAL_TOKENS = 16384
"""Tokens of a batch where memory is not asked."""
_USABLE = 0.8
"""Share of a GPU's memory that may be planned with."""
_READING = 34
"""Bytes per token and hidden unit, in 16 bits, of a layer while it reads contexts: see `estimates`
of training, where they are kept."""


def tokens_in_memory(model: "PreTrainedModel", dtype: str) -> int:
    """Return how many tokens, read and written, a batch may have beside its model on a GPU."""
    if model.device.type != "cuda":
        return USUAL_TOKENS
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    total = torch.cuda.get_device_properties(model.device).total_memory
    return fitting_tokens(model.config.get_text_config(), _USABLE * total - own, dtype)


def fitting_tokens(config: Any, room: float, dtype: str) -> int:
    """Return how many tokens fit, rounded down to a power of two.

    Args:
        config: Of the model.
        room: Bytes for them.
        dtype: Arithmetic, in which they are kept: `float32` or `bfloat16`.
    """
    size = 2 if dtype == "bfloat16" else 4
    each = size * kept_numbers(config) + _READING * config.hidden_size * size / 2
    tokens = int(max(room, 0) / each)
    return max(1024, 1 << max(0, tokens.bit_length() - 1))


def kept_numbers(config: Any) -> int:
    """Return how many numbers attention keeps of a token: its keys and values in all layers."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * groups * width
