"""Results for Python and notebooks: a table to compute with, the same as HTML, a plot to change."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from paft_ray.config.visible import visible
from paft_ray.evaluation.figures import figures_of
from paft_ray.report.files import read_run
from paft_ray.report.page import plots_of
from paft_ray.report.pictures import accuracy_picture
from paft_ray.report.tables import results
from paft_ray.report.verdict import verdict
from paft_ray.storage.paths import Storage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def figures_frame(summary: Mapping[str, Any]) -> "pd.DataFrame":
    """The figures of the results table, a row per model, in the units that the table shows.

    Columns are called by `summary.json`'s keys; `<key>_low` and `<key>_high` are the bounds of the
    95% interval, where there is one.
    """
    import pandas as pd

    rows: dict[str, dict[str, float]] = {}
    for label, model in summary["models"].items():
        row = rows[label] = {}
        for figure in figures_of(summary):
            if figure.table == "further" or (value := figure.read(model)) is None:
                continue
            row[figure.key] = figure.scale * value
            if interval := figure.read(model.get("intervals", {})):
                bounds = zip(("low", "high"), interval, strict=True)
                row |= {f"{figure.key}_{name}": figure.scale * bound for name, bound in bounds}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def figures_html(summary: Mapping[str, Any]) -> str:
    """The results in a sentence and a table, with 95% intervals, as HTML."""
    table = results(summary)
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    lines = []
    for row in table.rows:
        cells = (
            f"<td>{_text(cell.text)}"
            + (f"<br><small>{_text(cell.below)}</small>" if cell.below else "")
            for cell in row.cells
        )
        lines.append(f"<tr><th>{_text(row.name)}</th>{'</td>'.join(cells)}</td></tr>")
    note = (
        f"{summary['prompts']} prompts x {summary['examples']} examples; accuracies in percent, "
        "95% intervals below"
    )
    return (
        f"<p>{_text(verdict(summary).sentence)}</p><table><thead><tr><th>{_text(note)}</th>{head}</tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table>"
    )


def accuracy_figure(folder: Storage) -> "Figure":
    """The accuracy of a run's models under every prompt, as a figure of matplotlib.

    Raises:
        ArtifactError: The run has no results.
    """
    plots = plots_of(read_run(folder))
    return accuracy_picture(plots.accuracy, plots.colours)


def _text(text: str) -> str:
    return escape(visible(text))
