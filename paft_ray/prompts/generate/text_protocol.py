"""The OpenAI completions protocol: texts that are continued, and log-probabilities of prompts.

A request's first message is the text before the answer; a second one, of the role `answer`, is the
answer whose log-probabilities are asked for. Pure, as `chat_protocol` is.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from paft_ray.config import Endpoint
from paft_ray.config.errors import LLMError, UnsupportedError
from paft_ray.prompts.generate.chat_protocol import (
    Api,
    Reading,
    read_any_answer,
    request_body,
)
from paft_ray.prompts.generate.completions import FILTERED, REFUSED
from paft_ray.prompts.generate.requests import Request

ANSWER = "answer"
"""Role of the answer whose log-probabilities are asked for."""
_MOST_STOPS = 4
"""Texts to stop at that endpoints take."""
_KEPT = 8
"""Tokens before an answer that are kept with it: those of several answers are compared."""
_BLANKS = re.compile(r"[\s\u2581\u0120\u010a]+")
"""Blanks, also as tokenizers write them; some servers leave those of single tokens out."""
_NO_LOGPROBS = (
    "it gives no log-probabilities of prompts, by which choices are ranked (vLLM does): set "
    "choices_by: text for this subject, or name another endpoint"
)


def continuing(stop: Sequence[str] = ()) -> Api:
    """A text is continued; servers that can stop at the first of some texts."""

    def body(config: Endpoint, request: Request, refused: Collection[str]) -> dict[str, Any]:
        ends = {"stop": list(stop[:_MOST_STOPS])} if stop and "stop" not in refused else {}
        return {**_prompt_body(config, request, refused), **ends}

    return Api("/completions", body, _read_text)


def _prompt_body(config: Endpoint, request: Request, refused: Collection[str]) -> dict[str, Any]:
    body = request_body(config, request, refused)
    del body["messages"]
    return {**body, "prompt": "".join(text for _, text in request.messages)}


def _read_text(answer: Any, request: Request) -> Reading:
    """Read a text as the same text of a chat is read."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return read_any_answer(answer, request)
    first = {**choices[0], "message": {"content": choices[0].get("text")}}
    return read_any_answer({**answer, "choices": [first]}, request)


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the last tokens of a context and its answer."""

    skipped: int
    """Tokens before those that are kept."""
    within: int
    """Kept tokens that lie within the context; one with characters of both belongs to the answer,
    as in `models.tokenization`."""
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    """In nats; None of the first token of a text."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what a `Completion` holds."""
        tree = json.loads(text)
        return cls(tree["skipped"], tree["within"], tuple(tree["tokens"]), tuple(tree["logprobs"]))

    def since(self, cut: int) -> tuple[float, ...]:
        """Log-probabilities of the tokens from a place in the whole text on.

        Raises:
            LLMError: One is not known.
        """
        values = self.logprobs[cut - self.skipped :]
        if None in values:
            raise LLMError("the endpoint gives no log-probability of the first token of a text")
        return tuple(value for value in values if value is not None)


def common_cut(answers: Sequence[PromptLogprobs]) -> int:
    """The number of tokens at the beginning that all texts share and that lie within the context.

    Raises:
        LLMError: Too few tokens are kept to know it.
    """
    start = max(answer.skipped for answer in answers)
    most = min(answer.skipped + answer.within for answer in answers)
    kept = [each.tokens[start - each.skipped : max(0, most - each.skipped)] for each in answers]
    columns = enumerate(zip(*kept, strict=False))
    alike = next((n for n, tokens in columns if len(set(tokens)) > 1), min(map(len, kept)))
    if start and not alike:
        raise LLMError(
            "the endpoint reads one context as other tokens before each choice, so that their "
            "log-likelihoods cannot be compared: set choices_by: text for this subject"
        )
    return start + alike


def _logprobs_body(config: Endpoint, request: Request, refused: Collection[str]) -> dict[str, Any]:
    return {**_prompt_body(config, request, refused), "echo": True, "logprobs": 1}


def _read_logprobs(answer: Any, request: Request) -> Reading:
    """Read the log-probabilities of a prompt; the token that is written after it is left out.

    Raises:
        UnsupportedError: There are none, or their tokens do not spell the answer.
    """
    reading = _read_text(answer, request)
    if reading.text is None or reading.finish_reason in (FILTERED, REFUSED):
        return reading
    found = answer["choices"][0].get("logprobs")
    tokens, logprobs = (
        found.get(name) if isinstance(found, Mapping) else None
        for name in ("tokens", "token_logprobs")
    )
    if not isinstance(tokens, list) or not isinstance(logprobs, list):
        raise UnsupportedError(_NO_LOGPROBS)
    read = reading.prompt_tokens if reading.reported else len(tokens) - 1
    if not 0 < read <= len(tokens) == len(logprobs) or None in logprobs[1:read]:
        raise UnsupportedError(_NO_LOGPROBS)
    within = _tokens_before(tokens[:read], request.messages[-1][1])
    skipped = max(0, within - _KEPT)
    kept = PromptLogprobs(
        skipped, within - skipped, tuple(tokens[skipped:read]), tuple(logprobs[skipped:read])
    )
    return Reading(
        json.dumps(asdict(kept)), "stop", read, reading.completion_tokens or 1, reading.reported
    )


def _tokens_before(tokens: Sequence[str], answer: str) -> int:
    """The number of tokens before the first one that holds a character of the answer behind them.

    Raises:
        UnsupportedError: The tokens do not spell the answer.
    """
    place, spelled = _spelling(tokens, answer)
    if spelled.endswith(answer):
        return place
    bare = [_BLANKS.sub("", token) for token in tokens]
    wanted = _BLANKS.sub("", answer)
    place, spelled = _spelling(bare, wanted)
    if not spelled.endswith(wanted):
        raise UnsupportedError(
            f"the tokens that it names end with {''.join(tokens)[-40:]!r}, which does not spell "
            f"the answer {answer[-40:]!r}, so that its log-likelihood is unknown: "
            "set choices_by: text for this subject"
        )
    while spelled == wanted and place and not bare[place - 1] and "\n" not in tokens[place - 1]:
        place -= 1  # a blank of its own before the answer
    return place


def _spelling(tokens: Sequence[str], answer: str) -> tuple[int, str]:
    """The fewest tokens at the end that are as long as the answer: their place, and their text."""
    place, spelled = len(tokens), ""
    while place and len(spelled) < len(answer):
        place -= 1
        spelled = tokens[place] + spelled
    return place, spelled


LOGPROBS = Api("/completions", _logprobs_body, _read_logprobs, ("echo", "logprobs"), _NO_LOGPROBS)
"""Log-probabilities of a text and its answer, kept as the JSON of `PromptLogprobs`."""
