"""`report.html`: one page that needs no network and no other file.

Everything is drawn as inline SVG and CSS in percent of the width, so that it reads on a phone and
in dark mode. Texts come from outside, prompts above all: the template escapes every one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paft_ray.config.loading import without_unread
from paft_ray.evaluation.figures import figures_of
from paft_ray.report.accuracy import AccuracyPlot, accuracy_plot, prompt_lines
from paft_ray.report.asked import prompts_asked
from paft_ray.report.axis_tables import axes, components, more_or_less
from paft_ray.report.coverage import COLOURS, run_coverage
from paft_ray.report.files import RunFiles, read_run
from paft_ray.report.flips import flipping_examples
from paft_ray.report.oddness import odd_prompts
from paft_ray.report.pictures import (
    colours,
    draw_accuracy,
    draw_learning_curve,
    draw_search,
    draw_shares,
)
from paft_ray.report.rendering import render
from paft_ray.report.rollouts import rollouts_of
from paft_ray.report.search import (
    DimensionPlot,
    dimension_plots,
    next_steps,
    search_axis,
    trial_rows,
)
from paft_ray.report.tables import (
    all_held_out,
    by_author,
    by_certainty,
    differences,
    display_name,
    further_figures,
    main_label,
    on_trained_prompts,
    results,
    trained_labels,
)
from paft_ray.report.text import cautions
from paft_ray.report.training import CurvePlot, SharesPlot, curve_plot, draws_of, shares_plot
from paft_ray.report.verdict import verdict
from paft_ray.storage.paths import Storage


@dataclass(frozen=True, slots=True)
class Plots:
    """The plots that both the page and the pictures show."""

    colours: Mapping[str, str]
    """Label to colour."""
    accuracy: AccuracyPlot
    curves: CurvePlot | None
    shares: tuple[SharesPlot, ...]
    search: tuple[DimensionPlot, ...]


def write_report(folder: Storage) -> str:
    """Write `report.html` and the pictures of a run, and return the path of the page.

    The pictures are `accuracy.png` and, where there is something to draw, `learning_curve.png`,
    `sampling_*.png` (how losses weighed the prompts) and `search.png`.

    Args:
        folder: `runs/<name>/`, with `config.json`, `summary.json` and `scores.parquet`;
            `prompts.parquet`, `examples.parquet` and `training/*/` may be missing.

    Raises:
        ArtifactError: One of the three files is missing.
    """
    write_pages(folder)
    return folder.path("report.html")


def write_pages(folder: Storage) -> RunFiles:
    """Do what `write_report` does, and return what was read."""
    run = read_run(folder)
    plots = plots_of(run)
    folder.write_bytes("accuracy.png", draw_accuracy(plots.accuracy, plots.colours))
    if plots.curves:
        folder.write_bytes("learning_curve.png", draw_learning_curve(plots.curves, plots.colours))
    for shares in plots.shares:
        picture = draw_shares(shares, plots.colours[shares.label])
        folder.write_bytes(f"sampling_{shares.label}-s{shares.seed}.png", picture)
    if run.search:
        folder.write_bytes("search.png", draw_search(plots.search, run.search["goal"]))
    page = render_page(run, folder.path().rpartition("/")[2], plots)
    folder.write_bytes("report.html", page.encode("utf-8", "replace"))
    return run


def plots_of(run: RunFiles) -> Plots:
    """All plots of a run."""
    return Plots(
        colours([*run.summary["models"], *(training.label for training in run.trainings)]),
        accuracy_plot(run),
        curve_plot(run.trainings),
        tuple(shares_plot(training, run.texts) for training in run.trainings if training.shares),
        tuple(dimension_plots(run.search)) if run.search else (),
    )


def render_page(run: RunFiles, title: str, plots: Plots) -> str:
    """The page as HTML."""
    summary = run.summary
    labels, trained = list(summary["models"]), trained_labels(summary)
    config = without_unread(run.about.get("config", {}))
    main, odd = main_label(summary), odd_prompts(run)
    main_table, folded = by_certainty(results(summary))
    further, further_folded = by_certainty(further_figures(summary))
    return render(
        "page.html.j2",
        title=title,
        subtitle=_subtitle(config),
        verdict=verdict(summary),
        cautions=[text.replace("`", "") for text in cautions(summary)],
        results=main_table,
        folded=folded,
        further=further,
        further_folded=further_folded,
        differences=differences(summary),
        by_author=by_author(summary),
        on_trained=on_trained_prompts(summary),
        axes=axes(summary),
        more_or_less=more_or_less(summary),
        components=components(summary),
        summary=summary,
        trained=trained,
        held_out=all_held_out(summary),
        partly=run.partly_scored,
        tops=[f"{100 * float(f.threshold):g}%" for f in figures_of(summary) if f.threshold],
        names={label: display_name(label) for label in labels},
        main_place=labels.index(main),
        main_name=display_name(main),
        colours=plots.colours,
        search=run.search,
        search_next=next_steps(run.search, title) if run.search else [],
        search_rows=trial_rows(run.search) if run.search else [],
        search_plots=plots.search,
        search_axis=search_axis(run.search) if run.search else None,
        asked=prompts_asked(run, odd),
        mlflow=run.mlflow,
        plot=plots.accuracy,
        lines=prompt_lines(run),
        flips=None if run.partly_scored else flipping_examples(run),
        curves=plots.curves,
        draws=draws_of(run.trainings, run.texts, odd),
        odd=[(run.texts[id], words) for id, words in odd.items()],
        weighings=plots.shares,
        rollouts=rollouts_of(run.trainings, run.texts),
        coverage=run_coverage(run) if trained else None,
        split_colours=COLOURS,
        seconds={_stage(name): spent for name, spent in summary["seconds"].items()},
        trainings=[training for training in run.trainings if training.about],
        scored=run.scored,
        generated_tokens=run.generated_tokens,
        config=json.dumps(config, indent=2, ensure_ascii=False),
        versions=_versions(run),
        display_name=display_name,
    )


def _subtitle(config: Mapping[str, Any]) -> str:
    task, model = config.get("task", {}), config.get("model", {})
    known = [task.get("name"), model.get("path")]
    return " · ".join(str(part) for part in known if part)


def _stage(name: str) -> str:
    trained = name.removeprefix("train_")
    return name.replace("_", " ") if trained == name else f"training of {display_name(trained)}"


def _versions(run: RunFiles) -> dict[str, str]:
    """Versions of the packages that trained, and fingerprints of data and weights."""
    versions: dict[str, str] = {}
    for training in run.trainings:
        made_from = {
            f"{k} (fingerprint)": v for k, v in training.about.get("made_from", {}).items()
        }
        for name, value in {**training.about.get("versions", {}), **made_from}.items():
            known = versions.setdefault(name, str(value))
            if str(value) not in known.split(", "):
                versions[name] = f"{known}, {value}"
    recorded = {
        k: v for k, v in run.about.items() if k not in ("config", "results_from", "content")
    }
    return versions | _flat(recorded)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
