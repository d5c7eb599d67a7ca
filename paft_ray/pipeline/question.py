"""The configuration that answers "how brittle is this model?", from a model and some data alone.

It trains nothing, asks with the stock of wordings, scores a part of the grid, and is written to a
file that `paft evaluate` takes.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paft_ray.config import (
    PUBLISHED_TASKS,
    BuiltinTaskConfig,
    Config,
    CustomTaskConfig,
    TrackingConfig,
)
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config, read_yaml, resolve_path
from paft_ray.config.overrides import with_override
from paft_ray.config.task import FREE_TEXT_TASKS
from paft_ray.models.files import ADAPTER_CONFIG, inspect_model
from paft_ray.models.warm_start import read_adapter
from paft_ray.pipeline.behind_url import BehindUrl, subject_behind
from paft_ray.pipeline.preflight import this_machine
from paft_ray.prompts.stock import STOCK
from paft_ray.tasks.guessing import Guess, Said, guess_task
from paft_ray.tracking import named_uri

CONFIG_FILE = "robustness.yaml"
"""Where the configuration is written by default."""
_PROMPTS, _PROMPTS_BY_LLM = 16, 24
_OF_AN_ADAPTER = (
    "rows and wordings that the adapter was trained on are not left out: give rows of a file of "
    "their own, and wordings that it never saw (prompts.files)"
)
_EXAMPLES, _EXAMPLES_WRITTEN = 80, 24
"""Of choices, and of texts that the model writes, which takes far longer."""
_SHARE = 0.4
_LONGEST = 1024
"""Tokens of a question of which more is cut; less where the model was made for less."""
_ASKED = re.compile(r"question|query|problem|goal|claim|statement", re.IGNORECASE)
"""A field that says itself what is wanted."""
_YES_NO = ({"no", "yes"}, {"false", "true"})
_HEAD = """\
# How brittle is {model}?
# Written by `paft robustness`. To measure the same again: paft evaluate {file}
"""


@dataclass(frozen=True, slots=True)
class Question:
    """The arguments of `paft robustness`."""

    model: str
    """Model folder, GGUF file, `pkg:NAME/file.gguf`, hub name, the folder of an adapter, or the URL
    of an OpenAI-compatible server, which is asked for its models and a few tokens at once."""
    data: str
    """What `task.path` takes, or the name of a built-in task, as `sst2` or `sst2=PATH`."""
    said: Said = field(default_factory=Said)
    llm: str | None = None
    """YAML file with an LLM that writes more prompts, or with `prompts.generation`."""
    overrides: tuple[str, ...] = ()
    """`section.field=value`."""
    behind: BehindUrl = field(default_factory=BehindUrl)
    """What is known of a model behind a URL."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """A configuration, and what was guessed for it."""

    config: Config
    notes: tuple[str, ...]
    tree: dict[str, Any]
    """The configuration without defaults."""
    model: str
    """What is measured, for people."""

    def is_in(self, path: str) -> bool:
        """Return whether a file holds this configuration."""
        try:
            return load_config(path) == self.config
        except ConfigError:
            return False

    def refuse_other(self, path: str) -> None:
        """Refuse to replace a file that holds something else.

        Raises:
            ConfigError: It does.
        """
        if Path(path).exists() and not self.is_in(path):
            raise ConfigError(
                f"{path} holds another configuration: keep both by --config NAME.yaml, or pass "
                "--overwrite"
            )

    def write(self, path: str) -> None:
        """Write the configuration to a file, unless it is there.

        Raises:
            ConfigError: The file cannot be written.
        """
        if self.is_in(path):
            return
        text = yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True, width=100)
        head = _HEAD.format(model=self.model, file=path)
        try:
            Path(path).write_text(head + text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror}): name another file by --config"
            ) from error


def ask(question: Question) -> Robustness:
    """The configuration for a question.

    Raises:
        ConfigError: Model, data or columns are not clear, or cannot be used.
        DataError: The rows cannot be read.
    """
    task = builtin_task(question.data, question.said) or guess_task(question.data, question.said)
    model, subjects, notes = _model(question.model, question.behind)
    called = question.model if model else f"{subjects[0]['model']} at {question.model}"
    generation = None if question.llm is None else _generation(question.llm)
    size = _PROMPTS if generation is None else _PROMPTS_BY_LLM
    writes = "grade" in task.section or task.section["name"] in FREE_TEXT_TASKS
    tree: dict[str, Any] = {
        "name": _run_name(question.model if model else subjects[0]["model"], task.section["name"]),
        "task": {**task.section, "test_share": 0.8, **({"overlong": "trim"} if model else {})},
        "prompts": {
            **({} if generation is None else {"generation": generation}),
            "split": {"validation": 0, "test": size},
        },
        **({"model": model} if model else {}),
        "variants": [],
        "evaluation": {
            "examples": _EXAMPLES_WRITTEN if writes else _EXAMPLES,
            "estimate": {"share": _SHARE},
            **({"subjects": subjects} if subjects else {}),
            **({"workers": {"gpus": 1}} if model and this_machine()["GPU"] else {}),
        },
        "tracking": {"type": "mlflow" if named_uri(TrackingConfig())[0] else "none"},
    }
    for override in question.overrides:
        tree = with_override(tree, override)
    notes += task.notes
    if "model" in tree:
        notes += _fit_model(tree, question.model)
    if "files" not in tree["prompts"]:
        stand_in = {**tree, "prompts": {**tree["prompts"], "files": [f"{STOCK}task"]}}
        stock = STOCK + _stock_kind(load_config(stand_in).task, question.said)
        tree["prompts"] = {"files": [stock], **tree["prompts"]}
        notes.append(f"wordings: {stock} (prompts.files), each in a layout of its own")
    return Robustness(load_config(tree), tuple(notes), tree, called)


def _fit_model(tree: dict[str, Any], location: str) -> list[str]:
    """Set the longest question that the model takes; returns what to say of its files."""
    if tree["model"].get("path") is None:
        raise ConfigError(f"{location}/{ADAPTER_CONFIG} names no base model: give model.path=MODEL")
    files = inspect_model(tree["model"]["path"])
    length = min(_LONGEST, files.context_length or _LONGEST)
    tree["task"] = {**tree["task"], "max_length": tree["task"].get("max_length", length)}
    if not files.has_chat_template or "chat_template" in tree["model"]:
        return []
    return ["the model's chat template is not used: model.chat_template=auto asks by it"]


def _model(
    location: str, behind: BehindUrl
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The section `model`, empty for a URL; the subject where it is one; and what was found out."""
    if scheme := re.match(r"https?://", location, re.IGNORECASE):
        url = scheme[0].lower() + location[scheme.end() :]
        subject, notes = subject_behind(url, behind)
        return {}, [subject], notes
    if given := next(behind.options, None):
        raise ConfigError(f"{given}: {location} is no URL of a server; leave it out")
    local = resolve_path(location)
    if local is None or not (local / ADAPTER_CONFIG).is_file():
        return {"path": location}, [], []
    config = read_adapter(location, "MODEL").config
    model = {"path": config.get("base_model_name_or_path")}
    if config.get("revision"):
        model["revision"] = config["revision"]
    return model, [{"type": "adapter", "path": location}], [_OF_AN_ADAPTER]


