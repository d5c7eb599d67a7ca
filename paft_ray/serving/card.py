"""The model card of a training, in the form of Hugging Face: its sources, use and figures.

It is written with the adapter, after an evaluation, and with every export; no manifest lists it, so
that figures can be added.
"""

import importlib.metadata
import importlib.resources
import json
from dataclasses import dataclass
from typing import Literal

import yaml

from paft_ray.config import Config
from paft_ray.config.loading import dump_config, resolve_path
from paft_ray.config.visible import markdown, markdown_block, markdown_code, visible
from paft_ray.models.gguf_header import is_gguf
from paft_ray.prompts.template import parse
from paft_ray.serving.folder import input_columns
from paft_ray.serving.record import TrainingRecord
from paft_ray.tasks import Task

CARD = "README.md"
Form = Literal["adapter", "merged", "pyfunc", "model"]
"""Kind of model that the card describes; `model` has all weights, trained without an adapter."""

_PACKAGES = ("paft_ray", "torch", "transformers", "peft", "deepspeed", "ray")
_PRIVATE = ("storage", "tracking", "name")
"""Sections of the configuration that the card leaves out."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures on held-out prompts, as the report's table shows them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Name of a model, then a figure per column."""
    prompts: int
    examples: int
    note: str = ""
    """A sentence about how answers were scored."""


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that training uses."""
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
    """Return the card of a training as Markdown with a YAML header.

    `identity` is the training's fingerprint; `evaluation` has the run's figures, if there are any.
    """
    import jinja2

    assert record.prompt is not None  # by the callers: older trainings have no card
    tree = dump_config(config)
    path = config.model.path
    local = resolve_path(path)
    base = path if local is None else local.name
    source = importlib.resources.files("paft_ray.serving").joinpath("card.md.j2").read_text("utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "tojson": lambda value: json.dumps(value, ensure_ascii=False),
        "text": markdown,
        "code": markdown_code,
        "block": lambda text, language: markdown_block(text.strip("\n"), language),
    }
    text_column, prompt_column = input_columns(task.slots)
    shown = {key: value for key, value in tree.items() if key not in _PRIVATE}
    text = environment.from_string(source).render(
        header=_header(task, base, form),
        title=f"{base} for {task.name}: {record.variant}",
        form=form,
        base=base,
        path=path,
        relative=local is not None and not path.startswith("pkg:") and not local.is_absolute(),
        revision=config.model.revision,
        quantized=config.model.quantization != "none",
        needs_conversion=local is not None and is_gguf(local),
        method=(config.model.peft or {}).get("peft_type", "full fine-tuning"),
        task=task,
        prompt=record.prompt.text,
        fields={slot: f"(your {slot})" for slot in task.slots},
        parts=list(parse(record.prompt.text, task.slots).parts),
        text_column=text_column,
        prompt_column=prompt_column,
        new_tokens=16 if task.has_choices else config.evaluation.max_new_tokens,
        config=tree,
        record=record,
        identity=identity,
        versions=", ".join(f"{name} {v}" for name, v in record.versions.items()),
        evaluation=evaluation,
        tree=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip(),
    )
    return visible(text.rstrip()) + "\n"


def _header(task: Task, base: str, form: Form) -> str:
    header = {
        "base_model": base,
        "library_name": "peft" if form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["paft", "prompt-robustness", task.name],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()
