"""Checks a model's files and computes its identity, without torch.

Covered: folders with safetensors, GGUF files. Hub models are not fetched, pickled weights are
refused; `meta.py` checks whether a model and its adapter can be built.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paft_ray.config import GRPO, Config
from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.config.loading import resolve_path
from paft_ray.models.gguf_header import is_gguf, read_gguf
from paft_ray.storage.fingerprint import fingerprint, fingerprint_files
from paft_ray.storage.paths import inner_name

ADAPTER_CONFIG = "adapter_config.json"
"""peft's name for the file of an adapter's settings."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""peft's name for the file of an adapter's tensors."""

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model", "vocab.txt")
_LONGEST_JSON = 100_000_000
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MOST = {**dict.fromkeys(_LAYERS, 2000), **dict.fromkeys(_EXPERTS, 10_000)}
"""More than any model has."""
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Facts about a model, read from its files; None for hub models, which are not fetched."""

    location: str
    """Local path, or hub name."""
    kind: Literal["local", "gguf", "hub", "none"]
    has_chat_template: bool | None = None
    context_length: int | None = None
    """Longest sequence, in tokens, that the model was made for."""
    quantized: str | None = None
    """Method by which its weights are stored in fewer bits; None where they are not."""
    has_weights: bool = True
    has_tokenizer: bool = True


def inspect_model(path: str, field: str = "model.path", weightless: bool = False) -> ModelFiles:
    """Look at a model's files without loading it.

    Args:
        path: Model folder, GGUF file, `pkg:NAME/inner/path`, or hub name.
        field: The configuration's field, with which messages begin.
        weightless: Accept a folder without any weights, which may lack a tokenizer too.

    Raises:
        ConfigError: Folder, configuration, weights or tokenizer are missing or broken.
    """
    location = _local(path, field)
    if location is None and "://" in path:
        raise ConfigError(
            f"{field}: {path} is a URI, from which no model is read; fetch it and name its folder, "
            "or name a hub model (owner/model)"
        )
    if location is None:
        return ModelFiles(location=path, kind="hub")
    try:
        if is_gguf(location):
            header = read_gguf(location)
            has_template = header.chat_template is not None
            return ModelFiles(str(location), "gguf", has_template, header.context_length)
        return _inspect_folder(location, weightless)
    except (ConfigError, ArtifactError) as error:
        raise ConfigError(f"{field}: {error}") from error


def model_identity(path: str, revision: str | None = None, trust: bool = False) -> str:
    """Fingerprint a local model's configuration, weights and tokenizer; `repo@revision` for hubs.

    The folder's name and its documentation do not matter; Python files do where they are trusted.

    Raises:
        ConfigError: `path` names a Python package that is not installed.
    """
    location = _local(path, "model.path")
    if location is None:
        return f"{path}@{revision or 'main'}"
    if location.is_file():
        return fingerprint_files(location)
    endings = (".safetensors", ".json", ".model", ".jinja", ".txt")
    files = [p for p in sorted(location.iterdir()) if p.is_file() and p.suffix in endings]
    code = sorted(location.rglob("*.py")) if trust else []
    return fingerprint([fingerprint_files(p) for p in (*files, *code)])


def is_mixture(path: str) -> bool:
    """Return whether a local folder's configuration names experts; False where it is not known."""
    location = _local(path, "model.path")
    if location is None or not (location / "config.json").is_file():
        return False
    config = _read_json(location / "config.json", "a Hugging Face model folder has one")
    sections = [config, *(part for part in config.values() if isinstance(part, dict))]
    counts = [part.get(key) for part in sections for key in _EXPERTS]
    return any(isinstance(count, int) and count > 1 for count in counts)


def _local(path: str, field: str) -> Path | None:
    try:
        return resolve_path(path)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error


def _inspect_folder(folder: Path, weightless: bool) -> ModelFiles:
    if not folder.is_dir():
        what = "is a file that is no .gguf" if folder.exists() else "does not exist"
        raise ConfigError(
            f"{folder} {what}; name a model folder, a .gguf file or a hub name (owner/model)"
        )
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds an adapter; name its base model here, and the adapter in "
            "train.warm_start"
        )
    config = _read_json(folder / "config.json", "a Hugging Face model folder has one")
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(
            f"{folder / 'config.json'} has no model_type, so that no model can be built from it; "
            "save the model again with save_pretrained"
        )
    _check_counts(folder / "config.json", config)
    has_weights = not weightless or _has_weights(folder)
    if has_weights:
        _check_weights(folder)
    readable = has_tokenizer(folder)
    if has_weights and not readable:
        raise ConfigError(
            f"{folder} has no tokenizer ({', '.join(_TOKENIZERS)}); save it there with "
            "tokenizer.save_pretrained"
        )
    return ModelFiles(
        location=str(folder),
        kind="local",
        has_chat_template=_has_chat_template(folder) if readable else None,
        context_length=context_length(config),
        quantized=quantization_of(config),
        has_weights=has_weights,
        has_tokenizer=readable,
    )


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """Return the method by which a model's configuration says that its weights are quantised."""
    for section in (config, config.get("text_config")):
        found = section.get("quantization_config") if isinstance(section, Mapping) else None
        if found:
            return str(found.get("quant_method") if isinstance(found, Mapping) else found)
    return None


