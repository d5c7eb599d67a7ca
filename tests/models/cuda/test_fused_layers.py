"""Fused layers against those of transformers and peft; on GPUs they are what is used."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear

from families import build_family
from paft_ray.models.cuda import kernels
from paft_ray.models.cuda.kernels import AdaptedLinear, use_fused_lora, use_fused_norms

SIZES = {"N": 5, "I": 6, "O": 4, "R": 2}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuse on CPUs, and in any dtype."""
    monkeypatch.setattr(kernels, "_fuses", lambda x: True)


def adapted(dropout: float = 0.0, **lora: Any) -> Any:
    """A small Llama with an adapter that changes what it computes."""
    torch.manual_seed(0)
    base = build_family("llama").requires_grad_(False)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, **lora)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def loss_and_gradients(model: Any, seed: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of some tokens; dropout draws what the seed says."""
    torch.manual_seed(seed)
    ids = torch.arange(24).reshape(2, 12) % 50
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_the_product_are_right(dropout: bool, bias: bool) -> None:
    torch.manual_seed(0)
    make = lambda *axes: torch.randn(*(SIZES[a] for a in axes), dtype=torch.float64)  # noqa: E731
    x, weight, a, b = make("N", "I"), make("O", "I"), make("R", "I"), make("O", "R")
    bias_O = make("O") if bias else None
    dropped = make("N", "I").requires_grad_() if dropout else None
    trained = [t.requires_grad_() for t in (x, a, b)]
    given = (x, dropped, weight, bias_O, a, b, 0.5)
    read = x if dropped is None else dropped
    wanted = linear(x, weight, bias_O) + 0.5 * (read @ a.t() @ b.t())
    found: Any = AdaptedLinear.apply(*given)
    torch.testing.assert_close(found, wanted)
    inputs = [*trained, *([dropped] if dropped is not None else [])]
    signs = torch.randn_like(wanted)
    expected = torch.autograd.grad((wanted * signs).sum(), inputs)
    gradients = torch.autograd.grad((found * signs).sum(), inputs)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.usefixtures("everywhere")
def test_a_model_with_fused_layers_learns_what_it_did(dropout: float) -> None:
    model = adapted(dropout)
    loss, gradients = loss_and_gradients(model)
    use_fused_lora(model)
    use_fused_norms(model)
    calls = [type(m).__name__ for m in model.modules() if "forward" in vars(m)]
    assert calls.count("LlamaRMSNorm") == 9 and calls.count("Linear") == 28
    fused_loss, fused = loss_and_gradients(model)
    torch.testing.assert_close(fused_loss, loss, rtol=1e-5, atol=1e-5)
    assert fused.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("everywhere")
def test_fused_layers_are_no_further_from_fp32_in_bf16() -> None:
    model = adapted()
    _, exact = loss_and_gradients(model)
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    errors = []
    for fuse in (False, True):
        if fuse:
            use_fused_lora(model)
            use_fused_norms(model)
        with torch.autocast("cpu", torch.bfloat16):
            _, found = loss_and_gradients(model)
        moved = sum(float((found[n] - exact[n]).square().sum()) for n in exact)
        errors.append(moved**0.5)
    assert errors[1] <= 1.1 * errors[0]


@pytest.mark.parametrize(
    "changed", [{"use_dora": True}, {"lora_bias": True}, {"disabled": True}, {"merged": True}]
)
@pytest.mark.filterwarnings("ignore:`lora_bias")
@pytest.mark.usefixtures("everywhere")
def test_what_the_product_leaves_out_is_peft_s(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, bool]
) -> None:
    lora = {name: value for name, value in changed.items() if name in ("use_dora", "lora_bias")}
    model = adapted(**lora).eval()
    use_fused_lora(model)
    monkeypatch.setattr(AdaptedLinear, "apply", None)
    if "merged" in changed:
        model.merge_adapter()
    with model.disable_adapter() if "disabled" in changed else torch.no_grad():
        assert model(input_ids=torch.arange(5)[None]).logits.isfinite().all()


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(("family", "fused"), [("qwen3", True), ("gemma2", False)])
def test_norms_that_compute_otherwise_stay(family: str, fused: bool) -> None:
    model = build_family(family)
    ids = torch.arange(12)[None] % 50
    before = model(ids).logits
    use_fused_norms(model)
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert norms and all(("forward" in vars(m)) == fused for m in norms)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)


def test_nothing_is_fused_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    use_fused_lora(model)
    monkeypatch.setattr(AdaptedLinear, "apply", None)
    loss_and_gradients(model)
