"""The results as text: the table on the screen, and the sentences that keep it honest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paft_ray.card import Evaluation

NAMES = {"base": "base model", "single_prompt": "single prompt", "paft": "PAFT"}
ILLUSTRATION = (
    "one seed is an illustration, not a measurement: run with `seed=1`, `seed=2`, ... "
    "(and another name) and compare"
)

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
    """What a variant is called before people."""
    return {**NAMES, **(names or {})}.get(label, label)


def result_columns(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of the results table, after the first."""
    thresholds = [float(t) for t in next(iter(summary["models"].values()))["top"]]
    return ("mean", "std over prompts", "worst", *(f"Top>={100 * t:g}%" for t in thresholds))


def result_rows(
    summary: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> tuple[Cells, ...]:
    """Lines of the results table: percentages with one decimal, Top@t without."""
    rows = []
    for label, model in summary["models"].items():
        steps = f", {model['steps']} steps" if model.get("steps") else ""
        figures = [f"{100 * model[key]:.1f}" for key in ("mean", "std", "min")]
        tops = [f"{100 * share:.0f}%" for share in model["top"].values()]
        rows.append(Cells(label, display_name(label, names) + steps, (*figures, *tops)))
    return tuple(rows)


def card_figures(summary: Mapping[str, Any]) -> Evaluation:
    """The results for a model card."""
    rows = [(row.name, *row.figures) for row in result_rows(summary)]
    return Evaluation(result_columns(summary), tuple(rows), summary["prompts"], summary["examples"])


def results_table(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """The results as aligned plain text, then what must be known to read them.

    Args:
        summary: Content of `summary.json`.
        names: Label to the name shown; "PAFT", "single prompt" and "base model" are known.
    """
    heading = f"held-out prompts ({summary['prompts']} x {summary['examples']} examples)"
    lines = [(heading, *result_columns(summary))]
    lines += [(row.name, *row.figures) for row in result_rows(summary, names)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "    ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    differences = [
        f"{row.name}: mean {row.mean}, std over prompts {row.std}; points, paired 95% intervals."
        for row in _main_contrasts(summary, names)
    ]
    return "\n".join([*table, "", *differences, *cautions(summary, names)])


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
    if len(summary["seeds"]) == 1:
        sentences.append(f"{ILLUSTRATION}.")
    elif summary["differences"]:
        sentences.append("the intervals resample prompts and examples, not seeds.")
    return sentences


def _main_contrasts(
    summary: Mapping[str, Any], names: Mapping[str, str] | None
) -> tuple[Contrast, ...]:
    rows = contrasts(summary, names)
    return tuple(row for row in rows if row.against == "single_prompt") or rows


def _not_better(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    single = summary["models"].get("single_prompt")
    sentences = []
    for label, model in summary["models"].items():
        if single is None or label in ("base", "single_prompt"):
            continue
        name = display_name(label, names)
        if model["mean"] <= single["mean"]:
            sentences.append(f"{name}'s mean is not above that of the single prompt.")
        if model["std"] >= single["std"]:
            sentences.append(
                f"{name}'s spread over prompts is not below that of the single prompt."
            )
    return sentences


def headline(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """One sentence about what the results say."""
    labels = list(summary["models"])
    best = next((label for label in labels if label not in ("base", "single_prompt")), labels[-1])
    other = next((label for label in ("single_prompt", "base") if label in labels), best)
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
