"""What vLLM cannot serve, from an adapter's settings and the names of its tensors; without vLLM.

Read in vLLM 0.32 (`lora/peft_helper.py`, `lora/utils.py`). It ignores settings that it does not
know (`trainable_token_indices`), and tensors of modules that it does not have: what loads is
therefore compared with transformers before it is used (`evaluation.parity`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from paft_ray.config import GRPO, Config, VLLMBackend, VLLMRollouts
from paft_ray.config.errors import ConfigError
from paft_ray.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `max_lora_rank`."""
_PEFT_RANK = 8
"""peft's own, where none is given."""
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_UNSERVED = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases",
    "modules_to_save": "modules that are trained as a whole (modules_to_save)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "layer_replication": "replicated layers (layer_replication)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_qalora": "QALoRA (use_qalora)",
    "arrow_config": "routed LoRA (arrow_config)",
}
"""Fields of LoRA's settings that must be empty, and what they stand for."""
_HEAD = "lm_head"
_TENSORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_REMEDY = "set evaluation.backend.type: transformers"


def lora_rank(adapter: Mapping[str, Any]) -> int:
    """The largest rank in an adapter's settings."""
    return max([adapter.get("r", _PEFT_RANK), *(adapter.get("rank_pattern") or {}).values()])


@dataclass(frozen=True, slots=True)
class Loras:
    """The adapters that an engine has to be started for."""

    rank: int
    """vLLM's `max_lora_rank`."""
    modules: tuple[str, ...]
    """Last parts of the names of the modules that they change. The engine leaves all others alone,
    the output head among them: wrapped, it takes the adapter of a token of a prompt from the
    sampled token at its place, and fails where there is none."""
    count: int = 1

    @classmethod
    def of(cls, folders: Sequence[str]) -> Self | None:
        """Those in local folders; None for none.

        Raises:
            ConfigError: vLLM cannot serve one of them.
        """
        ranks, modules = list[int](), set[str]()
        for folder in folders:
            settings, names = read_servable(folder)
            ranks.append(lora_rank(settings))
            modules |= {name.partition(".lora_")[0].rpartition(".")[2] for name in names}
        if not ranks:
            return None
        rank = min(rank for rank in RANKS if rank >= max(ranks))
        return cls(rank, tuple(sorted(modules)), len(ranks))


def read_servable(folder: str) -> tuple[Mapping[str, Any], list[str]]:
    """Read an adapter's settings and the names of its tensors from its local folder.

    Raises:
        ConfigError: vLLM cannot serve it.
    """
    settings = json.loads(Path(folder, ADAPTER_CONFIG).read_bytes())
    with Path(folder, ADAPTER_WEIGHTS).open("rb") as file:
        names = tensor_names(file)
    if reason := reason_against(settings, names):
        raise ConfigError(f"vLLM cannot serve the adapter in {folder}: {reason}")
    return settings, names


def reason_against(adapter: Mapping[str, Any], tensors: Iterable[str] = ()) -> str | None:
    """Why vLLM cannot serve an adapter, or None.

    Args:
        adapter: peft's settings, as in adapter_config.json or `model.peft`.
        tensors: Names in its safetensors file.
    """
    method = adapter.get("peft_type")
    if method != "LORA":
        return f"it serves adapters of LORA, not of {method}"
    for field, what in _UNSERVED.items():
        if adapter.get(field):
            return f"it serves no {what}"
    if (bias := adapter.get("bias", "none")) != "none":
        return f"it serves no trained biases (bias: {bias})"
    init = adapter.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return f"it serves no adapter that changed the base model's weights ({init})"
    if (rank := lora_rank(adapter)) > RANKS[-1]:
        return f"it serves ranks up to {RANKS[-1]}, not {rank}"
    targets = adapter.get("target_modules")
    if _HEAD in (targets if isinstance(targets, list | tuple) else ()):
        return f"it scores no texts under adapters of the output head ({_HEAD})"
    for name in tensors:
        if f".{_HEAD}." in name:
            return f"it scores no texts under adapters of the output head ({name})"
        if not name.endswith(_TENSORS):
            return f"it does not read the tensor {name}"
    return None


