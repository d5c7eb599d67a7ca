"""Files of lm-evaluation-harness (0.4.13): a task for each held-out prompt, and a group of all.

`lm_eval --include_path FOLDER --tasks NAME` reads the YAMLs, which name a Python file that reads
the rows. A row holds a finished context, so that no text of a prompt or an example is read as a
template; the chat template, where one is used, is rendered already. Not covered: the end of a
generation, which follows the model's settings.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from paft_ray.tasks import Example, Task

_NO_ANSWER = "[no answer]"
"""Replaces a missing answer in a generated text; equals no answer."""
_CODE = '''"""Read by the YAMLs beside it; written by `paft export --lm-eval`."""

import json
import re
import unicodedata
from pathlib import Path

import datasets


def load(file, **_):
    """The rows of a file beside this one; every text stays as it stands there."""
    with Path(__file__).with_name(file).open(encoding="utf-8") as lines:
        return {{"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}}


def find_answers(responses, _):
    """For each example the answers in what was generated for it."""
    return [[extract_answer(text, {pattern!r}) or {nothing!r} for text in own] for own in responses]


{source}'''
_LOAD = "custom_dataset: !function paft_examples.load\n"
_FILTER = """filter_list:
- name: paft
  filter:
  - function: custom
    filter_fn: !function paft_examples.find_answers
  - function: take_first
"""


@dataclass(frozen=True, slots=True)
class LmEvalTasks:
    """The content of an export for lm-eval."""

    name: str
    """Name of the group, and prefix of its tasks' names."""
    task: Task
    examples: Sequence[Example]
    contexts: Mapping[str, Sequence[tuple[str, str]]]
    """By prompt id, for each example its context and the delimiter before the answer; see
    `TextEncoder.context`."""
    max_new_tokens: int
    """Longest generated answer of a free-text task, in tokens."""
    comment: str
    """Instructions, written as comment lines of the group's file."""
    stop: tuple[str, ...] = ()
    """Texts at which a generated answer ends."""

    def files(self) -> dict[str, bytes]:
        """Return file names and contents."""
        from paft_ray.tasks.grading import extract_answer  # imports torch

        pattern = self.task.answer_pattern
        each_choices = [self.task.choices_of(example) for example in self.examples]
        targets = [
            extract_answer(example.answer, pattern) if choices is None
            else choices.index(example.answer)
            for example, choices in zip(self.examples, each_choices, strict=True)
        ]  # fmt: skip
        source = inspect.getsource(extract_answer)
        files = {
            f"{self.name}.yaml": self._group(),
            "paft_examples.py": _CODE.format(pattern=pattern, nothing=_NO_ANSWER, source=source),
        }
        for prompt_id, contexts in self.contexts.items():
            rows = [
                {
                    "id": example.id,
                    "context": context,
                    "target": target,
                    **({} if self.task.choices_as is None else {"choices": choices}),
                }
                for example, (context, _), target, choices in zip(
                    self.examples, contexts, targets, each_choices, strict=True
                )
            ]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            files[f"prompt_{prompt_id}.jsonl"] = "".join(lines)
            files[f"prompt_{prompt_id}.yaml"] = self._prompt(prompt_id, contexts)
        return {name: text.encode() for name, text in files.items()}

    def _metrics(self, **more: Any) -> list[dict[str, Any]]:
        names = ("exact_match",) if not self.task.has_choices else ("acc", "acc_norm")
        return [{"metric": name, "aggregation": "mean", **more} for name in names]

    def _group(self) -> str:
        comment = "".join(f"# {line}".rstrip() + "\n" for line in self.comment.splitlines())
        group = {
            "group": self.name,
            "task": [f"{self.name}_{prompt_id}" for prompt_id in self.contexts],
            "aggregate_metric_list": self._metrics(
                filter_list=["none" if self.task.has_choices else "paft"]
            ),
            "metadata": {"version": 1},
        }
        return comment + _yaml(group)

    def _prompt(self, prompt_id: str, contexts: Sequence[tuple[str, str]]) -> str:
        # those of a row stand in a column
        choices = "choices" if self.task.choices_as else list(self.task.choices or ())
        task = {
            "task": f"{self.name}_{prompt_id}",
            "dataset_kwargs": {"file": f"prompt_{prompt_id}.jsonl"},
            "test_split": "test",
            "num_fewshot": 0,
            # names of columns, whose values lm-eval does not render
            "doc_to_text": "context",
            "doc_to_target": "target",
            # lm-eval has one for all rows; ours differ where only some contexts end a line
            "target_delimiter": max((delimiter for _, delimiter in contexts), default=" "),
            "metric_list": self._metrics(higher_is_better=True),
            "metadata": {"version": 1},
        }
        if self.task.has_choices:
            more = {"output_type": "multiple_choice", "doc_to_choice": choices}
            return _yaml({**task, **more}) + _LOAD
        settings = {
            "until": list(self.stop),
            "do_sample": False,
            "max_gen_toks": self.max_new_tokens,
        }
        more = {"output_type": "generate_until", "generation_kwargs": settings}
        return _yaml({**task, **more}) + _LOAD + _FILTER


def _yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
