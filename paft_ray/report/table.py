"""The results as text: the table on the screen, and the sentences that keep it honest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_ray.config import BASE
from paft_ray.evaluation.summary import PAFT, SINGLE_PROMPT
from paft_ray.serving.card import Evaluation

NAMES = {BASE: "base model"}
"""Labels whose name is not made of their words."""
ILLUSTRATION = (
    "one seed is an illustration, not a measurement: give `seeds: [0, 1, 2]`, which trains every "
    "variant with each on the same pool"
)

_WIDTH = 100
"""Columns of a terminal that the table keeps to where it can do without one of its own."""
_FINALIST = "finalist_"
"""How labels of a search's finalists begin; the best comes first."""
_FEW_SEEDS = 10
_UNDECIDED = {
    ("mean", "std"): "both intervals include zero, so neither difference is shown",
    ("mean",): "the interval of the mean includes zero, so a difference in mean is not shown",
    ("std",): "the interval of the std includes zero, so a difference in spread is not shown",
}


@dataclass(frozen=True, slots=True)
class Cells:
    """One line of the results table, ready to print."""

    label: str
    name: str
    figures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contrast:
    """One line of the table of differences, ready to print."""

    name: str
    against: str
    """Label of the model that is subtracted."""
    mean: str
    std: str
    undecided: tuple[str, ...]
    """Which of mean and std have an interval that includes zero."""


def display_name(label: str, names: Mapping[str, str] | None = None) -> str:
    """What a variant is called before people: its words, with PAFT in capitals."""
    known = {**NAMES, **(names or {})}
    words = ["PAFT" if word == PAFT else word for word in label.split("_")]
    return known.get(label, " ".join(words))


def main_label(summary: Mapping[str, Any]) -> str:
    """Label of the model that the run is about: PAFT, a search's best, or else the last one."""
    labels = list(summary["models"])
    if PAFT in labels:
        return PAFT
    return next((label for label in labels if label.startswith(_FINALIST)), labels[-1])


def model_name(
    summary: Mapping[str, Any], label: str, names: Mapping[str, str] | None = None
) -> str:
    """A model's name with the steps that it was trained for."""
    steps = summary["models"][label].get("steps")
    return display_name(label, names) + (f", {steps} steps" if steps else "")


