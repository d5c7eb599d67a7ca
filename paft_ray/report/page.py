"""`report.html`: one page that needs no network and no other file.

Everything is drawn as inline SVG and CSS in percent of the width, so that it reads on a phone and
in dark mode. Texts come from outside, prompts above all: the template escapes every one.
"""

import json
from collections.abc import Mapping
from typing import Any

from paft_ray.report.coverage import COLOURS, run_coverage
from paft_ray.report.curves import curve_plot, shares_plot
from paft_ray.report.draws import draws_of
from paft_ray.report.figures import differences, further_figures, results
from paft_ray.report.files import RunFiles, read_run
from paft_ray.report.flips import flipping_examples
from paft_ray.report.pictures import (
    colours,
    draw_accuracy,
    draw_learning_curve,
    draw_search,
    draw_shares,
)
from paft_ray.report.rendering import render
from paft_ray.report.search import dimension_plots, search_axis, trial_rows
from paft_ray.report.strips import accuracy_strips, prompt_lines
from paft_ray.report.table import cautions, display_name, headline, main_label, top_columns
from paft_ray.storage.paths import Storage


def write_report(folder: Storage) -> str:
    """Write `report.html`, `accuracy.png` and, where there is something to see in them, the
    learning curve, what losses made of the prompts (`sampling_*.png`) and a search (`search.png`).

    Args:
        folder: `runs/<name>/`, with `config.json`, `summary.json` and `scores.parquet`;
            `prompts.parquet`, `examples.parquet` and `training/*/` are used where they are there.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: One of the three files is missing.
    """
    run = read_run(folder)
    colour = colours([*run.summary["models"], *(training.label for training in run.trainings)])
    folder.write_bytes("accuracy.png", draw_accuracy(run, colour))
    if any(training.losses for training in run.trainings):
        picture = draw_learning_curve(run.trainings, colour)
        folder.write_bytes("learning_curve.png", picture)
    for training in run.trainings:
        if training.shares:
            name = f"sampling_{training.label}-s{training.seed}.png"
            folder.write_bytes(name, draw_shares(training, colour[training.label]))
    if run.search:
        folder.write_bytes("search.png", draw_search(run.search))
    page = render_page(run, folder.path().rpartition("/")[2], colour)
    folder.write_bytes("report.html", page.encode("utf-8", "replace"))
    return folder.path("report.html")


def render_page(run: RunFiles, title: str, colour: Mapping[str, str]) -> str:
    """The page as HTML."""
    summary, texts = run.summary, run.texts
    labels = list(summary["models"])
    config = run.about.get("config", {})
    main = main_label(summary)
    return render(
        "page.html.j2",
        title=title,
        subtitle=_subtitle(config),
        headline=headline(summary),
        cautions=[text.replace("`", "") for text in cautions(summary)],
        results=results(summary),
        further=further_figures(summary),
        differences=differences(summary),
        summary=summary,
        partly=run.partly_scored,
        tops=[heading.removeprefix("Top>=") for heading in top_columns(summary)],
        names={label: display_name(label) for label in labels},
        main_place=labels.index(main),
        main_name=display_name(main),
        colours=colour,
        search=run.search,
        search_rows=trial_rows(run.search) if run.search else [],
        search_plots=dimension_plots(run.search) if run.search else [],
        search_axis=search_axis(run.search) if run.search else None,
        strips=accuracy_strips(run),
        lines=prompt_lines(run),
        flips=None if run.partly_scored else flipping_examples(run),
        curves=curve_plot(run.trainings),
        draws=draws_of(run.trainings, texts),
        weighings=[shares_plot(training, texts) for training in run.trainings if training.shares],
        coverage=run_coverage(run),
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
