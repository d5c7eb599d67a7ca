"""Checks of a model before any work: built without weights, adapted; run by `check_process`.

Covered: errors that only transformers, peft and the tokenizer can find, and lengths of examples.
Not covered: values of weights, and whether they fit into memory.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, DataError, PaftError, one_line
from paft_ray.config.loading import resolve_path
from paft_ray.models.base_check import (
    refuse_unknown,
    require_end_token,
    require_weights,
    unknown_tokens,
)
from paft_ray.models.check_process import limited
from paft_ray.models.files import (
    context_length,
    has_tokenizer,
    quantization_of,
    refuse_beyond_context,
    refuse_quantized,
)
from paft_ray.models.gguf_header import is_gguf
from paft_ray.models.narrow import matrices
from paft_ray.models.peft_check import check_arguments, check_targets
from paft_ray.models.warm_start import (
    StoredAdapter,
    check_shape,
    check_tensors,
    check_virtual_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from paft_ray.models.tokenization import Question, TextEncoder
    from paft_ray.tasks import Example

LONGEST = 16
"""Number of the longest prompts and examples that are encoded together."""


_OF_ANOTHER_LOADING = ("auto_mapping", "base_model_name_or_path", "revision", "task_type")
"""Fields of a stored adapter's settings about the model that it was loaded into."""


def check_adapters(
    path: str,
    revision: str | None,
    pefts: Sequence[Mapping[str, Any] | None],
    seed: int,
    warm_start: StoredAdapter | None = None,
    trust: bool = False,
) -> None:
    """Build the model without weights and add each of the adapters to it.

    Raises:
        ConfigError: transformers cannot build the model or read the tokenizer, or peft refuses
            an adapter or cannot save it, or `warm_start` has another shape.
    """
    from paft_ray.models.load import load_tokenizer

    local = resolve_path(path)
    if local is None or has_tokenizer(local):
        try:
            load_tokenizer(str(local or path), revision, trust)
        except ConfigError as error:
            raise ConfigError(f"model.path: {error}") from error
        except Exception as error:
            raise ConfigError(
                f"model.path: the tokenizer of {path} cannot be read ({one_line(error)}); fetch "
                "or save it again"
            ) from error
    for peft in pefts:
        if peft is not None:
            check_arguments(peft)
        model = _without_weights(path, local, revision, trust)
        if peft is not None:
            _check_adapter(model, peft, seed, warm_start)


def check_stored_adapter(
    path: str, revision: str | None, adapter: StoredAdapter, trust: bool = False
) -> None:
    """Check that an adapter of any method can be loaded into a model, by names and shapes.

    Raises:
        ConfigError: It cannot.
    """
    from paft_ray.models.load import add_adapter

    model = _without_weights(path, resolve_path(path), revision, trust)
    settings = {k: v for k, v in adapter.config.items() if k not in _OF_ANOTHER_LOADING}
    try:
        adapted = add_adapter(model, {**settings, "inference_mode": False}, 0)
        check_tensors(adapter, adapted)
    except ConfigError as error:
        reason = str(error).removeprefix("model.peft: ").removeprefix(f"{adapter.where} ")
        raise ConfigError(f"{adapter.where} {reason}") from error
    except RuntimeError:  # it computes from weights, as all that prompt learning saves is
        check_virtual_tokens(adapter)


