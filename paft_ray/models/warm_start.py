"""Reads and checks an adapter with which training begins: its method, base, shape and settings.

Its files are read where a training is started, so that workers need no path.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ArtifactError, ConfigError, one_line
from paft_ray.config.loading import resolve_path
from paft_ray.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, model_identity
from paft_ray.models.load import plain_settings
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage

if TYPE_CHECKING:
    from peft import PeftModel

WARM_START = "train.warm_start"
_IRRELEVANT = ("dropout", "init_", "auto_mapping", "base_model_name", "inference_mode",
               "revision", "peft_version", "corda_config", "eva_config", "lora_ga_config",
               "prompt_tuning_init", "tokenizer_", "task_type")  # fmt: skip
"""Parts of the names of fields that do not change what stored weights compute."""
_SELECTIONS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform",
               "layers_pattern", "target_parameters")  # fmt: skip
"""Fields that say where weights are: the names of the tensors say whether that is the same."""
_SETS = (*_SELECTIONS, "feedforward_modules")
"""Fields that peft keeps as sets, and writes in any order."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """Configuration and weights of an adapter on storage."""

    location: str
    config: Mapping[str, Any]
    weights: bytes
    """Content of the safetensors file."""
    field: str = WARM_START
    """Field of the configuration that names it, for messages."""

    @property
    def where(self) -> str:
        """The beginning of messages about it."""
        return f"{self.field}: {self.location}"

    @property
    def identity(self) -> str:
        """Fingerprint of the weights; `model.peft` stands for the configuration."""
        return fingerprint("adapter", hashlib.sha256(self.weights).hexdigest())


def read_adapter(location: str, field: str = WARM_START) -> StoredAdapter:
    """Read an adapter's files.

    Args:
        location: Folder, URI, or `pkg:NAME/inner/folder`.
        field: Field of the configuration that names it.

    Raises:
        ConfigError: There is no adapter.
    """
    local = resolve_path(location)
    if local is None and "://" not in location:
        raise ConfigError(
            f"{field}: {location} is no folder; name the adapter/ folder of a training, "
            "as a path, a URI or pkg:NAME/folder"
        )
    folder = Storage.open(location if local is None else str(local), field)
    try:
        config = json.loads(folder.read_bytes(ADAPTER_CONFIG))
        weights = folder.read_bytes(ADAPTER_WEIGHTS)
        json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    except (ArtifactError, OSError, ValueError) as error:
        raise ConfigError(
            f"{field}: {location} holds no adapter ({one_line(error)}); name a folder "
            f"with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as every training's adapter/ is"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ConfigError(
            f"{field}: {location}/{ADAPTER_CONFIG} names no peft_type; name another folder, or "
            "save the adapter again"
        )
    return StoredAdapter(location, config, weights, field)


def check_adapter(
    adapter: StoredAdapter, peft: Mapping[str, Any], path: str, revision: str | None
) -> Iterator[str]:
    """Check method and base of an adapter against the configuration; yields warnings.

    Raises:
        ConfigError: Method or base differ, or the method does not support a warm start.
    """
    where = adapter.where
    method, wanted = adapter.config["peft_type"], peft["peft_type"]
    if method != wanted:
        raise ConfigError(
            f"{where} is an adapter of {method}, but model.peft.peft_type is {wanted}; name an "
            f"adapter of {wanted}, or set model.peft to the adapter's method"
        )
    if method == "P_TUNING" or adapter.config.get("prefix_projection"):
        raise ConfigError(
            f"{where} cannot begin another training: peft stores what its encoder made, not the "
            "encoder that is trained; leave it out"
        )
    yield from check_base_of(adapter, path, revision)


def _identity(path: str, revision: str | None = None) -> str:
    """The identity of a model; of the folder that a GGUF file was converted to, the file's."""
    local = resolve_path(path)
    if local is not None and local.is_dir():
        made = load_manifest(Storage.open(str(local)))
        if made is not None and "converted_from" in made.about:
            return made.fingerprint
    return model_identity(path, revision)


