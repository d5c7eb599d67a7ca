"""Plans for tests, of all ranks in one process, and draws without a planner."""

from collections.abc import Sequence

import numpy as np

from paft_ray.training.batch_plan import Draws, Planner, StepPlan
from paft_ray.training.prompt_weights import UNIFORM, BlockWeights


def plans_of_all(
    planner: Planner, step: int, ranks: int, weights: BlockWeights = UNIFORM
) -> list[StepPlan]:
    """The plan of every rank, which exchange what they found as in a training."""
    shares = [planner.share(step, rank, ranks, weights) for rank in range(ranks)]
    tables = [share.table for share in shares]
    return [planner.deal(step, s, tables, rank, weights) for rank, s in enumerate(shares)]


def make_draws(
    answer_tokens: Sequence[int],
    prompts: Sequence[int] | None = None,
    owners: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    names: str = "e",
) -> Draws:
    """Draws of examples `<names>0`, `<names>1`, ... under prompts `p0`, ..., one for each slot."""
    count = len(answer_tokens)
    weight_N = None if weights is None else np.array(weights)
    table = {
        "example": np.arange(count),
        "prompt": np.arange(count) if prompts is None else np.array(prompts),
        "answer_tokens": np.array(answer_tokens),
        "trimmed": np.zeros(count, np.int64),
        "owner": np.zeros(count, np.int64) if owners is None else np.array(owners),
    }
    return Draws(table, BlockWeights(0, None, weight_N), lambda i: f"{names}{i}", lambda i: f"p{i}")
