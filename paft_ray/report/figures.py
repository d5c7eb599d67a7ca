"""The summary's figures as cells of the page's tables: text, interval, and what sorts them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_ray.report.table import display_name, model_name, top_columns


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of numbers."""

    text: str
    value: float | None
    """What a click on the heading sorts by; None sorts last."""
    below: str = ""
    """Its 95% interval."""
    weak: bool = False
    """The interval of a difference includes zero."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    label: str
    """Of the model whose colour it has; empty for none."""
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of numbers behind a first column of names."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    meanings: tuple[tuple[str, str], ...] = ()
    """Heading and what it says."""


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure of a model, as it is shown."""

    key: str
    heading: str
    meaning: str
    show: Callable[[float], str] = lambda value: f"{100 * value:.1f}"


_FIRST = (
    _Figure("mean", "mean", "accuracy, averaged over prompts"),
    _Figure("std", "std over prompts", "standard deviation of the accuracy over prompts"),
    _Figure("min", "worst", "accuracy under the worst prompt"),
    _Figure("p05", "5% quantile", "accuracy that all but 5% of the prompts reach"),
)
_TOP_MEANING = "share of the prompts with at least that accuracy"
_FURTHER = (
    _Figure("max", "best", "accuracy under the best prompt"),
    _Figure(
        "std_by_chance",
        "std by chance",
        "the standard deviation that so few examples give where wording means nothing",
    ),
    _Figure("consistency", "consistent", "examples that are answered alike under all prompts"),
    _Figure(
        "pairwise_agreement", "agreement", "how often two prompts get the same answer to an example"
    ),
    _Figure(
        "flip_rate",
        "flips",
        "prompts whose answer is not the one that most prompts get, over examples",
    ),
    _Figure(
        "calibration_error",
        "calibration error",
        "mean distance of the probability of the answer from how often it is right (15 bins)",
    ),
    _Figure(
        "generated_tokens",
        "tokens per answer",
        "tokens generated for an answer, the end included",
        "{:,.1f}".format,
    ),
    _Figure(
        "seconds_per_example", "s per example", "seconds of scoring per example", "{:.3g}".format
    ),
    _Figure(
        "trained_tokens",
        "trained tokens",
        "tokens read in training, averaged over seeds",
        "{:,.0f}".format,
    ),
    _Figure(
        "trained_answer_tokens",
        "answer tokens",
        "of these, tokens of answers, which alone have a loss",
        "{:,.0f}".format,
    ),
)


def results(summary: Mapping[str, Any]) -> Table:
    """The first table: what counts, with its intervals."""
    return _models(summary, _FIRST, model_name, with_top=True)


def further_figures(summary: Mapping[str, Any]) -> Table:
    """The second table: every other figure that some model has."""
    return _models(summary, _FURTHER, lambda _, label: display_name(label))


def differences(summary: Mapping[str, Any]) -> Table:
    """Paired differences in mean, spread and worst prompt."""
    entries = summary["differences"]
    has_worst = any("min" in entry for entry in entries.values())
    has_p = any("p" in entry for entry in entries.values())
    rows = []
    for pair, entry in entries.items():
        a, b = pair.split(" - ")
        cells = [_difference(entry), _difference(entry.get("std"))]
        cells += [_difference(entry.get("min"))] * has_worst
        cells += [_chance(entry.get("p"))] * has_p
        rows.append(Row("", f"{display_name(a)} − {display_name(b)}", tuple(cells)))
    columns = ("mean", "std over prompts", *["worst"] * has_worst, *["p of the mean"] * has_p)
    return Table(columns, tuple(rows))


def _models(
    summary: Mapping[str, Any],
    figures: Sequence[_Figure],
    name: Callable[[Mapping[str, Any], str], str],
    with_top: bool = False,
) -> Table:
    """A row per model: the figures that some model has, then Top@t."""
    shown = [figure for figure in figures if _known(summary, figure)]
    tops = top_columns(summary) if with_top else ()
    rows = []
    for label, model in summary["models"].items():
        known = model.get("intervals", {})
        cells = [_cell(figure, model, known) for figure in shown]
        if with_top:
            cells += [_top(share, known.get("top", {}).get(t)) for t, share in model["top"].items()]
        rows.append(Row(label, name(summary, label), tuple(cells)))
    meanings = [(figure.heading, figure.meaning) for figure in shown]
    meanings += [(", ".join(tops), _TOP_MEANING)] * bool(tops)
    return Table((*(figure.heading for figure in shown), *tops), tuple(rows), tuple(meanings))


def _known(summary: Mapping[str, Any], figure: _Figure) -> bool:
    return any(model.get(figure.key) is not None for model in summary["models"].values())


def _cell(figure: _Figure, model: Mapping[str, Any], intervals: Mapping[str, Any]) -> Cell:
    value = model.get(figure.key)
    if value is None:
        return Cell("–", None)
    below = ""
    if figure.key in intervals:
        low, high = intervals[figure.key]
        below = f"{figure.show(low)} – {figure.show(high)}"
    return Cell(figure.show(value), value, below)


def _top(share: float, interval: Sequence[float] | None) -> Cell:
    below = f"{100 * interval[0]:.0f} – {100 * interval[1]:.0f}" if interval else ""
    return Cell(f"{100 * share:.0f}%", share, below)


def _difference(entry: Mapping[str, float] | None) -> Cell:
    if entry is None:
        return Cell("–", None)
    value, low, high = (f"{100 * entry[key]:+.1f}" for key in ("value", "low", "high"))
    weak = entry["low"] <= 0 <= entry["high"]
    return Cell(_minus(value), entry["value"], _minus(f"{low} to {high}"), weak)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _chance(p: float | None) -> Cell:
    if p is None:
        return Cell("–", None)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p, weak=p >= 0.05)