def check_base_of(adapter: StoredAdapter, path: str, revision: str | None) -> Iterator[str]:
    """Check that an adapter was made for a model; yields a warning where that is not known.

    Raises:
        ConfigError: It was made for another one.
    """
    where, base = adapter.where, adapter.config.get("base_model_name_or_path")
    if base == path:
        return
    try:
        local = resolve_path(str(base)) if base else None
    except ConfigError:
        local = None
    ours = resolve_path(path)
    if local is None and ours is None and base:
        differs = True
    elif local is not None and local.exists() and ours is not None:
        differs = _identity(str(base)) != _identity(path, revision)
    else:
        yield (
            f"{where} was made for {base}, which cannot be compared with {path} from here; their "
            "shapes will be"
        )
        return
    if differs:
        raise ConfigError(
            f"{where} was made for the base model {base}, not for model.path ({path}); name an "
            "adapter of this model, or its model"
        )


def check_shape(adapter: StoredAdapter, model: "PeftModel") -> None:
    """Check an adapter's tensors and settings against those of a new adapter.

    Raises:
        ConfigError: Tensors differ in name or shape, or settings in what the weights compute.
    """
    where = adapter.where
    changed = {
        name: f"{where} has {name} {value}, but with model.peft it is {ours}: set it to the "
        "adapter's, or name another adapter"
        for name, value, ours in _differences(adapter.config, model.active_peft_config.to_dict())
    }
    for name, message in changed.items():
        if name not in _SELECTIONS:
            raise ConfigError(message)
    check_tensors(adapter, model, changed.values())


def check_tensors(adapter: StoredAdapter, model: "PeftModel", reasons: Iterable[str] = ()) -> None:
    """Check names and shapes of an adapter's tensors against those of a new adapter.

    Args:
        adapter: The stored one.
        model: With the new one, all of whose weights are trainable.
        reasons: Why they may differ; the first one is told.

    Raises:
        ConfigError: They differ.
    """
    import safetensors.torch
    from peft import get_peft_model_state_dict

    fresh = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = safetensors.torch.load(adapter.weights)
    # peft saves the base model's embeddings too where an adapter is on them
    stored = {name: tensor for name, tensor in stored.items() if ".base_layer." not in name}
    for name in sorted(fresh.keys() | stored.keys()):
        have, want = (list(s[name].shape) if name in s else "missing" for s in (stored, fresh))
        if have != want:
            other = f"{adapter.where} does not fit: {name} is {have} there and {want} "
            other += "by its settings on this model; name an adapter of the same shape"
            raise ConfigError(next(iter(reasons), other))


def check_virtual_tokens(adapter: StoredAdapter) -> None:
    """Check that an adapter whose method has virtual tokens holds as many as its settings say.

    Raises:
        ConfigError: It does not.
    """
    import safetensors.torch

    wanted = adapter.config.get("num_virtual_tokens")
    if wanted is None:
        return
    tensors = safetensors.torch.load(adapter.weights)
    prompt = tensors.get("prompt_embeddings")
    if prompt is None or len(prompt) != wanted:
        found = "none" if prompt is None else str(len(prompt))
        raise ConfigError(
            f"{adapter.where} holds embeddings of {found} virtual tokens, and its settings name "
            f"{wanted}; save it again"
        )


def _differences(
    stored: Mapping[str, Any], fresh: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Names of settings that differ, with both values; the order in sets does not matter."""
    for name in sorted(stored.keys() & fresh.keys()):
        if not any(part in name for part in _IRRELEVANT):
            theirs, ours = (plain_settings(settings[name]) for settings in (stored, fresh))
            if name in _SETS:
                theirs, ours = _as_set(theirs), _as_set(ours)
            if theirs != ours:
                yield name, theirs, ours


def _as_set(value: Any) -> Any:
    """A list in a fixed order, also where peft takes one entry instead; patterns stay."""
    if isinstance(value, list):
        return sorted(value, key=str)
    return [] if value is None else [value] if isinstance(value, int) else value


def begin_with(model: "PeftModel", weights: bytes) -> None:
    """Copy the weights of a stored adapter into a new one.

    Raises:
        ConfigError: They do not fit.
    """
    import safetensors.torch
    from peft import set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(model, safetensors.torch.load(weights))
    # peft loads virtual tokens from this key, which is none of the model's
    if unexpected := sorted(set(result.unexpected_keys) - {"prompt_embeddings"}):
        raise ConfigError(
            f"train.warm_start: the adapter has {unexpected[0]}, which model.peft does not; name "
            "an adapter of the same shape"
        )
