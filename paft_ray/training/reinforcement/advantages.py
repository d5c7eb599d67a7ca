"""How much better each rollout is than the other ones of its question; pure.

Shapes: Q questions, G rollouts of each.
"""

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-4
"""Added to a standard deviation that rewards are divided by."""
_TIE = 1e-12


def advantages(
    reward_QG: NDArray[np.float64], scale: str = "none"
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The advantage of every rollout, and which questions have any.

    Args:
        reward_QG: Rewards.
        scale: See `GRPO.scale`.

    Returns:
        Reward minus the mean of its question, [Q, G], exactly 0 where all rewards of a question are
        the same; whether the rewards of a question differ, [Q].
    """
    differ_Q = np.ptp(reward_QG, axis=1) > _TIE
    advantage_QG = reward_QG - reward_QG.mean(axis=1, keepdims=True)
    if scale == "std":
        advantage_QG = advantage_QG / (reward_QG.std(axis=1, ddof=1, keepdims=True) + EPSILON)
    return np.where(differ_Q[:, None], advantage_QG, 0.0), differ_Q
