"""What moves a model's answers, as tables: each axis of variation, and its part of the spread."""

from collections.abc import Mapping
from typing import Any

from paft_ray.evaluation.axes import INSTRUCTION, LAYOUT
from paft_ray.evaluation.components import BY_EXAMPLE, EXAMPLE, PROMPT, REST
from paft_ray.prompts.variation import DEMONSTRATIONS, NAMES, NOISE, ORDER, PARAPHRASES
from paft_ray.report.tables import UNKNOWN, Cell, Row, Table, display_name, main_label, minus

_SURE = 0.05
"""Adjusted p value below which a difference is told."""
AXIS_NAMES = {
    INSTRUCTION: "wording of the instruction",
    LAYOUT: "layout of the prompt",
    ORDER: "order of the choices",
    NAMES: "names of the choices",
    NOISE: "slips in the text",
    PARAPHRASES: "wording of the example",
    DEMONSTRATIONS: "choice of the demonstrations",
}
"""Axes of variation, for people."""


def axes(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Table:
    """How many of each model's grades each axis moves; without rows where no axis was measured."""
    measured = summary.get("axes", {})
    labels = list(summary["models"])
    rows = [
        Row("", AXIS_NAMES[axis], tuple(_moved(of_labels.get(label)) for label in labels))
        for axis, of_labels in measured.items()
    ]
    meaning = (
        "how much of the grade of an answer changes, in percent, when the question is put in "
        "another way along this axis alone (ProSA's PromptSensiScore, arXiv 2410.12405); below, "
        "the 95% interval, and where the accuracy of a level surely differs from that of the "
        "question as it is, by how many points"
    )
    columns = tuple(display_name(label, names) for label in labels)
    return Table(columns, tuple(rows), (("each model", meaning),) if rows else ())


def more_or_less(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """Where an axis surely moves the main model's grades more or less than another's, in words."""
    main, found = main_label(summary), []
    for axis, of_labels in summary.get("axes", {}).items():
        pairs = [(a, b, e) for a in of_labels for b, e in of_labels[a].get("against", {}).items()]
        for one, other, entry in pairs:
            if main not in (one, other) or entry["p"] >= _SURE:
                continue
            sign = 100 if one == main else -100
            value, *ends = (sign * entry[key] for key in ("value", "low", "high"))
            which = f"{display_name(main, names)} than for " + display_name(
                other if one == main else one, names
            )
            points = f"{value:+.1f} ({min(ends):+.1f} to {max(ends):+.1f})"
            found.append(
                f"{AXIS_NAMES[axis].capitalize()}: {'fewer' if value < 0 else 'more'} grades "
                f"change for {which}: {minus(points)} points."
            )
    return found


def components(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Table:
    """How much of the spread of a model's grades each axis makes; no rows where none is crossed."""
    found = summary.get("components", {})
    keys = list(dict.fromkeys(key for entry in found.values() for key in entry["shares"]))
    rows = [
        Row("", _component_name(key), tuple(_share(e["shares"].get(key)) for e in found.values()))
        for key in keys
    ]
    meaning = (
        "percent of the variance of single grades, where levels of all axes are drawn for every "
        "question (evaluation.variation.design: crossed); below, the 95% interval over prompts "
        "and examples; not shown where it includes zero"
    )
    columns = tuple(display_name(label, names) for label in found)
    return Table(columns, tuple(rows), (("each model", meaning),) if rows else ())


_COMPONENT_NAMES = {
    EXAMPLE: "differences between examples",
    PROMPT: "prompt, beyond instruction and layout",
    REST: "everything else, and combinations",
}


def _component_name(key: str) -> str:
    axis = key.removesuffix(BY_EXAMPLE)
    name = {**AXIS_NAMES, **_COMPONENT_NAMES}.get(axis, axis)
    return name if axis == key else f"{name}, other for each example"


def _share(entry: Mapping[str, float] | None) -> Cell:
    if entry is None:
        return Cell(UNKNOWN, None)
    low, high = (100 * max(0.0, entry[key]) for key in ("low", "high"))
    text = f"{100 * min(1.0, entry['value']):.1f}" if entry["low"] > 0 else "not shown"
    return Cell(text, entry["value"], f"{low:.1f} – {high:.1f}")


def _moved(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(UNKNOWN, None)
    low, high = entry["intervals"]["moved"]
    differences = entry.get("differences", {}).items()
    sure = [
        minus(f"{level} {100 * found['value']:+.1f}")
        for level, found in differences
        if found["p"] < _SURE
    ]
    below = "; ".join([f"{100 * low:.1f} – {100 * high:.1f}", *sure])
    return Cell(f"{100 * entry['moved']:.1f}", entry["moved"], below)
