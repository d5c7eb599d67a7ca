"""Attention inside the sequences of a packed row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config.errors import ConfigError
from paft_ray.models import attention
from paft_ray.models.attention import (
    BLOCK_ATTENTION,
    block_arguments,
    block_attention,
    cut_blocks,
    takes_blocks,
)
from paft_ray.models.transfer import copy_to

CPU = torch.device("cpu")


def positions(lengths: list[int]) -> np.ndarray:
    return np.concatenate([np.arange(length) for length in lengths])


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_blocks_bring_every_token_back_to_its_place(lengths):
    blocks = copy_to(CPU, cut_blocks(positions(lengths)))
    flat = torch.cat([gather_NL.flatten() for gather_NL in blocks.gather_NL])
    assert flat[blocks.back_T].tolist() == list(range(sum(lengths)))
    assert len(flat) < 2 * sum(lengths), "sequences of like length share a batch"
    for gather_NL in blocks.gather_NL:
        assert (gather_NL.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("longest_plain", [512, 12, 0])
def test_packed_row_computes_what_each_sequence_computes_alone(
    make_model, longest_plain, monkeypatch
):
    """Outputs and gradients, with our kernels, torch's fused kernel, and both in a row."""
    monkeypatch.setattr(attention, "_PLAIN_LENGTH", longest_plain)
    model = make_model()
    assert takes_blocks(model)
    lengths = [5, 40, 1, 12, 33]
    ids = torch.randint(1, 100, (1, sum(lengths)))
    weights = torch.randn(sum(lengths), 100)
    model.set_attn_implementation("eager")
    alone = torch.cat(
        [model(input_ids=part, use_cache=False).logits[0] for part in ids.split(lengths, 1)]
    )
    (alone * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    model.set_attn_implementation(BLOCK_ATTENTION)
    at = positions(lengths)
    packed = model(
        input_ids=ids,
        position_ids=torch.from_numpy(at)[None],
        use_cache=False,
        **copy_to(CPU, block_arguments(at)),
    ).logits[0]
    (packed * weights).sum().backward()
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    for parameter, gradient in expected.items():
        found = model.get_parameter(parameter).grad
        torch.testing.assert_close(found, gradient, atol=2e-3, rtol=1e-3)


def attend_with_bias(lengths: list[int]) -> torch.Tensor:
    torch.manual_seed(0)
    states = torch.randn(1, 2, sum(lengths), 8)
    module = torch.nn.Module()
    module.is_causal = True  # pyright: ignore[reportAttributeAccessIssue]
    output, _ = block_attention(
        module, states, states, states, None,
        blocks=copy_to(CPU, cut_blocks(positions(lengths))),
        position_bias=torch.arange(sum(lengths)).float().expand(1, 2, sum(lengths), -1),
    )  # fmt: skip
    return output


def test_bias_by_position_is_refused_in_a_packed_row_rather_than_dropped():
    with pytest.raises(ConfigError, match=r"train\.packing: true"):
        attend_with_bias([4, 3])


def test_bias_by_position_is_kept_in_a_row_of_one_sequence():
    torch.manual_seed(0)
    states = torch.randn(1, 2, 5, 8)
    scores = states @ states.transpose(-1, -2) / 8**0.5 + torch.arange(5).float()
    scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    expected = (scores.softmax(-1) @ states).transpose(1, 2)
    torch.testing.assert_close(attend_with_bias([5]), expected)
