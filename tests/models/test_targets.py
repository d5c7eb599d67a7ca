"""`target_modules` that nobody names are those of the model's family."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from paft_ray.config.loading import load_config
from paft_ray.models.load import add_adapter
from paft_ray.models.targets import model_family, with_targets
from paft_ray.pipeline.perform import open_context
from paft_ray.training.identity import training_fingerprint

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
CHOSEN = {
    "llama": ["q_proj", "v_proj"], "qwen3": ["q_proj", "v_proj"], "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"], "granite": "all-linear", "phi3": "all-linear",
    "mamba": ["in_proj"], "falcon_h1": ["q_proj", "v_proj"],
}  # fmt: skip


def config_of(small_run: dict[str, Any], folder: Path, *overrides: str, **model: Any) -> Any:
    tree = {**small_run, "model": {"path": str(folder), "dtype": "float32", **model}}
    return with_targets(load_config(tree, overrides))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft sets it for GPT-2's own layers
@pytest.mark.parametrize("family", CHOSEN)
def test_default_adapter_fits_the_family(
    family: str, small_run: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(family, **SMALL)
    config.save_pretrained(tmp_path)
    peft = config_of(small_run, tmp_path).model.peft
    assert peft == {
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": CHOSEN[family],
    }  # fmt: skip
    model = add_adapter(AutoModelForCausalLM.from_config(config), peft, seed=0)
    assert any(weight.requires_grad for weight in model.parameters())


def test_choice_that_equals_the_old_default_is_the_same_training(
    small_run: dict[str, Any], tiny_model: Path
) -> None:
    old = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    found = []
    for model in ({}, {"peft": old}):
        tree = {**small_run, "model": {"path": str(tiny_model), "dtype": "float32", **model}}
        context = open_context(load_config(tree))
        config = context.config.of_training(context.config.trainings[0])
        found.append(training_fingerprint(context, config, ()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "peft",
    [
        {"peft_type": "LORA", "target_modules": ["k_proj"]},
        {"peft_type": "LORA", "r": 2},  # as earlier versions had it: peft chooses the same
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5},
        {"peft_type": "IA3"},
        None,
    ],
)
def test_what_is_given_is_left(peft: Any, small_run: dict[str, Any], tiny_model: Path) -> None:
    assert config_of(small_run, tiny_model, peft=peft).model.peft == peft


def test_other_families_get_linear_layers_where_modules_are_left_out(
    small_run: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "granite"}), "utf-8")
    found = config_of(small_run, tmp_path, peft={"peft_type": "LOKR", "r": 2}).model.peft
    assert found == {"peft_type": "LOKR", "r": 2, "target_modules": "all-linear"}


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": 3}', "{"])
def test_family_that_cannot_be_read_is_left_to_the_checks_of_the_model(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert model_family(str(tmp_path), None) is None
    assert model_family(str(tmp_path / "nowhere"), None) is None
    assert model_family("owner/never-fetched", None) is None


def test_hub_that_does_not_answer_is_asked_once_and_not_by_its_own_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    assert model_family("owner/never-fetched", None) is None


def test_choice_imports_no_torch(small_run: dict[str, Any], tiny_model: Path) -> None:
    tree = {**small_run, "model": {"path": str(tiny_model), "chat_template": "auto"}}
    code = (
        "import json, sys\n"
        "from paft_ray.config.loading import load_config\n"
        "from paft_ray.models.targets import with_targets\n"
        "from paft_ray.runs.context import Identities\n"
        "config = with_targets(load_config(json.loads(sys.argv[1])))\n"
        "assert config.model.peft['target_modules'] == ['q_proj', 'v_proj']\n"
        "Identities(config, None).model\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(tree)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
