"""The OpenAI chat protocol as endpoints really speak it: bodies, texts, tokens, refusals.

Pure functions of what is sent and received; sending is `endpoint`'s part.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from paft_ray.config import Endpoint
from paft_ray.prompts.generate.completions import CUT_OFF, FILTERED, REFUSED
from paft_ray.prompts.generate.requests import Request

_FINISHES = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "token_limit"), CUT_OFF),
    **dict.fromkeys(("model_length", "incomplete", "error", "abort", "aborted"), CUT_OFF),
    **dict.fromkeys(("insufficient_system_resource", "time_limit"), CUT_OFF),
    **dict.fromkeys(("content_filter", "content_filtered", "safety", "recitation"), FILTERED),
    **dict.fromkeys(("blocklist", "prohibited_content", "spii", "sensitive"), FILTERED),
    "guardrail_intervened": FILTERED,
    REFUSED: REFUSED,
}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_LIMITS = ("max_tokens", "max_completion_tokens")
_OPTIONAL = ("seed", "top_p", "temperature", *_LIMITS, "stop")
"""Parameters that endpoints refuse; the first that is named is left out first."""
_ASKED = ("model", "messages", "prompt", "echo", "logprobs", "stop")
"""Parameters that no setting takes out."""
_UNSUPPORTED = re.compile(
    r"unsupported|(?:not|n't) (?:be )?(?:support|permit|allow|accept|available|specified)"
    r"|unrecogni[sz]ed|unknown|unexpected|extra[_ ](?:input|forbidden|field)|cannot both|only one"
    r"|deprecated|max_completion_tokens",
    re.IGNORECASE,
)
_OF_ITS_VALUE = re.compile(
    r"between|range|at most|at least|(?:less|greater|larger|more|smaller|lower|higher) than"
    r"|too (?:large|high|small|low|long)|maximum of|exceed",
    re.IGNORECASE,
)
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
_BY_A_FILTER = ("content_filter", "content_policy_violation", "DataInspectionFailed")
_SHOWN = 240
"""Characters of an endpoint's own words that are shown."""
_PIECE = 8
"""So many characters of a key in a row are not shown."""


def request_body(config: Endpoint, request: Request, refused: Collection[str]) -> dict[str, Any]:
    """What is posted for a request, without parameters that the endpoint refused."""
    dropped = {*config.omit, *refused}
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [{"role": role, "content": text} for role, text in request.messages],
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    names = _LIMITS if config.max_completion_tokens is None else _LIMITS[::-1]
    if "max_tokens" not in config.omit:
        body |= dict.fromkeys([n for n in names if n not in refused][:1], request.max_tokens)
    body = {name: value for name, value in body.items() if name not in dropped}
    return {**body, **config.extra_body}


@dataclass(frozen=True, slots=True)
class Reading:
    """An endpoint's answer, read."""

    text: str | None
    """Empty where the endpoint was paid for none; None where it did not answer."""
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reported: bool = False
    """The endpoint itself counted the tokens."""
    reasoned: bool = False
    """The endpoint showed its reasoning beside the answer."""


def read_answer(answer: Any, request: Request) -> Reading:
    """Read an answer's JSON, whatever its shape.

    Where the endpoint counts no tokens the UTF-8 bytes of request and answer count, which tokens
    never exceed.
    """
    first = _first(_get(answer, "choices"))
    message = _get(first, "message")
    text = _text(_get(message, "content"))
    finish = _get(first, "finish_reason") or _get(first, "native_finish_reason") or ""
    finish = str(finish).lower()[:40]
    kind = _FINISHES.get(finish, "stop")
    if not text.strip() and (_get(message, "refusal") or _has_refusal(_get(message, "content"))):
        kind = REFUSED
    thought = [s for name in _THOUGHTS for s in _strings(_get(message, name))]
    said = [s for name in ("content", "refusal") for s in _strings(_get(message, name))]
    written = sum(map(_bytes, (*thought, *said)))
    read = sum(_bytes(content) for _, content in request.messages)
    usage = _get(answer, "usage")
    prompt, completion = _tokens(usage)
    if not finish and completion is not None and completion >= request.max_tokens:
        kind = CUT_OFF
    answered = bool(text.strip()) or kind != "stop" or bool(completion)
    return Reading(
        text if answered else None,
        kind,
        prompt or read,
        completion or written,
        bool(prompt and completion is not None),
        any(map(str.strip, thought)),
    )


def read_any_answer(answer: Any, request: Request) -> Reading:
    """Read an answer as `read_answer`, also one that is there and empty."""
    reading = read_answer(answer, request)
    finish = _get(_first(_get(answer, "choices")), "finish_reason")
    return replace(reading, text="") if reading.text is None and finish else reading


@dataclass(frozen=True, slots=True)
class Api:
    """A way to ask an endpoint."""

    path: str
    body: Callable[[Endpoint, Request, Collection[str]], dict[str, Any]]
    """What is posted for a request, without parameters that the endpoint refused."""
    read: Callable[[Any, Request], Reading] = read_answer
    """Reads an answer's JSON; may raise `LLMError` where no answer could be of use."""
    needs: tuple[str, ...] = ()
    """Parameters without which nothing can be asked."""
    remedy: str = ""
    """What to do where the endpoint does not take these."""
    method: Literal["post", "get"] = "post"
    """With `get` no body is sent."""


