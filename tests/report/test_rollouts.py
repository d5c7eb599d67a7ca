"""What the page shows of texts that a model wrote to learn from."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from synthetic_run import make_run

from paft_ray.report.files import Training, read_run
from paft_ray.report.page import write_report
from paft_ray.report.rollouts import Rollouts, rollouts_of
from paft_ray.report.training import curves_of
from paft_ray.storage.paths import Storage, to_parquet


def row(step: int, prompt: str, example: str, reward: float, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": prompt,
        "example_id": example,
        "question": f"asked {example}",
        "ended": True,
        "text": f"{example} at {step} by {prompt}",
        "reward": reward,
        "read": True,
        **changes,
    }


def described(rows: list[dict[str, Any]]) -> Rollouts:
    training = Training("paft", "0", (), (), {}, rollouts=pa.Table.from_pylist(rows))
    [found] = rollouts_of([training], {"p": "the good prompt"})
    return found


def batches(count: int) -> list[dict[str, Any]]:
    """Under `p` the reward rises from 0 to 1; under `q` it stays, and at first nothing is read."""
    return [
        each
        for step in range(count)
        for each in (
            row(step, "p", "a", step / (count - 1)),
            row(step, "q", f"e{step}", 0.25, read=step > 0, ended=step % 2 == 0),
        )
    ]


def test_rewards_are_means_of_batches_and_of_prompts_at_both_ends() -> None:
    found = described(batches(11))
    assert found.rewards == pytest.approx([(step / 10 + 0.25) / 2 for step in range(11)])
    assert [prompt.text for prompt in found.prompts] == ["q", "the good prompt"]
    worst, best = found.prompts
    assert (worst.first, worst.last, worst.count) == (0.25, 0.25, 11)
    assert (best.first, best.last) == pytest.approx((0.1, 0.9))
    assert (worst.unread, best.unread) == pytest.approx((1 / 11, 0))
    assert worst.cut == pytest.approx(5 / 11)
    assert found.points(found.rewards).count(",") == 11


def test_prompt_under_which_nothing_was_read_at_first_is_named() -> None:
    assert described(batches(11)).unread == ("q",)
    assert described([row(0, "p", "a", 0.0), row(0, "q", "b", 1.0)]).unread == ()


def test_texts_to_read_are_the_best_the_worst_and_questions_that_came_again() -> None:
    kinds = dict(described(batches(40)).kinds)
    best, worst, again = kinds.values()
    assert best[0].texts[0].text == "a at 39 by p"
    assert worst[0].texts[0].reward == 0.25
    [question] = again
    assert question.question == "asked a"
    assert [text.step for text in question.texts] == [1, 37]


def test_likelihoods_of_its_own_texts_are_no_learning_curve() -> None:
    table = pa.Table.from_pylist(batches(3))
    plain = Training("sft", "0", (2.0, 1.0), (), {})
    own = Training("paft", "0", (5.0, 5.0), (), {}, rollouts=table)
    assert [curve.label for curve in curves_of([own, plain])] == ["sft"]


def test_page_shows_rollouts_of_a_run_and_nothing_of_them_without(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    make_run(storage)
    assert "What models wrote" not in Path(write_report(storage)).read_text()
    training = next(n for n in storage.child("training").names() if n.startswith("paft-s"))
    table = pa.Table.from_pylist([r | {"text": "<b>x</b>"} for r in batches(5)])
    rollouts = storage.child("training", training, "rollouts")
    rollouts.write_bytes("steps-000000000-000000005.parquet", to_parquet(table))
    run = read_run(storage)
    assert [t.rollouts is not None for t in run.trainings].count(True) == 1
    page = Path(write_report(storage)).read_text()
    assert "What models wrote" in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_further_updates_on_the_same_texts_are_no_further_draws(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    make_run(storage)
    training = next(n for n in storage.child("training").names() if n.startswith("paft-s"))
    folder = storage.child("training", training)
    ledger = [
        {
            "step": step, "slot": slot, "example_id": f"e{slot}", "prompt_id": "pq"[slot % 2],
            "loss": 1.0, "answer_tokens": 2,
        }
        for step in range(6) for slot in range(4)
    ]  # fmt: skip
    for name in folder.child("ledger").names():
        folder.child("ledger").delete(name)
    folder.child("ledger").write_bytes("steps-0.parquet", to_parquet(pa.Table.from_pylist(ledger)))

    def drawn() -> list[int]:
        found = {f"{t.label}-s{t.seed}": t for t in read_run(storage).trainings}[training]
        assert len(found.losses) == 6
        return [prompt.examples for prompt in found.drawn]

    assert drawn() == [12, 12]
    batches = pa.Table.from_pylist([row(step, "p", "a", 1.0) for step in (0, 3)])
    rollouts = folder.child("rollouts")
    rollouts.write_bytes("steps-000000000-000000006.parquet", to_parquet(batches))
    assert drawn() == [4, 4]