def check_base(config: Config, choices: Sequence[str] | None) -> dict[int, str]:
    """Check the base model's weights, as far as names and shapes tell, and its tokenizer.

    Of a GGUF, which is converted first, nothing is checked here.

    Args:
        config: The configuration.
        choices: The task's choices; None for free text.

    Returns:
        Tokens by id for which the model's embedding has no row, see `check_texts`.

    Raises:
        ConfigError: Weights are missing or quantised, the end token of answers is missing, choices
            are the same to the tokenizer, or examples may be longer than the model reads.
    """
    path, local = config.model.path, resolve_path(config.model.path)
    if (encoder := _encoder(config)) is None:
        return {}
    model = _without_weights(path, local, config.model.revision, config.model.trust_remote_code)
    settings = model.config.to_dict()
    refuse_beyond_context(config, context_length(settings))
    refuse_quantized(path, quantization_of(settings))
    if local is not None:
        require_weights(model, local)
    unknown = unknown_tokens(encoder.tokenizer, model.get_input_embeddings())
    require_end_token(encoder, unknown)
    if choices is not None:
        try:
            replace(encoder, max_length=sys.maxsize).encode(lambda _: "Answer:", {}, choices)
        except DataError as error:
            raise ConfigError(f"task.choices: {error}") from error
    return unknown


def check_texts(config: Config, unknown: dict[int, str], texts: Sequence[str]) -> None:
    """Check that no text has one of the tokens that `check_base` found unknown to the model.

    Raises:
        ConfigError: One has.
    """
    if (encoder := _encoder(config)) is not None:
        refuse_unknown(encoder, unknown, texts)


def _encoder(config: Config) -> "TextEncoder | None":
    """Return the encoder of a model that is read as it lies; None for a GGUF, or without one."""
    from paft_ray.models.load import load_tokenizer
    from paft_ray.models.tokenization import TextEncoder

    local = resolve_path(config.model.path)
    if local is not None and not has_tokenizer(local):
        return None
    location, model = str(local or config.model.path), config.model
    tokenizer = load_tokenizer(location, model.revision, model.trust_remote_code)
    with limited():
        return TextEncoder.from_config(tokenizer, config)


def count_weights(
    path: str,
    revision: str | None,
    peft: Mapping[str, Any] | None,
    seed: int,
    trust: bool = False,
) -> dict[str, int]:
    """Build the model and its adapter without weights, and count their parameters.

    Returns:
        `parameters`, of these `trainable`; frozen: `linear`, of linear layers but the output head,
        and `experts`, of mixtures; `layers`, `hidden`, `kept` and
        `saved`, `vocabulary`, see `ModelSizes`; `in_bf16`, whether files hold bf16.

    Raises:
        PaftError: Its adapter's size depends on weights.
        ConfigError: The model cannot be built here, or peft refuses the adapter.
    """
    from paft_ray.models.activations import saved_numbers
    from paft_ray.models.generation import kept_numbers
    from paft_ray.models.pretrained import files_in_bf16

    if peft is not None:
        check_arguments(peft)
    location = resolve_path(path)
    model = _without_weights(path, location, revision, trust)
    text = model.config.get_text_config()
    heads = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    linear = sum(
        weight.numel()
        for module in model.modules()
        if type(module).__name__ in ("Linear", "Conv1D", "FalconLinear") and id(module) not in heads
        for weight in module.parameters(recurse=False)
    )
    experts = sum(weight.numel() for weight in matrices(model) if weight.ndim > 2)
    if peft is not None:
        try:
            model = _adapted(model, peft, seed)
        except RuntimeError as error:
            raise PaftError(
                f"model.peft: its size is known only with weights ({one_line(error)})"
            ) from error
    weights = list(model.parameters())
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "trainable": sum(weight.numel() for weight in weights if weight.requires_grad),
        "linear": linear if peft is not None else 0,
        "experts": experts if peft is not None else 0,
        "layers": int(text.num_hidden_layers),
        "kept": kept_numbers(text),
        "saved": saved_numbers(model, text),
        "vocabulary": int(text.vocab_size),
        "hidden": int(text.hidden_size),
        "in_bf16": int(files_in_bf16(str(location or path), revision, trust)),
    }


