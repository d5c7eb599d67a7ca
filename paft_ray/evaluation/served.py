"""Scores of a base model and of LoRA adapters on it by vLLM; no Ray.

What is asked, and how answers are graded, is `predictors`' own; token ids, and the ends of texts,
are the same. One engine serves the base model and all adapters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from paft_ray.config import Config, VLLMBackend
from paft_ray.evaluation.predictors import Predictor
from paft_ray.evaluation.scores import Asked, Score
from paft_ray.models.generation import Continuation, Ending, end_ids, finish
from paft_ray.models.load import load_tokenizer
from paft_ray.models.logprobs import Likelihoods
from paft_ray.models.tokenization import Encoded, TextEncoder
from paft_ray.models.vllm import Asking, Engine, EngineOptions
from paft_ray.models.vllm_limits import Loras, engine_length
from paft_ray.tasks import Task


class ServedPredictor:
    """Scores a base model and adapters, each of which is given to the engine when it is used."""

    def __init__(
        self,
        config: Config,
        task: Task,
        base: str,
        dtype: str,
        threads: int,
        adapters: Sequence[str] = (),
    ) -> None:
        """Start an engine for the base model in `base`, and for adapters in local folders.

        Raises:
            ConfigError: vLLM cannot serve one of them.
            LLMError: vLLM is not installed on this node.
        """
        backend, gpus = config.evaluation.backend, config.evaluation.workers.gpus
        assert isinstance(backend, VLLMBackend)
        model, longest = config.model, engine_length(config)
        tokenizer = load_tokenizer(base, model.revision, model.trust_remote_code)
        self._engine = Engine(
            EngineOptions(
                base,
                dtype,
                gpus=gpus,
                threads=threads,
                memory=backend.memory_of(gpus),
                cache_gb=backend.cache_gb,
                max_length=longest,
                batch_tokens=max(config.evaluation.row_tokens, longest),
                loras=Loras.of(adapters),
                exact_head=True,
                revision=model.revision,
                trust=model.trust_remote_code,
            )
        )
        encoder = TextEncoder.from_config(tokenizer, config)
        self._predictor = _OfEngine(self._engine, config, task, encoder, dtype)
        self._adapters: dict[str, Any] = {}

    def load(self, weights: str | None) -> None:
        """Give an adapter, as its local folder, to the engine.

        Raises:
            ConfigError: vLLM cannot serve it.
        """
        if weights is not None and weights not in self._adapters:
            self._adapters[weights] = self._engine.add_adapter(weights)

    @contextmanager
    def using(self, weights: str | None) -> Iterator[tuple[Predictor, Any]]:
        """Use an adapter, or the base model, in the block; see `ModelPredictor.using`."""
        self.load(weights)
        yield self._predictor, None if weights is None else self._adapters[weights]

    def score_together(self, weights: str | None, asked: Sequence[Asked]) -> list[list[Score]]:
        """Score several prompts, see `Predictor.score_together`."""
        with self.using(weights) as (predictor, adapter):
            return predictor.score_together(adapter, asked, weights is not None)

    def describe_rows(self, adapted: bool) -> str:
        """Return that vLLM keeps sequences apart."""
        return "sequences of their own, by vLLM"


class _OfEngine(Predictor):
    """A predictor whose models are requests to an engine: an adapter's, or None for the base."""

    def __init__(
        self, engine: Engine, config: Config, task: Task, encoder: TextEncoder, dtype: str
    ) -> None:
        super().__init__(config, task, encoder, dtype)
        self._engine = engine

    def likelihoods(
        self, model: Any, encoded: Sequence[Sequence[Encoded]], adapted: bool
    ) -> list[Likelihoods]:
        texts = [(e.context_ids, e.answer_ids) for answers in encoded for e in answers]
        found = iter(self._engine.answer_logprobs(texts, model))
        result = []
        for answers in encoded:
            own = [next(found) for _ in answers]
            text = (v[:-1] if e.ended else v for e, v in zip(answers, own, strict=True))
            result.append(Likelihoods(tuple(map(sum, own)), tuple(map(sum, text))))
        return result

    def _continue(
        self, model: Any, contexts: Sequence[Sequence[int]], adapted: bool
    ) -> list[Continuation]:
        tokenizer, stop = self._encoder.tokenizer, self._config.task.stop
        ending = Ending(self._encoder.end_ids, stop)
        ends = end_ids(self._engine.own_ends, tokenizer, ending)
        most = self._config.evaluation.max_new_tokens
        asking = Asking(most, ends=tuple(ends), stop=stop)
        written = self._engine.write(contexts, [asking] * len(contexts), model)
        return [finish(tokenizer, np.array(each.token_ids), ends, ending) for each in written]