def builtin_task(data: str, said: Said) -> Guess | None:
    """The section of a built-in task, named as `sst2` or `sst2=PATH`; None for other data.

    Raises:
        ConfigError: Its columns are named, which are known.
    """
    name, equals, path = data.partition("=")
    if name not in PUBLISHED_TASKS or (Path(data).exists() and not equals):
        return None
    if said.options:
        raise ConfigError(
            f"{name} is a built-in task, whose columns are known: leave out {said.options[0]}, or "
            "name a file"
        )
    place = {"path": path} if path else {}
    return Guess({"type": "builtin", "name": name, **place}, ())


def _generation(path: str) -> dict[str, Any]:
    """`prompts.generation` from a file with it, or with one LLM."""
    tree = read_yaml(Path(path))
    return {"llms": [tree]} if "type" in tree else tree


def _stock_kind(task: BuiltinTaskConfig | CustomTaskConfig, said: Said) -> str:
    """The wordings that suit a task.

    Raises:
        ConfigError: Nothing says what the model has to do.
    """
    if said.description is not None and isinstance(task, CustomTaskConfig):
        return "task"
    if (kind := suitable_wordings(task)) is None:
        assert isinstance(task, CustomTaskConfig)
        answers = f" {' or '.join(task.choices)}" if isinstance(task.choices, tuple) else ""
        raise ConfigError(
            f"{task.path}: nothing in its columns says what is to be answered{answers}: give "
            '--description "..." with what the model has to do'
        )
    return kind


def suitable_wordings(task: BuiltinTaskConfig | CustomTaskConfig) -> str | None:
    """The kind of wordings of the stock that suits a task without its description.

    None where nothing else says what the model has to do.
    """
    if isinstance(task, BuiltinTaskConfig):
        return task.name
    asked = any(_ASKED.search(name) for pair in task.fields.items() for name in pair)
    if task.row_choices is not None:
        return "letters" if task.choices_as == "letters" else "text" if asked else "cloze"
    if isinstance(task.choices, tuple):
        if {choice.lower() for choice in task.choices} not in _YES_NO:
            return "choices" if any(map(has_letters, task.choices)) else None
        return "yesno" if asked else None
    return "text" if asked else None


def has_letters(choice: str) -> bool:
    """Return whether a choice can be a word, and is no bare number."""
    return re.search(r"[^\W\d_]", choice) is not None


def _run_name(model: str, task: str) -> str:
    parts = [part for part in re.split(r"[\\/]", model) if part]
    last = parts[-2] if parts[-1:] == ["adapter"] and len(parts) > 1 else "".join(parts[-1:])
    stem = re.sub(r"\.gguf$", "", last, flags=re.IGNORECASE)
    words = re.sub(r"[^a-z0-9]+", "-", f"{stem[:30]}-{task}".lower()).strip("-")
    return f"robustness-{words}"[:63].strip("-")