def tensor_names(weights: BinaryIO) -> list[str]:
    """The names in a safetensors file."""
    header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def engine_length(config: Config) -> int:
    """The longest sequence, in tokens, that an engine of evaluation must hold.

    vLLM writes at least one token after what it reads.
    """
    written = 1 if config.task.has_choices else config.evaluation.max_new_tokens
    return config.task.max_length + written


def refuse_unserved(config: Config) -> None:
    """Refuse settings that `evaluation.backend: {type: vllm}` cannot work with.

    Raises:
        ConfigError: The backend is vLLM, and cannot serve what the run trains or measures.
    """
    if not isinstance(config.evaluation.backend, VLLMBackend):
        return
    models = {"model": config.model} | {
        f"evaluation.subjects.{index}": subject
        for index, subject in enumerate(config.evaluation.subjects)
        if subject.type == "model"
    }
    for field, model in models.items():
        if (method := getattr(model, "quantization", "none")) != "none":
            raise ConfigError(
                f"{field}.quantization: {method}, but evaluation.backend vllm reads plain weights; "
                f"{_REMEDY}"
            )
    if not config.variants:
        return
    if config.model.peft is None:
        raise ConfigError(
            "model.peft: null trains a whole model with every training, and evaluation.backend "
            f"vllm serves one model with LoRA adapters; {_REMEDY}, or name each as a subject of "
            "type model"
        )
    if reason := reason_against(config.model.peft):
        raise ConfigError(
            f"model.peft: evaluation.backend vllm cannot serve what is trained: {reason}; {_REMEDY}"
        )


def writes_by_vllm(config: Config) -> bool:
    """Whether vLLM writes the rollouts of some training."""
    objectives = (variant.train.over(config.train).objective for variant in config.variants)
    return any(isinstance(o, GRPO) and isinstance(o.backend, VLLMRollouts) for o in objectives)


def refuse_unwritten(config: Config) -> None:
    """Refuse settings that `train.objective.backend: {type: vllm}` cannot work with.

    Raises:
        ConfigError: A training has the backend, and vLLM cannot serve what it trains.
    """
    if not writes_by_vllm(config):
        return
    backend, remedy = (
        "train.objective.backend vllm",
        "set train.objective.backend.type: transformers",
    )
    if (method := config.model.quantization) != "none":
        raise ConfigError(
            f"model.quantization: {method}, but {backend} reads plain weights; {remedy}"
        )
    if config.model.peft is None:
        raise ConfigError(
            "model.peft: null trains a whole model, and "
            f"{backend} takes LoRA adapters of a model that stays; {remedy}"
        )
    if reason := reason_against(config.model.peft):
        raise ConfigError(f"model.peft: {backend} cannot serve what is trained: {reason}; {remedy}")
    if config.train.deterministic:
        raise ConfigError(
            f"train.deterministic: {backend} does not compute the same bits each time on GPUs; "
            f"leave it out, or {remedy}"
        )


def refuse_beyond_engine(config: Config, context: int | None) -> None:
    """Refuse sequences for which vLLM would not begin.

    Args:
        config: The configuration, with the model in question.
        context: Longest sequence that the model was made for; None where it is not known.

    Raises:
        ConfigError: The longest sequence is longer.
    """
    if context is None or not isinstance(config.evaluation.backend, VLLMBackend):
        return
    if (longest := engine_length(config)) > context:
        written = "one token" if config.task.has_choices else "evaluation.max_new_tokens"
        raise ConfigError(
            f"task.max_length: {config.task.max_length} with {written} to write, as "
            f"evaluation.backend vllm needs it, makes {longest} tokens, more than the {context} "
            f"that {config.model.path} was made for; lower it"
        )
