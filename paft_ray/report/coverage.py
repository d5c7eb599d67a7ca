"""The prompts of a run on a map of wordings, and the training prompts nearest to test prompts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_ray.prompts.coverage import discrepancy, flat_map
from paft_ray.prompts.dedup.similarity import shingles
from paft_ray.prompts.leakage import nearest
from paft_ray.report.files import RunFiles
from paft_ray.tasks.example import SPLITS

COLOURS = {"train": "#2563eb", "validation": "#0f9d76", "test": "#d97706"}
_DRAWN = 800
"""Most training prompts that the map shows."""
_LISTED = 400


@dataclass(frozen=True, slots=True)
class Point:
    """A prompt on the map, its place in percent."""

    split: str
    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class SplitSize:
    """Counts of a split; None where the table lacks the column."""

    split: str
    prompts: int
    instructions: int | None
    layouts: int | None
    clusters: int | None


@dataclass(frozen=True, slots=True)
class Nearest:
    """A test prompt and the most similar training wording."""

    text: str
    nearest: str
    similarity: float
    new_layout: bool | None
    """Whether no training prompt has its layout; None where the table lacks layouts."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far test prompts are from training prompts, in words."""

    verdict: str
    detail: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """The content of the page's section on coverage."""

    sizes: tuple[SplitSize, ...]
    points: tuple[Point, ...]
    drawn: int
    """Training prompts on the map."""
    nearest: tuple[Nearest, ...]
    """The most similar ones first."""
    unlisted: int
    highest: float
    """Largest similarity of a test prompt to a training prompt."""
    median: float
    new_layouts: int | None
    """Test prompts in a layout that no training prompt has."""
    distance: Distance


def distance(test: Sequence[str], train: Sequence[str]) -> Distance:
    """Whether test prompts are of another kind than training prompts, from their texts."""
    found, chance = discrepancy(test, train)
    if math.isnan(found):
        return Distance("Too few prompts to compare test with training prompts.", "")
    verdict = (
        "Test prompts are of another kind than training prompts: figures say how models cope "
        "with wordings unlike those of training."
        if found > chance
        else "Test prompts are not shown to be of another kind than training prompts: figures "
        "hold for wordings like those of training."
    )
    return Distance(
        verdict,
        f"Their squared maximum mean discrepancy is {found:.4f}; regrouping them by chance gives "
        f"up to {chance:.4f} (95%).",
    )


def map_points(prompts: Sequence[tuple[str, str]]) -> tuple[Point, ...]:
    """Points of splits and texts; near points share pieces of words, held-out ones lie on top."""
    places = flat_map([text for _, text in prompts])
    points = [
        Point(split, text, round(50 + 48 * float(x), 2), round(50 - 47 * float(y), 2))
        for (split, text), (x, y) in zip(prompts, places, strict=True)
    ]
    return tuple(sorted(points, key=lambda point: SPLITS.index(point.split)))


def run_coverage(run: RunFiles) -> Coverage | None:
    """Coverage from `prompts.parquet`; None for runs without training prompts in it."""
    by_split = {
        split: [row for row in run.prompts if row.get("split") == split] for split in SPLITS
    }
    if not by_split["train"] or not by_split["test"]:
        return None
    shown = [*by_split["train"][:_DRAWN], *by_split["validation"], *by_split["test"]]
    nearest = sorted(
        _nearest(by_split["test"], by_split["train"]), key=lambda n: (-n.similarity, n.text)
    )
    known = [line.new_layout for line in nearest if line.new_layout is not None]
    similarities = sorted(line.similarity for line in nearest)
    return Coverage(
        tuple(_size(split, rows) for split, rows in by_split.items() if rows),
        map_points([(row["split"], row["text"]) for row in shown]),
        min(_DRAWN, len(by_split["train"])),
        tuple(nearest[:_LISTED]),
        max(0, len(nearest) - _LISTED),
        similarities[-1],
        statistics.median(similarities),
        sum(known) if known else None,
        distance(
            [row["text"] for row in by_split["test"]],
            [row["text"] for row in by_split["train"][:_DRAWN]],
        ),
    )


def _size(split: str, rows: Sequence[Mapping[str, Any]]) -> SplitSize:
    different = [
        len({row[column] for row in rows}) if rows[0].get(column) else None
        for column in ("instruction", "layout", "cluster")
    ]
    return SplitSize(split, len(rows), *different)


def _nearest(
    test: Sequence[Mapping[str, Any]], train: Sequence[Mapping[str, Any]]
) -> list[Nearest]:
    """Every test prompt with the training prompt of the most similar wording."""
    layouts = {row["layout"] for row in train} if "layout" in train[0] else None
    known = sorted({_wording(row) for row in train}, reverse=True)
    grams = [shingles(text) for text in known]
    lines = []
    for row in test:
        place, similar = nearest(shingles(_wording(row)), grams)
        new = None if layouts is None else row["layout"] not in layouts
        lines.append(Nearest(row["text"], known[place], similar, new))
    return lines


def _wording(row: Mapping[str, Any]) -> str:
    """The text without its layout where the table has both: layouts are compared as a whole."""
    return row.get("instruction") or row["text"]