def top_columns(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of Top@t."""
    thresholds = next(iter(summary["models"].values()))["top"]
    return tuple(f"Top>={100 * float(t):g}%" for t in thresholds)


def result_columns(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of the results table, after the first."""
    return ("mean", "std over prompts", "worst", *top_columns(summary))


def result_rows(
    summary: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> tuple[Cells, ...]:
    """Lines of the results table: percentages with one decimal, Top@t without."""
    rows = []
    for label, model in summary["models"].items():
        figures = [f"{100 * model[key]:.1f}" for key in ("mean", "std", "min")]
        tops = [f"{100 * share:.0f}%" for share in model["top"].values()]
        rows.append(Cells(label, model_name(summary, label, names), (*figures, *tops)))
    return tuple(rows)


def card_figures(summary: Mapping[str, Any]) -> Evaluation:
    """The results for a model card."""
    rows = [(row.name, *row.figures) for row in result_rows(summary)]
    return Evaluation(result_columns(summary), tuple(rows), summary["prompts"], summary["examples"])


def results_table(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """The results as aligned plain text, then what must be known to read them.

    The 5% quantile over prompts stands behind the worst one where the table stays narrow with it.

    Args:
        summary: Content of `summary.json`.
        names: Label to the name shown, where it is not made of the label's words.
    """
    heading = f"held-out prompts ({summary['prompts']} x {summary['examples']} examples)"
    lines = [(heading, *result_columns(summary))]
    lines += [(row.name, *row.figures) for row in result_rows(summary, names)]
    table = _aligned(lines)
    if all("p05" in model for model in summary["models"].values()):
        quantiles = [f"{100 * model['p05']:.1f}" for model in summary["models"].values()]
        pairs = zip(lines, ["p05", *quantiles], strict=True)
        wider = _aligned([(*line[:4], quantile, *line[4:]) for line, quantile in pairs])
        table = wider if len(wider[0]) <= _WIDTH else table
    paired = "" if "scored_share" in summary else "paired "
    differences = [
        f"{row.name}: mean {row.mean}, std over prompts {row.std}; points, {paired}95% intervals."
        for row in _main_contrasts(summary, names)
    ]
    return "\n".join([*table, "", *differences, *cautions(summary, names)])


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "    ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]


def contrasts(
    summary: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> tuple[Contrast, ...]:
    """The paired differences, in percentage points, in the order of the summary."""
    rows = []
    for pair, entry in summary["differences"].items():
        a, b = pair.split(" - ")
        rows.append(
            Contrast(
                name=f"{display_name(a, names)} - {display_name(b, names)}",
                against=b,
                mean=_points(entry),
                std=_points(entry["std"]),
                undecided=tuple(
                    what
                    for what, part in (("mean", entry), ("std", entry["std"]))
                    if part["low"] <= 0 <= part["high"]
                ),
            )
        )
    return tuple(rows)


def cautions(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """What the results do not show, in sentences."""
    sentences = [
        f"{row.name}: {_UNDECIDED[row.undecided]}."
        for row in _main_contrasts(summary, names)
        if row.undecided
    ]
    sentences += _not_better(summary, names)
    sentences += _spread_by_chance(summary, names)
    if (share := summary.get("scored_share")) is not None:
        sentences.append(
            f"{share:.0%} of the prompts x examples were scored, weak prompts more often; the "
            "figures of all are estimated from them, and the intervals say only what the rest "
            "leaves open; those of differences are not paired."
        )
    if len(summary["seeds"]) == 1:
        sentences.append(f"{ILLUSTRATION}.")
    elif summary["differences"] and share is None:
        sentences.append(_what_intervals_hold(summary))
    return sentences


def _what_intervals_hold(summary: Mapping[str, Any]) -> str:
    seeds = len(summary["seeds"])
    if not any("intervals" in model for model in summary["models"].values()):  # summaries of old
        return "the intervals resample prompts and examples, not seeds."
    if seeds >= _FEW_SEEDS:
        return f"the intervals resample prompts, examples and the {seeds} seeds."
    return (
        f"the intervals resample prompts, examples and the {seeds} seeds; {seeds} seeds are few, "
        f"and show {100 * (seeds - 1) / seeds:.0f}% of the variance between seeds, so that the "
        "intervals are somewhat too narrow."
    )


def _main_contrasts(
    summary: Mapping[str, Any], names: Mapping[str, str] | None
) -> tuple[Contrast, ...]:
    rows = contrasts(summary, names)
    return tuple(row for row in rows if row.against == SINGLE_PROMPT) or rows


def _not_better(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    single = summary["models"].get(SINGLE_PROMPT)
    sentences = []
    for label, model in summary["models"].items():
        if single is None or label in (BASE, SINGLE_PROMPT):
            continue
        name = display_name(label, names)
        if model["mean"] <= single["mean"]:
            sentences.append(f"{name}'s mean is not above that of the single prompt.")
        if model["std"] >= single["std"]:
            sentences.append(
                f"{name}'s spread over prompts is not below that of the single prompt."
            )
    return sentences


def _spread_by_chance(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Which spreads are no larger than those of answers that have nothing to do with wording."""
    return [
        f"{display_name(label, names)}'s spread over prompts, {100 * model['std']:.1f}, is no more "
        f"than the {100 * chance:.1f} that {summary['examples']} examples give by chance."
        for label, model in summary["models"].items()
        if (chance := model.get("std_by_chance")) and model["std"] <= chance
    ]


def headline(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """One sentence about what the results say."""
    best = main_label(summary)
    other = next((label for label in (SINGLE_PROMPT, BASE) if label in summary["models"]), best)
    model, against = summary["models"][best], summary["models"][other]
    text = (
        f"Asked in {summary['prompts']} ways that no training saw, {display_name(best, names)} "
        f"answers {100 * model['mean']:.1f}% of {summary['examples']} examples right on average"
    )
    worst = f"{100 * model['min']:.1f}% under the worst prompt"
    if best == other:
        return f"{text} and {worst}."
    return (
        f"{text} and {worst}; {display_name(other, names)}: {100 * against['mean']:.1f}% "
        f"and {100 * against['min']:.1f}%."
    )


def _points(entry: Mapping[str, float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(
        *(100 * entry[key] for key in ("value", "low", "high"))
    )
