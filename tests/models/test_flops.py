"""FLOPs that a row needs, against those that torch counts while it computes the row."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from families import build_family
from paft_ray.models.flops import matrix_rate, model_flops
from paft_ray.models.load import make_trainable
from paft_ray.models.logprobs import answer_logprobs
from paft_ray.models.packing import TokenSequence, build_row, inert_row

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
CPU = torch.device("cpu")


def llama(**more: Any) -> Any:
    settings = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "vocab_size": 300,
        "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager",
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**settings, **more)).requires_grad_(False)


def sequence(tokens: int, answers: int) -> TokenSequence:
    positions = tuple(range(tokens - answers, tokens))
    return TokenSequence(tuple(range(tokens)), positions, (1,) * answers, (0,) * answers)


ROW = build_row([sequence(40, 3)], [0])


def counted(model: torch.nn.Module) -> float:
    with FlopCounterMode(display=False) as counter:
        answer_logprobs(model, ROW, CPU).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    ("peft", "first_layer"),
    [
        (LORA, 1 / 6),
        ({**LORA, "layers_to_transform": [4, 5]}, 1 / 2),
        ({**LORA, "target_modules": ["down_proj", "o_proj"]}, 1 / 6),
        (None, 0),
    ],
)
def test_products_are_those_that_torch_counts_but_for_inputs_of_the_first_trained_layer(
    peft: dict[str, Any] | None, first_layer: float
) -> None:
    model = make_trainable(llama(), peft, seed=0)
    flops = model_flops(model)
    assert flops is not None
    tokens = len(ROW.input_ids_T)
    pairs = tokens * tokens  # eager attention computes those with later tokens too
    products = flops.per_token * tokens + flops.per_answer_token * 3
    whole = products + sum(each for _, each in flops.per_pair) * pairs
    torch_counts = counted(model)
    # backward passes to inputs are a half of what a trained layer takes
    assert torch_counts <= whole <= torch_counts * (1 + first_layer / 2 + 1e-6)


def test_attention_counts_earlier_tokens_of_the_own_sequence_and_window() -> None:
    packed = build_row([sequence(10, 1), sequence(6, 1)], [0, 1])
    flops = model_flops(make_trainable(llama(), LORA, seed=0))
    assert flops is not None
    [(window, each)] = flops.per_pair
    assert window is None
    plain = flops.per_token * 16 + flops.per_answer_token * 2
    assert flops.of_row(packed) - plain == pytest.approx(each * (10 * 11 / 2 + 6 * 7 / 2))
    narrow = replace(flops, per_pair=((3, each),))
    assert narrow.of_row(packed) - plain == pytest.approx(each * (1 + 2 + 3 * 8 + 1 + 2 + 3 * 4))
    assert flops.of_row(inert_row(1)) == 0


def test_mixture_counts_the_experts_that_a_token_is_sent_to() -> None:
    model = build_family("qwen3_moe").requires_grad_(False)
    config = model.config
    experts = next(m for m in model.modules() if type(m).__name__ == "Qwen3MoeExperts")
    share = config.num_experts_per_tok / config.num_experts
    assert share < 1
    weights = sum(p.numel() for p in experts.parameters())
    layers = sum(type(m).__name__ == "Qwen3MoeExperts" for m in model.modules())
    with_experts = model_flops(make_trainable(model, LORA, seed=0))
    assert with_experts is not None
    for module in model.modules():
        if type(module).__name__ == "Qwen3MoeExperts":
            module.gate_up_proj = module.down_proj = None
    without = model_flops(model)
    assert without is not None
    found = with_experts.per_token - without.per_token
    assert found == pytest.approx(4 * share * weights * layers)


def test_measured_rate_leaves_torchs_random_numbers_as_they_are() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert matrix_rate(CPU, "float32", (16, 32, 64)) > 0
    assert torch.equal(torch.rand(3), expected)
