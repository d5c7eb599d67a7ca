"""The base of every section, and what several sections have in common.

Every field declares what it affects: by its own annotation (`affects`), or by the default of the
class that defines it. A class with an undeclared field cannot be defined.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

Target = Literal["pool", "answers", "examples", "weights", "scores", "run", "search", "nothing"]
"""What a field can affect; each is stored under an identity.

`pool`: the prompts; `answers`: an LLM's answer to a request; `examples`: the task's examples and
their splits; `weights`: a training; `scores`: how a
model is scored on an example under a prompt; `run`: which of these a run makes, compares and
reports; `search`: what a search tries; `nothing`: how work is spread, and names and places, whose
content is in identities.
"""


@dataclass(frozen=True, slots=True)
class Affects:
    """The effect of a field; made by `affects`."""

    targets: frozenset[Target]
    neutral: Any
    """`...` for a field of the first version, which is in identities whatever its value."""
    whole: bool

    def is_neutral(self, section: Any, value: Any) -> bool:
        """Return whether a field of `section` means with `value` what earlier versions did."""
        neutral = self.neutral(section) if callable(self.neutral) else self.neutral
        return neutral is not ... and value == neutral


def affects(*targets: Target, neutral: Any = ..., whole: bool = False) -> Affects:
    """Annotate a field with what it affects.

    Args:
        targets: What it affects.
        neutral: Required for a field that a later version adds: the value that means what versions
            without the field did, or a function of its section that returns it. A field with this
            value is left out of identities, so that results of earlier versions are still found.
            It is the default; `load_recorded` fills it in where it cannot be.
        whole: For a field that holds sections: the targets hold for all fields inside, whatever
            those declare, but for those that affect nothing.
    """
    return Affects(frozenset(targets) - {"nothing"}, neutral, whole)


NOTHING = affects("nothing")
"""Annotation of names, places, and how work is spread."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    declared: ClassVar[dict[str, Affects]] = {}
    """What each field affects."""

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, tree: Any) -> Any:
        """Make a text of `yes` for a number, which is then refused; pydantic would read it as 1."""
        if not isinstance(tree, Mapping):
            return tree
        return {
            name: str(value) if isinstance(value, bool) and cls._is_number(name) else value
            for name, value in tree.items()
        }

    @classmethod
    def _is_number(cls, name: str) -> bool:
        annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
        kinds = {annotation, *get_args(annotation)}
        return bool(kinds & {int, float}) and bool not in kinds

    def __init_subclass__(cls, affects: Target | None = None, **settings: Any) -> None:
        """Accept `affects`, the default for fields without an annotation."""
        super().__init_subclass__(**settings)

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        """Collect what each field affects.

        Raises:
            TypeError: A field does not declare it.
        """
        target = settings.pop("affects", None)
        super().__pydantic_init_subclass__(**settings)
        known: dict[str, Affects] = {}
        for base in reversed(cls.__mro__[1:]):
            known |= getattr(base, "declared", {})
        default = None if target is None else affects(target)
        for name, field in cls.model_fields.items():
            own = [note for note in field.metadata if isinstance(note, Affects)]
            if (note := own[-1] if own else known.get(name, default)) is None:
                raise TypeError(f"{cls.__name__}.{name} does not say what it affects")
            known[name] = note
        cls.declared = {name: known[name] for name in cls.model_fields}


NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def folder_name(name: str) -> str:
    """Return a name that a folder has.

    Raises:
        ValueError: It cannot have it.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            "a name has up to 63 of a-z, 0-9, '.', '_', '-' and starts and ends "
            "with a letter or digit"
        )
    return name


def _differ(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is named twice in {list(seeds)}: remove one")
    return seeds


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    Field(min_length=1),
    AfterValidator(_differ),
]
"""Different seeds of trainings."""


def _one_at_most(gpus: float) -> float:
    if gpus > 1:
        raise ValueError("a process here computes on one GPU: give 1, and more processes")
    return gpus


OneGpu = Annotated[float, Field(ge=0), AfterValidator(_one_at_most)]
"""GPUs of a process, or its share of one."""


class WorkerShare(Section, affects="nothing"):
    """The resources of one worker."""

    cpus: float | None = Field(default=None, gt=0)
    """CPUs per worker, which are also its torch threads; by default an equal share of those of its
    node."""
    gpus: OneGpu = 0
    """GPUs per worker: 0, 1, or the share of one that several use."""


class WorkersConfig(WorkerShare, affects="nothing"):
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
