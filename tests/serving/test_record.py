"""The record of a training: the same JSON as ever, read with fewer and with more keys."""

import json
from typing import Any

import pytest

from paft_ray.serving.record import MadeFrom, TrainedPrompt, TrainingRecord, Verified

OLDEST: dict[str, Any] = {
    "variant": "paft", "seed": 3, "steps": 150, "tokens": 58561, "answer_tokens": 1200,
    "trimmed": 0, "seconds": 243.526, "prompts": 351, "workers": 2, "dtype": "bfloat16",
    "last_loss": 0.10014, "made_from": {"task": "aaaa", "model": "bbbb", "pool": "cccc"},
}  # fmt: skip
TODAY: dict[str, Any] = {
    **{key: OLDEST[key] for key in list(OLDEST)[:8]},
    "prompt": {"id": "p", "text": "{review} Answer:"},
    **{key: OLDEST[key] for key in list(OLDEST)[8:]},
    "verified": {"tensors": 120, "change": 0.05, "loss": 0.25, "loss_reloaded": 0.25},
    "versions": {"paft_ray": "0.1.0"},
}
SCORED: dict[str, Any] = {
    **TODAY,
    "validated": {
        "best": 80, "figure": 0.75, "goal": "mean accuracy", "kept": True, "planned": 200,
        "prompts": 4, "examples": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("about", [OLDEST, TODAY, SCORED], ids=["before cards", "today", "scored"])
def test_record_that_is_read_is_written_as_it_was(about: dict[str, Any]) -> None:
    record = TrainingRecord.from_json(about)
    assert json.dumps(record.to_json()) == json.dumps(about)


def test_record_has_typed_parts_and_none_where_an_earlier_version_wrote_nothing() -> None:
    record = TrainingRecord.from_json(TODAY)
    assert record.made_from == MadeFrom("aaaa", "bbbb", "cccc")
    assert record.prompt == TrainedPrompt("p", "{review} Answer:")
    assert record.verified == Verified(120, 0.05, 0.25, 0.25)
    oldest = TrainingRecord.from_json(OLDEST)
    assert (oldest.prompt, oldest.verified, dict(oldest.versions)) == (None, None, {})


def test_saved_weights_are_those_of_the_best_step_only_where_it_was_kept() -> None:
    last = {**SCORED, "validated": {**SCORED["validated"], "kept": False}}
    assert [TrainingRecord.from_json(x).saved_step for x in (TODAY, SCORED, last)] == [150, 80, 150]


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert TrainingRecord.from_json({**TODAY, "later": 1}) == TrainingRecord.from_json(TODAY)
