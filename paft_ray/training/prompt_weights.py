"""Draw probabilities and loss weights of prompts from past losses.

Two parts of the configuration need them: a finite `train.sampling.temperature`, which is our
extension of the paper, and the worst-prompt objectives (`group_dro`, `cvar`). Both use the same
per-prompt losses, change only where a K-block begins, and then know the losses of steps up to two
before it, because each step is planned while the one before is trained on (with `grpo`, `consensus`
and `prefix`, which plan a step once its own texts are there, up to the one before).

All values are float64 on every rank and updated slot by slot, so that ranks agree bit by bit
without communication and a checkpoint restores them exactly. N is the number of prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paft_ray.config import CVaR, GroupDRO, ObjectiveConfig, SamplingConfig

if TYPE_CHECKING:
    import torch

STATE_PREFIX = "sampler/"
"""Prefix of the keys of `PromptWeights` in a checkpoint's state."""


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Probabilities and weights for the steps of one K-block."""

    block: int
    probability_N: np.ndarray | None = None
    """Probability of each prompt; None is uniform."""
    weight_N: np.ndarray | None = None
    """Weight of each prompt's examples in the loss, 1 on average; None is 1 for all."""

    def weight(self, prompt: int) -> float:
        """Weight of one prompt's examples in the loss."""
        return 1.0 if self.weight_N is None else float(self.weight_N[prompt])

    def weights(self, prompt_S: np.ndarray) -> np.ndarray:
        """Weights of the examples of many prompts in the loss: shape [S], float64."""
        return np.ones(len(prompt_S)) if self.weight_N is None else self.weight_N[prompt_S]

    @property
    def effective_prompts(self) -> float | None:
        """Number of prompts of a uniform draw with the same entropy; None where it is uniform."""
        if self.probability_N is None:
            return None
        p_N = self.probability_N[self.probability_N > 0]
        return float(np.exp(-np.sum(p_N * np.log(p_N))))


UNIFORM = BlockWeights(0)
"""Used where losses change nothing."""


def softmax(values_N: np.ndarray) -> np.ndarray:
    """Numerically stable softmax in float64: shape [N]."""
    shifted_N = np.exp(values_N - values_N.max())
    return shifted_N / shifted_N.sum()


def _filled(mean_N: np.ndarray) -> np.ndarray:
    """Mean losses in which a prompt that was never drawn (NaN) has the mean of the others."""
    drawn_N = ~np.isnan(mean_N)
    return np.where(drawn_N, mean_N, mean_N[drawn_N].mean() if drawn_N.any() else 0.0)


def draw_probabilities(mean_N: np.ndarray, temperature: float, floor: float) -> np.ndarray:
    """p = (1 - floor) * softmax(mean loss / temperature) + floor / N: shape [N].

    Args:
        mean_N: Mean loss of every prompt in nats per answer token, NaN where never drawn.
        temperature: In nats.
        floor: Share of the draws that remains uniform.
    """
    return (1 - floor) * softmax(_filled(mean_N) / temperature) + floor / len(mean_N)


def worst_share_weights(mean_N: np.ndarray, share: float, floor: float) -> np.ndarray:
    """Weights of CVaR over prompts, 1 on average: the worst `share` carries all but the floor.

    Source: conditional value at risk, Rockafellar and Uryasev 2000. The prompt on the border
    carries a part.
    """
    n = len(mean_N)
    order_N = np.argsort(-_filled(mean_N), kind="stable")
    carried_N = np.clip(share * n - np.arange(n), 0.0, 1.0)
    weight_N = np.empty(n)
    weight_N[order_N] = carried_N / share
    return (1 - floor) * weight_N + floor


class PromptWeights:
    """Losses per prompt so far, and the weights of the current block."""

    def __init__(
        self,
        prompts: int,
        sampling: SamplingConfig | None = None,
        objective: ObjectiveConfig | None = None,
    ) -> None:
        """Create weights before any draw.

        Args:
            prompts: Number of prompts.
            sampling: `train.sampling`; uniform by default.
            objective: `train.objective`.
        """
        self._sampling = sampling or SamplingConfig()
        self._objective = objective
        self.mean_N = np.full(prompts, np.nan)
        """Exponential mean of each prompt's loss, nats per answer token; NaN if never drawn."""
        self._log_weight_N = np.zeros(prompts)  # group DRO's q, not normalised
        self.current: BlockWeights | None = None
        """Weights of the block of the last `for_step`."""

    @property
    def active(self) -> bool:
        """Return whether past losses change anything."""
        return self._draws_by_loss or isinstance(self._objective, GroupDRO | CVaR)

    @property
    def _draws_by_loss(self) -> bool:
        return np.isfinite(self._sampling.temperature)

    def for_step(self, step: int) -> BlockWeights:
        """Weights of `step`; called for one step after the other, before the previous one ran.

        Where a block begins, they are computed from the losses observed so far.
        """
        block = step // self._sampling.steps_per_prompt
        if self.current is None or self.current.block != block:
            self.current = BlockWeights(block, self._probabilities(), self._weights())
        return self.current

    def observe(self, prompt_S: np.ndarray, loss_S: np.ndarray) -> None:
        """Update with the losses of one step, slot by slot.

        Args:
            prompt_S: The prompt of every slot.
            loss_S: The mean loss of every slot, in nats per answer token; or minus its reward.
        """
        if not self.active:
            return
        keep = self._sampling.smoothing
        by_prompt: dict[int, list[float]] = {}
        for prompt, loss in zip(prompt_S.tolist(), loss_S.tolist(), strict=True):
            before = self.mean_N[prompt]
            self.mean_N[prompt] = loss if np.isnan(before) else keep * before + (1 - keep) * loss
            by_prompt.setdefault(prompt, []).append(loss)
        if isinstance(self._objective, GroupDRO):
            for prompt, own in by_prompt.items():
                self._log_weight_N[prompt] += self._objective.step_size * sum(own) / len(own)

    def state(self) -> "dict[str, torch.Tensor]":
        """State for a checkpoint, by key; none where past losses change nothing."""
        if not self.active:
            return {}
        current = self.current or BlockWeights(-1)
        arrays = {
            "mean": self.mean_N,
            "log_weight": self._log_weight_N,
            "block": np.array([current.block], np.int64),
            "probability": current.probability_N,
            "weight": current.weight_N,
        }
        import torch

        return {
            f"{STATE_PREFIX}{name}": torch.from_numpy(array.copy())
            for name, array in arrays.items()
            if array is not None
        }

    def restore(self, state: "Mapping[str, torch.Tensor]") -> None:
        """Restore what `state` returned; entries with other keys are ignored."""
        arrays = {
            name.removeprefix(STATE_PREFIX): tensor.numpy().copy()
            for name, tensor in state.items()
            if name.startswith(STATE_PREFIX)
        }
        if not arrays:
            return
        self.mean_N, self._log_weight_N = arrays["mean"], arrays["log_weight"]
        if (block := int(arrays["block"][0])) >= 0:
            self.current = BlockWeights(block, arrays.get("probability"), arrays.get("weight"))

    def _probabilities(self) -> np.ndarray | None:
        if not self._draws_by_loss:
            return None
        sampling = self._sampling
        return draw_probabilities(self.mean_N, sampling.temperature, sampling.uniform_floor)

    def _weights(self) -> np.ndarray | None:
        objective = self._objective
        if isinstance(objective, GroupDRO):
            return len(self.mean_N) * softmax(self._log_weight_N)
        if isinstance(objective, CVaR):
            return worst_share_weights(self.mean_N, objective.share, objective.uniform_floor)
        return None
