"""Training with less memory, or compiled, or with other attention computes the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from paft_ray.config.errors import ConfigError
from paft_ray.models.load import add_adapter, load_base
from paft_ray.models.logprobs import ForwardPass, answer_logprobs, score_sequences
from paft_ray.models.narrow import WIDE, Stored
from paft_ray.models.packing import TokenSequence, build_row
from paft_ray.models.row_check import check_rows
from paft_ray.models.switches import checkpoint_activations, compile_layers

CPU = torch.device("cpu")
LENGTHS = [5, 40, 3, 12, 33]
Gradients = dict[str, torch.Tensor]
pytestmark = pytest.mark.usefixtures("one_thread")


def quietly(test):
    """What torch says of its own: dynamo looks at every attribute, transformers sets a flag."""
    for warning in (
        "The .grad attribute of a Tensor that is not a leaf",
        "_compile flag on create_block_mask",
        "flex_attention called without torch.compile",
        ".torch.jit.script",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of five layers."""
    folder = tmp_path_factory.mktemp("deep-model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def adapted(
    base: str, dropout: float = 0.0, attention: str = "auto", stored: Stored = WIDE
) -> PeftModel:
    peft = {
        "peft_type": "LORA", "r": 4, "lora_dropout": dropout,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }  # fmt: skip
    model = add_adapter(load_base(base, attention=attention, stored=stored), peft, seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def sequences(lengths: list[int], seed: int = 0) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    return [
        TokenSequence(tuple(rng.integers(1, 100, n).tolist()), (n - 2, n - 1), (5, 6), (0, 0))
        for n in lengths
    ]


def step(model: PeftModel, lengths: list[int]) -> tuple[torch.Tensor, Gradients]:
    """Log-likelihoods of a packed row, and the adapter's gradients."""
    torch.manual_seed(7)
    model.zero_grad()
    row = build_row(sequences(lengths), range(len(lengths)))
    logprobs_A = answer_logprobs(model, row, CPU)
    logprobs_A.sum().backward()
    named = model.named_parameters()
    return logprobs_A.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def saved_bytes(model: PeftModel) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, weights apart."""
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, or addresses come again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer_logprobs(model, build_row(sequences(LENGTHS), range(len(LENGTHS))), CPU)
    return sum(size for size, _ in kept.values())


def test_checkpointed_activations_give_the_same_gradients_under_dropout(base):
    expected, gradients = step(adapted(base, dropout=0.2), LENGTHS)
    model = adapted(base, dropout=0.2)
    checkpoint_activations(model)
    found, found_gradients = step(model, LENGTHS)
    assert torch.equal(found, expected)
    assert found_gradients.keys() == gradients.keys()
    assert all(torch.equal(found_gradients[name], gradients[name]) for name in gradients)


def test_checkpointed_activations_keep_a_tenth_of_the_bytes(base):
    model = adapted(base)
    before = saved_bytes(model)
    checkpoint_activations(model)
    assert saved_bytes(model) < 0.1 * before


@quietly
@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_give_the_same_gradients_and_compile_once_for_all_rows(base, checkpointed):
    """Captured by dynamo and run as captured: what a backend makes of it is the backend's."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, model = adapted(base, dropout=0.2), adapted(base, dropout=0.2)
    if checkpointed:
        checkpoint_activations(model)
    assert compile_layers(model, backend="eager") == 5
    graphs = []
    for lengths in (LENGTHS, [7, 9], [30, 30, 30, 4, 5, 6, 7], [100], [2, 3, 2, 64]):
        expected, gradients = step(plain, lengths)
        found, found_gradients = step(model, lengths)
        torch.testing.assert_close(found, expected)
        assert all(torch.equal(found_gradients[name], gradients[name]) for name in gradients)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] < 10, "not one for each layer"
    assert graphs[-1] == graphs[0]


@quietly
@pytest.mark.slow
def test_layers_compiled_by_the_default_backend_give_the_same_gradients(base):
    expected, gradients = step(adapted(base), LENGTHS)
    model = adapted(base)
    compile_layers(model)
    found, found_gradients = step(model, LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-4)


def scores(model: torch.nn.Module, drawn: list[TokenSequence], packing: bool) -> list[float]:
    with torch.compiler.set_stance("force_eager"):  # flex attention, as it is written
        found = score_sequences(model, drawn, ForwardPass("float32", 200, packing))
    return [by_owner[0] for by_owner in found]


@quietly
@pytest.mark.parametrize("attention", ["blocks", "sdpa", "flex_attention"])
def test_packed_row_scores_what_each_sequence_scores_alone(attention, base):
    model = adapted(base, attention=attention).eval()
    drawn = sequences(LENGTHS)
    alone = scores(adapted(base, attention="sdpa").eval(), drawn, packing=False)
    assert scores(model, drawn, packing=True) == pytest.approx(alone, abs=1e-4)


@quietly
@pytest.mark.parametrize("attention", ["blocks", "sdpa", "flex_attention"])
def test_another_sequence_of_the_row_moves_no_score(attention, base):
    model = adapted(base, attention=attention).eval()
    drawn = sequences(LENGTHS)
    before = scores(model, drawn, packing=True)
    for changed in range(len(drawn)):
        others = sequences(LENGTHS, seed=changed + 1)
        mixed = [others[i] if i == changed else s for i, s in enumerate(drawn)]
        after = scores(model, mixed, packing=True)
        assert abs(after[changed] - before[changed]) > 1e-2
        assert after[:changed] == before[:changed]
        assert after[changed + 1 :] == before[changed + 1 :]


def test_attention_in_blocks_is_refused_where_the_model_has_its_own(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(
        BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.attention: blocks, but BloomForCausalLM"):
        load_base(str(tmp_path), attention="blocks")


def test_flash_attention_that_is_not_installed_is_refused(base):
    with pytest.raises(ConfigError, match=r"model\.attention: flash_attention_2 cannot be used"):
        load_base(base, attention="flash_attention_2")


def test_model_without_layers_is_refused_rather_than_left_as_it_is():
    with pytest.raises(ConfigError, match=r"train\.compile: true, .* no layers"):
        compile_layers(torch.nn.Linear(2, 2))


@pytest.mark.filterwarnings(
    "ignore:_compile flag on create_block_mask"
)  # transformers', in torch 2.11
@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "varlen"])
def test_kernel_for_gpus_trains_as_blocks_do(attention, base):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    gradients = []
    for kind in ("blocks", attention):
        model = adapted(base, attention=kind, stored=Stored("bfloat16", device="cuda")).cuda()
        assert check_rows(model, 256, 100) == ""
        row = build_row(sequences(LENGTHS), range(len(LENGTHS)))
        with torch.autocast("cuda", torch.bfloat16):
            (-answer_logprobs(model, row, torch.device("cuda")).sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, expected in gradients[0].items():
        assert float((gradients[1][name] - expected).norm() / expected.norm()) < 3e-2


def test_compiler_outside_of_tests_is_left_as_it_was(base: str, tmp_path: Path):
    """Layers that were not compiled call the same attention."""
    compile_layers(adapted(base), backend="eager")
    expected = scores(adapted(base, attention="sdpa").eval(), sequences(LENGTHS), packing=False)
    found = scores(adapted(base).eval(), sequences(LENGTHS), packing=True)
    assert found == pytest.approx(expected, abs=1e-4)
