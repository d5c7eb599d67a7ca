"""The reference of figures, from their registry."""

from collections.abc import Iterator

from paft_ray.evaluation.cost_figures import COSTS
from paft_ray.evaluation.figure import Figure
from paft_ray.evaluation.figures import all_figures

_HEAD = """\
# Figures

{note}

These figures are computed of every model that is evaluated. They are in `summary.json`, in
`report.html`, in the model card of an adapter and in MLflow. Shares lie between 0 and 1 in files
and are shown in percent. *Accuracy under a prompt* is the mean grade of the test examples when
they are asked through that prompt; *over prompts* means over the held-out test prompts.

Most figures have a 95% interval, and most pairs of models a paired difference with its own
interval. One bootstrap over prompts, examples and seeds gives all of them. With few seeds the
intervals are somewhat too narrow: n seeds show (n - 1) / n of their variance. Of several seeds each
figure is found for every seed and averaged; the worst prompt may be another one in each.

What a figure leaves out stands next to it: answers that were cut off, text that could not be
graded, examples that were trimmed or dropped.
"""


def page(note: str) -> str:
    """The whole page."""
    lines = [_HEAD.format(note=note), "## Of answers", "", *_table(_of_answers())]
    lines += ["", "## Of what it costs", "", *_table(COSTS)]
    return "\n".join(lines) + "\n"


def _of_answers() -> tuple[Figure, ...]:
    return tuple(f for f in all_figures(["0.85"]) if f not in COSTS)


def _table(figures: tuple[Figure, ...]) -> Iterator[str]:
    yield "| figure | meaning | better | in `summary.json` | MLflow: `eval/` + |"
    yield "|---|---|---|---|---|"
    for figure in figures:
        meaning = _sentence(figure.meaning)
        if figure.definition:
            meaning += f" {figure.definition}"
        key = f"top.{figure.threshold}" if figure.threshold else figure.key
        metric = f"`{figure.metric}`" if figure.metric else ""
        yield f"| {figure.heading} | {meaning} | {figure.better or ''} | `{key}` | {metric} |"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
