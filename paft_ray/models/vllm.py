"""vLLM in this process: log-probabilities and texts of a base model and of LoRA adapters on it.

Serves evaluation, the writing of candidate prompts, and rollouts of a training. The engine is part
of this process and dies with it: a child process of a killed Ray actor would keep its GPU's memory.
What depends on a batch (rounding, of texts that nearly tie their wording) differs from
transformers', which `evaluation.parity` measures.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ConfigError, one_line, package_missing
from paft_ray.models.vllm_limits import Loras, read_servable

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process
    "VLLM_NO_USAGE_STATS": "1",
}
_MOST_SEQUENCES = 256
"""Sequences that are computed together at most."""
_MOST_LORAS = 8
"""Adapters that lie beside each other on the device; vLLM exchanges them where there are more."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """One model, and the device and memory for it."""

    location: str
    """What `prepare_base` returned."""
    dtype: str
    """Of weights and arithmetic: `float32` or `bfloat16`."""
    gpus: float = 0
    """GPUs of this process, over which the model is split: 0 for CPUs, or a share of one."""
    threads: int = 1
    """Threads on CPUs."""
    memory: float = 0.9
    """Share of a GPU's memory."""
    cache_gb: float = 2.0
    """Memory for keys and values on CPUs, in 1e9 bytes."""
    max_length: int | None = None
    """Longest sequence in tokens, read and written; by default the model's."""
    batch_tokens: int | None = None
    """Tokens that are read in one step at most; by default vLLM's choice."""
    loras: Loras | None = None
    """The adapters that will be served."""
    exact_head: bool = False
    """Compute logits in fp32 where the arithmetic is bf16: bf16 ones lie 0.06 apart near 16."""
    revision: str | None = None
    trust: bool = False
    """Run the model's own Python files."""
    training: bool = False
    """Whether this process is a rank of a training, whose random state, environment and process
    group stay as they are; all ranks start their engines at the same time."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `vllm.LLM`."""
        given: dict[str, Any] = {
            "model": self.location,
            "dtype": self.dtype,
            "revision": self.revision,
            "tokenizer_revision": self.revision,
            "trust_remote_code": self.trust,
            "tensor_parallel_size": max(1, int(self.gpus)),
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
        }
        if self.gpus > 1:  # workers are processes of this one: the GPUs are those of this actor
            given["distributed_executor_backend"] = "mp"
        if self.training and self.gpus and "LOCAL_RANK" in os.environ:  # for the GPU of this rank
            given["distributed_executor_backend"] = "external_launcher"
        if self.gpus:
            given["gpu_memory_utilization"] = self.memory
        else:
            given |= {"kv_cache_memory_bytes": int(self.cache_gb * 1e9), "enforce_eager": True}
            # vLLM 0.32 fails where it reads a text in parts that is drawn with a seed
            given["enable_chunked_prefill"] = False
        if self.max_length is not None:
            given["max_model_len"] = self.max_length
        if self.batch_tokens is not None:
            sequences = min(_MOST_SEQUENCES, self.batch_tokens)
            given |= {"max_num_batched_tokens": self.batch_tokens, "max_num_seqs": sequences}
        if self.loras is not None:
            given |= {
                "enable_lora": True,
                "max_lora_rank": self.loras.rank,
                "lora_target_modules": list(self.loras.modules),
                "max_loras": min(self.loras.count, _MOST_LORAS),
                "max_cpu_loras": self.loras.count,
            }
        if self.exact_head and self.dtype == "bfloat16":
            given["hf_overrides"] = {"head_dtype": "float32"}
        return given


@dataclass(frozen=True, slots=True)
class Asking:
    """How one text is written."""

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    ends: tuple[int, ...] | None = None
    """Tokens that end it; None for those of the model and its tokenizer."""
    stop: tuple[str, ...] = ()
    """Texts that end it."""


@dataclass(frozen=True, slots=True)
class Written:
    """A text that the model wrote."""

    text: str
    """Without special tokens."""
    token_ids: tuple[int, ...]
    """With the token that ended it."""
    logprobs: tuple[float, ...]
    """Of each token in the distribution that it was drawn from, in nats; empty if not asked for."""
    finish_reason: str | None
    """`stop` at an end, `length` at the most tokens."""


