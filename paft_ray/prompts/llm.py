"""LLMs that write candidate prompts, behind one protocol.

Covered: models inside our own process (batched), any endpoint of the OpenAI chat protocol, and a
fake for tests and dry runs. Not covered: a rate limit over several actors.
"""

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from paft_ray.artifacts import Storage, fingerprint
from paft_ray.cluster import resolve_dtype
from paft_ray.config import FakeLLM, LLMConfig, OpenAILLM, TransformersLLM
from paft_ray.errors import LLMError
from paft_ray.modeling.files import model_identity
from paft_ray.prompts.generation import Completion, Request

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class LLM(Protocol):
    """Answers requests."""

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer every request once, in groups as they are ready; a failed one has an error."""
        ...


def llm_key(config: LLMConfig) -> str:
    """Which author wrote an answer: whatever of the configuration moves the text."""
    if isinstance(config, TransformersLLM):
        dtype = resolve_dtype(config.dtype, config.gpus)
        return f"{model_identity(config.path)}-{dtype}-b{config.batch_size}-c{config.cpus:g}"
    if isinstance(config, OpenAILLM):
        return fingerprint("openai", config.base_url, config.model)
    return fingerprint("fake", config.fail_every)


def llm_label(config: LLMConfig) -> str:
    """How an author is named in a pool and on the screen."""
    if isinstance(config, TransformersLLM):
        return config.path.rsplit("/", 1)[-1]
    return config.model if isinstance(config, OpenAILLM) else "fake"


def batch_size(config: LLMConfig) -> int:
    """How many requests one unit of work has.

    For a model of our own it is what is generated together, which determines the answers.
    """
    if isinstance(config, TransformersLLM):
        return config.batch_size
    return 8 * config.concurrency if isinstance(config, OpenAILLM) else 16


def open_llm(config: LLMConfig, storage: Storage) -> LLM:
    """Get an LLM ready in this process."""
    if isinstance(config, TransformersLLM):
        return InProcessLLM(config, storage)
    if isinstance(config, OpenAILLM):
        return EndpointLLM(config)
    return PretendingLLM(config)


class InProcessLLM:
    """A transformers model in this process; a batch is generated in one go."""

    def __init__(self, config: TransformersLLM, storage: Storage) -> None:
        """Load the model, converting a GGUF file first if nobody has."""
        import torch

        from paft_ray.modeling.model import load_base, load_tokenizer, prepare_base

        dtype = resolve_dtype(config.dtype, config.gpus)
        torch.set_num_threads(max(1, int(config.cpus)))
        location = prepare_base(config.path, None, storage)
        self._tokenizer = load_tokenizer(location)
        self._model = load_base(location, dtype=getattr(torch, dtype))
        if config.gpus:
            self._model.to(torch.device("cuda"))  # pyright: ignore

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer the batch; its first request's seed and temperature hold for all of it."""
        from paft_ray.modeling.scoring import generate

        started = time.perf_counter()
        contexts = [self._context(request) for request in requests]
        answers = generate(
            self._model,
            self._tokenizer,
            contexts,
            max_new_tokens=max(request.max_tokens for request in requests),
            temperature=requests[0].temperature,
            top_p=requests[0].top_p,
            seed=requests[0].seed,
        )
        seconds = (time.perf_counter() - started) / len(requests)
        yield [
            Completion(
                request_id=request.id,
                text=request.prefill.rpartition("\n")[2] + text,
                error=None,
                status=None,
                attempts=1,
                seconds=seconds,
                prompt_tokens=len(context),
                completion_tokens=tokens,
            )
            for request, context, (text, tokens) in zip(requests, contexts, answers, strict=True)
        ]

    def _context(self, request: Request) -> list[int]:
        text = self._render(request)
        special = self._tokenizer.chat_template is None  # a template writes its own
        return self._tokenizer(text, add_special_tokens=special)["input_ids"]  # pyright: ignore

    def _render(self, request: Request) -> str:
        if self._tokenizer.chat_template is None:
            asked = "\n\n".join(content for _, content in request.messages)
            return f"{asked}\n\n{request.prefill}"
        messages = [{"role": role, "content": content} for role, content in request.messages]
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text + request.prefill


