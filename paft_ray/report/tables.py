"""The summary's figures as tables, for the page, the model card and the screen (`text`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from paft_ray.config import BASE
from paft_ray.evaluation.figures import GENERATED_TOKENS, MEAN, STD, WORST, Figure, figures_of
from paft_ray.evaluation.summary import PAFT, differences_of, of_figure
from paft_ray.serving.card import Evaluation

_NAMES_OF_LABELS = {BASE: "base model"}
"""Names of labels that are not made of the labels' words."""
_FINALIST = "finalist_"
"""Beginning of the labels of a search's finalists; the best comes first."""
UNKNOWN = "–"
"""Text of a figure that is not known."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of numbers."""

    text: str
    value: float | None
    """Sorts the column; None comes last."""
    below: str = ""
    """95% interval."""
    weak: bool = False
    """Whether it is a difference that may be chance."""
    unsure: bool = False
    """Whether its interval is wider than half of its scale."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    label: str
    """Label of the model whose colour it has; empty for none."""
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of numbers after a first column of names."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    meanings: tuple[tuple[str, str], ...] = ()
    """Headings and their meanings."""


def all_held_out(summary: Mapping[str, Any]) -> bool:
    """Whether models were trained, and on no prompt like those that they were asked through."""
    like = summary.get("prompt_files", {}).get("like_trained")
    return bool(trained_labels(summary)) and not like


def display_name(label: str, names: Mapping[str, str] | None = None) -> str:
    """The name of a label for people: its words, with PAFT in capitals."""
    known = {**_NAMES_OF_LABELS, **(names or {})}
    words = ["PAFT" if word == PAFT else word for word in label.split("_")]
    return known.get(label, " ".join(words))


def trained_labels(summary: Mapping[str, Any]) -> list[str]:
    """Labels of the models that variants trained."""
    others = [label for label in summary["models"] if label != BASE]
    return list(summary.get("trained", others if summary.get("seeds") else ()))


def main_label(summary: Mapping[str, Any]) -> str:
    """Label of the main model: PAFT, else a search's best finalist, else the last one trained.

    Where nothing was trained it is the first subject, or the base model where that is all.
    """
    labels, trained = list(summary["models"]), trained_labels(summary)
    if PAFT in labels:
        return PAFT
    if trained:
        return next((label for label in trained if label.startswith(_FINALIST)), trained[-1])
    return next((label for label in labels if label != BASE), labels[0])


def results(
    summary: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    wide: Sequence[Figure] | None = None,
) -> Table:
    """The main figures of every model, with intervals.

    Args:
        summary: Content of `summary.json`.
        names: Label to name, where it is not made of the label's words.
        wide: Which to include of the figures that a narrow table leaves out; all by default.
    """
    tables = ("results", "wide") if wide is None else ("results",)
    shown = [f for f in figures_of(summary) if f.table in tables or f in (wide or ())]

    def name(label: str) -> str:
        return display_name(label, names) + _steps(summary["models"][label])

    return _models(summary, shown, name)


def _steps(model: Mapping[str, Any]) -> str:
    """The steps of a model's trainings, and those whose weights were saved where these differ."""
    if not (steps := model.get("steps")):
        return ""
    trained, saved = model.get("steps_by_seed", [steps]), model.get("saved_steps", [])
    best = f", best at {span(saved)}" if saved not in ([], trained) else ""
    return f", {span(trained)} steps{best}"


