"""The output head in chunks and in bf16 gives what it gives in one piece and in fp32."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from families import build_family
from paft_ray.models import head as heads
from paft_ray.models.head import FullPrecisionLinear, NarrowProduct, long_head
from paft_ray.models.logprobs import answer_logprobs
from paft_ray.models.packing import TokenSequence, build_row

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str, **more: Any) -> Any:
    model = build_family(name, tie_word_embeddings=False, **more)
    model.get_output_embeddings().__class__ = FullPrecisionLinear
    return model


def sequences() -> list[TokenSequence]:
    """Some predict several answers from one place, as single-token choices do, out of order."""
    rng = np.random.default_rng(0)
    made = []
    for length in (9, 30, 4, 17):
        ids = tuple(rng.integers(1, 90, length).tolist())
        places = (1, 2, 2, 2, length - 1)
        targets = tuple(rng.integers(1, 90, len(places)).tolist())
        made.append(TokenSequence(ids, places, targets, (0, 0, 1, 2, 0)))
    return made


def read(model: Any, padded: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    order = (2, 0, 3, 1)
    logprobs_A = answer_logprobs(model, build_row(sequences(), order, padded), CPU)
    weights = torch.linspace(0.5, 2, len(logprobs_A))
    (logprobs_A * weights).sum().backward()
    named = model.named_parameters()
    return logprobs_A.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions whose logits the head has computed at once."""
    found: list[int] = []
    compute = FullPrecisionLinear.compute

    def watched(self: FullPrecisionLinear, input: torch.Tensor) -> torch.Tensor:
        output = compute(self, input)
        found.append(output.numel() // output.shape[-1])
        return output

    monkeypatch.setattr(FullPrecisionLinear, "compute", watched)
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("trained", ["all", "adapter"])
@pytest.mark.parametrize("size", [1, 5])
def test_chunks_give_the_log_probabilities_and_gradients_of_one_piece(
    monkeypatch, largest, size, trained, padded
):
    model = build("llama", head_dim=8)
    if trained == "all":
        model.requires_grad_(True)
    else:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    expected, wanted = read(model, padded)
    assert max(largest) > size
    largest.clear()
    monkeypatch.setitem(heads._MOST_LOGITS, "cpu", size * 100)
    found, got = read(model, padded)
    assert max(largest) == size
    assert len(largest) == 2 * -(-12 // size), "once forward, once backward"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "more", "chunked"),
    [
        ("llama", {}, True),
        ("mixtral", {}, True),
        ("gpt2", {}, True),
        ("mamba", {}, True),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, False),
        ("cohere", {"logit_scale": 0.5}, False),
    ],
)
def test_models_that_change_their_logits_are_read_in_one_piece(
    monkeypatch, largest, family, more, chunked
):
    model = build(family, **more)
    model.requires_grad_(True)
    expected, _ = read(model, padded=True)
    monkeypatch.setitem(heads._MOST_LOGITS, "cpu", 300)
    assert (long_head(model, 12) is not None) == chunked
    found, _ = read(model, padded=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 100)


def test_products_of_bf16_are_summed_in_fp32_with_the_gradients_of_fp32():
    torch.manual_seed(0)
    x, weight = torch.randn(7, 512), torch.randn(33, 512)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    output: Any = NarrowProduct.apply(*leaves)
    rounded = [t.bfloat16().double() for t in (x, weight)]
    torch.testing.assert_close(output.double(), rounded[0] @ rounded[1].t(), rtol=1e-5, atol=1e-4)
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.bfloat16().float())
    weights = torch.randn(output.shape)
    (output * weights).sum().backward()
    for leaf, expected in zip(leaves, (weights @ weight, weights.t() @ x), strict=True):
        assert (leaf.grad - expected).norm() < 0.01 * expected.norm()


def test_heads_on_cpus_multiply_in_fp32_whatever_autocast_says():
    layer = FullPrecisionLinear(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert not heads._multiplies_in_bf16(torch.zeros(1, 8), layer.weight)
        assert torch.equal(layer(torch.ones(1, 8)), layer.compute(torch.ones(1, 8)))


@pytest.mark.gpu
def test_heads_on_gpus_multiply_bf16_into_fp32():
    torch.manual_seed(0)
    layer, x = FullPrecisionLinear(512, 64).cuda(), torch.randn(9, 512, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(x)
    rounded = [t.detach().bfloat16().double() for t in (x, layer.weight)]
    expected = rounded[0] @ rounded[1].t() + layer.bias.detach().double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert layer.weight.grad is not None
