"""What vLLM cannot serve is known before it is started."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from factories import LORA, METHODS
from paft_ray.config.errors import ConfigError
from paft_ray.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from paft_ray.models.vllm_limits import Loras, reason_against, tensor_names

NAMES = [
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
]


def safetensors(names: Sequence[str]) -> bytes:
    header = json.dumps({"__metadata__": {}, **{name: {} for name in names}}).encode()
    return len(header).to_bytes(8, "little") + header + b"..."


def store(folder: Path, settings: dict[str, Any], names: Sequence[str]) -> str:
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    (folder / ADAPTER_WEIGHTS).write_bytes(safetensors(names))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "trained tokens"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 1024}, "not 1024"),
        ({"rank_pattern": {"q_proj": 600}}, "not 600"),
        ({"target_modules": ["q_proj", "lm_head"]}, "output head"),
        ({"peft_type": "IA3"}, "not of IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "not of PROMPT_TUNING"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_adapter_that_vllm_cannot_serve_is_told_with_the_reason(
    changes: dict[str, Any], said: str
) -> None:
    assert said in (reason_against({**LORA, **changes}) or "")


def test_adapter_that_vllm_serves_has_no_reason_against_it() -> None:
    rslora = {**LORA, "use_rslora": True, "alpha_pattern": {"q_proj": 3}}
    for settings in (LORA, rslora, {**LORA, "init_lora_weights": "gaussian", "bias": "none"}):
        assert reason_against(settings, NAMES) is None
    assert [name for name, peft in METHODS.items() if reason_against(peft) is None] == ["LORA"]


def test_tensor_that_vllm_would_not_read_is_named() -> None:
    copy = "base_model.model.lm_head.modules_to_save.weight"
    assert copy in (reason_against(LORA, [*NAMES, copy]) or "")
    assert tensor_names(BytesIO(safetensors([copy, NAMES[0]]))) == [copy, NAMES[0]]


def test_engine_is_made_for_the_ranks_and_modules_of_all_its_adapters(tmp_path: Path) -> None:
    assert Loras.of([]) is None
    down = [name.replace("self_attn.q_proj", "mlp.down_proj") for name in NAMES]
    folders = [
        store(tmp_path / "one", {**LORA, "r": 4}, NAMES),
        store(tmp_path / "two", {**LORA, "r": 2, "rank_pattern": {"down_proj": 9}}, down),
    ]
    assert Loras.of(folders[:1]) == Loras(8, ("q_proj",), 1)
    assert Loras.of(folders) == Loras(16, ("down_proj", "q_proj"), 2)
    copied = store(tmp_path / "three", {**LORA, "use_dora": True}, NAMES)
    with pytest.raises(ConfigError, match=r"three: .*DoRA"):
        Loras.of([*folders, copied])
