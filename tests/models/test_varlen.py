"""torch's kernel for rows, by a stand-in that CPUs have; and what a check makes of such kernels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from factories import run_config
from families import build_family, family_config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.models import varlen
from paft_ray.models.attention import BLOCK_ATTENTION, VARLEN_ATTENTION, find_spans
from paft_ray.models.load import load_base
from paft_ray.models.logprobs import answer_logprobs
from paft_ray.models.narrow import Stored
from paft_ray.models.packing import TokenSequence, build_row
from paft_ray.models.row_check import Together, check_batches, check_rows
from paft_ray.models.transfer import copy_at_once, copy_to

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Kernel:
    """What `varlen_attn` is said to compute, a sequence at a time."""

    def __init__(self, leak: float = 0.0) -> None:
        self.rows, self.leak = 0, leak

    def __call__(
        self, query: Any, key: Any, value: Any, bounds: Any, *more: Any,
        scale: float | None, window_size: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        if query.dtype != torch.bfloat16:
            raise RuntimeError("FlashAttention only supports fp16 and bf16")
        self.rows += 1
        outputs = []
        for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
            own = [s[None, start:stop].transpose(1, 2).float() for s in (query, key, value)]
            at = torch.arange(stop - start)
            distance = at[:, None] - at
            mask = distance >= 0
            if window_size[0] >= 0:
                mask &= distance <= window_size[0]
            attended = torch.nn.functional.scaled_dot_product_attention(
                *own, mask, scale=scale, enable_gqa=True
            )
            outputs.append(attended[0].transpose(0, 1).to(query.dtype))
        output = torch.cat(outputs)
        return output + self.leak * value.float().mean().to(output.dtype)


@pytest.fixture
def use_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    def use(**settings: Any) -> Kernel:
        kernel = Kernel(**settings)
        monkeypatch.setattr(varlen, "_kernel", lambda: kernel)
        return kernel

    return use


def gradients(model: PreTrainedModel, attention: str) -> tuple[torch.Tensor, torch.Tensor]:
    model.set_attn_implementation(attention)
    model.zero_grad()
    rng = np.random.default_rng(0)
    sequences = [
        TokenSequence(tuple(rng.integers(1, 90, n).tolist()), (n - 2, n - 1), (5, 6), (0, 0))
        for n in (5, 30, 3, 12)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        logprobs_A = answer_logprobs(model, build_row(sequences, range(4)), CPU)
    logprobs_A.sum().backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logprobs_A.detach(), torch.cat(grads)


def test_rows_read_by_the_kernel_give_what_blocks_give(make_model, use_kernel):
    kernel, model = use_kernel(), make_model()
    expected, wanted = gradients(model, BLOCK_ATTENTION)
    found, got = gradients(model, VARLEN_ATTENTION)
    assert kernel.rows == 3, "once in each layer"
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_heads_whose_values_are_narrower_than_their_queries_are_read_too(use_kernel):
    kernel = use_kernel()
    model = build_family("deepseek_v3", v_head_dim=4, qk_nope_head_dim=8, qk_rope_head_dim=8)
    model.requires_grad_(True)
    expected, _ = gradients(model, BLOCK_ATTENTION)
    found, _ = gradients(model, VARLEN_ATTENTION)
    assert kernel.rows
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_kernel_that_refuses_fp32_is_checked_in_bf16_and_packed(make_model, use_kernel):
    kernel, model = use_kernel(), make_model()
    model.set_attn_implementation(VARLEN_ATTENTION)
    assert check_rows(model, 256, 100) == ""
    assert model.config._attn_implementation == VARLEN_ATTENTION
    assert kernel.rows >= 2 * 3


def test_a_kernel_that_leaks_is_replaced_by_blocks(use_kernel):
    use_kernel(leak=0.1)
    model = build_family("llama")
    model.set_attn_implementation(VARLEN_ATTENTION)
    assert check_rows(model, 256, 100) == ""
    assert model.config._attn_implementation == BLOCK_ATTENTION


def test_a_model_that_is_not_to_pack_does_not_read_by_a_kernel_that_nobody_tried(use_kernel):
    kernel, model = use_kernel(), build_family("llama")
    model.set_attn_implementation(VARLEN_ATTENTION)
    config = load_config(run_config("model", "reviews", "storage", train={"packing": False}))
    assert Together.of(model, config, 256) == Together()
    assert (model.config._attn_implementation, kernel.rows) == (BLOCK_ATTENTION, 0)


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Registers an attention by its name."""
    names = []

    def add(name: str, forward: Callable[..., Any]) -> str:
        AttentionInterface.register(name, forward)
        AttentionMaskInterface.register(name, sdpa_mask)
        names.append(name)
        return name

    yield add
    for name in names:
        del AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


