"""Rollouts on storage: what the model wrote at each step, token by token, and what it was worth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from paft_ray.training.draws import Draws

if TYPE_CHECKING:
    from paft_ray.training.reinforcement.own_labels import OwnLabels
    from paft_ray.training.reinforcement.rollouts import Policy

FOLDER = "rollouts"
"""In a training's folder, a file per checkpoint."""
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("slot", pa.int64()),
        ("example_id", pa.string()),
        ("prompt_id", pa.string()),
        ("question", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("ended", pa.bool_()),
        ("text", pa.string()),
        ("reward", pa.float64()),
        ("grades", pa.list_(pa.float64())),
        ("read", pa.bool_()),
        ("weight", pa.float64()),
    ]
)
"""`step` is the first that learned from it, from 0; `weight` what its tokens count in the loss:
its advantage, or 0 where it is not learned from. `read`: whether a grader found an answer. Reward,
grades and `read` are null where nothing grades."""


def rollout_table(steps: Sequence[tuple[int, Draws, "Policy | OwnLabels"]]) -> pa.Table:
    """The rollouts of some batches, with `SCHEMA`."""
    rows = [
        {
            "step": step,
            "slot": rollout.slot,
            "example_id": draw.example_id,
            "prompt_id": draw.prompt_id,
            "question": question,
            "token_ids": rollout.sampled.token_ids,
            "logprobs": rollout.sampled.logprobs,
            "ended": rollout.sampled.ended,
            "text": rollout.sampled.text,
            "reward": None if (worth := rollout.rewarded) is None else worth.value,
            "grades": None if worth is None else worth.parts,
            "read": None if worth is None else worth.read,
            "weight": float(draws.weight_S[rollout.slot]),
        }
        for step, draws, policy in steps
        for draw, rollout, question in zip(draws, policy.rollouts, policy.questions, strict=True)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)
