"""What writes rollouts: the model that is trained itself, or vLLM with its adapter."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from paft_ray.config import GRPO, Config, VLLMRollouts
from paft_ray.config.errors import ConfigError, one_line
from paft_ray.models import vllm
from paft_ray.models.generation import end_ids, finish
from paft_ray.models.load import adapter_files
from paft_ray.models.logprobs import inference
from paft_ray.models.sampling import Sampled, Sampling, sample_texts
from paft_ray.models.vllm_limits import Loras
from paft_ray.training.engine import Engine

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Group:
    """Texts to write after the same context."""

    context_ids: tuple[int, ...]
    count: int
    seed: int
    """Of what is drawn."""


class Backend(Protocol):
    """Writes the rollouts of one rank."""

    def sample(self, groups: Sequence[Group], sampling: Sampling) -> Iterator[list[Sampled]]:
        """Yield the texts of each group, by the model as it is when the first are asked for.

        `Engine.work` is called while they are written.
        """
        ...

    def close(self) -> None:
        """Free its memory; it cannot be used any more."""
        ...


class ByTransformers:
    """The model that is trained writes them; each group alone, so that no other one changes it."""

    def __init__(self, engine: Engine, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._engine, self._tokenizer = engine, tokenizer

    def sample(self, groups: Sequence[Group], sampling: Sampling) -> Iterator[list[Sampled]]:
        """See `Backend.sample`."""
        engine = self._engine
        with engine.evaluating() as model, inference(model, engine.dtype):
            for group in groups:
                yield sample_texts(
                    cast("PreTrainedModel", model),
                    self._tokenizer,
                    group.context_ids,
                    group.count,
                    sampling,
                    group.seed,
                    engine.work,
                )

    def close(self) -> None:
        """There is nothing to free."""


class ByVLLM:
    """vLLM in this process writes them, all groups of a batch together.

    The adapter reaches it as a file on local disk, which has a new name for every batch and is gone
    after it, from disk and engine. What is drawn is a function of seeds, but for rounding, which
    depends on the groups of this rank.
    """

    def __init__(
        self, engine: Engine, tokenizer: "PreTrainedTokenizerBase", options: vllm.EngineOptions
    ) -> None:
        """Start vLLM; collective over the ranks of a training.

        Args:
            engine: Of the model that is trained.
            tokenizer: The model's.
            options: Of its base model; what adapters need is added.

        Raises:
            ConfigError: vLLM cannot serve the adapter.
            LLMError: vLLM is not installed on this node.
        """
        self._engine, self._tokenizer = engine, tokenizer
        self._base = options.location
        self._disk = tempfile.TemporaryDirectory(prefix="paft-rollouts-")
        self._numbers = count(1)
        with self._stored() as folder:
            loras = Loras.of([folder])
        try:
            self._vllm = vllm.Engine(replace(options, loras=loras, training=True))
        except (ValueError, RuntimeError) as error:
            text = one_line(error)
            raise ConfigError(f"train.objective.backend: vLLM does not start: {text}") from error

    @contextmanager
    def _stored(self) -> Iterator[str]:
        """A folder with the adapter as it is now, in the block."""
        folder = Path(self._disk.name, f"adapter-{next(self._numbers)}")
        weights = {name: p.detach().cpu() for name, p in self._engine.trainable().items()}
        folder.mkdir()
        model = cast("PeftModel", self._engine.model)
        for name, data in adapter_files(model, weights, self._base).items():
            (folder / name).write_bytes(data)
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def _adapter(self) -> Iterator[Any]:
        """What names the adapter as it is now in vLLM, in the block."""
        with self._stored() as folder:
            adapter = self._vllm.add_adapter(folder)
            try:
                yield adapter
            finally:
                self._vllm.remove_adapter(adapter)

    def sample(self, groups: Sequence[Group], sampling: Sampling) -> Iterator[list[Sampled]]:
        """See `Backend.sample`."""
        if not groups:
            return
        config: Any = self._engine.model.generation_config
        ends = end_ids(config.eos_token_id, self._tokenizer, sampling.ending)
        asking = vllm.Asking(
            sampling.max_new_tokens,
            sampling.temperature,
            ends=tuple(ends),
            stop=sampling.ending.stop,
        )
        each = [(g, replace(asking, seed=g.seed + n)) for g in groups for n in range(g.count)]
        contexts, askings = [group.context_ids for group, _ in each], [one for _, one in each]
        with self._adapter() as adapter:
            written = self._vllm.write(contexts, askings, adapter, True, self._engine.work)
        found = iter(written)
        for group in groups:
            yield [self._cut(next(found), ends, sampling) for _ in range(group.count)]

    def _cut(self, written: vllm.Written, ends: Sequence[int], sampling: Sampling) -> Sampled:
        ids = written.token_ids
        cut = finish(self._tokenizer, np.array(ids), ends, sampling.ending)
        return Sampled(ids[: cut.tokens], written.logprobs[: cut.tokens], cut.text, cut.ended)

    def close(self) -> None:
        """Free the memory of vLLM."""
        self._vllm.close()
        self._disk.cleanup()


def open_backend(
    config: Config, engine: Engine, tokenizer: Any, base: str, threads: int
) -> Backend:
    """The backend of a training's objective; collective.

    Args:
        config: From `Config.of_training`.
        engine: Of the model that is trained.
        tokenizer: The model's.
        base: Location of the prepared base model.
        threads: Threads on CPUs.

    Raises:
        ConfigError: vLLM cannot serve the adapter.
        LLMError: vLLM is not installed on this node.
    """
    objective = config.train.objective
    assert isinstance(objective, GRPO)
    if isinstance(objective.backend, VLLMRollouts):
        options = engine_options(config, base, engine.dtype, threads)
        return ByVLLM(engine, tokenizer, options)
    return ByTransformers(engine, tokenizer)


def engine_options(config: Config, base: str, dtype: str, threads: int) -> vllm.EngineOptions:
    """What vLLM is started with for the rollouts of a training, but for what adapters need.

    Args:
        config: From `Config.of_training`, with vLLM as the backend of its objective.
        base: Location of the prepared base model.
        dtype: Arithmetic: `float32` or `bfloat16`.
        threads: Threads on CPUs.
    """
    train, model = config.train, config.model
    assert isinstance(train.objective, GRPO)
    backend = train.objective.backend
    assert isinstance(backend, VLLMRollouts)
    longest = config.task.max_length + train.objective.max_new_tokens
    return vllm.EngineOptions(
        base,
        dtype,
        gpus=1 if train.workers.gpus else 0,
        threads=threads,
        memory=backend.memory,
        cache_gb=backend.cache_gb,
        max_length=longest,
        batch_tokens=max(train.row_tokens, longest),
        exact_head=True,
        revision=model.revision,
        trust=model.trust_remote_code,
    )


def own_backend(objective: GRPO, engine: Engine, tokenizer: "PreTrainedTokenizerBase") -> Backend:
    """The backend that needs nothing but the model that is trained.

    Raises:
        ConfigError: The objective names another one.
    """
    if isinstance(objective.backend, VLLMRollouts):
        raise ConfigError(
            "train.objective.backend: vllm is not started here: pass ByVLLM(engine, tokenizer, "
            "EngineOptions(...)) as the backend"
        )
    return ByTransformers(engine, tokenizer)
