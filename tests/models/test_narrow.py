"""Frozen matrices in bf16: what is read so equals what is narrowed later, and checks see fp32."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from factories import LORA, METHODS
from families import build_family
from paft_ray.config import TrainConfig
from paft_ray.models.load import add_adapter, load_base, store_frozen_in_bf16
from paft_ray.models.logprobs import ForwardPass, score_sequences
from paft_ray.models.narrow import (
    Stored,
    in_fp32,
    kept_modules,
    matrices,
    outer_layers,
    reading_in_bf16,
)
from paft_ray.models.packing import TokenSequence
from paft_ray.models.pretrained import read_model
from paft_ray.training.estimates import ModelSizes, worker_memory

pytestmark = pytest.mark.usefixtures("one_thread")

BF16 = Stored("bfloat16")
ON_GPU = Stored("bfloat16", device="cuda:0")
FILES = {
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {"tie_word_embeddings": True},
    "gpt2": {},
    "falcon": {},
    "qwen3_moe": {},
    "gpt_oss": {},
    "lfm2": {},
}
TARGETS = {
    "gpt2": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "falcon": {"target_modules": ["query_key_value"]},
}
TOKENS = [TokenSequence((5, 17, 9, 33, 21, 8), (3, 4, 5), (9, 33, 21), (0, 1, 2))]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., str]:
    def store(name: str, dtype: torch.dtype, **settings: Any) -> str:
        torch.manual_seed(0)
        model: Any = build_family(name, **settings)
        model.to(dtype)
        model.save_pretrained(tmp_path, max_shard_size="40KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        return str(tmp_path)

    return store


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = tensors(one), tensors(other)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", FILES)
def test_files_read_in_bf16_hold_the_bits_of_those_read_in_fp32_and_narrowed(
    family: str, dtype: torch.dtype, stored
) -> None:
    folder = stored(family, dtype, **FILES[family])
    narrowed = load_base(folder)
    store_frozen_in_bf16(narrowed)
    found: Any = load_base(folder, stored=BF16)
    same(found, narrowed)
    head = found.get_output_embeddings()
    assert head.weight.dtype == found.get_input_embeddings().weight.dtype == torch.float32


def test_no_matrix_is_ever_read_in_fp32(stored) -> None:
    with reading_in_bf16():
        model = read_model(stored("qwen3_moe", torch.bfloat16), dtype=torch.float32)
    found = [parameter.dtype for parameter in matrices(model)]
    assert len(found) > 20
    assert set(found) == {torch.bfloat16}
    assert {p.dtype for n, p in model.named_parameters() if "gate.weight" in n} == {torch.float32}


def test_experts_multiply_in_bf16_and_agree_with_those_in_fp32(stored) -> None:
    """Also their gradients, on the way to the layers below."""
    folder = stored("qwen3_moe", torch.bfloat16)
    grads, seen = [], []
    for how in (Stored(), BF16):
        model = add_adapter(load_base(folder, stored=how), LORA, seed=1)
        for module in model.modules():
            if "Experts" in type(module).__name__:
                module.register_forward_hook(lambda m, _, out: seen.append(m.down_proj.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=torch.tensor([[5, 17, 9, 33]]), use_cache=False).logits
        logits.float().log_softmax(-1)[0, -1, 7].backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        grads.append(torch.cat([grad.flatten() for grad in found]))
    assert {torch.float32, torch.bfloat16} == set(seen)
    assert float(grads[0].norm()) > 0
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 0.05


def losses(model: PreTrainedModel) -> list[dict[int, float]]:
    return score_sequences(model, TOKENS, ForwardPass("float32", 64))


@pytest.mark.parametrize("how", [BF16, ON_GPU], ids=["matrices", "all"])
@pytest.mark.parametrize("family", FILES)
def test_model_in_bf16_computes_as_in_fp32_where_it_is_checked(
    family: str, how: Stored, stored
) -> None:
    folder = stored(family, torch.bfloat16, **FILES[family])
    model = load_base(folder, attention="eager", stored=how)
    before = {name: t.data_ptr() for name, t in tensors(model).items()}
    with in_fp32(model):
        assert losses(model) == losses(load_base(folder, attention="eager"))
    assert {name: t.data_ptr() for name, t in tensors(model).items()} == before
    same(model, load_base(folder, attention="eager", stored=how))


@pytest.mark.parametrize("family", FILES)
def test_on_gpus_layers_hand_each_other_bf16_and_agree_with_fp32(family: str, stored) -> None:
    """All but the dtypes is computed here as on the CPU."""
    peft = {**LORA, "target_modules": ["q_proj", "v_proj"], **TARGETS.get(family, {})}
    # all experts, since rounding may choose others
    experts = {"num_experts_per_tok": 4} if family in ("gpt_oss", "qwen3_moe") else {}
    folder = stored(family, torch.bfloat16, **FILES[family], **experts)
    found, handed = [], []
    for how in (Stored(), ON_GPU):
        model = add_adapter(load_base(folder, attention="eager", stored=how), peft, seed=1)
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert frozen == {torch.bfloat16 if how.whole else torch.float32}
        for layer in outer_layers(model):
            layer.register_forward_hook(lambda m, _, out: handed.append(out))
        with torch.autocast("cpu", torch.bfloat16, enabled=how.whole):
            logits = model(input_ids=torch.tensor([[5, 17, 9, 33]]), use_cache=False).logits
        assert logits.dtype == torch.float32
        logits.log_softmax(-1)[0, -1, 7].backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert {grad.dtype for grad in grads} == {torch.float32}
        found.append(torch.cat([grad.flatten() for grad in grads]))
    dtypes = [(out[0] if isinstance(out, tuple) else out).dtype for out in handed]
    half = len(dtypes) // 2
    assert half > 1
    assert dtypes == [torch.float32] * half + [torch.bfloat16] * half
    assert float(found[0].norm()) > 0
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.06


METHODS_OF_WEIGHTS = {
    **METHODS,
    "pissa": {**LORA, "init_lora_weights": "pissa"},
    "olora": {**LORA, "init_lora_weights": "olora"},
    "VERA": {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj"]},
    "OFT": {"peft_type": "OFT", "oft_block_size": 4, "target_modules": ["q_proj"]},
    "LOHA": {"peft_type": "LOHA", "r": 4, "target_modules": ["q_proj"]},
    "copies": {**LORA, "modules_to_save": ["k_proj"], "bias": "all"},
    "embeddings": {**LORA, "target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS_OF_WEIGHTS)
def test_adapter_begins_with_the_bits_that_it_has_on_a_base_in_fp32(
    method: str, dtype: torch.dtype, stored
) -> None:
    peft = METHODS_OF_WEIGHTS[method]
    folder = stored("llama", dtype, attention_bias=True)
    narrowed = load_base(folder)
    if dtype == torch.float32:  # what reads weights reads those that are multiplied
        for weight in matrices(narrowed, kept_modules(peft)):
            weight.data = weight.data.bfloat16().float()
    expected = add_adapter(narrowed, peft, seed=3)
    store_frozen_in_bf16(expected)
    how = Stored("bfloat16", kept=kept_modules(peft))
    found = add_adapter(load_base(folder, stored=how), peft, seed=3)
    store_frozen_in_bf16(found)
    same(found, expected)
    assert {p.dtype for p in found.parameters() if p.requires_grad} == {torch.float32}


REAL: dict[str, PreTrainedConfig] = {
    "Llama 3 8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    "Qwen3 30B A3B": Qwen3MoeConfig(
        vocab_size=151_936,
        hidden_size=2048,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,  # pyright: ignore[reportCallIssue]
        num_experts=128,
        num_experts_per_tok=8,
        tie_word_embeddings=False,
    ),
    "Gemma 3 4B": Gemma3TextConfig(
        vocab_size=262_208,
        hidden_size=2560,
        intermediate_size=10_240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
    ),
}
STORED_IN_BF16 = (
    r"(self_attn\.[qkvo]_proj\.(base_layer\.)?|mlp\.(gate|up|down)_proj\.)weight$|experts\."
)


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("name", REAL)
def test_each_weight_of_a_large_model_has_its_dtype_and_all_take_what_is_estimated(
    name: str, gpus: int
) -> None:
    """Read as files are, with tensors that have no values."""
    config: PreTrainedConfig = REAL[name]
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    state = {key: tensor.to(torch.bfloat16) for key, tensor in built.state_dict().items()}
    with reading_in_bf16():
        read: Any = type(built).from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, device_map="meta"
        )
    read.requires_grad_(False)
    model = add_adapter(read, LORA, seed=0)
    store_frozen_in_bf16(model, whole=gpus > 0)
    narrow = []
    for key, parameter in model.named_parameters():
        multiplied = re.search(STORED_IN_BF16, key) is not None
        narrow += [parameter] * multiplied
        in_bf16 = multiplied or (gpus > 0 and "lora_" not in key)
        assert parameter.dtype == (torch.bfloat16 if in_bf16 else torch.float32), key
    sizes = ModelSizes(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        linear=sum(p.numel() for p in narrow if p.ndim == 2),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        experts=sum(p.numel() for p in narrow if p.ndim == 3),
    )
    workers = {"gpus": gpus}
    train = TrainConfig.model_validate({"steps": 1, "batch_size": 2, "workers": workers})
    estimated = worker_memory(sizes, train, "none", "bfloat16", 1)["weights"]
    assert estimated == sum(p.numel() * p.element_size() for p in model.parameters())
