"""An adapter that training begins with: loaded as it was, refused where it does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import factories
from paft_ray.config.errors import ConfigError
from paft_ray.models.files import model_identity
from paft_ray.models.load import adapter_files, add_adapter, load_base
from paft_ray.models.meta import check_adapters
from paft_ray.models.warm_start import StoredAdapter, begin_with, check_adapter, read_adapter
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage

LORA = {**factories.LORA, "lora_alpha": 8}
METHODS = {
    **factories.METHODS,
    "LORA": LORA,
    "DORA": {**LORA, "use_dora": True},
    "all linear": {**LORA, "target_modules": "all-linear"},
    "IA3": {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
}
del METHODS["P_TUNING"]


def store(tiny_model: Path, folder: Path, peft: dict, base: str | None = None) -> torch.Tensor:
    """An adapter away from its beginning; returns what the adapted model computes."""
    model = add_adapter(load_base(str(tiny_model)), peft, seed=1).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in adapter_files(model, trainable, base or str(tiny_model)).items():
        (folder / name).write_bytes(data)
    return logits(model)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def check(adapter: StoredAdapter, peft: dict, tiny_model: Path) -> list[str]:
    return list(check_adapter(adapter, peft, str(tiny_model), None))


@pytest.mark.parametrize("method", METHODS)
def test_training_begins_where_the_stored_adapter_is(method, tiny_model, tmp_path):
    expected = store(tiny_model, tmp_path, METHODS[method])
    adapter = read_adapter(str(tmp_path))
    assert check(adapter, METHODS[method], tiny_model) == []
    assert check_adapters(str(tiny_model), None, [METHODS[method]], 0, adapter) is None
    model = add_adapter(load_base(str(tiny_model)), METHODS[method], seed=2).eval()
    assert not torch.equal(logits(model), expected)
    begin_with(model, adapter.weights)
    assert torch.equal(logits(model), expected)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("peft", "rule"),
    [
        ({**LORA, "r": 8}, "has r 4, but with model.peft it is 8"),
        ({**LORA, "lora_alpha": 16}, "has lora_alpha 8, but with model.peft it is 16"),
        ({**LORA, "target_modules": ["q_proj"]}, "has target_modules .*'v_proj'"),
        ({**LORA, "use_dora": True}, "has use_dora False"),
    ],
)
def test_adapter_of_another_shape_is_refused(peft, rule, tiny_model, tmp_path):
    store(tiny_model, tmp_path, LORA)
    with pytest.raises(ConfigError, match=rf"train\.warm_start: .*{rule}"):
        check_adapters(str(tiny_model), None, [peft], 0, read_adapter(str(tmp_path)))


@pytest.mark.parametrize(
    ("peft", "written"),
    [
        (LORA, {"target_modules": ["v_proj", "q_proj"]}),
        (LORA, {"modules_to_save": [], "exclude_modules": None, "layers_to_transform": None}),
        ({**LORA, "modules_to_save": ["norm", "lm_head"]},
         {"modules_to_save": ["lm_head", "norm"]}),
        ({**LORA, "layers_to_transform": [1, 0]}, {"layers_to_transform": [0, 1]}),
        ({**LORA, "layers_to_transform": [1]}, {"layers_to_transform": 1}),
        ({**LORA, "target_modules": r".*\.[qv]_proj"}, {"target_modules": ["v_proj", "q_proj"]}),
        (
            {"peft_type": "IA3", "target_modules": ["k_proj", "up_proj", "down_proj"],
             "feedforward_modules": ["up_proj", "down_proj"]},
            {"feedforward_modules": ["down_proj", "up_proj"]},
        ),
    ],
)  # fmt: skip
def test_adapter_whose_sets_are_written_in_another_way_is_accepted(
    peft, written, tiny_model, tmp_path
):
    store(tiny_model, tmp_path, peft)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | written))
    adapter = read_adapter(str(tmp_path))
    assert check_adapters(str(tiny_model), None, [peft], 0, adapter) is None


def test_adapter_with_other_feedforward_modules_is_refused(tiny_model, tmp_path):
    peft = {"peft_type": "IA3", "target_modules": ["q_proj", "o_proj"]}
    store(tiny_model, tmp_path, {**peft, "feedforward_modules": ["q_proj"]})
    with pytest.raises(ConfigError, match="has feedforward_modules"):
        check_adapters(
            str(tiny_model), None, [{**peft, "feedforward_modules": ["o_proj"]}], 0,
            read_adapter(str(tmp_path)),
        )  # fmt: skip


def test_adapter_whose_tensors_are_of_another_model_is_refused(tiny_model, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    wider = AutoConfig.from_pretrained(str(tiny_model), hidden_size=64)
    AutoModelForCausalLM.from_config(wider).save_pretrained(tmp_path / "wider")
    store(tmp_path / "wider", tmp_path / "adapter", LORA)
    with pytest.raises(ConfigError, match=r"lora_A.weight is \[4, 64\] there and \[4, 32\]"):
        check_adapters(str(tiny_model), None, [LORA], 0, read_adapter(str(tmp_path / "adapter")))


def test_dropout_and_beginning_may_differ(tiny_model, tmp_path):
    store(tiny_model, tmp_path, LORA)
    peft = {**LORA, "lora_dropout": 0.1, "init_lora_weights": "gaussian"}
    assert check_adapters(str(tiny_model), None, [peft], 0, read_adapter(str(tmp_path))) is None


def test_folder_without_an_adapter_is_refused(tiny_model, tmp_path):
    for location in (str(tmp_path / "nowhere"), str(tiny_model), "owner/adapter"):
        with pytest.raises(ConfigError, match=r"train\.warm_start: .*name .*(folder|adapter)"):
            read_adapter(location)


def test_torn_weights_are_refused(tiny_model, tmp_path):
    store(tiny_model, tmp_path, LORA)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(ConfigError, match=r"train\.warm_start: .* holds no adapter"):
        read_adapter(str(tmp_path))


@pytest.mark.parametrize(
    ("stored", "peft", "rule"),
    [
        (LORA, METHODS["IA3"], "is an adapter of LORA, but model.peft.peft_type is IA3"),
        ({"peft_type": "P_TUNING"}, {"peft_type": "P_TUNING"}, "not the encoder"),
    ],
)
def test_adapter_that_cannot_begin_this_training_is_refused(stored, peft, rule, tiny_model):
    adapter = StoredAdapter("somewhere", stored, b"")
    with pytest.raises(ConfigError, match=rf"train\.warm_start: somewhere .*{rule}"):
        check(adapter, peft, tiny_model)


def test_adapter_of_another_base_is_refused_and_of_a_moved_one_is_not(tiny_model, tmp_path):
    other, moved = tmp_path / "other", tmp_path / "moved"
    shutil.copytree(tiny_model, other)
    shutil.copytree(tiny_model, moved)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))

    def made_for(base: str) -> StoredAdapter:
        return StoredAdapter("somewhere", {**LORA, "base_model_name_or_path": base}, b"")

    assert check(made_for(str(moved)), LORA, tiny_model) == []
    with pytest.raises(ConfigError, match="was made for the base model"):
        check(made_for(str(other)), LORA, tiny_model)
    with pytest.raises(ConfigError, match="was made for the base model owner/one"):
        list(check_adapter(made_for("owner/one"), LORA, "owner/two", None))
    [warning] = check(made_for(str(tmp_path / "gone")), LORA, tiny_model)
    assert "cannot be compared" in warning


def test_adapter_of_the_folder_that_a_gguf_was_converted_to_is_one_of_the_gguf(
    tiny_model, tmp_path
):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF and weights")
    for name, of in (("of_it", gguf), ("of_another", tmp_path / "config.json")):
        shutil.copytree(tiny_model, tmp_path / name)
        of.touch()
        writer = ArtifactWriter(Storage.open(str(tmp_path / name)))
        writer.note("config.json")
        writer.commit(model_identity(str(of)), {"converted_from": of.name})

    def made_for(base: str) -> StoredAdapter:
        config = {**LORA, "base_model_name_or_path": str(tmp_path / base)}
        return StoredAdapter("somewhere", config, b"")

    assert list(check_adapter(made_for("of_it"), LORA, str(gguf), None)) == []
    with pytest.raises(ConfigError, match="was made for the base model"):
        list(check_adapter(made_for("of_another"), LORA, str(gguf), None))


def test_identity_is_of_the_content_and_not_of_the_place(tiny_model, tmp_path):
    store(tiny_model, tmp_path / "one", LORA)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    store(tiny_model, tmp_path / "three", {**LORA, "r": 8})
    one, two, three = (read_adapter(str(tmp_path / n)).identity for n in ("one", "two", "three"))
    assert one == two != three
