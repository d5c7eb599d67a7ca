"""The table of inputs that people bring: its rows, the small world of each, and its judgement.

The table is in `*.yaml` beside this module, one file per section, one list of rows per kind. A row
says what is brought and what its user would be content with:

    id: a name; with the kind's it is the test's
    item: the issue's item that it belongs to, where there is one
    files: name -> description, see `input_files`
    config: changes of the configuration's tree
    set: overrides
    args: the whole command line, in place of the usual `VERB config.yaml OVERRIDES`
    verb: `plan` by default
    env: variables; null removes one
    world: `stored` for a copy of the run that an earlier version stored
    want: accepted (exit 0), refused (exit 2), failed (exit 1), either (accepted or refused)
    words: what a refusal or failure says, in any order
    says: what an accepted command prints
    shows: dotted path -> value in what `--print-config` prints
    holds: texts among the fields or answers of the task's examples
    examples: how many there are
    never: what must not be printed
    answer, llm, calls: see `endpoints.yaml`; lock: see `locks.yaml`

In texts, HERE is the row's folder, MODEL the tiny model, CONFIG the usual configuration, NAME300 a
name of 300 letters, HALF a byte that is no UTF-8.
"""

import copy
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from input_files import write_file

from factories import run_config, write_prompts, write_reviews
from paft_ray.config import CustomTaskConfig

HERE = Path(__file__).parent
STORED = HERE.parent / "fixtures" / "stored_run"
TEXTS = [
    f"{lead} {{review}}\nLabel:"
    for lead in ("Judge this review:", "Say how the film was:", "Name the mood:", "Is it liked?")
]
MOST_LINES = 3
EXIT = {"accepted": [0], "refused": [2], "failed": [1], "either": [0, 2]}
RAW_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One input, and what its user would be content with."""

    section: str
    kind: str
    id: str
    want: Literal["accepted", "refused", "failed", "either"]
    item: int | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    set: tuple[str, ...] = ()
    args: tuple[str, ...] | None = None
    verb: str = "plan"
    env: Mapping[str, str | None] = field(default_factory=dict)
    world: str = "small"
    words: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    shows: Mapping[str, Any] = field(default_factory=dict)
    holds: tuple[str, ...] = ()
    examples: int | None = None
    never: tuple[str, ...] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)
    """Of an endpoint, see `odd_endpoint`."""
    llm: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the LLM at that endpoint."""
    calls: int | None = None
    """Requests that come to it."""
    lock: str = ""
    """What a lock's file holds, see `locks.yaml`."""

    @property
    def name(self) -> str:
        """The test's name."""
        return f"{self.section}: {self.kind}: {self.id}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


@cache
def read_rows() -> list[Row]:
    """The whole table."""
    rows = []
    for path in sorted(HERE.glob("*.yaml")):
        kinds = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        for kind, entries in kinds.items():
            rows += [_row(path.stem, kind, entry) for entry in entries]
    return rows


def _row(section: str, kind: str, entry: dict[str, Any]) -> Row:
    listed = {f.name for f in fields(Row) if str(f.type).startswith("tuple")}
    entry = {k: tuple(map(str, v)) if k in listed else v for k, v in entry.items()}
    return Row(section=section, kind=kind, **entry)


@dataclass(frozen=True, slots=True)
class World:
    """The folder in which a row's command runs."""

    folder: Path
    tiny_model: Path

    def build(self, row: Row) -> None:
        """Write what the row brings; the configuration comes last but for files of the row."""
        (self.folder / "home").mkdir(parents=True)
        if row.world == "stored":
            shutil.copytree(STORED, self.folder, dirs_exist_ok=True)
            if "answer_end" in CustomTaskConfig.model_fields:  # that version scored no end
                for path in self.folder.glob("*.yaml"):
                    text = path.read_text(encoding="utf-8")
                    text = text.replace("\ntask:\n", "\ntask:\n  answer_end: ignored\n")
                    path.write_text(text, encoding="utf-8")
        else:
            write_reviews(self.folder / "reviews.jsonl")
            write_prompts(self.folder / "prompts.jsonl", TEXTS)
        here = self.filled({"changes": row.config})["changes"]
        config = yaml.safe_dump(_merged(self._usual(), here), allow_unicode=True)
        if row.world != "stored":
            (self.folder / "config.yaml").write_text(config, encoding="utf-8")
        for name, about in self.filled(row.files).items():
            if isinstance(about, str):
                about = about.replace("CONFIG", config)
            elif "text" in about:
                about = {**about, "text": about["text"].replace("CONFIG", config)}
            write_file(self.folder / name, about, self.tiny_model)

    def _usual(self) -> dict[str, Any]:
        config = run_config(self.tiny_model, self.folder / "reviews.jsonl", self.folder / "storage")
        config["task"]["max_length"] = 200
        return config

    def arguments(self, row: Row, *options: str) -> list[str]:
        """The command line of a row."""
        usual = [row.verb, "from-files.yaml" if row.world == "stored" else "config.yaml", *row.set]
        return [self.text(word) for word in (usual if row.args is None else row.args)] + list(
            options
        )

    def environment(self, row: Row) -> dict[str, str | None]:
        """The variables that a row sets or removes."""
        own = {key: value and self.text(value) for key, value in row.env.items()}
        away = dict.fromkeys(("RAY_ADDRESS", "PAFT_TEST_KEY", "MLFLOW_TRACKING_URI"))
        return {"HOME": str(self.folder / "home"), "CUDA_VISIBLE_DEVICES": "", **away, **own}

    def text(self, text: str) -> str:
        """A text of the table with its placeholders filled in."""
        text = text.replace("HERE", str(self.folder)).replace("MODEL", str(self.tiny_model))
        return text.replace("NAME300", "n" * 300).replace("HALF", "\udce4")

    def filled(self, node: Any) -> Any:
        """A tree of the table, likewise."""
        if isinstance(node, str):
            return self.text(node)
        if isinstance(node, Mapping):
            return {self.filled(key): self.filled(value) for key, value in node.items()}
        return [self.filled(value) for value in node] if isinstance(node, list) else node

    def content(self) -> dict[str, Any]:
        """All that is in the folder: links, folders, and files with their content."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.rglob("*")):
            name = os.fsdecode(os.fsencode(path.relative_to(self.folder)))
            if path.is_symlink():
                found[name] = ("link", str(path.readlink()))
            else:
                found[name] = path.read_bytes() if path.is_file() else None
        return found


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(tree))
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        elif value == "LEFT OUT":
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def judge(row: Row, world: World, outcome: Outcome) -> list[str]:
    """What the row's user would not be content with."""
    printed = outcome.out + outcome.err
    faults = []
    if outcome.code not in EXIT[row.want]:
        faults.append(f"exit code {outcome.code}, not {EXIT[row.want]}")
    if "Traceback" in printed:
        faults.append("a traceback")
    if raw := RAW_CONTROL.search(printed):
        faults.append(f"the control character {raw[0]!r}")
    faults += [f"shows {text!r}" for text in map(world.text, row.never) if text in printed]
    if outcome.code == 0:
        faults += [f"does not say {text!r}" for text in map(world.text, row.says)
                   if text not in printed]  # fmt: skip
    else:
        lines = outcome.err.strip().splitlines()
        if outcome.code == 2 and len(lines) > MOST_LINES:
            faults.append(f"{len(lines)} lines")
        plain = " ".join(outcome.err.split())
        faults += [f"does not say {text!r}" for text in map(world.text, row.words)
                   if text not in plain]  # fmt: skip
    return faults
