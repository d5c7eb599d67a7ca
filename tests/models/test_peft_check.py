"""Checks of `model.peft` before any work, by the table and by the installed peft."""

import pytest
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig

from paft_ray.config.errors import ConfigError
from paft_ray.models import peft_check
from paft_ray.models.meta import check_adapters, count_weights
from paft_ray.models.peft_check import check_peft, puts_tokens_before


def lora(**arguments) -> dict:
    return {"peft_type": "LORA", **arguments}


@pytest.mark.parametrize(
    "arguments",
    [
        lora(),
        lora(target_modules=["q_proj", "layers.0.self_attn.v_proj", "model.embed_tokens"]),
        lora(target_modules=r".*\.self_attn\.(q|v)_proj"),
        lora(target_modules="all-linear", lora_alpha=16, use_rslora=True),
        lora(target_modules=["lm_head"]),
        lora(target_modules=["q_proj"], modules_to_save=["norm", "mlp"]),
        lora(target_modules=["q_proj"], init_lora_weights="mica"),
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
        {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
    ],
)
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_peft_section_that_peft_takes_passes(tiny_model, arguments):
    check_peft(arguments)
    check_adapters(str(tiny_model), None, [arguments], 0)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"peft_type": "LORRA"}, ["peft_type", "'LORRA'", "nearest: LORA"]),
        (lora(lora_alhpa=3), ["model.peft.lora_alhpa", "LORA", "nearest: lora_alpha"]),
        (
            {"peft_type": "PROMPT_TUNING", "r": 8},
            ["model.peft.r", "PROMPT_TUNING", "num_virtual_tokens"],
        ),
        (lora(target_modules=["q_porj"]), ["target_modules", "'q_porj'", "nearest: q_proj"]),
        (lora(target_modules=["q_proj", "query_key"]), ["'query_key'", "q_proj", "v_proj"]),
        (lora(target_modules=["proj"]), ["'proj'", "q_proj"]),
        (lora(target_modules=["mlp"]), ["LlamaMLP", "see its LORA"]),
        (lora(target_modules=["q_proj", "input_layernorm"]), ["LlamaRMSNorm", "see its LORA"]),
        (lora(target_modules="q_proj"), ["q_proj not found", "see its LORA"]),
        (lora(target_modules="("), ["peft refuses it", "subpattern", "see its LORA"]),
        (lora(target_modules=3), ["target_modules: 3", "no list", "[q_proj, v_proj]"]),
        (lora(modules_to_save="norm"), ["modules_to_save: 'norm'", "no list"]),
        (lora(modules_to_save=["score"]), ["modules_to_save", "'score'", "norm"]),
    ],
)
def test_peft_section_that_cannot_be_is_refused_with_value_rule_and_remedy(
    tiny_model, arguments, parts
):
    check_peft(arguments)
    for refuse in (
        lambda: check_adapters(str(tiny_model), None, [arguments], 0),
        lambda: count_weights(str(tiny_model), None, arguments, 0),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse()
        message = str(caught.value)
        assert message.startswith("model.peft")
        assert all(part in message for part in parts), message
        assert "\n" not in message


def test_plan_without_the_model_still_refuses_unknown_names(tmp_path):
    nowhere = str(tmp_path)
    with pytest.raises(ConfigError, match=r"nearest: lora_alpha"):
        count_weights(nowhere, None, lora(lora_alhpa=3), 0)
    with pytest.raises(ConfigError, match=r"model\.path"):
        count_weights(nowhere, None, lora(), 0)


@pytest.mark.parametrize("method", peft_check._REFUSED_METHODS)
def test_method_that_cannot_be_supported_is_one_of_peft_and_refused_with_its_reason(method):
    assert method in {known.value for known in PEFT_TYPE_TO_CONFIG_MAPPING}
    reason = peft_check._REFUSED_METHODS[method]
    with pytest.raises(ConfigError, match=f"{method} is not supported: {reason}; use LORA"):
        check_peft({"peft_type": method})


def test_methods_with_virtual_tokens_are_those_of_peft():
    supported = {
        method.value: issubclass(config, PromptLearningConfig)
        for method, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if method.value not in peft_check._REFUSED_METHODS
    }
    assert {method: puts_tokens_before(method) for method in supported} == supported
