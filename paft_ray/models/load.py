"""The base model and its adapter: load, adapt with any peft method, save.

Arithmetic in bf16 is a matter of autocast (DeepSpeed's in training, torch's in scoring) over fp32
weights. Frozen linear weights may be stored in bf16 beforehand, which is what autocast would make
of them at every use; embeddings, norms, the output head and the adapter stay in fp32.
"""

import logging
import re
from enum import Enum
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError, one_line
from paft_ray.models.files import ADAPTER_WEIGHTS
from paft_ray.models.full import train_all_weights
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


def load_tokenizer(location: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared base model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    location: str,
    revision: str | None = None,
    dtype: "torch.dtype | None" = None,
    attention: str = "auto",
    quantization: str = "none",
) -> "PreTrainedModel":
    """A prepared base model, frozen, in evaluation mode, in fp32 unless asked otherwise.

    Its output head computes in fp32 also under autocast: bf16 logits are 0.06 apart near 16, too
    coarse to rank two answers, and the head runs on few positions. Of its generation config only
    the end tokens are kept: a repetition penalty in there would move every generated answer.

    Args:
        location: What `prepare_base` returned.
        revision: Commit or tag of a hub model.
        dtype: Of the weights.
        attention: `model.attention`. All but `blocks` build the mask of a packed row from its
            positions, inside transformers.
        quantization: `model.quantization`: `nf4` stores frozen linear weights in 4 bits;
            embeddings, norms and output head stay as they are.

    Raises:
        ConfigError: The model cannot be used with this attention.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from paft_ray.models.attention import BLOCK_ATTENTION, takes_blocks
    from paft_ray.models.cpu.kernels import use_quick_products
    from paft_ray.models.logprobs import FullPrecisionLinear
    from paft_ray.models.quantized import nf4_arguments, prepare_quantized

    in_blocks = attention in ("auto", "blocks")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            location,
            revision=revision,
            dtype=dtype or torch.float32,
            # none: transformers takes sdpa where the model has it
            attn_implementation=None if in_blocks else attention,
            **(nf4_arguments() if quantization == "nf4" else {}),
        )
    except (ValueError, ImportError) as error:
        if in_blocks or "attention" not in str(error).lower():
            raise
        raise ConfigError(
            f"model.attention: {attention} cannot be used with this model here "
            f"({one_line(error)}); use auto"
        ) from error
    if in_blocks and takes_blocks(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
    elif attention == "blocks":
        raise ConfigError(
            f"model.attention: blocks, but {type(model).__name__} does not call its attention "
            "through transformers' interface; use auto"
        )
    if quantization == "nf4":
        prepare_quantized(model)
    model.requires_grad_(False)
    if model.generation_config is not None:
        end = model.generation_config.eos_token_id
        model.generation_config = GenerationConfig(eos_token_id=end)
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.dtype == torch.float32:
        head.__class__ = FullPrecisionLinear
    use_quick_products(model)
    return model.eval()


def store_frozen_in_bf16(model: "torch.nn.Module") -> None:
    """Store frozen linear weights as bf16: the same results under bf16 autocast, no casts.

    Those that are stored in 4 bits stay so, and are multiplied in bf16.
    """
    import torch

    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes', to which autocast means nothing
            module.compute_dtype = torch.bfloat16  # pyright: ignore[reportArgumentType]
        if type(module) is torch.nn.Linear and not module.weight.requires_grad:
            module.to(torch.bfloat16)


def add_adapter(model: "PreTrainedModel", peft: dict[str, Any], seed: int) -> "PeftModel":
    """Wrap a base model with a fresh adapter whose initial weights depend on `seed` alone.

    Raises:
        ConfigError: peft refuses the configuration, or nothing in it is trainable.
    """
    import torch
    from peft import get_peft_config, get_peft_model

    refused = (ValueError, TypeError, KeyError, AttributeError, AssertionError, re.error)
    try:
        torch.manual_seed(seed)
        adapted = get_peft_model(model, get_peft_config({"task_type": "CAUSAL_LM", **peft}))
    except refused as error:
        raise ConfigError(
            f"model.peft: peft refuses it: {one_line(error)}; see its {peft['peft_type']}"
        ) from error
    if not any(p.requires_grad for p in adapted.parameters()):
        raise ConfigError(f"model.peft: {peft['peft_type']} leaves nothing trainable")
    return adapted


def result_folder(peft: dict[str, Any] | None) -> str:
    """Folder of a training, under `model.peft`, that holds what was trained."""
    return MODEL_FOLDER if peft is None else ADAPTER_FOLDER


def make_trainable(
    model: "PreTrainedModel", peft: dict[str, Any] | None, seed: int
) -> "PeftModel | PreTrainedModel":
    """Turn a loaded base into what is trained: a fresh adapter on it, or all its weights.

    Args:
        model: The base.
        peft: `model.peft`; None trains all weights.
        seed: Of the adapter's initial weights.

    Raises:
        ConfigError: See `add_adapter`.
    """
    return train_all_weights(model) if peft is None else add_adapter(model, peft, seed)


def reads_positions(model: "PeftModel | PreTrainedModel") -> bool:
    """Whether `position_ids` reach the model, which packing needs.

    Prompt-learning methods (prompt tuning, P-tuning, prefix tuning) put virtual tokens before the
    text and drop them.
    """
    from peft import PeftModel

    return not (isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning)


def virtual_tokens(model: "PeftModel | PreTrainedModel") -> int:
    """How many logits the adapter puts before those of the text."""
    from peft import PeftModel, PeftType

    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return 0
    if model.active_peft_config.peft_type == PeftType.PREFIX_TUNING:
        return 0
    config: Any = model.active_peft_config
    return int(config.num_virtual_tokens)


def adapter_files(
    model: "PeftModel", trainable: "dict[str, torch.Tensor]", base: str
) -> dict[str, bytes]:
    """The adapter as peft stores it: file names to contents, which `PeftModel` can load.

    Args:
        model: The adapted model, for its configuration.
        trainable: Gathered trainable parameters by their names in `model`.
        base: What the adapter's configuration names as its base model.
    """
    import safetensors.torch
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, state_dict=trainable, save_embedding_layers=False)
    config = model.active_peft_config.to_dict()
    config.update(base_model_name_or_path=base, inference_mode=True)
    tensors = {name: state[name].contiguous() for name in sorted(state)}
    return {
        ADAPTER_WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
        "adapter_config.json": to_json(_plain(config)),
    }


def load_adapter(model: "PreTrainedModel | PeftModel", folder: str, name: str) -> "PeftModel":
    """Put a stored adapter on a base model, or beside others on a model that has some."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(folder, adapter_name=name)
        return model
    return PeftModel.from_pretrained(model, folder, adapter_name=name).eval()


def _plain(value: Any) -> Any:
    """JSON-ready values: peft keeps target modules in sets, whose order changes from run to run."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
