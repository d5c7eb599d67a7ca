"""What a peft method needs of a training step besides a loss.

Covered: AdaLoRA (arXiv 2303.10512), which adds a penalty to the loss once per optimizer step, and
prunes ranks after it. Every other method of peft needs nothing. Tensors come in full and averaged
over ranks, whatever the ZeRO stage; the engine gathers them and puts back what changed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from peft import PeftModel

Tensors = dict[str, torch.Tensor]
"""Trainable parameters' names to full tensors in fp32."""

STATE_PREFIX = "method/"
"""Keys of a method's state in a checkpoint begin with it."""


class Method(Protocol):
    """A peft method's own part of an optimizer step; the same on every rank."""

    def gradients(self, weights: Tensors, gradients: Tensors) -> Tensors:
        """The gradients that the optimizer shall see, before clipping.

        Args:
            weights: Before the step.
            gradients: Of the mean answer loss.
        """
        ...

    def weights(self, step: int, weights: Tensors, gradients: Tensors) -> Tensors:
        """The weights that differ from what the optimizer made.

        Args:
            step: Optimizer steps done, this one included.
            weights: After the step.
            gradients: What the step was made with, after clipping.
        """
        ...

    def state(self) -> Tensors:
        """What a checkpoint must hold; keys begin with `STATE_PREFIX`."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` returned; other keys are passed over."""
        ...


def method_of(model: torch.nn.Module) -> Method | None:
    """The adapter's own part of a step; None where it has none, as most have."""
    from peft import AdaLoraModel

    tuner = getattr(model, "base_model", None)
    return AdaLora(model) if isinstance(tuner, AdaLoraModel) else None  # pyright: ignore


class AdaLora:
    """Orthogonal matrices by a penalty, and ranks pruned where they matter least.

    The arithmetic is that of peft's `AdaLoraModel.forward` and `RankAllocator`, which cannot be
    used as they are: they read local gradients, and change weights of which ZeRO holds another
    copy. As there, importance is read after the optimizer's step, from clipped gradients.
    """

    def __init__(self, model: "PeftModel") -> None:
        """For a model with a fresh or a restored AdaLoRA adapter."""
        tuner: Any = model.base_model
        self._config = tuner.peft_config[tuner.trainable_adapter_name]
        self._allocator = tuner.rankallocator
        self._pruning_ends = self._config.total_step - self._config.tfinal
        self._importance: Tensors = {}
        self._uncertainty: Tensors = {}
        self._kept: Tensors = {}
        """For the singular values of each matrix, which of them were not pruned."""

    def gradients(self, weights: Tensors, gradients: Tensors) -> Tensors:
        """Add the gradient of the orthogonal penalty, `orth_reg_weight` times its mean."""
        leaves = {
            name: weight.detach().clone().requires_grad_()
            for name, weight in weights.items()
            if "lora_A" in name or "lora_B" in name
        }
        with torch.enable_grad():
            distances = [
                torch.linalg.matrix_norm(covariance - torch.eye(*covariance.shape).to(covariance))
                for name, matrix in leaves.items()
                for covariance in [matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix]
            ]
            penalty = self._config.orth_reg_weight * torch.stack(distances).mean()
        added = torch.autograd.grad(penalty, list(leaves.values()))
        by_name = dict(zip(leaves, added, strict=True))
        return {n: g + by_name[n] if n in by_name else g for n, g in gradients.items()}

    def weights(self, step: int, weights: Tensors, gradients: Tensors) -> Tensors:
        """Update importance while ranks are pruned, and zero the singular values of the pruned."""
        if step < self._pruning_ends:
            self._update_importance(weights, gradients)
        budget, pruning = self._allocator.budget_schedule(step)
        if step <= self._pruning_ends and (pruning or step == self._pruning_ends):
            self._keep(self._most_important(budget))
        if step == self._pruning_ends:
            self._importance, self._uncertainty = {}, {}
        if step < self._pruning_ends and not pruning:
            return {}
        return {
            name: weights[name] * kept.to(weights[name].device) for name, kept in self._kept.items()
        }

    def state(self) -> Tensors:
        """Importance averages by parameter name, and what was not pruned."""
        kinds = self._kinds()
        return {
            f"{STATE_PREFIX}{kind}/{name}": tensor.cpu().clone()
            for kind, tensors in kinds.items()
            for name, tensor in tensors.items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back importance averages and what was not pruned."""
        for kind, tensors in self._kinds().items():
            prefix = f"{STATE_PREFIX}{kind}/"
            tensors.clear()
            tensors.update(
                (key.removeprefix(prefix), tensor.clone())
                for key, tensor in state.items()
                if key.startswith(prefix)
            )
        if self._kept:
            self._keep(self._kept)

    def _kinds(self) -> dict[str, Tensors]:
        return {
            "importance": self._importance,
            "uncertainty": self._uncertainty,
            "kept": self._kept,
        }

    def _update_importance(self, weights: Tensors, gradients: Tensors) -> None:
        """Exponential means of |weight x gradient| and of its distance from that mean."""
        beta1, beta2 = self._config.beta1, self._config.beta2
        for name, weight in weights.items():
            now = (weight * gradients[name]).abs()
            before = self._importance.get(name, torch.zeros_like(now)).to(now.device)
            doubt = self._uncertainty.get(name, torch.zeros_like(now)).to(now.device)
            mean = beta1 * before + (1 - beta1) * now
            self._importance[name] = mean
            self._uncertainty[name] = beta2 * doubt + (1 - beta2) * (now - mean).abs()

    def _most_important(self, budget: int) -> Tensors:
        """For each matrix which of its triplets are among the `budget` best of all matrices."""
        scores: Tensors = {}
        for name in self._importance:
            if "lora_E" not in name:
                continue
            of_E, of_A, of_B = (
                self._importance[part] * self._uncertainty[part]
                for part in (name, *(name.replace("lora_E", p) for p in ("lora_A", "lora_B")))
            )
            scores[name] = of_E.view(-1) + (of_A.mean(1) + of_B.mean(0))
        every = torch.cat(list(scores.values()))
        threshold = torch.kthvalue(every, self._allocator.init_bgt - budget)[0]
        return {name: (score > threshold).view(-1, 1) for name, score in scores.items()}

    def _keep(self, kept: Tensors) -> None:
        """Remember what was not pruned, and let peft save the adapter without the rest."""
        self._kept = kept
        self._config.rank_pattern = {
            name.removeprefix("base_model.model."): mask.view(-1).tolist()
            for name, mask in kept.items()
        }
