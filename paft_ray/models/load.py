"""Loads base models and tokenizers; adds, saves and loads adapters of any peft method.

bf16 means autocast (DeepSpeed's in training, torch's in scoring) over frozen matrices in bf16, as
which they are read from files, and over fp32 weights: the adapter and, on CPUs, embeddings, norms
and output head.
"""

import logging
import re
from collections.abc import Collection
from contextlib import nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError, one_line
from paft_ray.models.base_check import require_all_loaded
from paft_ray.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from paft_ray.models.narrow import (
    WIDE,
    Stored,
    adapting_in_fp32,
    matrices,
    reading_in_bf16,
    weights_of,
)
from paft_ray.models.pretrained import read_model, read_tokenizer
from paft_ray.storage.paths import to_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
"""Folder of a training that holds its adapter."""
MODEL_FOLDER = "model"
"""Folder of a full fine-tuning that holds the whole model."""
_INSIDE_SEQUENCES = ("auto", "blocks", "varlen")
"""Of `model.attention` those that are ours; the others are transformers'."""


def load_tokenizer(
    location: str, revision: str | None = None, trust: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a prepared base model, see `read_tokenizer`."""
    tokenizer = read_tokenizer(location, revision, trust)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    location: str,
    revision: str | None = None,
    dtype: "torch.dtype | None" = None,
    attention: str = "auto",
    stored: Stored = WIDE,
    trust: bool = False,
) -> "PreTrainedModel":
    """Load a prepared base model, frozen and in evaluation mode.

    Its output head computes in fp32 also under autocast: bf16 logits are 0.06 apart near 16, too
    coarse to rank two answers, and the head runs on few positions. Its generation config keeps only
    the end tokens: a repetition penalty would change every generated answer.

    Args:
        location: What `prepare_base` returned.
        revision: Commit or tag of a hub model.
        dtype: Type of all weights that `stored` leaves alone; fp32 by default.
        attention: `model.attention`. With all but `blocks` and `varlen`, transformers builds the
            mask of a packed row from its positions.
        stored: How frozen weights lie in memory. A bf16 file's matrices are read as pages of that
            file, which processes share.
        trust: Run the model's own Python files, if it has any.

    Raises:
        ConfigError: The model cannot be used with this attention, needs code that is not trusted,
            or its files lack weights.
    """
    import torch

    from paft_ray.models.quantized import nf4_arguments

    quantized = nf4_arguments(stored.device) if stored.quantization == "nf4" else {}
    arguments = {"dtype": dtype or torch.float32, **quantized}
    arguments |= {"revision": revision, "trust": trust}
    with reading_in_bf16(stored.kept, stored.whole) if stored.narrow else nullcontext():
        model = _read_model(location, attention, arguments)
    return prepare_loaded(model, attention, stored)


def _read_model(location: str, attention: str, arguments: dict[str, Any]) -> "PreTrainedModel":
    # None: transformers uses sdpa where the model supports it
    theirs = None if attention in _INSIDE_SEQUENCES else attention
    arguments = {**arguments, "attn_implementation": theirs}
    try:
        loaded: Any = read_model(location, output_loading_info=True, **arguments)
        model, info = loaded
    except (ValueError, ImportError) as error:
        if isinstance(error, ConfigError) or not theirs or "attention" not in str(error).lower():
            raise
        raise ConfigError(
            f"model.attention: {attention} cannot be used with this model here "
            f"({one_line(error)}); use auto"
        ) from error
    require_all_loaded(location, model, info["missing_keys"])
    return model


def prepare_loaded(
    model: "PreTrainedModel", attention: str = "auto", stored: Stored = WIDE
) -> "PreTrainedModel":
    """Prepare a model that transformers built, in place, as `load_base` returns it.

    Args:
        model: With weights in the dtypes that `load_base` reads.
        attention: See `load_base`; one of transformers' own is what the model was built with.
        stored: See `load_base`.

    Raises:
        ConfigError: The model cannot be used with this attention.
    """
    import torch
    from transformers import GenerationConfig

    from paft_ray.models.cpu.kernels import use_quick_products
    from paft_ray.models.cuda.kernels import use_fused_norms
    from paft_ray.models.head import FullPrecisionLinear
    from paft_ray.models.quantized import prepare_quantized

    _attend_inside_sequences(model, attention, stored)
    if stored.quantization == "nf4":
        prepare_quantized(model)
    model.requires_grad_(False)
    if model.generation_config is not None:
        end = model.generation_config.eos_token_id
        model.generation_config = GenerationConfig(eos_token_id=end)
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and (stored.whole or head.weight.dtype == torch.float32):
        head.__class__ = FullPrecisionLinear
    use_quick_products(model)
    if stored.narrow:
        store_frozen_in_bf16(model, stored.kept, stored.whole)
    if stored.whole:
        use_fused_norms(model)
    return model.eval()


def _attend_inside_sequences(model: "PreTrainedModel", attention: str, stored: Stored) -> None:
    from paft_ray.models.attention import BLOCK_ATTENTION, VARLEN_ATTENTION, takes_blocks
    from paft_ray.models.varlen import reason_against_varlen

    if attention not in _INSIDE_SEQUENCES:
        return
    against = reason_against_varlen(model, stored.arithmetic, stored.device)
    if attention == "varlen" and against:
        raise ConfigError(f"model.attention: varlen, but {against}; use auto")
    if attention != "blocks" and not against:
        model.set_attn_implementation(VARLEN_ATTENTION)
    elif takes_blocks(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
    elif attention == "blocks":
        raise ConfigError(
            f"model.attention: blocks, but {type(model).__name__} does not call its attention "
            "through transformers' interface; use auto"
        )


def store_frozen_in_bf16(
    model: "torch.nn.Module", kept: Collection[str] = (), whole: bool = False
) -> None:
    """Store frozen matrices, or all that is frozen (`whole`), as bf16, see `narrow`.

    Weights in 4 bits stay so, and are multiplied in bf16.
    """
    import torch

    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes', which ignores autocast
            module.compute_dtype = torch.bfloat16  # pyright: ignore[reportArgumentType]
    for weight in weights_of(model, kept) if whole else matrices(model, kept):
        if not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)


def add_adapter(model: "PreTrainedModel", peft: dict[str, Any], seed: int) -> "PeftModel":
    """Add a new adapter, whose initial weights depend on `seed` alone, to a base model.

    Raises:
        ConfigError: peft refuses the configuration, or nothing in it is trainable.
    """
    import torch
    from peft import get_peft_config, get_peft_model

    from paft_ray.models.cuda.kernels import use_fused_lora

    refused = (ValueError, TypeError, KeyError, AttributeError, AssertionError, re.error)
    try:
        torch.manual_seed(seed)
        with adapting_in_fp32():
            adapted = get_peft_model(model, get_peft_config({"task_type": "CAUSAL_LM", **peft}))
    except refused as error:
        raise ConfigError(
            f"model.peft: peft refuses it: {one_line(error)}; see its {peft['peft_type']}"
        ) from error
    if not any(p.requires_grad for p in adapted.parameters()):
        raise ConfigError(f"model.peft: {peft['peft_type']} leaves nothing trainable")
    use_fused_lora(adapted)
    return adapted


def result_folder(peft: dict[str, Any] | None) -> str:
    """Return the folder of a training that holds its adapter or, without peft, its model."""
    return MODEL_FOLDER if peft is None else ADAPTER_FOLDER


def make_trainable(
    model: "PreTrainedModel", peft: dict[str, Any] | None, seed: int
) -> "PeftModel | PreTrainedModel":
    """Add a new adapter to a loaded base or, where `peft` is None, make all its weights trainable.

    Raises:
        ConfigError: See `add_adapter`.
    """
    if peft is not None:
        return add_adapter(model, peft, seed)
    model.requires_grad_(True)
    return model


def reads_positions(model: "PeftModel | PreTrainedModel") -> bool:
    """Return whether the model uses `position_ids`, which packing needs.

    Prompt-learning methods (prompt tuning, P-tuning, prefix tuning) drop them.
    """
    from peft import PeftModel

    return not (isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning)


def virtual_tokens(model: "PeftModel | PreTrainedModel") -> int:
    """Return the number of logits that the adapter puts before those of the text."""
    from peft import PeftType

    if reads_positions(model):
        return 0
    config: Any = model.active_peft_config
    return 0 if config.peft_type == PeftType.PREFIX_TUNING else int(config.num_virtual_tokens)


def adapter_files(
    model: "PeftModel", trainable: "dict[str, torch.Tensor]", base: str
) -> dict[str, bytes]:
    """Return file names and contents of an adapter, which peft can load.

    Args:
        model: The adapted model.
        trainable: Gathered trainable parameters by their names in `model`.
        base: Base model that the adapter's configuration names.
    """
    import safetensors.torch
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, state_dict=trainable, save_embedding_layers=False)
    config = model.active_peft_config.to_dict()
    config.update(base_model_name_or_path=base, inference_mode=True)
    tensors = {name: state[name].contiguous() for name in sorted(state)}
    return {
        ADAPTER_WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
        ADAPTER_CONFIG: to_json(plain_settings(config)),
    }


def load_adapter(
    model: "PreTrainedModel | PeftModel", folder: str, name: str, trainable: bool = False
) -> "PeftModel":
    """Load a stored adapter into a base model, or into a model that has other adapters."""
    from peft import PeftModel

    from paft_ray.models.cuda.kernels import use_fused_lora

    with adapting_in_fp32():
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
            adapted = model
        else:
            adapted = PeftModel.from_pretrained(
                model, folder, adapter_name=name, is_trainable=trainable
            ).eval()
    use_fused_lora(adapted)
    return adapted


def plain_settings(value: Any) -> Any:
    """Convert a peft configuration to JSON values in a fixed order: peft keeps modules in sets."""
    if isinstance(value, dict):
        return {str(key): plain_settings(item) for key, item in sorted(value.items())}
    if isinstance(value, set | frozenset):
        return sorted(plain_settings(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain_settings(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