def span(numbers: Sequence[int]) -> str:
    """The number that all are, or the least and the greatest."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def further_figures(summary: Mapping[str, Any]) -> Table:
    """Every other figure that some model has."""
    shown = [figure for figure in figures_of(summary) if figure.table == "further"]
    return _models(summary, shown, display_name)


def card_figures(summary: Mapping[str, Any]) -> Evaluation:
    """The results for a model card."""
    table = results(summary, wide=())
    rows = tuple((row.name, *(cell.text for cell in row.cells)) for row in table.rows)
    size = summary["prompts"], summary["examples"]
    note = " ".join([how_answers_end(summary), *backends_agree(summary)])
    return Evaluation(table.columns, rows, *size, note)


def how_answers_end(summary: Mapping[str, Any]) -> str:
    """Say how answers are graded, and what of their end counts, in a line under the figures."""
    grades = summary.get("grades", [])
    said = [f"Answers are graded by {_grade(grades[0])}."] if grades else []
    if (shown := summary.get("demonstrations")) is not None:
        said.append(
            f"Each question stands after {shown['shots']} solved training examples; figures are "
            f"means over {shown['draws']} draws of these, which intervals include."
        )
    if (stop := summary.get("stop")) is not None:
        texts = f" or the first of task.stop ({', '.join(map(repr, stop))})" if stop else ""
        said.append(f"Generated answers count as a whole, up to the end token{texts}.")
    if "stop" not in summary or "answer_end" in summary:
        said.append(_end_of_choices(summary))
    return " ".join(said)


def _grade(grade: Mapping[str, Any]) -> str:
    """A grade with its settings, in words."""
    settings = [f"{k} {v}" for k, v in grade.items() if k not in ("label", "type")]
    return grade["type"] + (f" ({', '.join(settings)})" if settings else "")


def _end_of_choices(summary: Mapping[str, Any]) -> str:
    earlier = any(GENERATED_TOKENS.read(model) is not None for model in summary["models"].values())
    if "answer_end" not in summary and earlier:
        return "Of generated answers the first line counts, as in earlier versions."
    if summary.get("answer_end", "ignored") == "scored":
        return "The end token of an answer is scored with it (task.answer_end: scored)."
    return (
        "The end of an answer is not scored (task.answer_end: ignored, as lm-evaluation-harness "
        "does it): a choice that begins with another choice cannot win against it."
    )


def backends_agree(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """Say how far another backend lies from transformers, first of the models beyond tolerance."""
    found = {"": summary["parity"]} if "parity" in summary else summary.get("parities", {})
    return [
        f"{run}: {sentence}" if run else sentence
        for run, parity in found.items()
        for sentence in _agreement(parity, names)
    ]


def _agreement(parity: Mapping[str, Any], names: Mapping[str, str] | None) -> Iterator[str]:
    backend, tolerance = parity["backend"], f"{parity['tolerance']:g} in {parity['dtype']}"
    means = {label: model["mean"] for label, model in parity["models"].items()}
    for label in parity["beyond"]:
        other = parity["models"][label]["nearer_to"]
        nearer = "" if other is None else f", nearer to those of {display_name(other, names)}"
        yield (
            f"{display_name(label, names)}: {backend} does not compute what transformers does. "
            f"Their log-probabilities lie {means[label]:.2g} nats per answer token apart on "
            f"average (tolerance {tolerance}){nearer}, so that these figures may be of another "
            "model; compare with evaluation.backend.type: transformers."
        )
    if within := [mean for label, mean in means.items() if label not in parity["beyond"]]:
        others = ", but for the models above" if parity["beyond"] else ""
        yield (
            f"Scored by {backend}: on {parity['pairs']} pairs of prompt and example its "
            f"log-probabilities lie up to {max(within):.1g} nats per answer token from those of "
            f"transformers on average (tolerance {tolerance}){_alike(parity)}{others}."
        )


def _alike(parity: Mapping[str, Any]) -> str:
    """The share of pairs with the same likeliest answer, where there are several answers."""
    within = [m for label, m in parity["models"].items() if label not in parity["beyond"]]
    least = min((m["alike"] for m in within if m["alike"] is not None), default=None)
    if least is None:
        return ""
    share = "all" if least == 1 else f"{least:.0%}"
    return f", and the likeliest answer is the same under {share} of them"


def differences(summary: Mapping[str, Any]) -> Table:
    """Paired differences in the figures that are compared."""
    entries = differences_of(summary)
    shown = [
        figure
        for figure in figures_of(summary)
        if figure.compared and any(of_figure(entry, figure) for _, _, entry in entries)
    ]
    has_p = any("p" in entry for _, _, entry in entries)
    rows = []
    for a, b, entry in entries:
        cells = [_difference(figure, of_figure(entry, figure)) for figure in shown]
        cells += [_chance(entry.get("p"))] * has_p
        rows.append(Row("", f"{display_name(a)} − {display_name(b)}", tuple(cells)))
    columns = (*(figure.heading for figure in shown), *[f"p of the {MEAN.heading}"] * has_p)
    return Table(columns, tuple(rows))


def _models(
    summary: Mapping[str, Any], figures: Sequence[Figure], name: Callable[[str], str]
) -> Table:
    """A row per model, with the figures that some model has."""
    models = summary["models"]
    shown = [f for f in figures if any(f.read(model) is not None for model in models.values())]
    rows = [
        Row(label, name(label), tuple(_cell(figure, model) for figure in shown))
        for label, model in models.items()
    ]
    meanings = [
        (", ".join(figure.heading for figure in alike), meaning)
        for meaning, alike in groupby(shown, key=lambda figure: figure.meaning)
    ]
    return Table(tuple(figure.heading for figure in shown), tuple(rows), tuple(meanings))


def _cell(figure: Figure, model: Mapping[str, Any]) -> Cell:
    value, interval = figure.read(model), figure.read(model.get("intervals", {}))
    if value is None:
        return Cell(UNKNOWN, None)
    below = " – ".join(map(figure.show, interval)) if interval else ""
    unsure = bool(interval) and interval[1] - interval[0] > figure.most / 2
    return Cell(figure.show(value) + figure.unit, value, below, unsure=unsure)


def by_author(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Table:
    """Figures under the prompts of each held-out author, or of each of `evaluation.prompt_files`;
    no rows where there are not two.
    """
    rows = [
        (f"{figure.heading}, {part['prompts']} {_source(summary, author)}", figure, part)
        for figure in (MEAN, STD, WORST)
        for author, part in summary.get("by_author", {}).items()
    ]
    return _of_parts(summary, rows, names)


def _source(summary: Mapping[str, Any], author: str) -> str:
    """Where prompts are from: by an author, or of a file, whose name is enough if no other has it.

    Columns are narrow, and paths may be long.
    """
    if (about := summary.get("prompt_files")) is None:
        return f"by {author}"
    names = [file.rpartition("/")[2] for file in about["files"]]
    name = author.rpartition("/")[2]
    return f"of {name if names.count(name) == 1 else author}"


def on_trained_prompts(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Table:
    """The mean of every model under the one prompt that a variant was trained on, by variant."""
    rows = [
        (f"{MEAN.heading}, that of {display_name(label, names)}", MEAN, part)
        for label, part in summary.get("on_trained_prompts", {}).items()
    ]
    return _of_parts(summary, rows, names)


def _of_parts(
    summary: Mapping[str, Any],
    parts: Sequence[tuple[str, Figure, Mapping[str, Any]]],
    names: Mapping[str, str] | None,
) -> Table:
    """A row for a figure of a part of what was measured, a column for each of its models."""
    labels = [label for label in summary["models"] if all(label in p["models"] for *_, p in parts)]
    rows = tuple(
        Row("", name, tuple(_cell(figure, part["models"][label]) for label in labels))
        for name, figure, part in parts
    )
    return Table(tuple(display_name(label, names) for label in labels), rows)


def by_certainty(table: Table) -> tuple[Table, Table]:
    """The columns that say something, and those with an interval wider than half of their scale.

    The first column always stays.
    """
    unsure = {
        place
        for row in table.rows
        for place, cell in enumerate(row.cells)
        if cell.unsure and place > 0
    }
    sure = [place for place in range(len(table.columns)) if place not in unsure]
    return _with_columns(table, sure), _with_columns(table, sorted(unsure))


def _with_columns(table: Table, places: Sequence[int]) -> Table:
    rows = tuple(replace(row, cells=tuple(row.cells[p] for p in places)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[p] for p in places), rows=rows)


def _difference(figure: Figure, entry: Mapping[str, float] | None) -> Cell:
    if entry is None:
        return Cell(UNKNOWN, None)
    value, low, high = (figure.show_change(entry[key]) for key in ("value", "low", "high"))
    weak = entry["low"] <= 0 <= entry["high"]
    return Cell(minus(value), entry["value"], minus(f"{low} to {high}"), weak)


def minus(text: str) -> str:
    return text.replace("-", "−")


def _chance(p: float | None) -> Cell:
    if p is None:
        return Cell(UNKNOWN, None)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p, weak=p >= 0.05)
