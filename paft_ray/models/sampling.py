"""Texts that a model draws from its own distribution, with their tokens and log-probabilities.

All texts of one call continue the same context, so that nothing is padded in front, and what is
drawn is a function of the model, the context, their number and a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from paft_ray.models.generation import Ending, end_ids, finish, narrow_cache
from paft_ray.models.load import reads_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text that was drawn."""

    token_ids: tuple[int, ...]
    """Its tokens, those that end it included."""
    logprobs: tuple[float, ...]
    """Log-probability of each token at the decoding temperature, in nats."""
    text: str
    """Up to its end, without it."""
    ended: bool
    """Whether it came to an end, and was not cut at the most tokens."""


PLAIN_END = Ending()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are drawn: from the whole distribution."""

    max_new_tokens: int
    temperature: float = 1.0
    ending: Ending = PLAIN_END


class _Recorder:
    """Keeps the log-probability of every token that was drawn, one step behind the drawing."""

    def __init__(self, temperature: float, work: Callable[[], None]) -> None:
        self._temperature, self._work = temperature, work
        self._last_BV: torch.Tensor | None = None
        self.drawn: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take logits of the next token, as a logits processor."""
        self.look_up(input_ids)
        self._last_BV = (scores.float() / self._temperature).log_softmax(-1)
        self._work()
        return scores

    def look_up(self, input_ids: torch.Tensor) -> None:
        """Note the log-probabilities of the last column of tokens."""
        if self._last_BV is not None:
            self.drawn.append(self._last_BV.gather(1, input_ids[:, -1:])[:, 0])


def _read_once(model: Any, ids_BT: torch.Tensor) -> Any:
    """The cache of all but the last token of equal contexts, read once; None where it cannot be.

    Adapters with virtual tokens bring a cache of their own, and some families keep another state.
    """
    from transformers import DynamicCache

    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    usual = set(kinds) <= {"full_attention", "sliding_attention"}
    if min(ids_BT.shape) == 1 or not usual or not reads_positions(model):
        return None
    if not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(input_ids=ids_BT[:1, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(ids_BT))
    return cache


def sample_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    context_ids: Sequence[int],
    count: int,
    sampling: Sampling,
    seed: int,
    work: Callable[[], None] = lambda: None,
) -> list[Sampled]:
    """Draw `count` continuations of a context; `work` is called after every forward pass."""
    from transformers import LogitsProcessorList

    ids = torch.tensor([list(context_ids)] * count, device=model.device)
    own: Any = model.generation_config.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    ends = end_ids(own, tokenizer, sampling.ending)
    recorder = _Recorder(sampling.temperature, work)
    torch.manual_seed(seed)
    with torch.inference_mode(), narrow_cache(model.device.type):
        cache = _read_once(model, ids)
        work()
        output: Any = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=sampling.max_new_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends or None,
            logits_processor=LogitsProcessorList([recorder]),  # pyright: ignore
            **sampling.ending.stopping(tokenizer, len(context_ids)),
        )
        recorder.look_up(output)
    new_BT = output[:, len(context_ids) :].cpu().numpy()
    logprob_BT = torch.stack(recorder.drawn, 1).double().cpu().numpy()
    found = []
    for new_T, logprob_T in zip(new_BT, logprob_BT, strict=True):
        cut = finish(tokenizer, new_T, ends, sampling.ending)
        tokens, logprobs = new_T[: cut.tokens].tolist(), logprob_T[: cut.tokens].tolist()
        found.append(Sampled(tuple(tokens), tuple(logprobs), cut.text, cut.ended))
    return found
