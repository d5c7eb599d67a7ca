"""A base model that is kept for the next training, whatever the last one did to its modules."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from paft_ray.models.cpu.kernels import use_quick_products
from paft_ray.models.kept import KeptBase, drop_unused_models
from paft_ray.models.load import load_base, make_trainable, store_frozen_in_bf16
from paft_ray.models.narrow import Stored
from paft_ray.models.switches import checkpoint_activations

IDS = torch.arange(3, 15).unsqueeze(0)
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "up_proj"]}


class Reader:
    """Reads a model, and counts."""

    def __init__(self, folder: Path, **arguments: object) -> None:
        self.count, self._read = 0, partial(load_base, str(folder), **arguments)  # type: ignore

    def __call__(self) -> torch.nn.Module:
        self.count += 1
        return self._read()


def logits(model: torch.nn.Module, bf16: bool = False) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model.eval()(input_ids=IDS).logits


def shape(model: torch.nn.Module) -> list[tuple]:
    """All of a model's modules and parameters that a training may change."""
    modules = [(n, type(m), len(m._forward_hooks), m.training) for n, m in model.named_modules()]
    return modules + [(n, p.dtype, p.requires_grad) for n, p in model.named_parameters()]


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # peft's, of norms
@pytest.mark.parametrize("stored", [Stored(), Stored("bfloat16")], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "peft",
    [
        LORA,
        {**LORA, "init_lora_weights": "pissa"},
        {**LORA, "bias": "all", "modules_to_save": ["embed_tokens"]},
        {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
        {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
    ],
    ids=["lora", "pissa", "biases", "norms", "ia3"],
)
def test_next_training_gets_the_base_as_it_was_read(
    tiny_model: Path, stored: Stored, peft: dict
) -> None:
    read, kept = Reader(tiny_model, stored=stored), KeptBase()
    fresh, bf16 = read(), stored.arithmetic == "bfloat16"
    for seed in range(3):
        base = kept.take("key", read, True)
        assert shape(base) == shape(fresh)
        assert torch.equal(logits(base, bf16), logits(fresh, bf16))
        model = make_trainable(base, dict(peft), seed)
        if bf16:
            store_frozen_in_bf16(model)
        checkpoint_activations(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = torch.empty(0)
    assert read.count == 2


def test_weights_are_shared_and_read_again_only_where_they_changed(tiny_model: Path) -> None:
    read, kept = Reader(tiny_model), KeptBase()
    places: Callable = lambda model: [p.data_ptr() for p in model.parameters()]  # noqa: E731
    first, second = (kept.take("key", read, True) for _ in range(2))
    assert places(first) == places(second)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    expected = logits(second)
    next(first.parameters()).data[5, 3] += 1e-6  # unknown to the version that autograd counts
    assert torch.equal(logits(kept.take("key", read, True)), expected)
    assert read.count == 2


def test_another_base_is_read_and_what_was_found_of_the_first_is_forgotten(
    tiny_model: Path,
) -> None:
    read, kept, asked = Reader(tiny_model), KeptBase(), []

    def find() -> tuple[str, ...]:
        asked.append(1)
        return ("mixes",)

    for key in ("a", "a", "b"):
        kept.take(key, read, True)
        assert kept.once("rows", find) == ("mixes",)
    assert (read.count, len(asked)) == (2, 2)


def test_nothing_is_kept_for_a_training_that_is_the_last(tiny_model: Path) -> None:
    read, kept = Reader(tiny_model), KeptBase()
    for _ in range(2):
        kept.take("key", read, False)
    assert read.count == 2


def test_a_model_that_holds_only_itself_is_freed() -> None:
    layer = torch.nn.Linear(4, 4)
    use_quick_products(layer)  # its forward is bound to it
    weight = weakref.ref(layer.weight)
    gc.disable()
    try:
        del layer
        assert weight() is not None
        drop_unused_models()
        assert weight() is None
    finally:
        gc.enable()
