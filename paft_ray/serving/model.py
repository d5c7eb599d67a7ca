"""`AnswerModel`, the MLflow pyfunc that answers rows of fields, or finished prompts.

As in evaluation, choices are ranked by log-likelihood and free text is generated greedily.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from mlflow.pyfunc import PythonModel

from paft_ray.config import LintConfig
from paft_ray.config.errors import DataError
from paft_ray.config.task import CHOICES_SLOT
from paft_ray.models.chat import renders_anew
from paft_ray.models.dtype import resolve_dtype
from paft_ray.models.tokenization import Encoded, TextEncoder
from paft_ray.prompts.lint import lint
from paft_ray.prompts.template import is_flattened, parse
from paft_ray.serving.folder import input_columns
from paft_ray.storage.fingerprint import user_cache
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Task
from paft_ray.tasks.example import lettered, letters
from paft_ray.tasks.grading import best_choice

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModelContext
    from peft import PeftModel

_BATCH = 16
"""Number of texts that are generated together."""


def _refuse_older_rendering(encoder: TextEncoder) -> None:
    """Refuse a folder whose model was trained while its chat template let it think.

    Raises:
        DataError: Its chats would be rendered otherwise than in training.
    """
    if renders_anew(encoder.chat.text):
        raise DataError(
            "this folder was written by an older paft_ray, which rendered the model's chat "
            "template otherwise (with thinking, or today's date): train and export it again"
        )


class _Asked(NamedTuple):
    """A row with what may be answered to it."""

    answers: Sequence[str]
    encoded: tuple[Encoded, ...]


class AnswerModel(PythonModel):
    """A base model with its adapter, as an MLflow pyfunc.

    Input: a row with one column per field of the task and, if wanted, a template in the column
    `prompt`; or a row with a finished prompt in the column `text`. Output: the column `answer`.
    Where each row has choices of its own, the column `choices` holds them, one a line.
    `params={"prompt": ...}` changes the template of rows that name none. Base model and device
    change with `mlflow.pyfunc.load_model(folder, model_config={"base": ..., "device": ...})`.
    """

    def load_context(self, context: "PythonModelContext") -> None:
        """Load base model and adapter."""
        import torch

        from paft_ray.models.base_model import prepare_base
        from paft_ray.models.load import (
            load_adapter,
            load_base,
            load_tokenizer,
        )
        from paft_ray.models.narrow import Stored
        from paft_ray.models.row_check import check_batches, check_rows, read_apart

        settings = self._settings = dict(context.model_config or {})
        base = prepare_base(settings["base"], settings["revision"], Storage.open(str(user_cache())))
        choices = self._ranks
        # an older folder says nothing of ends, and its choices were trained without
        earlier = "ignored" if choices else "scored"
        trust = bool(settings.get("trust_remote_code", False))
        self._encoder = TextEncoder(
            load_tokenizer(base, settings["revision"], trust),
            settings["chat_template"],
            settings["max_length"],
            settings["overlong"],
            settings.get("system"),
            settings.get("chat_template_kwargs") or {},
        ).ending(settings.get("answer_end", earlier), choices)
        if self._encoder.uses_chat_template and "chat_template_kwargs" not in settings:
            _refuse_older_rendering(self._encoder)
        device = settings["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        settings["dtype"] = resolve_dtype(settings["dtype"], gpus=int(device != "cpu"))
        quantization = settings.get("quantization", "none")  # as earlier versions scored
        stored = Stored(settings["dtype"], quantization, device)
        fresh = load_base(base, settings["revision"], stored=stored, trust=trust)
        writes_with = None if choices else self._encoder.tokenizer
        self._batches = check_batches(fresh, writes_with) if writes_with is not None else ""
        if settings["packing"] and choices:
            mixing = check_rows(fresh, settings["row_tokens"], settings["max_length"])
            settings["packing"] = not mixing
            if mixing:
                read_apart(fresh)
        model = load_adapter(fresh, context.artifacts["adapter"], "default")
        self._model: PeftModel = model.to(torch.device(device))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """Return the answer to every row.

        Args:
            context: Not used.
            model_input: Fields or finished prompts, see the class.
            params: `prompt`, the template of rows that name none.

        Raises:
            DataError: There is no row; a row has neither a finished prompt nor all fields, or is
                too long; a prompt could not have been trained on.
        """
        named = (params or {}).get("prompt")
        prompt = self._settings["prompt"] if named is None else named
        if not isinstance(model_input, pd.DataFrame) or not len(model_input):
            slots = tuple(self._settings["slots"])
            raise DataError(
                f"there is no row to answer: give a DataFrame with the columns {', '.join(slots)}, "
                f"or with finished prompts in the column {input_columns(slots)[0]}"
            )
        # mlflow drops unknown columns, and pandas would drop rows without any column
        rows = model_input.to_dict(orient="records") or [{}] * len(model_input)
        encoded = [self._encode(number, row, prompt) for number, row in enumerate(rows)]
        answer = self._rank_choices if self._ranks else self._generate
        return pd.DataFrame({"answer": answer(encoded)}, dtype="object")

    @property
    def _ranks(self) -> bool:
        settings = self._settings  # pyfuncs of earlier versions know no choices of a row
        return settings["choices"] is not None or settings.get("choices_as") is not None

    def _answers(self, given: dict[str, str], what: str) -> Sequence[str]:
        """The choices of a row, which are then written as in training."""
        kind = self._settings.get("choices_as")
        if kind is None or CHOICES_SLOT not in given:
            if kind == "texts":
                raise DataError(f"{what} has no {CHOICES_SLOT}: give its choices, one a line")
            return self._settings["choices"] or ["a"]
        options = [
            re.sub(r"\A[A-Z]\. ", "", line.strip()) if kind == "letters" else line.strip()
            for line in given[CHOICES_SLOT].splitlines()
            if line.strip()
        ]
        if not 2 <= len(options) <= len(letters(99)):
            raise DataError(f"{what} has {len(options)} choices: give two or more, one a line")
        given[CHOICES_SLOT] = lettered(options)
        return letters(len(options)) if kind == "letters" else options

    def _encode(self, number: int, row: Mapping[Any, Any], prompt: str) -> "_Asked":
        """Encode a row with every choice, or with a short stand-in for a generated answer."""
        slots, what = tuple(self._settings["slots"]), f"row {number}"
        given = {k: value for k, value in row.items() if isinstance(value, str) and value.strip()}
        answers = self._answers(given, what)
        text_column, prompt_column = input_columns(slots)
        if text_column in given:  # a finished prompt is never cut
            text, encoder = given[text_column], replace(self._encoder, overlong="refuse")
            return _Asked(answers, encoder.encode(lambda _: text, {}, answers, what))
        template = parse(self._checked(given.get(prompt_column, prompt), what), slots)
        if missing := [slot for slot in template.slots if slot not in given]:
            raise DataError(
                f"row {number} has no {', '.join(missing)}: give the columns {', '.join(slots)}, "
                f"or a finished prompt in the column {text_column}"
            )
        fields = {slot: given[slot] for slot in template.slots}
        return _Asked(answers, self._encoder.encode(template.render, fields, answers, what))

    def _checked(self, prompt: str, what: str) -> str:
        """A prompt as training would have taken it; its own one was checked there."""
        settings = self._settings
        if prompt == settings["prompt"]:
            return prompt
        slots, choices = tuple(settings["slots"]), settings["choices"]
        options = settings.get("option_slots", {})  # pyfuncs of earlier versions have none
        kind = settings.get("choices_as")
        known = choices and tuple(choices)
        task = Task("served", "", slots, options, known, (), (), (), choices_as=kind)
        rules = LintConfig.model_validate(settings.get("lint", {}))
        result = lint(prompt, task, rules, escapes=is_flattened(prompt))
        if result.problem is not None:
            each = ", ".join(f"{{{slot}}}" for slot in slots)
            raise DataError(
                f"{what}: its prompt cannot be used ({result.problem}: {result.detail}): a prompt "
                f"holds each of {each} once"
            )
        return result.text

    def _rank_choices(self, asked: Sequence["_Asked"]) -> list[str]:
        from paft_ray.models.load import reads_positions, virtual_tokens
        from paft_ray.models.logprobs import ForwardPass, choice_logprobs

        reading = ForwardPass(
            self._settings["dtype"],
            self._settings["row_tokens"],
            packing=self._settings["packing"] and reads_positions(self._model),
            virtual_tokens=virtual_tokens(self._model),
        )
        likelihoods = choice_logprobs(self._model, [each.encoded for each in asked], reading)
        return [
            each.answers[best_choice(found.whole)]
            for each, found in zip(asked, likelihoods, strict=True)
        ]

    def _generate(self, asked: Sequence["_Asked"]) -> list[str]:
        from paft_ray.models.generation import Ending, continue_texts
        from paft_ray.models.load import virtual_tokens
        from paft_ray.models.logprobs import inference

        contexts = [each.encoded[0].context_ids for each in asked]
        # see ModelPredictor: texts with virtual tokens cannot be padded
        size = 1 if self._batches or virtual_tokens(self._model) else _BATCH
        write = partial(
            continue_texts,
            self._model,  # pyright: ignore[reportArgumentType]
            self._encoder.tokenizer,
            max_new_tokens=self._settings["max_new_tokens"],
            ending=Ending(self._encoder.end_ids, tuple(self._settings.get("stop", ()))),
        )
        answers: list[str] = []
        with inference(self._model, self._settings["dtype"]):
            for start in range(0, len(contexts), size):
                answers += [each.text.strip() for each in write(contexts[start : start + size])]
        return answers
