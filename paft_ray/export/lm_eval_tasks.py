"""Held-out prompts as tasks of lm-evaluation-harness: files whose content is returned, not written.

A folder of them needs nothing else: `lm_eval --include_path FOLDER --tasks NAME` reads the YAMLs,
and these name the Python file beside them, which reads the examples beside it. Written against
lm-eval 0.4.13.

Covered: a task for each prompt, a group of them all, choices and free text, examples that had to
be cut for a prompt. Not covered: the chat template, which lm-eval applies itself when it is told to
(`--apply_chat_template`), and the end of a generation, which follows the model's own settings.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from paft_ray.prompts.pool import Prompt
from paft_ray.prompts.template import Template, parse
from paft_ray.tasks import Example, Task

FILTER = "paft"
"""Name of the filter that finds the answer in a generated text."""
_EXAMPLES = "examples.jsonl"
_CODE = "paft_examples"
_NO_ANSWER = "[no answer]"
"""Stands for a generated text without an answer, and equals none."""
_LOAD = '''"""Read by the YAMLs beside it; written by `paft export --lm-eval`."""

import json
import re
from pathlib import Path

import datasets


def load(file, **_):
    """The examples of a file beside this one; every text stays as it stands there."""
    with Path(__file__).with_name(file).open(encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
'''
_FIND = '''

def find_answers(responses, _):
    """For each example the answers in what was generated for it."""
    return [[extract_answer(text, {pattern!r}) or {nothing!r} for text in own] for own in responses]


{source}'''


@dataclass(frozen=True, slots=True)
class LmEvalTasks:
    """What is written down for lm-eval."""

    name: str
    """The group's name, with which the names of its tasks begin."""
    task: Task
    prompts: Sequence[Prompt]
    examples: Sequence[Example]
    cut: Mapping[str, Sequence[Example]]
    """By prompt the same examples with shorter fields, where some had to be cut to fit."""
    max_new_tokens: int
    """Longest generated answer of a free-text task, in tokens."""
    comment: str
    """How to run them: comment lines of the group's file."""

    def files(self) -> dict[str, bytes]:
        """File names to contents.

        Raises:
            TemplateError: There is no field for a slot of a prompt.
        """
        files = {f"{self.name}.yaml": self._group(), f"{_CODE}.py": self._code()}
        files[_EXAMPLES] = _lines(self.task, self.examples)
        for prompt in self.prompts:
            data = _EXAMPLES
            if prompt.id in self.cut:
                data = f"examples_{prompt.id}.jsonl"
                files[data] = _lines(self.task, self.cut[prompt.id])
            files[f"prompt_{prompt.id}.yaml"] = self._prompt(prompt, data)
        return {name: text.encode() for name, text in files.items()}

    @property
    def metrics(self) -> tuple[str, ...]:
        """lm-eval's names of what is measured."""
        return ("exact_match",) if self.task.choices is None else ("acc", "acc_norm")

    def _group(self) -> str:
        filtered = FILTER if self.task.choices is None else "none"
        group = {
            "group": self.name,
            "task": [self._name_of(prompt) for prompt in self.prompts],
            "aggregate_metric_list": [
                {"metric": metric, "aggregation": "mean", "filter_list": [filtered]}
                for metric in self.metrics
            ],
            "metadata": {"version": 1},
        }
        comment = "".join(f"# {line}".rstrip() + "\n" for line in self.comment.splitlines())
        return comment + _yaml(group)

    def _prompt(self, prompt: Prompt, data: str) -> str:
        template, delimiter = jinja(parse(prompt.text, self.task.slots))
        task = {
            "task": self._name_of(prompt),
            "custom_dataset": _Function(f"{_CODE}.load"),
            "dataset_kwargs": {"file": data},
            "test_split": "test",
            "num_fewshot": 0,
            "doc_to_text": template,
            "target_delimiter": delimiter,
            **(self._free_text() if self.task.choices is None else self._choices()),
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in self.metrics
            ],
            "metadata": {"version": 1},
        }
        return _yaml(task)

    def _choices(self) -> dict[str, Any]:
        return {
            "output_type": "multiple_choice",
            "doc_to_choice": list(self.task.choices or ()),
            "doc_to_target": "target",
        }

    def _free_text(self) -> dict[str, Any]:
        answers = {"function": "custom", "filter_fn": _Function(f"{_CODE}.find_answers")}
        return {
            "output_type": "generate_until",
            "doc_to_target": "target",
            "generation_kwargs": {
                "until": [], "do_sample": False, "max_gen_toks": self.max_new_tokens
            },
            "filter_list": [{"name": FILTER, "filter": [answers, {"function": "take_first"}]}],
        }  # fmt: skip

    def _name_of(self, prompt: Prompt) -> str:
        return f"{self.name}_{prompt.id}"

    def _code(self) -> str:
        if self.task.choices is not None:
            return _LOAD.replace("import re\n", "")
        return _LOAD + _FIND.format(
            pattern=self.task.answer_pattern,
            nothing=_NO_ANSWER,
            source=inspect.getsource(_extract_answer()),
        )


def jinja(template: Template) -> tuple[str, str]:
    """A template of ours as one of jinja over `fields`, and the delimiter before the answer.

    It renders to the context as `TextEncoder` encodes it without a chat template: byte for byte
    the text, but for trailing spaces, of which the delimiter puts one before the answer. Whatever
    means something to jinja is put as a string, fields are values, which jinja does not read.
    """
    *parts, last = template.parts
    last = last.rstrip(" ")
    texts = [
        f"{{{{ fields[{json.dumps(part)}] }}}}" if index % 2 else _literal(part)
        for index, part in enumerate([*parts, last])
    ]
    text = "".join(texts)
    if not last and parts:  # then it is for the field to say where the text ends
        text = "{% set text %}" + text + '{% endset %}{{ text.rstrip(" ") }}'
    return text, "" if last.endswith("\n") else " "


def _literal(text: str) -> str:
    """Jinja would read an opening brace, and makes a carriage return a line end."""
    return re.sub(r"[{\r]", lambda found: "{{ " + json.dumps(found[0]) + " }}", text)


def _lines(task: Task, examples: Sequence[Example]) -> str:
    rows = [
        {"id": example.id, "fields": dict(example.fields), "target": _target(task, example)}
        for example in examples
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _target(task: Task, example: Example) -> int | str:
    """Place of the right choice, or the answer in the form in which answers are compared."""
    if task.choices is not None:
        return task.choices.index(example.answer)
    return _extract_answer()(example.answer, task.answer_pattern)


def _extract_answer() -> Any:
    from paft_ray.tasks.grading import extract_answer  # imports torch

    return extract_answer


class _Function(str):
    """A function that lm-eval imports from a file beside the YAML."""


class _Dumper(yaml.SafeDumper):
    """Knows `_Function`, and repeats nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Function, lambda dumper, name: dumper.represent_scalar("!function", str(name))
)


def _yaml(tree: Mapping[str, Any]) -> str:
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