def _check_adapter(
    model: Any, peft: Mapping[str, Any], seed: int, warm_start: StoredAdapter | None
) -> None:
    from peft import get_peft_model_state_dict

    try:
        adapted = _adapted(model, peft, seed)
        weights = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        get_peft_model_state_dict(adapted, state_dict=weights, save_embedding_layers=False)
        if warm_start is not None:
            check_shape(warm_start, adapted)
    except RuntimeError:  # an initialisation reads weights: training checks it
        return
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model.peft: peft could not save it: {one_line(error)}") from error


def _adapted(model: Any, peft: Mapping[str, Any], seed: int) -> Any:
    from paft_ray.models.load import add_adapter

    check_targets(peft, model)
    return add_adapter(model, dict(peft), seed)


def _without_weights(
    path: str, local: Path | None, revision: str | None, trust: bool
) -> "PreTrainedModel":
    import torch

    from paft_ray.models.pretrained import build_model, read_config

    try:
        if local is not None and is_gguf(local):
            config = read_config(str(local.parent), gguf_file=local.name)
        else:
            config = read_config(str(local or path), revision, trust)
        refuse_not_causal(config, path)
        with torch.device("meta"):
            return build_model(config, trust)
    except ConfigError as error:
        named = str(error).startswith("model.path")
        raise error if named else ConfigError(f"model.path: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"model.path: no causal language model can be built from {path} ({one_line(error)}); "
            "name a decoder model that the installed transformers knows"
        ) from error


def refuse_not_causal(config: "PreTrainedConfig", path: str) -> None:
    """Refuse families that transformers builds as causal models though they are not.

    Others that are not are found when their weights are loaded, see `row_check`.
    """
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if config.is_encoder_decoder or kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        what = "an encoder-decoder"
    elif kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    ):
        what = "a bidirectional model, which reads what follows a token too"
    else:
        return
    raise ConfigError(f"model.path: {path} ({kind}) is {what}; name a causal language model")


def refuse_overlong(
    encoder: "TextEncoder",
    prompts: Sequence[tuple[str, str]],
    examples: Sequence["Example"],
    ask: Callable[[tuple[str, str], "Example"], "Question"],
    most: int = LONGEST,
) -> None:
    """Check that the longest examples fit under the longest prompts.

    Lengths nearly add up, so that the longest pair is among these.

    Args:
        encoder: Encoder that refuses overlong texts, or cuts them.
        prompts: For each prompt its id and its text.
        examples: Examples to render.
        ask: Returns an example under a prompt, as a model is asked.
        most: How many of the longest examples are looked at.

    Raises:
        DataError: One does not fit `task.max_length`.
    """
    long = longest(encoder, [_uncut(encoder, example) for example in examples], most)
    for place in longest(encoder, [text for _, text in prompts]):
        if long:
            encoder.encode_all([ask(prompts[place], examples[index]) for index in long])


def longest(encoder: "TextEncoder", texts: Sequence[str], most: int = LONGEST) -> list[int]:
    """Indices of the longest texts, the longest first."""
    lengths = token_lengths(encoder, texts)
    return sorted(range(len(texts)), key=lambda index: -lengths[index])[:most]


def _uncut(encoder: "TextEncoder", example: "Example") -> str:
    """The text of an example that is there whatever is cut."""
    if encoder.overlong == "refuse":
        return " ".join(example.fields.values())
    kept = [text for slot, text in example.fields.items() if slot in encoder.whole]
    return " ".join([*kept, *(example.options or [example.some_answer])])


def token_lengths(encoder: "TextEncoder", texts: Sequence[str], every: bool = False) -> list[int]:
    """Count the tokens of each text; unless `every`, 0 for those far shorter than the longest."""
    enough = 0 if every else max(map(len, texts), default=0) / 4
    lengths = [0] * len(texts)
    long = [index for index, text in enumerate(texts) if len(text) >= enough]
    encoded: Any = encoder.tokenizer([texts[index] for index in long])["input_ids"] if long else []
    for index, ids in zip(long, encoded, strict=True):
        lengths[index] = len(ids)
    return lengths