def require_vllm() -> Any:
    """Import vLLM, for an engine in this process; what the user has set stays.

    Raises:
        LLMError: It is not installed on this node.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise package_missing("vllm", "vllm") from error
    return vllm


@contextmanager
def _process_kept() -> Iterator[None]:
    """Undo what vLLM does to torch and to variables that are set, in the block."""
    import torch

    variables, set_threads = dict(os.environ), torch.set_num_threads
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield
    torch.set_num_threads = set_threads
    os.environ.update(variables)


class Engine:
    """One engine of vLLM in this process."""

    def __init__(self, options: EngineOptions) -> None:
        """Load the model.

        Raises:
            LLMError: vLLM is not installed on this node.
        """
        self._vllm = require_vllm()
        if not options.gpus:
            import torch

            torch.set_num_threads(options.threads)
        with _process_kept() if options.training else nullcontext():
            self._llm: Any = self._vllm.LLM(**options.arguments())
        if options.training:  # whose process group vLLM would end once this object is not used
            self._llm.llm_engine.engine_core._finalizer.detach()
        self._numbers = count(1)

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens; at least one of them is written."""
        return self._llm.llm_engine.model_config.max_model_len

    @property
    def own_ends(self) -> Any:
        """The model's own end tokens: an id, ids, or None."""
        return self._llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")

    def add_adapter(self, folder: str) -> Any:
        """Load an adapter, and return the request that names it.

        It gets a name and a number that nothing had before in this engine: vLLM keeps adapters by
        their number and cached keys and values by their name, and would take either for another's.

        Raises:
            ConfigError: vLLM cannot serve it.
        """
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        read_servable(folder)
        number = next(self._numbers)
        request = LoRARequest(f"adapter-{number}", number, str(Path(folder).absolute()))
        try:
            loaded = self._llm.llm_engine.add_lora(request)
        except (ValueError, RuntimeError) as error:
            text = one_line(error)
            raise ConfigError(f"vLLM cannot serve the adapter in {folder}: {text}") from error
        if not loaded:
            raise ConfigError(f"vLLM did not load the adapter in {folder}")
        return request

    def remove_adapter(self, adapter: Any) -> None:
        """Forget an adapter that `add_adapter` loaded."""
        self._llm.llm_engine.remove_lora(adapter.lora_int_id)

    @property
    def adapters(self) -> set[int]:
        """Numbers of the adapters that are loaded."""
        return set(self._llm.llm_engine.list_loras())

    def close(self) -> None:
        """Free the memory; process groups stay. The engine cannot be used any more."""
        import torch

        client = self._llm.llm_engine.engine_core
        client._finalizer.detach()
        client.engine_core.model_executor.shutdown()
        del self._llm, client
        gc.unfreeze()  # what vLLM exempted from collection when it began
        gc.collect()
        torch.cuda.empty_cache()

    def answer_logprobs(
        self, texts: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: Any = None
    ) -> list[tuple[float, ...]]:
        """Log-probability of every answer token, in nats, for pairs of context and answer.

        vLLM reads no cached keys and values for it, since it returns nothing of what was cached.

        Args:
            texts: Token ids of contexts, none empty, and of the answers to them.
            adapter: What `add_adapter` returned; the base model by default.
        """
        reading = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        whole = [[*context, *answer] for context, answer in texts]
        outputs = self._generate(whole, reading, adapter)
        found = []
        for ids, (context, _), output in zip(whole, texts, outputs, strict=True):
            of_tokens = output.prompt_logprobs
            if of_tokens is None or len(of_tokens) != len(ids):
                raise RuntimeError(f"vLLM returned no log-probabilities for all {len(ids)} tokens")
            places = range(len(context), len(ids))
            found.append(tuple(of_tokens[place][ids[place]].logprob for place in places))
        return found

    def write(
        self,
        contexts: Sequence[Sequence[int]],
        asking: Sequence[Asking],
        adapter: Any = None,
        logprobs: bool = False,
        work: Callable[[], None] = lambda: None,
    ) -> list[Written]:
        """Continue texts, given as token ids, each as it is asked.

        Args:
            contexts: Token ids, none empty, each shorter than `max_length`.
            asking: One for each.
            adapter: What `add_adapter` returned; the base model by default.
            logprobs: Return the log-probability of every token.
            work: Called whenever the texts under way have got another token.
        """
        params = [self._params(each, logprobs) for each in asking]
        outputs = self._generate([list(context) for context in contexts], params, adapter, work)
        return [_written(output.outputs[0], logprobs) for output in outputs]

    def _params(self, asking: Asking, logprobs: bool) -> Any:
        given: dict[str, Any] = {
            "temperature": asking.temperature,
            "top_p": asking.top_p,
            "max_tokens": asking.max_tokens,
            "seed": asking.seed,
        }
        if asking.ends is not None:
            given |= {"ignore_eos": True, "stop_token_ids": list(asking.ends)}
        if asking.stop:
            given["stop"] = list(asking.stop)
        if logprobs:
            given["logprobs"] = 0
        return self._vllm.SamplingParams(**given)

    def _generate(
        self,
        texts: list[list[int]],
        params: Any,
        adapter: Any,
        work: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        named = {} if adapter is None else {"lora_request": adapter}
        prompts = [{"prompt_token_ids": ids} for ids in texts]
        self._llm.enqueue(prompts, sampling_params=params, use_tqdm=False, **named)
        engine, finished = self._llm.llm_engine, dict[int, Any]()
        while engine.has_unfinished_requests():
            finished |= {int(o.request_id): o for o in engine.step() if o.finished}
            work()
        return [finished[number] for number in sorted(finished)]


def _written(output: Any, logprobs: bool) -> Written:
    ids = tuple(output.token_ids)
    of_tokens = zip(ids, output.logprobs, strict=True) if logprobs else ()
    values = tuple(found[id].logprob for id, found in of_tokens)
    return Written(output.text, ids, values, getattr(output, "finish_reason", None))
