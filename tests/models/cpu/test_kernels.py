"""Our own products against torch's, forward and backward."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from paft_ray.models.attention import attend, cut_blocks
from paft_ray.models.cpu.kernels import FrozenLinear, linear, onednn_is_quicker, use_quick_products
from paft_ray.models.transfer import copy_to

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not onednn_is_quicker(), reason="torch's own product is used")


def layer(bias: bool) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(48, 80, bias=bias).requires_grad_(False)


def output_and_gradient(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return output, *torch.autograd.grad((output * weights).sum(), leaf)


def is_ours(output: torch.Tensor) -> bool:
    return FrozenLinear.__name__ in {
        type(node).__name__[: -len("Backward")] for node in graph(output)
    }


def graph(output: torch.Tensor) -> list:
    nodes, waiting = [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            nodes.append(node)
            waiting += [inner for inner, _ in node.next_functions]
    return nodes


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (7, 48), (2, 5, 48)])
def test_frozen_linear_computes_what_torch_does(bias, shape):
    module, x = layer(bias), torch.randn(shape, generator=torch.Generator().manual_seed(2))
    own = output_and_gradient(module, x)
    use_quick_products(module)
    quick = output_and_gradient(module, x)
    assert is_ours(quick[0]) and not is_ours(own[0])
    for ours, theirs in zip(quick, own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_trained_layer_keeps_its_weight_gradient():
    module = layer(bias=True).requires_grad_()
    use_quick_products(module)
    x = torch.randn(3, 48)
    module(x).sum().backward()
    torch.testing.assert_close(module.weight.grad, x.sum(0).expand(80, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_a_layer_computes_in_bf16(dtype):
    module, x = layer(bias=False).to(dtype), torch.randn(3, 48)
    use_quick_products(module)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, x.bfloat16() @ module.weight.bfloat16().t())


@needs_onednn
def test_weight_with_gaps_between_its_rows_is_left_to_torch():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 6)[:, :3]
    assert is_ours(linear(x, weight.contiguous(), None))
    assert not is_ours(linear(x, weight, None))


def test_weight_of_zero_3_is_left_to_torch():
    weight = torch.randn(4, 3)
    weight.ds_id = 1  # pyright: ignore[reportAttributeAccessIssue]
    x = torch.randn(2, 3, requires_grad=True)
    assert not is_ours(linear(x, weight, None))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_a_row_is_that_of_its_sequences(dtype, window):
    lengths = [3, 17, 1, 9, 16]
    torch.manual_seed(0)
    states = [torch.randn(sum(lengths), heads, 8, dtype=dtype) for heads in (6, 2, 2)]
    weights = torch.randn(sum(lengths), 6, 8)
    leaves = [state.clone().requires_grad_() for state in states]
    at = torch.cat([torch.arange(length) for length in lengths])
    output = attend(*leaves, copy_to(CPU, cut_blocks(at.numpy())), sliding_window=window)
    gradients = torch.autograd.grad((output * weights).sum(), leaves)

    exact = [state.float().requires_grad_() for state in states]
    expected = torch.cat(
        [
            attend_plainly(*parts, window)
            for parts in zip(*(state.split(lengths) for state in exact), strict=True)
        ]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
    exact_gradients = torch.autograd.grad((expected * weights).sum(), exact)
    for found, wanted in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=3 * tolerance)


def attend_plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    at = torch.arange(len(query))
    distance = at[:, None] - at[None, :]
    seen = (distance >= 0) & (distance < (window or len(query)))
    q, k, v = (state.transpose(0, 1)[None] for state in (query, key, value))
    output = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return output[0].transpose(0, 1)
