"""The model behind a URL, as a subject: its name, and how it can be asked.

The server is asked for its models and for a few tokens, before anything is written. Only where it
clearly does not take one way to ask is another one tried: what is measured must not depend on how
busy the server is.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from paft_ray.config import OpenAILLM
from paft_ray.config.errors import ConfigError, LLMError, UnsupportedError
from paft_ray.config.uris import has_password
from paft_ray.pipeline.endpoints import check_endpoint
from paft_ray.prompts.generate.chat_protocol import CHAT, MODELS, Api
from paft_ray.prompts.generate.completions import FILTERED, REFUSED, Completion
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.generate.requests import Request
from paft_ray.prompts.generate.text_protocol import ANSWER, LOGPROBS, continuing

_SHOWN_MODELS = 20
_REMEDY = "see to the URL, which mostly ends in /v1, or give --api-key-env or --endpoint-model"
_NOT_READY = (
    "how it is measured depends on this answer: repeat the same command when the server is ready"
)
_REFUSALS = frozenset({400, 404, 405, 422, 501})
"""Statuses of a server that does not take a request, now or later."""
_BUSY = frozenset({408, 409, 425, 429, *range(500, 600)}) - _REFUSALS
_TIMEOUT_S = 60.0
_TRIAL = "One and one is"
_TOKENS = 16
"""Of a trial; some servers refuse fewer for a chat."""


@dataclass(frozen=True, slots=True)
class BehindUrl:
    """What is known of the model behind a URL."""

    model: str | None = None
    """Its name there; by default the only one that the server has."""
    api: Literal["completions", "chat"] | None = None
    """How it is asked; by default what the server can do."""
    api_key_env: str | None = None
    """Name of the environment variable with the key."""

    @property
    def options(self) -> Iterator[str]:
        """The options of the command line that were given."""
        if self.model is not None:
            yield "--endpoint-model"
        if self.api is not None:
            yield "--api"
        if self.api_key_env is not None:
            yield "--api-key-env"


def subject_behind(url: str, said: BehindUrl) -> tuple[dict[str, Any], list[str]]:
    """The subject that measures the model behind a URL, and what was found out for it.

    Raises:
        ConfigError: The server cannot be reached or used, or has several models.
    """
    if has_password(url):
        raise ConfigError(
            "the URL holds what looks like a secret and is not shown: put it into an environment "
            "variable, and name that variable by --api-key-env"
        )
    notes = []
    model = said.model
    if model is None:
        model = _only_model(url, said)
        notes.append(f"model: {model}, the only one at {url}")
    api, choices_by = _way_to_ask(url, model, said)
    if choices_by == "logprobs":
        notes.append("api: completions, which gives log-probabilities of prompts there")
    else:
        notes.append(
            f"api: {api}, without log-probabilities of prompts: choices are graded by what "
            "the model writes (choices_by: text)"
        )
    subject = {"type": "endpoint", "base_url": url, "model": model, "api": api}
    if choices_by == "text":
        subject["choices_by"] = "text"
    return subject | ({"api_key_env": env} if (env := said.api_key_env) else {}), notes


def _only_model(url: str, said: BehindUrl) -> str:
    answer = _try(url, "the list of models", said, MODELS)
    if isinstance(answer, str):
        raise ConfigError(f"{answer}; {_REMEDY}")
    names: list[str] = list(dict.fromkeys(json.loads(answer.text or "[]")))
    if len(names) != 1:
        more = f" and {len(names) - _SHOWN_MODELS} more" if len(names) > _SHOWN_MODELS else ""
        listed = f"has {', '.join(names[:_SHOWN_MODELS])}{more}" if names else "lists no model"
        raise ConfigError(f"{url} {listed}: name one by --endpoint-model")
    return names[0]


def _way_to_ask(url: str, model: str, said: BehindUrl) -> tuple[str, str]:
    """The first way that the server takes, best first: `api` and `choices_by`."""
    ways = [
        ("completions", "logprobs", LOGPROBS), ("chat", "text", CHAT),
        ("completions", "text", continuing()),
    ]  # fmt: skip
    refusals: list[str] = []
    for api, choices_by, how in ways:
        if said.api not in (None, api):
            continue
        answer = _try(url, model, said, how)
        if not isinstance(answer, str):
            return api, choices_by
        refusals.append(answer)
    raise ConfigError(f"{refusals[-1] if said.api else refusals[1]}; {_REMEDY}")


def _try(url: str, model: str, said: BehindUrl, api: Api) -> Completion | str:
    """Send one request; why the server does not take it, where it clearly does not.

    Raises:
        ConfigError: Whether it does is not known.
    """
    settings = {"type": "openai", "base_url": url, "model": model, "api_key_env": said.api_key_env}
    try:
        client = OpenAILLM.model_validate({**settings, "timeout_s": _TIMEOUT_S, "max_attempts": 2})
    except ValidationError:  # which would show what may be the key itself
        raise ConfigError(
            "--api-key-env: takes the name of an environment variable, which this is not: set one, "
            "as in `export MY_KEY=...`, and give its name"
        ) from None
    list(check_endpoint("evaluation.subjects.0", client, driver=True))
    answer = [(ANSWER, " two")] if api is LOGPROBS else []
    messages, most = (("user", _TRIAL), *answer), 1 if api is LOGPROBS else _TOKENS
    request = Request("trial", 0, "trial", messages, 0.0, 1.0, 0, most)
    try:
        [[found]] = EndpointLLM(client, api_of=lambda _: api).complete([request])
    except UnsupportedError as error:
        return str(error)
    except LLMError as error:
        raise ConfigError(f"{error}; {_REMEDY}") from error
    where = f"{client.label} at {url}"
    if found.text is None and found.status in _REFUSALS:
        return f"{where}: {found.error}"
    if found.text is None:
        busy = found.status in _BUSY or (found.error or "").startswith("no answer within")
        raise ConfigError(f"{where}: {found.error}; {_NOT_READY if busy else _REMEDY}")
    if api is LOGPROBS and found.finish_reason in (FILTERED, REFUSED):
        raise ConfigError(f"{where}: a filter refused {_TRIAL!r}; {_REMEDY}")
    return found
