"""Candidates that vLLM writes in a Ray Data actor on CPUs."""

from pathlib import Path

import pytest

from paft_ray.config import GenerationConfig
from paft_ray.prompts.generate.llm import llm_key
from paft_ray.prompts.generate.requests import RequestBook
from paft_ray.prompts.generate.results import costs, parse_unit
from paft_ray.prompts.generate.runner import generate
from paft_ray.prompts.pool import Candidate
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import Task


@pytest.mark.vllm
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(560)
def test_vllm_writes_candidates_without_a_gpu(smollm: str, tmp_path: Path) -> None:
    llm = {"type": "vllm", "path": smollm, "gpus": 0, "cpus": 2, "max_tokens": 32, "cache_gb": 1}
    config = GenerationConfig.model_validate(
        {"llms": [{**llm, "dtype": "float32"}], "form": "instruction", "per_llm": 16}
    )
    assert config.llms[0].actor_pool == (1, 2.0, 0.0)
    task = Task(
        "reviews", "Say whether a film review is positive or negative.", ("review",), {},
        ("positive", "negative"), (), (), (),
    )  # fmt: skip
    book = RequestBook(task, config, 0, (llm_key(config.llms[0]),))
    with SilentScreen().stage("generate") as stage:
        generated = generate(book, Storage.open(str(tmp_path)), stage)
    entries = [entry for unit in generated.tallies for entry in parse_unit(generated, unit)]
    assert len(entries) == 32
    candidates = [entry for entry in entries if isinstance(entry, Candidate)]
    assert len({candidate.text for candidate in candidates}) > 8  # a small model, unled
    [row] = costs(generated)
    assert (row["answered"], row["failed"]) == (32, 0)
    assert 32 <= row["completion_tokens"] <= 32 * 32
