"""`AnswerModel`: rows of fields, or finished prompts, to answers.

It asks as evaluation does: choices are ranked by log-likelihood, free text is generated greedily.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.pyfunc import PythonModel

from paft_ray.config.errors import DataError
from paft_ray.models.dtype import resolve_dtype
from paft_ray.prompts.template import parse
from paft_ray.serving.folder import input_columns
from paft_ray.storage.fingerprint import user_cache
from paft_ray.storage.paths import Storage

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModelContext
    from peft import PeftModel

    from paft_ray.models.tokenization import Encoded

_BATCH = 16
"""Texts that are generated together."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One row of the input."""

    render: Callable[[Mapping[str, str]], str]
    fields: Mapping[str, str]
    """Empty for a finished prompt, which is never cut."""


class AnswerModel(PythonModel):
    """A base model with its adapter, as an MLflow pyfunc.

    Input: a row with one column per field of the task and, if wanted, a template in the column
    `prompt`; or a row with a finished prompt in the column `text`. Output: the column `answer`.
    `params={"prompt": ...}` changes the template of all rows that name none. Loaded with
    `mlflow.pyfunc.load_model(folder, model_config={"base": ..., "device": ...})`, it takes the
    base model from another place, or to another device.
    """

    def load_context(self, context: "PythonModelContext") -> None:
        """Load base model and adapter."""
        import torch

        from paft_ray.models.base_model import prepare_base
        from paft_ray.models.load import (
            load_adapter,
            load_base,
            load_tokenizer,
            store_frozen_in_bf16,
        )
        from paft_ray.models.tokenization import TextEncoder

        settings = self._settings = dict(context.model_config or {})
        base = prepare_base(settings["base"], settings["revision"], Storage.open(str(user_cache())))
        encoder = TextEncoder(
            load_tokenizer(base, settings["revision"]),
            settings["chat_template"],
            settings["max_length"],
        )
        self._encoders: tuple[TextEncoder, TextEncoder] = (
            encoder,
            TextEncoder(
                encoder.tokenizer, encoder.chat_template, encoder.max_length, settings["overlong"]
            ),
        )
        device = settings["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        settings["dtype"] = resolve_dtype(settings["dtype"], gpus=int(device != "cpu"))
        fresh = load_base(base, settings["revision"])
        if settings["dtype"] == "bfloat16":
            store_frozen_in_bf16(fresh)
        model = load_adapter(fresh, context.artifacts["adapter"], "default")
        self._model: PeftModel = model.to(torch.device(device))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """The answer to every row.

        Args:
            context: Not used.
            model_input: Fields or finished prompts, see the class.
            params: `prompt`: the template of rows that name none.

        Raises:
            DataError: A row has neither a finished prompt nor all fields, or is too long.
        """
        prompt = (params or {}).get("prompt") or self._settings["prompt"]
        # of columns that it does not know mlflow leaves rows without any, which pandas would drop
        rows = model_input.to_dict(orient="records") or [{}] * len(model_input)
        questions = [self._question(number, row, prompt) for number, row in enumerate(rows)]
        ask = self._generate if self._settings["choices"] is None else self._rank_choices
        return pd.DataFrame({"answer": ask(questions) if questions else []}, dtype="object")

    def _question(self, number: int, row: Mapping[Any, Any], prompt: str) -> _Question:
        slots = tuple(self._settings["slots"])
        given = {key: value for key, value in row.items() if isinstance(value, str)}
        text_column, prompt_column = input_columns(slots)
        if text_column in given:
            text = given[text_column]
            return _Question(lambda _: text, {})
        template = parse(given.get(prompt_column, prompt), slots)
        if missing := [slot for slot in template.slots if slot not in given]:
            raise DataError(
                f"row {number} has no {', '.join(missing)}: give the columns {', '.join(slots)}, "
                f"or a finished prompt in the column {text_column}"
            )
        return _Question(template.render, {slot: given[slot] for slot in template.slots})

    def _encode(
        self, questions: Sequence[_Question], answers: Sequence[str], end: bool
    ) -> "list[tuple[Encoded, ...]]":
        return [
            self._encoders[bool(question.fields)].encode(
                question.render, question.fields, answers, end, f"row {number}"
            )
            for number, question in enumerate(questions)
        ]

    def _rank_choices(self, questions: Sequence[_Question]) -> list[str]:
        from paft_ray.models.load import reads_positions, virtual_tokens
        from paft_ray.models.logprobs import best_choice, choice_logprobs

        choices: list[str] = self._settings["choices"]
        likelihoods = choice_logprobs(
            self._model,
            self._encode(questions, choices, end=False),
            self._settings["dtype"],
            self._settings["row_tokens"],
            packing=self._settings["packing"] and reads_positions(self._model),
            virtual_tokens=virtual_tokens(self._model),
        )
        return [choices[best_choice(logprobs)] for logprobs in likelihoods]

    def _generate(self, questions: Sequence[_Question]) -> list[str]:
        from paft_ray.models.load import virtual_tokens
        from paft_ray.models.logprobs import generate, inference

        # a short answer stands for the real one, which nobody knows, where lengths are checked
        contexts = [e[0].context_ids for e in self._encode(questions, ["a"], end=True)]
        size = (
            1 if virtual_tokens(self._model) else _BATCH
        )  # see ModelPredictor: virtual tokens go alone
        write = partial(
            generate,
            self._model,  # pyright: ignore[reportArgumentType]
            self._encoders[0].tokenizer,
            max_new_tokens=self._settings["max_new_tokens"],
        )
        answers: list[str] = []
        with inference(self._model, self._settings["dtype"]):
            for start in range(0, len(contexts), size):
                answers += [text.strip() for text, _ in write(contexts[start : start + size])]
        return answers