@pytest.mark.parametrize(
    ("noise", "leak", "reason"),
    [
        (1e-3, 0.0, ""),
        (1e-3, 0.3, "other sequences of a row move"),
        (0.0, 0.01, "other sequences of a row move"),
        (0.3, 0.0, "passes over the same packed row differ by"),
    ],
)
def test_noise_of_a_kernel_is_told_from_a_leak(register, noise, leak, reason):
    generator = torch.Generator().manual_seed(0)

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            raise RuntimeError("only 16 bits")
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **more)
        if mask is not None:  # several sequences
            drawn = torch.randn(output.shape, generator=generator)
            output = output + noise * drawn + leak * value.mean()
        return output, None

    model = build_family("llama")
    model.set_attn_implementation(register("paft_test_noise", attend))
    found = check_rows(model, 256, 100)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_texts_are_tried_in_bf16_where_the_attention_refuses_fp32(register):
    from families import family_tokenizer

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            raise RuntimeError("only 16 bits")
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    model = build_family("llama")
    model.set_attn_implementation(register("paft_test_narrow", attend))
    assert check_batches(model, family_tokenizer()) == ""


def test_flash_attention_is_told_where_sequences_begin(register):
    seen: list[Any] = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        seen.append([more.get(f"{n}_{s}") for n in ("cu_seq_lens", "max_length") for s in "qk"])
        return sdpa_attention_forward(module, query, key, value, mask)

    model = build_family("llama")
    # set_attn_implementation would fetch a kernel of a name like this
    model.config._attn_implementation = register("paft_test_flash", attend)
    one, other = (TokenSequence((1, 2, 3, 4)[:n], (n - 1,), (5,), (0,)) for n in (4, 3))
    answer_logprobs(model, build_row([one, other], [0, 1]), CPU)
    [bounds, same, longest, _] = seen[0]
    assert (bounds.tolist(), bounds.dtype, longest) == ([0, 4, 7], torch.int32, 4)
    assert torch.equal(bounds, same)


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("llama", {}, ""),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("gpt2", {"attn_pdrop": 0.1}, "attn_pdrop"),
        ("llama", {"head_dim": 512}, "a head has 512"),
        ("llama", {"head_dim": 12}, "a head has 12"),
        ("gemma2", {}, "attn_logit_softcapping"),
    ],
)
def test_models_that_the_kernel_cannot_read_are_known_by_their_configuration(family, more, reason):
    known = {"attn_pdrop": 0.0} if family == "gpt2" else {}
    found = varlen._reason_in_config(family_config(family, **{**known, **more}).to_dict())
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_kernel_is_not_used_on_cpus(tiny_model: Path):
    model = load_base(str(tiny_model))
    assert model.config._attn_implementation == BLOCK_ATTENTION
    assert "GPUs alone" in varlen.reason_against_varlen(model, "bfloat16", "cpu")
    with pytest.raises(ConfigError, match="varlen, but it runs on GPUs alone; use auto"):
        load_base(str(tiny_model), attention="varlen")


def test_the_installed_torch_has_the_kernel_with_windows():
    assert callable(varlen._kernel())


def test_arrays_copied_at_once_are_those_copied_one_by_one():
    rng = np.random.default_rng(0)
    tree = {
        "ids": rng.integers(0, 9, (2, 3)),
        "spans": find_spans(np.array([0, 1, 2, 0, 1])),
        "more": (rng.random(3) > 0.5, rng.random((1, 5)), np.zeros(0, np.int64), 7, "text"),
        "rows": rng.integers(0, 9, (4, 4))[:, 1:3],
    }
    one, all_at_once = copy_to(CPU, tree), copy_at_once(CPU, tree)
    torch.testing.assert_close(all_at_once["ids"], one["ids"])
    assert all_at_once["spans"].longest == 3
    pairs = [(one["spans"].bounds, all_at_once["spans"].bounds), (one["rows"], all_at_once["rows"])]
    pairs += list(zip(one["more"][:3], all_at_once["more"][:3], strict=True))
    for expected, found in pairs:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    assert all_at_once["more"][3:] == (7, "text")


@pytest.mark.gpu
def test_rows_on_a_gpu_are_checked_with_the_kernel_and_keep_it(tiny_model: Path):
    model = load_base(str(tiny_model), stored=Stored("bfloat16", device="cuda")).cuda()
    assert model.config._attn_implementation == VARLEN_ATTENTION
    assert check_rows(model, 256, 100) == ""
    assert model.config._attn_implementation == VARLEN_ATTENTION


@pytest.mark.gpu
def test_arrays_reach_a_gpu_as_they_are():
    tree = {"ids": np.arange(6).reshape(2, 3), "spans": find_spans(np.array([0, 1, 0]))}
    found = copy_to(torch.device("cuda"), tree)
    assert found["ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["spans"].bounds.tolist() == [0, 2, 3]
