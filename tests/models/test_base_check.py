"""Base models whose files and tokenizer do not go together, found without reading weights."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from factories import run_config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.models.load import load_base
from paft_ray.models.meta import check_base, check_texts


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def check(folder: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[int, str]]:
    config = load_config(run_config(folder, review_file, tmp_path / "storage"))
    return lambda: check_base(config, ("positive", "negative"))


def rename(folder: Path, new: Callable[[str], str | None]) -> None:
    file = folder / "model.safetensors"
    named = {new(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in named.items() if name}, file, {"format": "pt"})


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_model_with_all_its_weights_is_accepted_without_reading_them(folder, check, monkeypatch):
    monkeypatch.setattr("safetensors.safe_open", None)
    assert check() == {}


def test_names_that_transformers_maps_are_accepted(folder, check):
    """A base model saved without its head, which is tied to the embedding."""
    change_json(folder / "config.json", tie_word_embeddings=True)
    rename(folder, lambda name: None if "lm_head" in name else name.removeprefix("model."))
    assert check() == {}
    load_base(str(folder))


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (lambda name: f"base_model.model.{name}", "and .* more of a LlamaForCausalLM"),
        (lambda name: None if "lm_head" in name else name, "lack lm_head.weight of a"),
        (lambda name: None if name.endswith("layers.1.mlp.up_proj.weight") else name, "up_proj"),
        (lambda name: name.replace("self_attn", "attention"), "self_attn"),
    ],
)
def test_weights_that_are_missing_are_named_before_work_and_when_loading(new, named, folder, check):
    change_json(folder / "config.json", tie_word_embeddings=False)
    rename(folder, lambda name: name if name != "lm_head.weight" else None)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert check() == {}
    rename(folder, new)
    with pytest.raises(ConfigError, match=named):
        check()
    with pytest.raises(ConfigError, match=named):
        load_base(str(folder))


def test_weights_of_another_shape_are_refused(folder, check):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", intermediate_size=config["intermediate_size"] * 2)
    with pytest.raises(ConfigError, match=r"do not fit its config\.json: model\.layers.*shape \["):
        check()


def test_weights_in_fewer_bits_are_refused_where_the_configuration_is_silent(folder, check):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"quantised \({name} is F8_E4M3\)"):
        check()


def test_files_beside_the_weights_are_no_part_of_the_model(folder, check):
    beside = {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}
    save_file(beside, folder / "optimizer.safetensors")
    assert check() == {}
    tensors = load_file(folder / "model.safetensors")
    save_file({"lm_head.weight": tensors.pop("lm_head.weight")}, folder / "head.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ConfigError, match=r"lack lm_head\.weight"):
        check()


def test_token_without_a_row_is_refused_only_where_a_text_has_it(folder, check, review_file):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user_text>"]})
    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    tokenizer.add_tokens([f"<pad {i}>" for i in range(rows)])
    tokenizer.save_pretrained(folder)
    unknown = check()
    assert unknown
    token = next(iter(unknown.values()))
    config = load_config(run_config(folder, review_file, "storage"))
    check_texts(config, unknown, ["a good film"] * 3)
    with pytest.raises(ConfigError, match="no row for the token"):
        check_texts(config, unknown, ["a good film", f"a {token} film"])


def test_end_token_without_a_row_is_refused_where_answers_end_with_it(folder, review_file):
    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<pad {i}>" for i in range(rows)])
    tokenizer.eos_token = f"<pad {rows - 1}>"
    tokenizer.save_pretrained(folder)
    for end, refused in (("scored", True), ("ignored", False)):
        tree = run_config(folder, review_file, "storage", task={"answer_end": end})
        expected = pytest.raises(ConfigError, match=r"no row for .* answers end")
        with expected if refused else nullcontext():
            assert check_base(load_config(tree), ("positive", "negative"))