class EndpointLLM:
    """An endpoint of the OpenAI chat protocol; retries are ours, by status and exception type."""

    _pause_s = 1.0
    """Longest pause before the second attempt; it doubles with every further one, up to 30 s."""

    def __init__(self, config: OpenAILLM) -> None:
        """Open a client.

        Raises:
            LLMError: The environment variable that should hold the key is not set on this node.
        """
        self._config = config
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else "none"
        if not self._key:
            raise LLMError(
                f"{config.api_key_env} is not set on node {os.uname().nodename}: set it in every "
                "node's environment (a Kubernetes Secret, a shell)"
            )

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer with `concurrency` requests in flight; each is handed out when it is there."""
        with asyncio.Runner() as runner:
            answers = self._stream(requests)
            while True:
                try:
                    yield [runner.run(_next(answers))]
                except StopAsyncIteration:
                    return

    async def _stream(self, requests: Sequence[Request]) -> AsyncIterator[Completion]:
        import openai

        limit = asyncio.Semaphore(self._config.concurrency)
        async with openai.AsyncOpenAI(
            base_url=self._config.base_url,
            api_key=self._key,
            max_retries=0,
            timeout=self._config.timeout_s,
        ) as client:

            async def one(request: Request) -> Completion:
                async with limit:
                    return await self._ask(client, request)

            for task in asyncio.as_completed([asyncio.create_task(one(r)) for r in requests]):
                yield await task

    async def _ask(self, client: "openai.AsyncOpenAI", request: Request) -> Completion:
        import openai

        started = time.perf_counter()
        error, status, attempt = "", None, 0
        for attempt in range(1, self._config.max_attempts + 1):
            pause = random.uniform(0.5, 1.0) * min(30.0, self._pause_s * 2.0 ** (attempt - 1))
            try:
                messages: Any = [{"role": r, "content": text} for r, text in request.messages]
                answer = await client.chat.completions.create(
                    model=self._config.model,
                    messages=messages,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    max_tokens=request.max_tokens,
                    seed=request.seed,
                )
                if text := _text_of(answer):
                    usage = answer.usage
                    return Completion(
                        request_id=request.id,
                        text=text,
                        error=None,
                        status=200,
                        attempts=attempt,
                        seconds=time.perf_counter() - started,
                        prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
                        completion_tokens=getattr(usage, "completion_tokens", None) or 0,
                    )
                error, status = "the endpoint answered without a text", 200
            except openai.APIStatusError as failure:
                error, status = f"HTTP {failure.status_code}", failure.status_code
                if status not in _RETRYABLE:
                    break
                pause = max(pause, _retry_after(failure.response.headers.get("retry-after")))
            except (openai.APIConnectionError, openai.APIResponseValidationError) as failure:
                error, status = type(failure).__name__, None
            except ValueError:  # a body that is no JSON
                error, status = "the endpoint's answer is not JSON", 200
            if attempt < self._config.max_attempts:
                await asyncio.sleep(pause)
        return _failed(request, error, status, attempt, time.perf_counter() - started)


async def _next(answers: AsyncIterator[Completion]) -> Completion:
    return await anext(answers)


def _text_of(answer: Any) -> str | None:
    """The text in an answer, None where there is none.

    openai checks no shapes: a proxy's login page arrives as a str, JSON as whatever it holds.
    """
    choices = getattr(answer, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    content = getattr(getattr(first, "message", None), "content", None)
    return content if isinstance(content, str) else None


def _retry_after(header: str | None) -> float:
    try:
        return min(120.0, float(header or 0))
    except ValueError:
        return 0.0


def _failed(
    request: Request, error: str, status: int | None, attempts: int, seconds: float
) -> Completion:
    return Completion(
        request_id=request.id,
        text=None,
        error=error,
        status=status,
        attempts=attempts,
        seconds=seconds,
        prompt_tokens=0,
        completion_tokens=0,
    )


class PretendingLLM:
    """`type: fake`: writes plausible prompts from the request alone, without a model."""

    def __init__(self, config: FakeLLM) -> None:
        """Nothing to load."""
        self._config = config

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer one request after another; some fail where the configuration asks for it."""
        for request in requests:
            time.sleep(self._config.seconds)
            number = int(request.id, 16)
            if self._config.fail_every and number % self._config.fail_every == 0:
                yield [_failed(request, "HTTP 500", 500, 1, self._config.seconds)]
                continue
            text = self._write(request, random.Random(number))
            words = len(text.split())
            yield [Completion(request.id, text, None, 200, 1, self._config.seconds, 50, words)]

    def _write(self, request: Request, rng: random.Random) -> str:
        asked = request.messages[-1][1]
        slots = list(dict.fromkeys(re.findall(r"\{([A-Za-z_]\w*)\}", asked)))
        letters = dict(re.findall(r"\{(\w+)\} is option (\w+)", asked))
        task = re.search(r"(?:The task|Task): (.+)", asked)
        description = task.group(1) if task else asked.splitlines()[0]
        topic = re.split(r"[,:;] ", description.rstrip("."))[-1]
        words = [rng.choice(bank) for bank in (_OPENINGS, _VERBS, _LINKS, _ENDINGS)]
        opening, verb, link, ending = words
        instruction = f"{opening} {verb} {link} {topic[:1].lower()}{topic[1:]} {ending}".strip()
        instruction = f"{instruction[:1].upper()}{instruction[1:]}."
        if not slots:
            return instruction
        separator = rng.choice(["\n", "\n\n", " | ", " "])
        style = rng.choice([str.title, str.upper, str.lower])
        fields = [
            f"{letters[slot]}. {{{slot}}}" if slot in letters else f"{style(slot)}: {{{slot}}}"
            for slot in slots
        ]
        cue = rng.choice(["Answer:", "Your answer:", "Response:", "Result:", "->"])
        return separator.join([instruction, *fields, cue])


_OPENINGS = (
    "please", "your task is to", "carefully", "as an expert,", "for this question,", "now",
    "I want you to", "without explaining anything,", "when you are ready,", "using common sense,",
    "quickly", "like a patient reader,", "honestly,", "step by step,", "before anything else,",
    "as an examiner would,", "for the record,", "in your own time,",
)  # fmt: skip
_VERBS = (
    "read what follows", "consider all that is given", "examine the material below",
    "weigh every detail", "study the input", "go through the text once", "take a close look",
    "review the case at hand", "think about what you see", "inspect the following lines",
)  # fmt: skip
_LINKS = ("and", "and then", "so that you can", "in order to", "until you can", "and finally")
_ENDINGS = (
    "", "as briefly as you can", "with confidence", "and nothing else", "for a colleague",
    "before you reply", "so that nobody has to ask again", "as a teacher would do it in class",
    "while ignoring your first impression", "in the words that were asked for",
)  # fmt: skip
