"""The base of every section, and what several sections have in common."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def _differ(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is named twice in {list(seeds)}: remove one")
    return seeds


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    Field(min_length=1),
    AfterValidator(_differ),
]
"""Seeds of trainings, none of them twice."""


class WorkerShare(Section):
    """What one worker gets."""

    cpus: float | None = Field(default=None, gt=0)
    """CPUs per worker, which are also its torch threads; by default an equal share of the
    machine."""
    gpus: float = Field(default=0, ge=0)
    """GPUs per worker."""


class WorkersConfig(WorkerShare):
    """Ray workers of one stage."""

    num: int = Field(default=1, ge=1)
    """How many."""

    @property
    def fewest(self) -> int:
        """Workers without which nothing starts."""
        return self.num

    @property
    def most(self) -> int:
        """Workers where the cluster has room for all."""
        return self.num
