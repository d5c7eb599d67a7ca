"""The page of a prompt pool: funnel, authors, coverage, groups, examples of every reject."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from paft_ray.config.errors import ArtifactError
from paft_ray.prompts.generate.results import refused_line
from paft_ray.prompts.pool import Prompt, PromptPool, load_pool
from paft_ray.report.coverage import COLOURS, distance, map_points
from paft_ray.report.oddness import odd_among
from paft_ray.report.rendering import render
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import SPLITS

POOL_PAGE = "pool.html"
_EXAMPLES = 5
_DRAWN = 2000
"""Most training prompts that are drawn or compared."""


def write_pool_page(folder: Storage) -> str:
    """Write `pool.html` next to a complete pool and return its path.

    Raises:
        ArtifactError: There is no complete pool.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder.path()}: holds no complete pool; run `paft prompts` again")
    pool = load_pool(folder)
    rejected = folder.read_table("rejected.parquet")
    name = folder.path().rpartition("/")[2]
    page = render_pool_page(name, pool, manifest.about, rejected)
    folder.write_bytes(POOL_PAGE, page.encode("utf-8", "replace"))
    return folder.path(POOL_PAGE)


def funnel(about: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Stages, the number that is left after each, and a note, from a pool's record."""
    sources = about["requests"] + about["from_files"]
    stages = [("asked for, or in files", sources), ("parsed", about["candidates"])]
    stages += [("linted", about["linted"]), ("unique", about["unique"])]
    later = ("split: ", "dedup: beyond_max_unique")
    dropped = sum(count for name, count in about["rejected"].items() if name.startswith(later))
    prompts, placed = sum(about[split] for split in SPLITS), about["unique"] - dropped
    stages.append(("kept for a split", placed))
    if about.get("probed"):
        stages.append(("placed and probed", about["probed"]))
    noted = [(stage, count, "") for stage, count in stages]
    grown = "a training instruction stands in several layouts" if prompts > placed else ""
    return [*noted, ("prompts in a split", prompts, grown)]


def funnel_lines(about: Mapping[str, Any]) -> list[str]:
    """The funnel, the authors and the rejects for a terminal."""
    lines = [
        f"{stage:<24} {count:>9,}{f'  ({note})' * bool(note)}"
        for stage, count, note in funnel(about)
    ]
    lines += [f"  {split:<22} {about[split]:>9,}" for split in SPLITS]
    for row in about["llms"]:
        cost = "" if row["cost"] is None else f", cost {row['cost']:.4g}"
        lines.append(
            f"{row['llm']}: {row['answered']:,} of {row['requests']:,} requests answered, "
            f"{row['prompt_tokens']:,} tokens read, {row['completion_tokens']:,} written{cost}"
        )
        if row.get("left_out"):
            lines.append(refused_line(row))
    if about["stopped"]:
        lines.append(f"asking ended early: {about['stopped']}")
    if about["rejected"]:
        reasons = sorted(about["rejected"].items(), key=lambda item: (-item[1], item[0]))
        lines.append("rejected: " + ", ".join(f"{count:,} {name}" for name, count in reasons))
    return lines


def render_pool_page(
    name: str, pool: PromptPool, about: Mapping[str, Any], rejected: pa.Table
) -> str:
    """The page as HTML; it fetches nothing."""
    shown = [*pool.test, *pool.validation, *pool.train[:_DRAWN]]
    stages = funnel(about)
    every = [prompt for split in SPLITS for prompt in pool.prompts(split)[:_DRAWN]]
    texts = {prompt.id: prompt.text for prompt in every}
    wordings = {prompt.id: prompt.instruction for prompt in every}
    by_author = Counter(prompt.origin.llm for split in SPLITS for prompt in pool.prompts(split))
    return render(
        "pool.html.j2",
        name=name,
        sizes={split: len(pool.prompts(split)) for split in SPLITS},
        funnel=stages,
        widest=max(1, *(count for _, count, _ in stages)),
        stopped=about["stopped"],
        llms=[{**row, "prompts": by_author[row["llm"]]} for row in about["llms"]],
        split_colours=COLOURS,
        points=map_points([(prompt.split, prompt.text) for prompt in shown]),
        distance=distance(
            [prompt.text for prompt in pool.test], [prompt.text for prompt in pool.train[:_DRAWN]]
        ),
        odd=[(texts[id], words) for id, words in odd_among(wordings).items()],
        clusters=_clusters(pool),
        rejects=_rejects(rejected),
    )


def _clusters(pool: PromptPool) -> list[dict[str, Any]]:
    groups: dict[str, list[Prompt]] = {}
    for split in SPLITS:
        for prompt in pool.prompts(split):
            groups.setdefault(prompt.cluster or prompt.id, []).append(prompt)
    rows = [
        {"size": len(group), "split": group[0].split, "text": group[0].instruction[:120]}
        for group in groups.values()
    ]
    return sorted(rows, key=lambda row: (-row["size"], row["text"]))


def _rejects(rejected: pa.Table) -> list[dict[str, Any]]:
    """Groups of rejects, the largest first, each with a few examples."""
    columns = {c: rejected[c].to_pylist() for c in ("stage", "reason", "text", "detail")}
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for stage, reason, text, detail in zip(*columns.values(), strict=True):
        counts[stage, reason] += 1
        examples = groups.setdefault((stage, reason), [])
        if len(examples) < _EXAMPLES:
            examples.append({"text": text, "detail": detail})
    ordered = sorted(groups, key=lambda key: (-counts[key], key))
    return [
        {"stage": key[0], "reason": key[1], "count": counts[key], "examples": groups[key]}
        for key in ordered
    ]
