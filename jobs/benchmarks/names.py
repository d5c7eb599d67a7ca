"""What tasks, models and subjects of studies are called: in tables, pictures and sentences."""

from collections.abc import Mapping
from typing import Any

TASKS = {
    "sst2": "SST-2", "boolq": "BoolQ", "piqa": "PIQA", "arc_easy": "ARC-easy", "orders": "orders",
}  # fmt: skip
MODELS = {"SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M", "gemma-3-270m.gguf": "Gemma 3 270M"}
IN_TABLES = {
    "base": "base model",
    "human_prompt": "one prompt, written by hand",
    "single_prompt": "one prompt, the best of {selection_prompts} for the base model",
    "bound_prompts": "a dozen, each example bound to one (the official code)",
    "paft_t1": "PAFT, drawn by losses (T = 1)",
    "paft": "**PAFT, drawn uniformly (the paper)**",
    "sft_one_prompt": "right answers, one prompt",
    "sft_pool": "right answers, the pool",
    "grpo_one_prompt": "GRPO, one prompt",
    "grpo_pool": "**GRPO, the pool**",
    "base_best": "base model, the best of 32 prompts",
    "base_ensemble": "base model, 5 prompts that vote",
    "base_optimized": "base model, optimised prompt",
}
"""Label of a subject in a record, and its name; further ones are derived from their labels."""
IN_PICTURES = {
    "base": "base model, not trained",
    "human_prompt": "trained with one prompt, written by hand",
    "single_prompt": "trained with one prompt, the best of 32",
    "bound_prompts": "trained with a dozen prompts, one per example",
    "paft_t1": "trained with PAFT, prompts drawn by losses",
    "paft": "trained with PAFT, a drawn prompt at each step",
    "grpo_pool": "GRPO, the pool",
}
IN_COMPARISONS = {
    "human_prompt": "a person's prompt",
    "single_prompt": "the best of 32 prompts",
    "bound_prompts": "a dozen bound",
    "paft": "PAFT",
    "k_4": "one prompt for four steps",
    "group_dro": "group DRO",
}
_STEPPED = {"paft": "PAFT", "single": "the best of 32 prompts", "dozen": "a dozen bound"}
"""Labels of trainings with so many steps, such as `paft_25`."""
_SIZED = {"bound": "each example bound to one", "drawn": "one drawn at each step"}
"""Labels of trainings with so many prompts, such as `bound_3`."""


def name_of(label: str, names: Mapping[str, str]) -> str:
    """A subject's name; one that the names lack is derived from its label."""
    how, _, number = label.partition("_")
    if how in _SIZED and number.isdigit():
        return f"{number} {'prompt' if number == '1' else 'prompts'}, {_SIZED[how]}"
    if how in _STEPPED and number.isdigit():
        return f"{_STEPPED[how]}, {number} steps"
    return {**IN_TABLES, **names}.get(label, label.replace("_", " "))


def task_of(record: Mapping[str, Any]) -> str:
    """The task of a study."""
    name = str(record["task"])
    return TASKS.get(name, name)


def model_of(record: Mapping[str, Any]) -> str:
    """The model of a study."""
    file = str(record["sources"]["model"]).rpartition("/")[2]
    return MODELS.get(file, file)


def author_of(source: str) -> str:
    """Who wrote a prompt, by the source that a pool names."""
    return "people" if source.startswith("stock:") else MODELS.get(source, source)
