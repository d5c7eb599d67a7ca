"""`Figure`: one figure of a model, as table, page, card, files and MLflow know it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paft_ray.evaluation.metrics import Floats, WeightedAnswers


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a model: its names and meaning, how it is computed and how it is shown.

    One of `over_prompts`, `of_answers` and `of_grid` computes it; a figure with none of them
    comes from the run instead of the answers, and `report.results` adds it to `summary.json`.
    """

    key: str
    """Its name in `summary.json`, and among statistics."""
    heading: str
    """Heading of its column."""
    meaning: str
    """Meaning, in a line of the report."""
    definition: str = ""
    """How it is computed, with the source, where the meaning does not say so."""
    metric: str | None = None
    """Its name in MLflow after `eval/`; None where it is not tracked."""
    table: Literal["results", "wide", "further"] = "further"
    """`results`: in the results table of the screen, the page and the model card. `wide`: the same
    without the card, and on the screen only where the table stays narrow. `further`: in the page's
    second table."""
    compared: bool = False
    """Whether the page's table of differences has it."""
    better: Literal["higher", "lower"] | None = None
    """Which of two values is better; None where neither is."""
    most: float = 1.0
    """Upper bound; the lower one is 0."""
    scale: int = 100
    """Factor of the value shown."""
    format: str = ".1f"
    """Format of the value shown."""
    unit: str = ""
    """Unit after the value shown, but not after the bounds of its interval."""
    short: str = ""
    """Its heading on the screen, where that differs."""
    threshold: str = ""
    """Threshold of Top@t, whose values are under `top` and the threshold in `summary.json`."""
    over_prompts: Callable[[Floats], Floats] | None = None
    """Computes it from accuracies under prompts, over the last axis."""
    of_answers: Callable[[WeightedAnswers], Floats | None] | None = None
    """Computes it from answers; None where they lack what it needs."""
    of_grid: Callable[[Floats], float] | None = None
    """Computes it from the grade of each answer, [P, E]; such a figure has no interval."""

    @property
    def computed(self) -> bool:
        """Return whether it is computed from answers alone."""
        return bool(self.over_prompts or self.of_answers or self.of_grid)

    def read(self, tree: Mapping[str, Any]) -> Any:
        """Its entry in one of the mappings of `summary.json`, or None."""
        if self.threshold:
            return tree.get("top", {}).get(self.threshold)
        return tree.get(self.key)

    def show(self, value: float) -> str:
        """Format a value or a bound of its interval, without the unit."""
        return format(self.scale * value, self.format)

    def show_change(self, change: float) -> str:
        """Format a difference of two values, with its sign."""
        return format(self.scale * change, f"+{self.format}")
