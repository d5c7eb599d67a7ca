"""What is written is what was trained: loaded again, compared, and refused where it differs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import factories
from paft_ray.config.errors import TrainingError
from paft_ray.models.load import (
    adapter_files,
    add_adapter,
    load_base,
    load_tokenizer,
    reads_positions,
    store_frozen_in_bf16,
)
from paft_ray.models.tokenization import TextEncoder
from paft_ray.storage.paths import Storage
from paft_ray.training.output.save import trainable_copy
from paft_ray.training.output.verify import Base, Probe, Trained, relative_change, verify_adapter

WEIGHTS = "adapter_model.safetensors"
LORA = {**factories.LORA, "lora_dropout": 0.5}
METHODS = {
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "whole module beside it": {**LORA, "modules_to_save": ["k_proj"]},
    "ia3": {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "prompt tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
    "prefix tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    "p-tuning": {"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": 16},
}


class NoisyAdapter:
    """An adapter moved from its beginning by noise, in memory and in files."""

    def __init__(self, model_folder: Path, folder: Path, peft: dict, dtype: str) -> None:
        model = add_adapter(load_base(str(model_folder)), peft, seed=1)
        self.before = trainable_copy(model)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.2 * noise.to(parameter))
        self.after = trainable_copy(model)
        self.base = Base(str(model_folder), None, "the/base", dtype)
        files = adapter_files(model, self.after, self.base.path)
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self.folder = folder
        self.tensors = safetensors.torch.load(files[WEIGHTS])
        encoder = TextEncoder(load_tokenizer(str(model_folder)))
        encoded = [
            encoder.encode(lambda fields: fields["text"], {"text": text}, [answer])[0].sequence()
            for text, answer in (("the film was", "very good"), ("a poor plot, it", "is bad"))
        ]
        self.probe = Probe(tuple(encoded), 64, packing=reads_positions(model))
        if dtype == "bfloat16":
            store_frozen_in_bf16(model)
        self.loss = self.probe.mean_loss(model.eval(), dtype)

    def verify(self, **changed):
        base = changed.get("base", self.base)
        storage = Storage.open(str(self.folder))
        return verify_adapter(storage, base, Trained(self.probe, self.tensors, 1.0, self.loss))


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Callable[..., NoisyAdapter]:
    def make_trained(peft: dict = LORA, dtype: str = "float32") -> NoisyAdapter:
        return NoisyAdapter(tiny_model, tmp_path / "adapter", peft, dtype)

    return make_trained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_adapter_loaded_again_has_the_tensors_and_the_loss_of_the_trained_one(
    method: str, dtype: str, make
) -> None:
    trained = make(METHODS[method], dtype)
    verified = trained.verify()
    assert verified.tensors == len(trained.tensors)
    # what a prompt encoder makes under bf16 autocast is made once more in fp32, to be stored
    exact = dtype == "float32" or method != "p-tuning"
    assert verified.loss_reloaded == pytest.approx(trained.loss, abs=1e-6 if exact else 1e-2)


def test_adapter_that_peft_cannot_load_is_refused(make) -> None:
    trained = make()
    path = trained.folder / "adapter_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"q_proj"', '"no_such_module"'), encoding="utf-8")
    with pytest.raises(TrainingError, match="loaded by peft"):
        trained.verify()


def change(trained: NoisyAdapter, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = trained.folder / WEIGHTS
    tensors = safetensors.torch.load(path.read_bytes())
    edit(tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: next(iter(tensors.values())).view(-1)[3].add_(1e-6), "tensors differ"),
        (lambda tensors: tensors.pop(sorted(tensors)[2]), "missing or foreign"),
        (lambda tensors: next(iter(tensors.values())).view(-1)[0].fill_(torch.nan), "differ"),
        (
            lambda tensors: tensors.update({n: t[:2].clone() for n, t in tensors.items()}),
            "tensors differ",
        ),
    ],
    ids=["one value changed", "one tensor lost", "not a number", "tensors cut"],
)
def test_adapter_file_that_was_tampered_with_is_noticed(edit, said: str, make) -> None:
    trained = make()
    change(trained, edit)
    with pytest.raises(TrainingError, match=said):
        trained.verify()


def test_adapter_file_that_was_cut_off_is_noticed(make) -> None:
    trained = make()
    path = trained.folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TrainingError, match=r"cannot be read .*storage may be damaged"):
        trained.verify()


def test_adapter_with_another_scaling_than_trained_is_noticed_by_its_loss(make) -> None:
    trained = make()
    path = trained.folder / "adapter_config.json"
    text = path.read_text(encoding="utf-8")
    assert '"lora_alpha": 8' in text
    path.write_text(text.replace('"lora_alpha": 8', '"lora_alpha": 16'), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"its loss is .*, in training"):
        trained.verify()


def test_adapter_on_another_base_is_noticed_by_its_loss(
    make, tiny_model: Path, tmp_path: Path
) -> None:
    trained = make()
    other = load_base(str(tiny_model))
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(TrainingError, match="its loss is"):
        trained.verify(base=replace(trained.base, location=str(tmp_path / "other")))


def test_adapter_that_did_not_move_is_refused_with_the_reason(make) -> None:
    trained = make()
    with pytest.raises(TrainingError, match=r"moved the weights by 0e\+00.*learning_rate"):
        relative_change(trained.before, trained.before)
    barely = {name: tensor + 1e-12 for name, tensor in trained.before.items()}
    with pytest.raises(TrainingError, match=r"rounding: raise train\.learning_rate"):
        relative_change(trained.before, barely)


def test_adapter_that_moved_by_one_small_step_is_accepted(make) -> None:
    trained = make()
    after = {n: t + 1e-6 * ("lora_B" in n) for n, t in trained.before.items()}
    assert 0 < relative_change(trained.before, after) < 1e-3


def test_adapter_that_is_not_finite_or_not_whole_is_refused_by_name(make) -> None:
    trained = make()
    name = sorted(trained.after)[3]
    broken = {**trained.after, name: torch.full_like(trained.after[name], torch.inf)}
    with pytest.raises(TrainingError, match=rf"not finite \({name}\)"):
        relative_change(trained.before, broken)
    del broken[name]
    with pytest.raises(TrainingError, match=name):
        relative_change(trained.before, broken)
