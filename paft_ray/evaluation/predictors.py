"""Scores of one model under one prompt on some examples; no Ray.

Choices get log-likelihoods, texts are generated greedily; `scores.graded` grades both.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from paft_ray.config import Config
from paft_ray.evaluation.scores import Asked, Score, graded
from paft_ray.models.generation import Continuation, Ending, continue_texts, tokens_in_memory
from paft_ray.models.load import (
    load_adapter,
    load_base,
    load_tokenizer,
    reads_positions,
    virtual_tokens,
)
from paft_ray.models.logprobs import ForwardPass, Likelihoods, choice_logprobs, inference
from paft_ray.models.narrow import Stored
from paft_ray.models.packing import MIXES, PACKED, batches_by_length
from paft_ray.models.row_check import Together, check_padded, may_pad
from paft_ray.models.tokenization import Encoded, Question, TextEncoder
from paft_ray.prompts.variation import Put
from paft_ray.tasks import Example, Task

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Predictor:
    """Scores a model that is in memory already."""

    def __init__(
        self,
        config: Config,
        task: Task,
        encoder: TextEncoder,
        dtype: str,
        together: Together | None = None,
    ) -> None:
        """Prepare to score with the model's `encoder`, in `dtype` (`float32` or `bfloat16`).

        `together` says what the checks of the model found; all is right by default.
        """
        self._config, self._task, self._encoder, self._dtype = config, task, encoder, dtype
        self._together = together or Together()

    def score(
        self,
        model: "PreTrainedModel | PeftModel",
        prompt_id: str,
        text: str,
        examples: Sequence[Example],
        adapted: bool,
    ) -> list[Score]:
        """Score one prompt on some examples; `adapted` says that an adapter is in use.

        Raises:
            DataError: An example does not fit `task.max_length` under this prompt.
        """
        return self.score_together(model, [Asked(prompt_id, text, examples)], adapted)[0]

    def score_together(
        self, model: "PreTrainedModel | PeftModel", asked: Sequence[Asked], adapted: bool
    ) -> list[list[Score]]:
        """Score like `score` several prompts, with all free text in the same batches.

        Raises:
            GradeError: A grader of the user's own failed.
        """
        ranked = written = None
        put = [each.puts(self._task) for each in asked]
        pairs = list(zip(asked, put, strict=True))
        if self._task.ranks:
            ranked = iter([found for pair in pairs for found in self._rank(model, *pair, adapted)])
        if self._task.generates:
            contexts = [context for pair in pairs for context in self._contexts(*pair)]
            written = iter(self._continue(model, contexts, adapted))
        return graded(self._task, pairs, ranked, written)

    def _reading(self, model: "PreTrainedModel | PeftModel", adapted: bool) -> ForwardPass:
        packing = self._config.train.packing and not self._together.rows
        return ForwardPass(
            self._dtype,
            self._config.evaluation.row_tokens,
            packing and (not adapted or reads_positions(model)),
            virtual_tokens(model) if adapted else 0,
            self._together.padded,
        )

    def likelihoods(
        self, model: Any, encoded: Sequence[Sequence[Encoded]], adapted: bool
    ) -> list[Likelihoods]:
        """Compute the log-likelihoods of the answers to each context."""
        return choice_logprobs(model, encoded, self._reading(model, adapted))

    def _rank(
        self, model: Any, asked: Asked, put: Sequence[Put], adapted: bool
    ) -> list[Likelihoods]:
        """Log-likelihoods of the choices of every example."""
        questions = [
            Question(one.render, one.example.fields, one.choices or (), asked.where(one.example))
            for one in put
        ]
        return self.likelihoods(model, self._encoder.encode_all(questions), adapted)

    def _continue(
        self, model: Any, contexts: Sequence[Sequence[int]], adapted: bool
    ) -> list[Continuation]:
        """Write the answers to contexts."""
        # peft puts virtual tokens before the padding of a batch and drops the positions that would
        # tell the model so: a text would depend on which others are generated with it
        alone = self._together.batches or (adapted and virtual_tokens(model) > 0)
        evaluation = self._config.evaluation
        kept = evaluation.generation_tokens
        most = 0 if alone else tokens_in_memory(model, self._dtype) if kept == "auto" else kept
        lengths = [len(context) for context in contexts]
        answers: list[Continuation] = [Continuation("", 0, False)] * len(contexts)
        ending = Ending(self._encoder.end_ids, self._config.task.stop)
        with inference(model, self._dtype):
            for batch in batches_by_length(lengths, evaluation.max_new_tokens, most):
                generated = continue_texts(
                    model,
                    self._encoder.tokenizer,
                    [contexts[place] for place in batch],
                    evaluation.max_new_tokens,
                    ending,
                )
                for place, answer in zip(batch, generated, strict=True):
                    answers[place] = answer
        return answers

    def _contexts(self, asked: Asked, put: Sequence[Put]) -> list[Sequence[int]]:
        """The tokens before each answer."""
        return [
            self._encoder.encode(
                one.render, one.example.fields, [one.example.answer], asked.where(one.example)
            )[0].context_ids
            for one in put
        ]


class ModelPredictor:
    """Scores a base model and trained ones, which it loads when they are used first.

    The base model is checked once, in fp32; what holds for it holds for trained ones. All adapters
    stay in memory; where all weights are trained (`model.peft: null`), one model does.
    """

    together: Together
    """What the checks of the base model found."""

    def __init__(self, config: Config, task: Task, base: str, dtype: str, device: str) -> None:
        """Load the base model from `base`, to score in `dtype` (`float32` or `bfloat16`)."""
        self._config, self._dtype = config, dtype
        tokenizer = load_tokenizer(base, config.model.revision, config.model.trust_remote_code)
        encoder = TextEncoder.from_config(tokenizer, config)
        self._device = torch.device(device)
        writes_with = tokenizer if task.generates else None
        loaded = self._read(base, config.model.revision)
        self.together = Together.of(loaded, config, config.evaluation.row_tokens, writes_with)
        self._attention: str = loaded.config._attn_implementation
        self._base = self._model = loaded
        self._task, self._encoder = task, encoder
        self._predictor = Predictor(config, task, encoder, dtype, self.together)
        self._adapters: set[str] = set()
        self._whole: tuple[str, PreTrainedModel | PeftModel] | None = None

    def _read(self, location: str, revision: str | None) -> "PreTrainedModel":
        settings = self._config.model
        stored = Stored.of(settings, self._dtype, str(self._device))
        model = load_base(location, revision, stored=stored, trust=settings.trust_remote_code)
        model.to(self._device)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return model

    def _prepare(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """Give a model the attention that the checks left the base model with."""
        if model.config._attn_implementation != self._attention:
            model.set_attn_implementation(self._attention)
        return model

    def score(
        self, weights: str | None, prompt_id: str, text: str, examples: Sequence[Example]
    ) -> list[Score]:
        """Score one prompt on some examples, see `score_together`."""
        return self.score_together(weights, [Asked(prompt_id, text, examples)])[0]

    def score_together(self, weights: str | None, asked: Sequence[Asked]) -> list[list[Score]]:
        """Score several prompts, see `Predictor.score_together`.

        `weights` is the local folder of an adapter, or of a model whose weights were all trained;
        None stands for the base model.
        """
        with self.using(weights) as (predictor, model):
            return predictor.score_together(model, asked, weights is not None)

    @contextmanager
    def using(self, weights: str | None) -> Iterator[tuple[Predictor, Any]]:
        """Use weights in the block, with the predictor for them."""
        with self._use(weights):
            positions = weights is None or reads_positions(self._model)
            yield self._predictor if positions else self._virtual_predictor, self._model

    @cached_property
    def _virtual_predictor(self) -> Predictor:
        """Scores adapters that drop positions; in batches, where the first one is right in them."""
        config, model = self._config, self._model
        rows, longest = config.evaluation.row_tokens, config.task.max_length
        pads = config.train.packing and may_pad(model)
        together = replace(self.together, padded=pads and not check_padded(model, rows, longest))
        return Predictor(config, self._task, self._encoder, self._dtype, together)

    def describe_rows(self, adapted: bool) -> str:
        """Return whether the model in use reads packed rows, and why not."""
        if apart := self.together.describe():
            return MIXES + apart
        if not self._config.train.packing:
            return "unpacked, as configured"
        if adapted and not reads_positions(self._model):
            return "unpacked, as prompt learning drops positions"
        return PACKED

    def load(self, weights: str | None) -> None:
        """Load weights that the next `score` uses."""
        if weights is not None:
            self._use(weights)

    def _use(self, weights: str | None) -> AbstractContextManager[None]:
        if self._config.model.peft is None:
            self._use_whole(weights)
            return nullcontext()
        return self._use_adapter(weights)

    def _use_whole(self, folder: str | None) -> None:
        if folder is None:
            self._model = self._base
            return
        if self._whole is None or self._whole[0] != folder:
            self._model, self._whole = self._base, None  # frees memory for the next one
            self._whole = (folder, self._prepare(self._read(folder, None)))
        self._model = self._whole[1]

    def _use_adapter(self, adapter: str | None) -> AbstractContextManager[None]:
        if adapter is None:
            return self._model.disable_adapter() if self._adapters else nullcontext()  # pyright: ignore
        if adapter not in self._adapters:
            self._model = load_adapter(self._model, adapter, _adapter_name(adapter))
            self._adapters.add(adapter)
        self._model.set_adapter(_adapter_name(adapter))
        return nullcontext()


def _adapter_name(folder: str) -> str:
    return re.sub(r"\W", "_", folder)  # peft makes module names of it
