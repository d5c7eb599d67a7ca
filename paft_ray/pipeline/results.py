"""What verbs return to Python: tables, scores and plots, shown as they are in a notebook."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_ray.config.visible import near, visible
from paft_ray.pipeline.perform import Result
from paft_ray.prompts.pool import PromptPool
from paft_ray.storage.paths import Storage

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SHOWN_PROMPTS = 5


@dataclass(frozen=True, repr=False, kw_only=True)
class RunResult(Result):
    """The result of a verb that measured models; files are read when they are asked for."""

    folder: Storage
    """Folder of the run, of one of its evaluations, or of a comparison."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """The content of `summary.json`; of a search, that of its finalists."""
        return self.data.get("summary", self.data)

    @property
    def table(self) -> "pd.DataFrame":
        """The figures of every model, a row each, in the units of the table on the screen:
        accuracies in percent. The end of its 95% interval stands beside each figure that has one.
        """
        from paft_ray.report.frames import figures_frame

        return figures_frame(self.summary)

    @property
    def scores(self) -> "pd.DataFrame":
        """Every answer that was scored, a row each: model (`variant`), seed, prompt, example,
        prediction and whether it is right; `split` is `test` under held-out prompts, and `train`
        under those of `evaluation.trained_prompts`. `prompts` and `examples` have the texts.
        """
        return self.folder.read_table("scores.parquet").to_pandas()

    @property
    def prompts(self) -> "pd.DataFrame":
        """The prompts, a row each: id, text, split and origin."""
        return self.folder.read_table("prompts.parquet").to_pandas()

    @property
    def examples(self) -> "pd.DataFrame":
        """The test examples that were scored, a row each: id, fields and answer."""
        return self.folder.read_table("examples.parquet").to_pandas()

    @property
    def report(self) -> str:
        """Path or URI of the report, one HTML file."""
        return self.folder.path("report.html")

    def plot(self) -> "Figure":
        """Draw the accuracy of every model under every prompt."""
        from paft_ray.report.frames import accuracy_figure

        return accuracy_figure(self.folder)

    def _repr_html_(self) -> str:
        """Return the table and a link to the report, for a notebook."""
        from paft_ray.report.frames import figures_html

        return f"{figures_html(self.summary)}<p>Report: {_link(self.report)}</p>"


@dataclass(frozen=True, repr=False, kw_only=True)
class PoolResult(Result):
    """The result of building a prompt pool."""

    pool: PromptPool
    """The pool, all of whose training prompts are there."""

    def _repr_html_(self) -> str:
        """Return the funnel and some prompts, for a notebook."""
        prompts = self.pool.sample(min(_SHOWN_PROMPTS, len(self.pool.train)))
        shown = "".join(f"<pre>{escape(visible(prompt.text))}</pre>" for prompt in prompts)
        page = _link(self.data["page"])
        return f"{super()._repr_html_()}<p>Page: {page}. Some training prompts:</p>{shown}"


def _link(place: str) -> str:
    """A link to a file, which a notebook's server can open where it is below its folder."""
    shown = escape(near(place))
    below = Path(place).is_absolute() and not Path(near(place)).is_absolute()
    return f'<a href="{shown}" target="_blank">{shown}</a>' if below else shown
