"""The model card of a training, in the Hugging Face form: what it was made of, and how to use it.

Written when the adapter is, again when an evaluation is complete, and with every export; it is no
part of a manifest, so that figures can be added. Texts of others (a task's description, prompts)
stand in it as they are, inside JSON where they are code.
"""

import importlib.metadata
import importlib.resources
import json
from dataclasses import dataclass
from typing import Literal

import yaml

from paft_ray.config import Config
from paft_ray.config.loading import dump_config, resolve_path
from paft_ray.serving.folder import input_columns
from paft_ray.serving.record import TrainingRecord
from paft_ray.tasks import Task

CARD = "README.md"
Form = Literal["adapter", "merged", "pyfunc", "model"]
"""What lies beside a card; `model` is all weights of a training without an adapter."""

_PACKAGES = ("paft_ray", "torch", "transformers", "peft", "deepspeed", "ray")
_UNTOLD = ("storage", "tracking", "name")
"""Where things lie and are recorded is nobody else's business."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures on held-out prompts, as the report's table shows them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The model's name, then a figure per column."""
    prompts: int
    examples: int


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a training rests on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            continue
    return versions


def render_card(
    config: Config,
    task: Task,
    identity: str,
    record: TrainingRecord,
    evaluation: Evaluation | None = None,
    form: Form = "adapter",
) -> str:
    """The card as Markdown with a YAML header.

    Args:
        config: The run's.
        task: What was trained on.
        identity: The training's fingerprint.
        record: From the training's manifest.
        evaluation: Figures of the whole run, where it is evaluated.
        form: What lies beside the card.
    """
    import jinja2

    tree = dump_config(config)
    path = config.model.path
    local = resolve_path(path)
    base = path if local is None else local.name
    source = importlib.resources.files("paft_ray.serving").joinpath("card.md.j2").read_text("utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    assert record.prompt is not None  # the caller has looked: older trainings have no card
    text_column, prompt_column = input_columns(task.slots)
    told = {key: value for key, value in tree.items() if key not in _UNTOLD}
    text = environment.from_string(source).render(
        header=_header(task, base, form),
        title=f"{base} for {task.name}: {record.variant}",
        form=form,
        base=base,
        path=path,
        revision=config.model.revision,
        needs_conversion=local is not None and local.suffix.lower() == ".gguf",
        method=(config.model.peft or {}).get("peft_type", "full fine-tuning"),
        task={
            "name": task.name,
            "description": task.description,
            "choices": task.choices,
            **{split: len(task.examples(split)) for split in ("train", "validation", "test")},
        },
        prompt=record.prompt.text,
        fields={slot: f"(your {slot})" for slot in task.slots},
        text_column=text_column,
        prompt_column=prompt_column,
        new_tokens=16 if task.choices else config.evaluation.max_new_tokens,
        config=tree,
        record=record,
        identity=identity,
        verified=record.verified,
        versions=record.versions,
        shown_versions=", ".join(f"{name} {v}" for name, v in record.versions.items()),
        columns=("model", *evaluation.columns) if evaluation else (),
        rows=evaluation.rows if evaluation else (),
        evaluated=f"{evaluation.prompts} held-out prompts x {evaluation.examples} test examples"
        if evaluation
        else "",
        tree=yaml.safe_dump(told, sort_keys=False, allow_unicode=True).strip(),
    )
    return text.rstrip() + "\n"


def _header(task: Task, base: str, form: Form) -> str:
    header = {
        "base_model": base,
        "library_name": "peft" if form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["paft", "prompt-robustness", task.name],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()
