"""Checks of a base model's files against its architecture and its tokenizer, without its weights.

Covered: weights that the files do not hold, which transformers would draw at random; tokens without
a row in the embedding, the end token of answers among them. Runs in `check_process`.
"""

import copy
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError, one_line
from paft_ray.models.files import refuse_quantized, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from paft_ray.models.tokenization import TextEncoder

_TEXTS_TOGETHER = 1000


def require_all_loaded(path: str, model: "PreTrainedModel", missing: Collection[str]) -> None:
    """Refuse a model of whose weights some were missing in its files.

    Args:
        path: The model, for messages.
        model: As transformers built it.
        missing: The names that transformers reported, after its own renaming and tying.

    Raises:
        ConfigError: Some are missing.
    """
    if missing:
        first, more = min(missing), len(missing) - 1
        others = f" and {more} more" if more else ""
        raise ConfigError(
            f"model.path: the files of {path} lack {first}{others} of a {type(model).__name__}, "
            "which would be random; save the whole causal model with save_pretrained, a peft model "
            "after merge_and_unload"
        )


def require_weights(model: "PreTrainedModel", folder: Path) -> None:
    """Compare the names and shapes in a folder's safetensors with those of a model.

    transformers itself maps the names, from their headers: no weights are read.

    Args:
        model: Built on the meta device from the folder's configuration.
        folder: A model folder; one without weights is left alone.

    Raises:
        ConfigError: Weights are missing, have another shape, or are stored in fewer bits.
    """
    import torch

    found = {name: about for file in weight_files(folder) for name, about in _headers(file)}
    if not found:
        return
    for name, about in sorted(found.items()):
        if name.endswith(".weight") and len(about["shape"]) > 1 and _is_coarse(about["dtype"]):
            refuse_quantized(str(folder), f"{name} is {about['dtype']}")
    state = {
        name: torch.empty(about["shape"], dtype=torch.float32, device="meta")
        for name, about in found.items()
    }
    built: Any = type(model)
    try:
        loaded, info = built.from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=state,
            dtype=torch.float32,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"model.path: the weights in {folder} do not fit its config.json ({one_line(error)}); "
            "fetch or save both again"
        ) from error
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise ConfigError(
            f"model.path: the weights in {folder} do not fit its config.json: {name} has the shape "
            f"{list(stored)}, not {list(wanted)}; fetch or save both again"
        )
    require_all_loaded(str(folder), loaded, info["missing_keys"])


def _headers(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of a safetensors file's tensors, and what its header says of each."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    for name, about in header.items():
        if name != "__metadata__":
            yield name, about


def _is_coarse(dtype: str) -> bool:
    """Return whether a safetensors dtype is none that weights are trained in."""
    return dtype not in ("F64", "F32", "F16", "BF16")


def unknown_tokens(
    tokenizer: "PreTrainedTokenizerBase", embedding: "torch.nn.Module"
) -> dict[int, str]:
    """Return the tokens, by id, for which a model's embedding has no row."""
    weight: Any = embedding.weight
    rows = int(weight.shape[0])
    return {id: token for token, id in tokenizer.get_vocab().items() if id >= rows}


def refuse_unknown(encoder: "TextEncoder", unknown: dict[int, str], texts: Sequence[str]) -> None:
    """Refuse texts in which a token occurs for which the model has no row.

    Some published models have such tokens, which nothing uses: these do no harm.

    Raises:
        ConfigError: One occurs, maybe by the chat template.
    """
    for start in range(0, len(texts), _TEXTS_TOGETHER):
        some = texts[start : start + _TEXTS_TOGETHER]
        rendered = [encoder.context(text)[0] for text in some]
        encoded: Any = encoder.tokenizer(rendered)["input_ids"]
        for text, ids in zip(some, encoded, strict=True):
            if found := [unknown[id] for id in ids if id in unknown]:
                raise ConfigError(
                    f"model.path: the embedding has no row for the token {found[0]!r} (one of "
                    f"{len(unknown)} of its tokenizer's), which occurs in {text[:60]!r}: save the "
                    "model after resize_token_embeddings(len(tokenizer)), or reword the text"
                )


def require_end_token(encoder: "TextEncoder", unknown: dict[int, str]) -> None:
    """Refuse an end of answers that the model does not know.

    Raises:
        ConfigError: The end token has no row in the embedding.
    """
    if encoder.end_id in unknown:
        raise ConfigError(
            f"model.path: the embedding has no row for {unknown[encoder.end_id]!r}, with which "
            "answers end: save the model after resize_token_embeddings(len(tokenizer))"
        )
