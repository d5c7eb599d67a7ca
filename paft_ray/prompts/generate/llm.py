"""LLMs that write candidate prompts, behind one protocol.

Covered: the LLM of a configuration, and models in this process (transformers in batches, vLLM).
Endpoints are in `endpoint`, the fake of tests and dry runs in `fake`.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, assert_never

from paft_ray.config import FakeLLM, LLMConfig, OpenAILLM, TransformersLLM, VLLMEngine
from paft_ray.config.affects import affecting, take
from paft_ray.config.errors import ConfigError
from paft_ray.models.chat import CHAT_RULE, Chat, open_chat
from paft_ray.models.chat_files import chat_moved
from paft_ray.models.dtype import resolve_dtype
from paft_ray.models.files import model_identity
from paft_ray.models.gpu import prepare_gpu
from paft_ray.prompts.generate.completions import CUT_OFF, Completion
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.generate.fake import FakeClient
from paft_ray.prompts.generate.rate_limit import Limit
from paft_ray.prompts.generate.requests import Request
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)


class LLM(Protocol):
    """Answers requests."""

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer every request once, in groups as they are ready; a failed one has an error.

        An endpoint takes requests from the iterable as it needs them, a model in this process
        takes all of them first.
        """
        ...


def llm_key(config: LLMConfig) -> str:
    """Identity of an answer's author: whatever of the configuration affects the text.

    Temperatures and the longest answer are part of each request.
    """
    fields = affecting(config, "answers")
    if isinstance(config, TransformersLLM):
        known = ("temperatures", "max_tokens", "dtype", "gpus", "batch_size", "cpus")
        dtype = resolve_dtype(config.dtype, config.gpus)
        key = f"{_files(config)}-{dtype}-b{config.batch_size}-c{config.cpus:g}"
    elif isinstance(config, VLLMEngine):
        known = ("temperatures", "max_tokens", "dtype", "gpus")
        key = f"{_files(config)}-{resolve_dtype(config.dtype, config.gpus)}-vllm"
    elif isinstance(config, OpenAILLM):
        known = ("temperatures", "max_tokens", "base_url", "model")
        key = fingerprint("openai", config.base_url, config.model)
    elif isinstance(config, FakeLLM):
        known = ("temperatures", "fail_every")
        key = fingerprint("fake", config.fail_every)
    else:
        assert_never(config)
    _, later = take(fields, *known)
    return f"{key}-{fingerprint(later)}" if later else key


def _files(config: TransformersLLM | VLLMEngine) -> str:
    files = model_identity(config.path, config.revision, config.trust_remote_code)
    return f"{files}-chat{CHAT_RULE}" if chat_moved(config.path) else files


def open_llm(
    config: LLMConfig, storage: Storage, limit: Limit | None = None, share: int = 1
) -> LLM:
    """Open an LLM in this process.

    Args:
        config: Which one.
        storage: Where converted models are kept.
        limit: Paces an endpoint's attempts; other models need none.
        share: How many processes share an endpoint's `concurrency`.

    Raises:
        LLMError: A package or the key is missing on this node.
    """
    if isinstance(config, TransformersLLM):
        return InProcessLLM(config, storage)
    if isinstance(config, VLLMEngine):
        return VLLMInProcess(config, storage)
    if isinstance(config, OpenAILLM):
        return EndpointLLM(config, limit, share)
    if isinstance(config, FakeLLM):
        return FakeClient(config)
    assert_never(config)


class InProcessLLM:
    """A transformers model in this process; a batch is generated in one go."""

    def __init__(self, config: TransformersLLM, storage: Storage) -> None:
        """Load the model; a GGUF file is converted first."""
        import torch

        from paft_ray.models.base_model import prepare_base
        from paft_ray.models.load import load_base, load_tokenizer
        from paft_ray.models.row_check import check_batches

        dtype = resolve_dtype(config.dtype, config.gpus)
        torch.set_num_threads(max(1, int(config.cpus)))
        location = prepare_base(config.path, config.revision, storage)
        trust = config.trust_remote_code
        self._tokenizer = load_tokenizer(location, config.revision, trust)
        self._chat = _open_chat(self._tokenizer, config)
        self._model = load_base(location, config.revision, dtype=getattr(torch, dtype), trust=trust)
        if config.gpus:
            prepare_gpu()
            self._model.to(torch.device("cuda"))  # pyright: ignore
        self._one_by_one = bool(check_batches(self._model, self._tokenizer))

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer the batch; its first request's seed and temperature hold for all of it."""
        from paft_ray.models.generation import Decoding, generate

        batch = list(requests)
        if not batch:
            return
        started = time.perf_counter()
        contexts = [_context(self._tokenizer, self._chat, request) for request in batch]
        together = [[context] for context in contexts] if self._one_by_one else [contexts]
        answers = [
            answer
            for group in together
            for answer in generate(
                self._model,
                self._tokenizer,
                group,
                max(request.max_tokens for request in batch),
                Decoding(batch[0].temperature, batch[0].top_p, batch[0].seed),
            )
        ]
        seconds = (time.perf_counter() - started) / len(batch)
        yield [
            # an end token in the very last place counts as cut off, too: nobody can tell
            _written(request, text, seconds, (len(context), tokens), tokens >= request.max_tokens)
            for request, context, (text, tokens) in zip(batch, contexts, answers, strict=True)
        ]


