"""`paft train` on two workers, in each of which vLLM writes the rollouts of two trainings."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from factories import run_config, write_prompts
from paft_ray.cli import call
from paft_ray.storage.paths import Storage
from paft_ray.training.reinforcement.kept import FOLDER

pytestmark = [
    pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster", "warm_checks"),
    pytest.mark.timeout(560),
]  # fmt: skip
TEXTS = [
    "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
    "Text: {review}\nSentiment:", "How does this feel? {review} ->",
]  # fmt: skip
GRADER = "def score(fields, answer, text):\n    return len(text) % 2\n"


def test_two_trainings_on_two_workers_learn_from_what_vllm_writes_in_them(
    smollm: str, review_file: Path, tmp_path: Path
) -> None:
    grader = tmp_path / "rewards.py"
    grader.write_text(GRADER, encoding="utf-8")
    objective = {
        "type": "grpo", "rollouts": 4, "prompts_per_question": 2, "max_new_tokens": 5,
        "truncated": "keep", "rewards": [{"type": "python", "path": f"{grader}:score"}],
        "backend": {"type": "vllm", "cache_gb": 0.2},
    }  # fmt: skip
    tree = run_config(
        smollm, review_file, tmp_path / "storage",
        task={"max_length": 96},
        prompts={
            "files": [str(write_prompts(tmp_path / "prompts.jsonl", TEXTS))],
            "split": {"validation": 0, "test": 1},
        },
        train={
            "steps": 3, "batch_size": 8, "row_tokens": 256, "objective": objective,
            "workers": {"num": 2, "cpus": 1}, "checkpoint": {"every_steps": 2},
        },
        variants=[{"type": "paft"}, {"type": "single_prompt", "prompt": TEXTS[0]}],
        tracking={"type": "none"},
    )  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tree), encoding="utf-8")
    assert call(["train", str(config)]) == 0
    folders = sorted((tmp_path / "storage/runs/small/training").iterdir())
    assert len(folders) == 2
    for folder in folders:
        written = Storage.open(str(folder)).child(FOLDER)
        tables = [written.read_table(name) for name in sorted(written.names())]
        rows = pa.concat_tables(tables).to_pylist()
        assert [(row["step"], row["slot"]) for row in rows] == [
            (step, slot) for step in range(3) for slot in range(8)
        ]
        assert len({row["text"] for row in rows}) > 12
        assert any(row["weight"] for row in rows)
        assert (folder / "adapter/adapter_model.safetensors").exists()
