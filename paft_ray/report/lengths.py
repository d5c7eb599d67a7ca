"""Sentences about how long trainings were, and by what they were ended."""

from collections.abc import Mapping
from typing import Any

from paft_ray.evaluation.cost_figures import TRAINED_ROLLOUT_TOKENS, TRAINED_SECONDS, TRAINED_TOKENS
from paft_ray.report.tables import display_name, span


def chosen_steps(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Sentences about trainings of which validation chose the weights, or the length."""
    models = {k: m for k, m in summary["models"].items() if "saved_steps" in m}
    sentences = []
    if any(model["saved_steps"] != model["steps_by_seed"] for model in models.values()):
        way = next(iter(models.values()))["chosen_by"]
        sentences.append(f"weights are those of each training's best step, by the {way}.")
    every = {steps for model in models.values() for steps in model["steps_by_seed"]}
    planned = max((model["planned_steps"] for model in models.values()), default=0)
    if every and min(every) < planned:
        ended = f"train.validation.patience ended trainings before step {planned}"
        lengths = ", ".join(
            f"{display_name(label, names)} {span(model['steps_by_seed'])}"
            for label, model in models.items()
        )
        sentences.append(
            f"{ended}: they differ in their steps ({lengths}), and differences between variants "
            "are partly due to that."
            if len(every) > 1
            else f"{ended}, all of them after step {min(every)}."
        )
    return sentences


def trained_otherwise(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """A sentence about trainings that do not read as much as each other by their settings."""
    models = {k: m for k, m in summary["models"].items() if m.get("steps")}
    wrote = {k for k, m in models.items() if TRAINED_ROLLOUT_TOKENS.read(m) is not None}
    planned = {m.get("planned_steps", m["steps"]) for m in models.values()}
    if len(models) < 2 or (len(planned) == 1 and len(wrote) in (0, len(models))):
        return []
    spent = []
    for label, model in models.items():
        parts = [f"{model['steps']:,.0f} steps", f"{TRAINED_TOKENS.read(model):,.0f} tokens read"]
        if label in wrote:
            parts.append(f"{TRAINED_ROLLOUT_TOKENS.read(model):,.0f} tokens written")
        parts.append(f"{TRAINED_SECONDS.read(model):,.0f} s")
        spent.append(f"{display_name(label, names)} {', '.join(parts)}")
    return [
        f"trainings differ in their steps and in what they read and wrote ({'; '.join(spent)}), so "
        "that differences between them are partly due to that."
    ]