def _read_models(answer: Any, request: Request) -> Reading:
    """Read the names of models, as a JSON list."""
    entries = _get(answer, "data")
    if not isinstance(entries, list):
        return Reading(None)
    names = [name for entry in entries if isinstance(name := _get(entry, "id"), str)]
    return Reading(json.dumps(names))


CHAT = Api("/chat/completions", request_body)
MODELS = Api("/models", lambda *_: {}, _read_models, method="get")
"""The models that an endpoint has; what is asked does not matter."""


def _text(content: Any) -> str:
    """The text of a content, which may be a list of parts: those that think are left out.

    Half a surrogate pair, which JSON can say and no file can hold, becomes a question mark.
    """
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if _get(part, "type") in (None, "text", "output_text"):
            part = _get(part, "text") if isinstance(part, Mapping) else part
            texts.append(part if isinstance(part, str) else "")
    return "".join(texts).encode("utf-8", "replace").decode("utf-8")


def _has_refusal(content: Any) -> bool:
    return isinstance(content, list) and any(_get(part, "type") == "refusal" for part in content)


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    """Tokens read and written, reasoning included, as far as an endpoint says."""
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens")
    reasoning = _count(_get(usage, "completion_tokens_details"), "reasoning_tokens") or 0
    if completion is None and total is None:
        return prompt, None
    written = completion or 0
    if reasoning > written:  # counted beside the answer
        written += reasoning
    if total is not None:
        written = max(written, total - (prompt or 0))
    return prompt, written


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        value = _get(usage, name)
        if type(value) is int and 0 <= value < 2**31:
            return value
    return None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status that is no success, and the endpoint's own words."""

    status: int
    words: str
    """Bounded, on one line, without the key."""
    code: str = ""
    named: tuple[str, ...] = field(default=())
    """Parameters that it points at."""

    def __str__(self) -> str:
        return f"HTTP {self.status}" + (f": {self.words}" if self.words else "")

    @property
    def no_credit(self) -> bool:
        """Whether no later attempt of this key will be answered."""
        return self.code in _NO_CREDIT

    @property
    def filtered(self) -> bool:
        """Whether the request was answered by a filter."""
        return self.status == 400 and self.code in _BY_A_FILTER

    def parameter(self, sent: Collection[str]) -> str | None:
        """The parameter of those sent that the endpoint does not take at all."""
        if self.status not in (400, 422) or not _UNSUPPORTED.search(self.words):
            return None
        if _OF_ITS_VALUE.search(self.words):
            return None
        return next((name for name in self._named(sent) if name in _OPTIONAL), None)

    def remedy(self, sent: Collection[str]) -> str:
        """The setting that leaves out the parameter that it names, where it names one."""
        if self.status not in (400, 422):
            return ""
        for name in self._named(sent):
            if name in _ASKED:
                continue
            if name in _OPTIONAL:
                setting = "max_tokens" if name in _LIMITS else name
                return f"; omit: [{setting}] leaves it out"
            return f"; extra_body holds {name}"
        return ""

    def needed(self, needs: Collection[str]) -> bool:
        """Whether the endpoint does not take a parameter without which nothing can be asked."""
        return self.status in (400, 422) and next(self._named(needs), None) is not None

    def _named(self, sent: Collection[str]) -> Iterator[str]:
        yield from (name for name in self.named if name in sent)
        for name in (*_OPTIONAL, *sent):
            if name in sent and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.words):
                yield name


def read_refusal(status: int, body: Any, key: str) -> Refusal:
    """Read the body of an answer that is no success: JSON of any shape, or text."""
    error = _get(body, "error") or body
    said = [_get(error, "message"), _get(error, "detail"), _get(body, "message"), error]
    first = next((s for s in said if s), "")
    details = [d for d in (first, _get(first, "detail")) if isinstance(d, list)]
    places = [_get(entry, "loc") for entries in details for entry in entries]
    named = [place[-1] for place in places if isinstance(place, list) and place]
    named = [_get(error, "param"), *named]
    words = " ".join(_strings(first)) if not isinstance(first, str) else first
    codes = [c for c in (_get(error, "code"), _get(error, "type")) if isinstance(c, str)]
    known = [c for c in codes if c in (*_NO_CREDIT, *_BY_A_FILTER)]
    return Refusal(
        status,
        shown(words, key),
        next(iter([*known, *codes]), ""),
        tuple(name for name in named if isinstance(name, str)),
    )


def shown(words: str, key: str) -> str:
    """An endpoint's words as they can be shown: one bounded line, without any piece of the key."""
    words = words[: 4 * _SHOWN]
    size = min(_PIECE, len(key))
    hidden = bytearray(len(words))
    for start in range(len(key) - size + 1 if size else 0):
        piece, at = key[start : start + size], -1
        while (at := words.find(piece, at + 1)) >= 0:
            hidden[at : at + size] = b"\x01" * size
    masked = "".join("*" if hide else char for hide, char in zip(hidden, words, strict=True))
    line = " ".join("".join(c if c.isprintable() else " " for c in masked).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, without the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(entry)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
