"""What vLLM cannot serve, or where it is not, is refused before anything is started."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from smollm import write_lora

from factories import LORA, METHODS, run_config, write_prompts
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.preflight import preflight

TEXTS = [
    "Review: {review}\nLabel:",
    "{review} ->",
    "Text: {review}\nSentiment:",
    "{review} || mood ||",
]
VLLM = {"backend": {"type": "vllm"}}
TRANSFORMERS = {"backend": {"type": "transformers"}}
MISSING = importlib.util.find_spec("vllm") is None


@pytest.fixture
def load(
    tmp_path: Path, tiny_model: Path, review_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prompts = write_prompts(tmp_path / "prompts.jsonl", TEXTS)

    def make(**changes: Any) -> Config:
        evaluation = VLLM | changes.pop("evaluation", {})
        task = {"max_length": 200, **changes.pop("task", {})}
        sources = {"files": [str(prompts)], "split": {"validation": 1, "test": 1}}
        return load_config(
            run_config(
                tiny_model, review_file, tmp_path / "storage", task=task, evaluation=evaluation,
                **{"prompts": sources, "variants": [{"type": "paft"}], **changes},
            )
        )  # fmt: skip

    return make


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"quantization": "nf4"}}, ["model.quantization: nf4", "type: transformers"]),
        ({"model": {"peft": None}}, ["model.peft: null", "subject of type model"]),
        ({"model": {"peft": METHODS["IA3"]}}, ["model.peft", "not of IA3"]),
        ({"model": {"peft": METHODS["PROMPT_TUNING"]}}, ["model.peft", "not of PROMPT_TUNING"]),
        ({"model": {"peft": {**LORA, "use_dora": True}}}, ["model.peft", "DoRA"]),
        ({"task": {"max_length": 512}}, ["task.max_length: 512", "513 tokens", "lower it"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_vllm_cannot_work_with_are_refused(
    changes: dict[str, Any], said: list[str], load: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(load(**changes))
    assert all(text in str(caught.value) for text in said), caught.value
    plain = {**changes, "evaluation": {"backend": {"type": "transformers"}}}
    preflight(load(**plain))


def reinforced(backend: str, **train: Any) -> dict[str, Any]:
    """`train` of a training whose rollouts something writes."""
    objective = {
        "type": "grpo", "rollouts": 2, "max_new_tokens": 8, "rewards": [{"type": "exact"}],
        "backend": {"type": backend},
    }  # fmt: skip
    return {"objective": objective, **train}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"quantization": "nf4"}}, ["model.quantization: nf4", "plain weights"]),
        ({"model": {"peft": None}}, ["model.peft: null", "LoRA adapters"]),
        ({"model": {"peft": METHODS["IA3"]}}, ["model.peft", "not of IA3"]),
        ({"model": {"peft": {**LORA, "use_dora": True}}}, ["model.peft", "DoRA"]),
        ({"train": {"deterministic": True}}, ["train.deterministic", "leave it out"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_training_whose_rollouts_vllm_cannot_write_is_refused(
    changes: dict[str, Any], said: list[str], load: Callable[..., Config]
) -> None:
    more = changes.get("train", {})
    with pytest.raises(ConfigError) as caught:
        preflight(load(evaluation=TRANSFORMERS, **{**changes, "train": reinforced("vllm", **more)}))
    said = [*said, "train.objective.backend", "type: transformers"]
    assert all(text in str(caught.value) for text in said), caught.value
    own = reinforced("transformers", **more)
    preflight(load(evaluation=TRANSFORMERS, **{**changes, "train": own}))


def test_variant_whose_own_objective_has_the_backend_is_refused_too(
    load: Callable[..., Config],
) -> None:
    variants = [{"type": "paft"}, {"type": "paft", "name": "r", "train": reinforced("vllm")}]
    with pytest.raises(ConfigError, match=r"model\.peft.*train\.objective\.backend.*not of IA3"):
        preflight(load(evaluation=TRANSFORMERS, variants=variants, model={"peft": METHODS["IA3"]}))


def test_adapter_under_subjects_that_vllm_cannot_serve_is_refused_by_name(
    load: Callable[..., Config], tmp_path: Path, tiny_model: Path
) -> None:
    peft = {**LORA, "modules_to_save": ["lm_head"]}
    folder = write_lora(str(tiny_model), tmp_path / "copy", peft)
    subjects = [{"type": "adapter", "name": "copy", "path": folder}]
    with pytest.raises(ConfigError, match=r"evaluation\.subjects\.0\.path.*modules_to_save"):
        preflight(load(variants=[], evaluation={"subjects": subjects}))


@pytest.mark.skipif(not MISSING, reason="vLLM is installed here")
def test_vllm_that_is_not_installed_is_refused_and_a_plan_only_says_so(
    load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.backend: .*pip install 'paft_ray\[vllm\]'"):
        preflight(load())
    author = {"generation": {"llms": [{"type": "vllm", "path": "owner/model", "gpus": 0}]}}
    with pytest.raises(ConfigError, match=r"train\.objective\.backend: type vllm"):
        preflight(load(evaluation=TRANSFORMERS, train=reinforced("vllm")))
    config = load(prompts=author, evaluation=TRANSFORMERS)
    with pytest.raises(ConfigError, match=r"prompts\.generation\.llms\.0: type vllm"):
        preflight(config)
    [warning] = [text for text in preflight(config, planning=True).warnings if "vllm" in text]
    assert warning.startswith("this cannot run here: prompts.generation.llms.0")
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # a cluster's nodes may have it
    preflight(config)


def test_memory_of_an_actor_is_its_share_of_the_gpu(load: Callable[..., Config]) -> None:
    backend: Any = load().evaluation.backend
    assert [backend.memory_of(gpus) for gpus in (1, 0.5)] == [0.9, 0.45]
    backend = load(evaluation={"backend": {"type": "vllm", "memory": 0.3}}).evaluation.backend
    assert backend.memory_of(1) == 0.3