class VLLMInProcess:
    """vLLM in this process, over all GPUs that this process was given."""

    def __init__(self, config: VLLMEngine, storage: Storage) -> None:
        """Load the model; a GGUF file is converted first.

        Raises:
            LLMError: vLLM is not installed on this node.
        """
        from paft_ray.models.base_model import prepare_base
        from paft_ray.models.load import load_tokenizer
        from paft_ray.models.vllm import Engine, EngineOptions, require_vllm

        require_vllm()
        location = prepare_base(config.path, config.revision, storage)
        self._tokenizer = load_tokenizer(location, config.revision, config.trust_remote_code)
        self._chat = _open_chat(self._tokenizer, config)
        self._engine = Engine(
            EngineOptions(
                location,
                resolve_dtype(config.dtype, config.gpus),
                gpus=config.gpus,
                threads=config.cpus,
                cache_gb=config.cache_gb,
                revision=config.revision,
                trust=config.trust_remote_code,
            )
        )

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer all requests in one call, each with its own seed, temperature and length."""
        from paft_ray.models.vllm import Asking

        batch = [(r, _context(self._tokenizer, self._chat, r)) for r in requests]
        longest = self._engine.max_length
        fitting = [(request, context) for request, context in batch if len(context) < longest]
        failed = [
            Completion(request.id, None, error, status=None, attempts=0, seconds=0.0)
            for request, context in batch
            if len(context) >= longest
            for error in [f"the prompt's {len(context)} tokens are more than the model's {longest}"]
        ]
        if failed:
            yield failed
        if not fitting:
            return
        started = time.perf_counter()
        answers = self._engine.write(
            [context for _, context in fitting],
            [Asking(r.max_tokens, r.temperature, r.top_p, r.seed) for r, _ in fitting],
        )
        seconds = (time.perf_counter() - started) / len(fitting)
        yield [
            _written(
                request,
                answer.text,
                seconds,
                (len(context), len(answer.token_ids)),
                answer.finish_reason == CUT_OFF,
            )
            for (request, context), answer in zip(fitting, answers, strict=True)
        ]


def _open_chat(tokenizer: Any, config: TransformersLLM | VLLMEngine) -> Chat | None:
    """The author's chat template, by which it writes without thinking where it can.

    Raises:
        ConfigError: The template cannot be used.
    """
    if tokenizer.chat_template is None:
        return None
    try:
        chat = open_chat(tokenizer)
    except ConfigError as error:
        raise ConfigError(f"prompts.generation.llms: {config.label}: {error}") from error
    for note in chat.notes:
        logger.info("%s: %s", config.label, note)
    return chat


def _context(tokenizer: Any, chat: Chat | None, request: Request) -> list[int]:
    """The tokens that a model in this process continues, prefill included."""
    if chat is None:
        texts = [*(content for _, content in request.messages), request.prefill]
        text = "\n\n".join(texts)
        return tokenizer(text, add_special_tokens=True)["input_ids"]
    # a template writes its own special tokens
    return tokenizer(chat.render(request.messages) + request.prefill, add_special_tokens=False)[
        "input_ids"
    ]


def _written(
    request: Request, text: str, seconds: float, tokens: tuple[int, int], cut_off: bool
) -> Completion:
    """An answer of a model in this process; `tokens` were read and written."""
    return Completion(
        request_id=request.id,
        text=request.prefill.rpartition("\n")[2] + text,
        error=None,
        status=None,
        attempts=1,
        seconds=seconds,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        finish_reason=CUT_OFF if cut_off else "stop",
    )
