"""The base model and its adapter: prepare, load, adapt with any peft method, save.

Arithmetic in bf16 is a matter of autocast (DeepSpeed's in training, torch's in scoring) over fp32
weights. Frozen linear weights may be stored in bf16 beforehand, which is what autocast would make
of them at every use; embeddings, norms, the output head and the adapter stay in fp32.
"""

import logging
import shutil
import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_ray.artifacts import ArtifactWriter, Storage, load_manifest, to_json, user_cache
from paft_ray.errors import ConfigError, one_line
from paft_ray.loading import resolve_path
from paft_ray.modeling.files import model_identity

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def prepare_base(path: str, revision: str | None, storage: Storage) -> str:
    """Make a base model loadable and return the location that `load_base` takes.

    A GGUF file is converted once into `models/<fingerprint>/` under `storage`; folders and hub
    names are returned as they are.
    """
    local = resolve_path(path)
    if local is None:
        return path
    if local.suffix != ".gguf":
        return str(local)
    identity = model_identity(path, revision)
    folder = storage.child("models", identity)
    if load_manifest(folder) is None:
        _convert_gguf(local, folder, identity)
    return _local_copy(folder, identity)


def _convert_gguf(source: Path, folder: Storage, identity: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s", source.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        writer = ArtifactWriter(folder)
        writer.add_folder(Path(temporary))
    writer.commit(identity, {"converted_from": source.name})


def _local_copy(folder: Storage, identity: str) -> str:
    if folder.is_local:
        return folder.path()
    models = user_cache() / "models"
    if not (models / identity).exists():
        models.mkdir(parents=True, exist_ok=True)
        fetched = folder.fetch(Path(tempfile.mkdtemp(prefix=f".writing-{identity}-", dir=models)))
        try:
            fetched.rename(models / identity)
        except OSError:  # another process of this node was faster
            shutil.rmtree(fetched)
    return str(models / identity)


def load_tokenizer(location: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared base model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    location: str, revision: str | None = None, dtype: "torch.dtype | None" = None
) -> "PreTrainedModel":
    """A prepared base model, frozen, in evaluation mode, in fp32 unless asked otherwise.

    Its output head computes in fp32 also under autocast: bf16 logits are 0.06 apart near 16, too
    coarse to rank two answers, and the head runs on few positions. Of its generation config only
    the end tokens are kept: a repetition penalty in there would move every generated answer.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from paft_ray.modeling.attention import BLOCK_ATTENTION, takes_blocks
    from paft_ray.modeling.kernels import use_quick_products
    from paft_ray.modeling.scoring import FullPrecisionLinear

    model = AutoModelForCausalLM.from_pretrained(
        location, revision=revision, dtype=dtype or torch.float32, attn_implementation="sdpa"
    )
    if takes_blocks(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
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
    """Store frozen linear weights as bf16: the same results under bf16 autocast, no casts."""
    import torch

    for module in model.modules():
        if type(module) is torch.nn.Linear and not module.weight.requires_grad:
            module.to(torch.bfloat16)


def add_adapter(model: "PreTrainedModel", peft: dict[str, Any], seed: int) -> "PeftModel":
    """Wrap a base model with a fresh adapter whose initial weights depend on `seed` alone.

    Raises:
        ConfigError: peft refuses the configuration, or nothing in it is trainable.
    """
    import torch
    from peft import get_peft_config, get_peft_model

    try:
        torch.manual_seed(seed)
        adapted = get_peft_model(model, get_peft_config({"task_type": "CAUSAL_LM", **peft}))
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(f"model.peft: peft refuses it: {one_line(error)}") from error
    if not any(p.requires_grad for p in adapted.parameters()):
        raise ConfigError(f"model.peft: {peft['peft_type']} leaves nothing trainable")
    return adapted


def reads_positions(model: "PeftModel") -> bool:
    """Whether the adapter passes `position_ids` on, which packing needs.

    Prompt-learning methods (prompt tuning, P-tuning, prefix tuning) put virtual tokens before the
    text and drop them.
    """
    return not model.active_peft_config.is_prompt_learning


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
        "adapter_model.safetensors": safetensors.torch.save(tensors, {"format": "pt"}),
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
