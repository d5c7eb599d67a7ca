"""Answer log-likelihoods and generation for a batch, for training, probes and evaluation.

Shapes: T tokens of a row, U positions whose logits are needed, A answer tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paft_ray.models.attention import attends_in_blocks, block_arguments
from paft_ray.models.cpu.kernels import linear
from paft_ray.models.packing import Row, TokenSequence, build_row, deal_rows
from paft_ray.models.sharing import share_rows
from paft_ray.models.tokenization import Encoded, choice_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


class FullPrecisionLinear(torch.nn.Linear):
    """A linear layer that computes in fp32 also under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `input` [..., in] to fp32 [..., out]."""
        with torch.autocast(input.device.type, enabled=False):
            return linear(input.float(), self.weight, self.bias)


def answer_logprobs(
    forward: Callable[..., Any], row: Row, device: torch.device, virtual_tokens: int = 0
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
            then holds one sequence.
    """
    input_ids = torch.from_numpy(row.input_ids_T).to(device)[None]
    keep_U = torch.from_numpy(row.keep_U).to(device)
    if virtual_tokens:
        positions: dict[str, Any] = {"attention_mask": torch.ones_like(input_ids)}
    elif attends_in_blocks(forward):
        positions = {
            "position_ids": torch.from_numpy(row.position_ids_T).to(device)[None],
            **block_arguments(row.position_ids_T, device, row.parts),
        }
    elif (row.position_ids_T == 0).sum() > 1:
        positions = {"position_ids": torch.from_numpy(row.position_ids_T).to(device)[None]}
    else:
        positions = {}  # a model may count from another number, or know no positions
    output = forward(
        input_ids=input_ids, logits_to_keep=keep_U + virtual_tokens, use_cache=False, **positions
    )
    logits_UV = output.logits[0]
    if len(logits_UV) != len(keep_U):  # some models return all
        logits_UV = logits_UV[keep_U + virtual_tokens]
    logits_AV = logits_UV.float()[torch.from_numpy(row.gather_A).to(device)]
    targets_A = torch.from_numpy(row.targets_A).to(device)
    return -torch.nn.functional.cross_entropy(logits_AV, targets_A, reduction="none")


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
    rows = share_rows(sequences, reading.row_tokens) if sharing else None
    if rows is None:
        lengths = [len(s.input_ids) for s in sequences]
        [dealt] = deal_rows(lengths, reading.row_tokens, ranks=1, packing=reading.packing)
        rows = [build_row(sequences, members) for members in dealt if members]
    scores: list[dict[int, float]] = [{} for _ in sequences]
    with inference(model, reading.dtype):
        for row in rows:
            logprobs_A = answer_logprobs(model, row, device, reading.virtual_tokens)
            values_A = logprobs_A.double().cpu().numpy()
            for value, member, owner in zip(values_A, row.members_A, row.owners_A, strict=True):
                sums = scores[row.members[int(member)]]
                sums[int(owner)] = sums.get(int(owner), 0.0) + float(value)
    return scores


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Log-likelihoods of the answers to one context, in nats."""

    whole: tuple[float, ...]
    """Of each answer, with its end token where it has one."""
    text: tuple[float, ...]
    """The same without the end token."""


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


def best_choice(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first of several that are equal."""
    return max(range(len(values)), key=lambda index: (values[index], -index))


@dataclass(frozen=True, slots=True)
class Continuation:
    """A generated text."""

    text: str
    """Up to the end token or the first text to stop at, without either."""
    tokens: int
    """Number of its tokens, including those that end it."""
    ended: bool
    """Whether it came to an end, and was not cut at the most tokens."""


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
    end: Any = model.generation_config.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    end = tokenizer.eos_token_id if end is None else end  # 0 is a token too
    own = [] if end is None else end if isinstance(end, list) else [end]
    ends = list(dict.fromkeys([*own, *ending.ids, *_stop_ids(tokenizer, ending)]))
    settings: dict[str, Any] = {"do_sample": decoding.temperature > 0}
    if decoding.temperature > 0:
        settings |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    if ending.stop:
        settings["stopping_criteria"] = _stops_at(tokenizer, ending, start)
    torch.manual_seed(decoding.seed)
    with torch.inference_mode():
        output: Any = model.generate(  # pyright: ignore[reportCallIssue]
            **batch,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends or None,
            **settings,
        )
    return [_finish(tokenizer, new_T, ends, ending) for new_T in output[:, start:].cpu().numpy()]


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


def _finish(
    tokenizer: "PreTrainedTokenizerBase", new_T: np.ndarray, ends: Sequence[int], ending: Ending
) -> Continuation:
    """Cut generated tokens at the first end."""

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