def refuse_quantized(path: str, method: str | None) -> None:
    """Refuse a base model whose weights are stored quantised: nothing here computes with them.

    Raises:
        ConfigError: `method` names how they are.
    """
    if method is not None:
        raise ConfigError(
            f"model.path: {path} is quantised ({method}), and training and "
            "scoring read plain weights: name the model that it was made from; model.quantization: "
            "nf4 stores its frozen weights in 4 bits while training"
        )


def _read_json(path: Path, rule: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; {rule}: name such a folder")
    if path.stat().st_size > _LONGEST_JSON:
        raise ConfigError(f"{path} has more than {_LONGEST_JSON} bytes; fetch or save it again")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); fetch or save it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object; fetch or save it again")
    return value


def _check_weights(folder: Path) -> None:
    if (folder / _INDEX).is_file():
        index = _read_json(folder / _INDEX, "")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise ConfigError(f"{folder / _INDEX} has no weight_map; fetch or save it again")
        shards = sorted({inner_name(str(shard)) for shard in weight_map.values()})
        missing = sorted(set(weight_map).difference(*(_tensors(folder / s) for s in shards)))
        if missing:
            raise ConfigError(
                f"{folder / weight_map[missing[0]]} lacks {missing[0]}, which {_INDEX} places "
                "there; fetch or save the model again"
            )
        if not isinstance(index.get("metadata"), dict):
            raise ConfigError(f'{folder / _INDEX} has no metadata; add "metadata": {{}} to it')
        return
    if (folder / "model.safetensors").is_file():
        _tensors(folder / "model.safetensors")
        return
    others = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("adapter_model.*")))
    has = f" (there is {others[0]})" if others else ""
    raise ConfigError(
        f"{folder} has no weights in model.safetensors{has}; save the whole base model with "
        "save_pretrained"
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads of a folder, whatever lies beside."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / _INDEX).is_file():
        return []
    shards = _read_json(folder / _INDEX, "").get("weight_map", {}).values()
    return sorted({folder / inner_name(str(shard)) for shard in shards})


def _has_weights(folder: Path) -> bool:
    names = (_INDEX, "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
    return any(True for name in names for _ in folder.glob(name))


def _tensors(path: Path) -> list[str]:
    """Return the names of a file's tensors, without reading these."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); it is missing or cut off: fetch or save it again"
        ) from error


def has_tokenizer(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or any((folder / name).is_file() for name in _TOKENIZERS)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_read_json(path, "").get("chat_template"))


def _check_counts(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse counts for which a model would be built for hours, also without weights."""
    sections = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    for key, value in ((key, part.get(key)) for part in sections for key in _MOST):
        if isinstance(value, int | float) and not 0 <= value <= _MOST[key]:
            raise ConfigError(
                f"{path} states {key} {value:.10g}, which no model has (0 to {_MOST[key]}): it is "
                "broken; fetch or save it again"
            )


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence, in tokens, for which a configuration says a model is made."""
    for section in (config, config.get("text_config")):
        found = section if isinstance(section, Mapping) else {}
        for key in _CONTEXT_KEYS:
            if isinstance(found.get(key), int) and found[key] > 0:
                return found[key]
    return None


def refuse_beyond_context(config: Config, length: int | None) -> None:
    """Refuse examples that may be longer than a model was made for.

    Args:
        config: The configuration.
        length: See `context_length`.

    Raises:
        ConfigError: `task.max_length` is more, or it and what a training writes.
    """
    if length is not None and config.task.max_length > length:
        raise ConfigError(
            f"task.max_length: {config.task.max_length} is more than the {length} tokens that "
            f"{config.model.path} was made for; lower it"
        )
    objectives = [train.objective for train in config.train_sections]
    more = max((o.max_new_tokens for o in objectives if isinstance(o, GRPO)), default=0)
    if length is not None and config.task.max_length + more > length:
        raise ConfigError(
            f"train.objective.max_new_tokens: {more} after task.max_length "
            f"({config.task.max_length}) are more than the {length} tokens that "
            f"{config.model.path} was made for; lower one of them"
        )
