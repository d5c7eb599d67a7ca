"""The optimizer step in plain torch, in place of DeepSpeed's engine, for machines without it.

Covered: what ZeRO 0 does, on one device or on one per rank of torch's process group; bf16 through
autocast. In fp32 a step has the bits of DeepSpeed's at stage 0. Not covered: dividing or offloading
anything.
"""

from typing import Any

import torch
import torch.distributed as dist


class PlainEngine:
    """A model and its optimizer, with those parts of DeepSpeed's engine that `Engine` uses."""

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, clipping: float, dtype: str
    ) -> None:
        """Step `module`, which lies on its device.

        Args:
            module: The model.
            optimizer: Of its trainable parameters.
            clipping: Largest gradient norm; 0 leaves gradients as they are.
            dtype: Arithmetic: `float32` or `bfloat16`.
        """
        self.module, self.optimizer = module, optimizer
        self.device = next(p.device for p in module.parameters() if p.requires_grad)
        self._clipping, self._dtype = clipping, dtype
        self._norm: torch.Tensor | None = None

    def __call__(self, **inputs: Any) -> Any:
        """Forward pass."""
        bf16 = self._dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return self.module(**inputs)

    def train(self) -> None:
        """Turn dropout on."""
        self.module.train()

    def eval(self) -> None:
        """Turn dropout off."""
        self.module.eval()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`."""
        loss.backward()

    def allreduce_gradients(self) -> None:
        """Average gradients over ranks."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            gradients = self._gradients()
            flat = torch.cat([g.flatten() for g in gradients])
            flat /= dist.get_world_size()
            dist.all_reduce(flat)
            for gradient, part in zip(
                gradients, flat.split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))

    def step(self) -> None:
        """Average and clip gradients, take a step, and forget them."""
        self.allreduce_gradients()
        gradients = self._gradients()
        # as DeepSpeed computes it: torch's own differs in the last bit
        self._norm = torch.stack([g.norm(2.0) for g in gradients]).pow(2.0).sum().pow(0.5)
        if self._clipping > 0:
            share = (self._clipping / (self._norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> torch.Tensor | None:
        """The norm before clipping in the last step."""
        return self._norm

    def destroy(self) -> None:
        """Nothing is kept elsewhere."""

    def _gradients(self) -> list[torch.Tensor]:
        """Of every trainable parameter; zeros where no row reached it, as on another rank."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in parameters]
