"""What readers ask of recorded studies, and the paired differences that answer it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paft_ray.evaluation.figures import MEAN, STD, WORST, Figure

MOVED = Figure(
    key="moved",
    heading="grades that change",
    meaning="mean difference of the grades of answers that differ in one axis of variation alone",
    better="lower",
)
"""What records say of an axis; see `paft_ray.evaluation.axes`."""


@dataclass(frozen=True, slots=True)
class Question:
    """What readers ask, and the paired differences that answer it."""

    text: str
    pairs: tuple[tuple[str, str], ...]
    """Labels of models: the one that may be better, and the one that it is compared with."""
    figure: Figure = MEAN
    by_author: bool = False
    """Apart for the held-out prompts of each author."""
    on_trained: bool = False
    """Under the one prompt that the second model was trained on, instead of held-out ones."""
    of_model: str = ""
    """Answered by the studies of this model; p-values are adjusted over those of all models."""

    on: str = ""
    """The further evaluations that it is about, see `kind_of`; by default runs' own results."""

    @property
    def is_of_parts(self) -> bool:
        """Whether comparisons of one study are about parts of it, whose mean answers nothing."""
        return self.by_author or self.figure is MOVED


_OF_PAFT = (("paft", "human_prompt"), ("paft", "single_prompt"), ("paft", "bound_prompts"))
"""PAFT, and each other way to train."""
QUESTIONS = {
    "pool_or_one": Question(
        "Is a pool better than one prompt?",
        (("paft", "human_prompt"), ("paft", "single_prompt")),
    ),
    "pool_or_dozen": Question(
        "Is drawing better than a dozen bound prompts?",
        (("paft", "bound_prompts"),),
    ),
    "sizes": Question(
        "Are more prompts better?",
        (
            ("drawn_3", "bound_1"), ("drawn_12", "drawn_3"), ("drawn_48", "drawn_12"),
            ("bound_3", "bound_1"), ("bound_48", "bound_3"), ("bound_200", "bound_48"),
        ),
    ),
    "steps": Question(
        "Is the spread smaller after more steps?",
        (("paft_50", "paft_25"), ("paft_100", "paft_50"), ("paft_200", "paft_100")),
        STD,
    ),
    "longer": Question(
        "Do more prompts help where training is longer?",
        (("paft_200", "dozen_200"), ("paft_200", "single_200")),
    ),
    "spread": Question(
        "Does accuracy depend less on the wording?",
        _OF_PAFT,
        STD,
    ),
    "worst": Question(
        "Is the worst wording less bad?",
        _OF_PAFT,
        WORST,
    ),
    "authors": Question(
        "Is it ahead under the prompts of each author?",
        (("paft", "single_prompt"), ("paft", "bound_prompts")),
        by_author=True,
    ),
    "own_prompt": Question(
        "Is it ahead even under the other model's own prompt?",
        (("paft", "human_prompt"), ("paft", "single_prompt")),
        on_trained=True,
    ),
    "family": Question(
        "Does it hold for the second family?",
        _OF_PAFT,
        of_model="Gemma 3 270M",
    ),
    "axes": Question(
        "Do fewer answers change with other changes, too?",
        _OF_PAFT,
        MOVED,
        on="axes",
    ),
    "far": Question(
        "Is it ahead under wordings far from the pool?",
        _OF_PAFT,
        on="far",
    ),
    "far_spread": Question(
        "Does accuracy depend less on such a wording?",
        _OF_PAFT,
        STD,
        on="far",
    ),
    "far_worst": Question(
        "Is the worst of such wordings less bad?",
        _OF_PAFT,
        WORST,
        on="far",
    ),
    "ways": Question(
        "Is another way to train better than plain PAFT?",
        (
            ("k_4", "paft"), ("consistency", "paft"), ("group_dro", "paft"),
            ("expected_reward", "paft"),
        ),
    ),
    "instead": Question(
        "Is PAFT better than what can be had without training?",
        (("paft", "base_best"), ("paft", "base_optimized"), ("paft", "base_ensemble")),
    ),
}  # fmt: skip


def kind_of(record: Mapping[str, Any]) -> str:
    """What a record is of: `axes` or `far`, further evaluations, or empty for a run's results.

    `axes` varies more than the wording (`evaluation.variation`); `far` asks through prompts of
    files (`evaluation.prompt_files`).
    """
    if "prompt_files" in record:
        return "far"
    return "axes" if record.get("axes") else ""
