"""An adapter that peft trained elsewhere: the same row in process and behind real servers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from smollm import train_lora, transformers_server, vllm_server

from factories import run_config, write_prompts
from paft_ray.cli import call

pytestmark = [
    pytest.mark.usefixtures("ray_cluster", "warm_checks"), pytest.mark.timeout(560),
]  # fmt: skip
TEXTS = [
    "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
    "Text: {review}\nSentiment:", "How does this feel? {review} ->",
]  # fmt: skip
EXAMPLES = 12
Rows = dict[str, list[dict[str, Any]]]
"""Scores by subject, in the order of prompts and examples."""


@pytest.fixture(scope="module")
def trained(smollm: str, review_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that has learned some of the task, under two of the prompts."""
    rows = [json.loads(line) for line in review_file.read_text("utf-8").splitlines()]
    pairs = [
        (TEXTS[number // 2 % 2].format(review=row["review"]), f" {row['label']}")
        for number, row in enumerate(rows[:96])
    ]
    batches = [pairs[start : start + 8] for start in range(0, len(pairs), 8)]
    return train_lora(smollm, tmp_path_factory.mktemp("trained") / "adapter", batches)


@pytest.fixture
def evaluate(
    smollm: str, trained: str, review_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], Rows]]:
    """`paft evaluate CONFIG` on the base model, the adapter, and the adapter behind a server."""

    def run(
        address: str, model: str, task: dict[str, Any], **evaluation: Any
    ) -> tuple[dict[str, Any], Rows]:
        served = {"type": "endpoint", "name": "served", "base_url": address, "model": model}
        tree = run_config(
            smollm, review_file, tmp_path / "storage",
            task={"max_length": 96, "test_share": 0.2, **task},
            prompts={
                "files": [str(write_prompts(tmp_path / "prompts.jsonl", TEXTS))],
                "split": {"validation": 0, "test": 3},
            },
            evaluation={
                "examples": EXAMPLES, "max_new_tokens": 5, "row_tokens": 512,
                "subjects": [
                    {"type": "adapter", "name": "ours", "path": trained},
                    {**served, "api": "completions", "concurrency": 4, "timeout_s": 120,
                     **evaluation.pop("served", {})},
                ],
                **evaluation,
            },
            variants=[],
            tracking={"type": "none"},
        )  # fmt: skip
        del tree["train"]
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(tree), encoding="utf-8")
        assert call(["evaluate", str(config), "--json"]) == 0
        # what actors print comes by the tests' own Ray, which outlives the command
        summary = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert list(summary["models"]) == ["base", "ours", "served"]
        folder = tmp_path / "storage/runs/small"
        if name := evaluation.get("name"):
            folder /= f"evaluations/{name}"
        rows: Rows = {label: [] for label in summary["models"]}
        for row in pq.read_table(folder / "scores.parquet").to_pylist():
            rows[row["variant"]].append(row)
        for own in rows.values():
            own.sort(key=lambda row: (row["prompt_id"], row["example_id"]))
            assert len(own) == 3 * EXAMPLES
        return summary, rows

    return run


def assert_same_rows(summary: dict[str, Any], rows: Rows) -> None:
    """The adapter's two rows are one, and neither is the base model's."""
    models = summary["models"]
    assert models["served"]["mean"] == pytest.approx(models["ours"]["mean"], abs=1e-9)
    for one, other in zip(rows["ours"], rows["served"], strict=True):
        for column in ("prompt_id", "example_id", "prediction", "correct", "generated_text"):
            assert one[column] == other[column], (column, one, other)
    said = [[row["prediction"] for row in rows[label]] for label in ("base", "ours")]
    assert said[0] != said[1]
    assert len(set(said[1])) > 1


@pytest.mark.slow
def test_adapter_behind_transformers_own_server_writes_the_answers_of_the_adapter_in_process(
    evaluate: Callable[..., tuple[dict[str, Any], Rows]], smollm: str, trained: str, tmp_path: Path
) -> None:
    with transformers_server(smollm, trained, tmp_path / "served") as (address, model):
        summary, rows = evaluate(address, model, {"choices": None})
    assert_same_rows(summary, rows)
    about = summary["models"]["served"]["endpoint"]
    assert (about["requests"], about["attempts"]) == (3 * EXAMPLES, 3 * EXAMPLES)


@pytest.mark.vllm
def test_adapter_behind_vllm_and_in_its_engine_has_the_row_of_the_adapter_by_transformers(
    evaluate: Callable[..., tuple[dict[str, Any], Rows]], smollm: str, trained: str, tmp_path: Path
) -> None:
    end = {"end_token": "<|im_end|>"}
    with vllm_server(smollm, tmp_path / "log.txt", {"ours": trained}) as address:
        summary, rows = evaluate(address, "ours", {}, served=end)
        assert_same_rows(summary, rows)
        again, by_vllm = evaluate(
            address, "ours", {}, served=end, name="vllm",
            backend={"type": "vllm", "cache_gb": 0.5},
        )  # fmt: skip
    assert_same_rows(again, by_vllm)
    assert (again["parity"]["backend"], again["parity"]["beyond"]) == ("vllm", [])
    assert again["parity"]["models"].keys() == {"base", "ours"}
    for one, *others in zip(rows["ours"], rows["served"], by_vllm["ours"], strict=True):
        for other in others:
            assert other["choice_logprobs"] == pytest.approx(one["choice_logprobs"], abs=1e-3)
            assert other["prediction"] == one["prediction"]
