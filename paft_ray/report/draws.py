"""Which training prompts were drawn, how often, and their losses, from the ledgers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from paft_ray.report.files import Drawn, Training
from paft_ray.report.table import display_name

_LISTED_PROMPTS = 400
_MOST_COLUMNS = 5
"""With more seeds a table shows only their sum."""


@dataclass(frozen=True, slots=True)
class DrawnPrompt:
    """One training prompt over the seeds of a variant."""

    text: str
    total: int
    by_seed: tuple[int, ...]
    """Examples rendered through it in each training; empty where only the sum is shown."""
    loss: float
    """Mean answer loss under it, in nats per token."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of one variant."""

    label: str
    name: str
    seeds: tuple[str, ...]
    """Whose columns the table has; empty where only the sum is shown."""
    total: int
    prompts: int
    low: int
    median: float
    high: int
    bars: tuple[float, ...]
    """In percent of the largest."""
    listed: tuple[DrawnPrompt, ...]
    unlisted: int


def draws_of(trainings: Sequence[Training], texts: Mapping[str, str]) -> tuple[Draws, ...]:
    """One entry per variant whose ledgers are there, in the order given."""
    known = [training for training in trainings if training.drawn]
    groups = groupby(known, key=lambda training: training.label)
    return tuple(_draws(label, list(group), texts) for label, group in groups)


def _draws(label: str, trainings: Sequence[Training], texts: Mapping[str, str]) -> Draws:
    by_prompt: dict[str, dict[str, Drawn]] = {}
    for training in trainings:
        for drawn in training.drawn:
            by_prompt.setdefault(drawn.prompt_id, {})[training.seed] = drawn
    totals = {id: sum(d.examples for d in by_seed.values()) for id, by_seed in by_prompt.items()}
    order = sorted(totals, key=lambda prompt_id: (-totals[prompt_id], prompt_id))
    counts = [totals[prompt_id] for prompt_id in order]
    seeds = tuple(training.seed for training in trainings)
    shown = seeds if 1 < len(seeds) <= _MOST_COLUMNS and len(counts) > 1 else ()
    names = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds together"
    return Draws(
        label,
        f"{display_name(label)}, {names}",
        shown,
        sum(counts),
        len(counts),
        min(counts),
        statistics.median(counts),
        max(counts),
        tuple(round(100 * count / max(counts), 2) for count in counts[:_LISTED_PROMPTS]),
        tuple(
            DrawnPrompt(
                texts.get(prompt_id, prompt_id),
                totals[prompt_id],
                tuple(
                    by_prompt[prompt_id][seed].examples if seed in by_prompt[prompt_id] else 0
                    for seed in shown
                ),
                sum(d.loss * d.tokens for d in by_prompt[prompt_id].values())
                / max(sum(d.tokens for d in by_prompt[prompt_id].values()), 1),
            )
            for prompt_id in order[:_LISTED_PROMPTS]
        ),
        max(0, len(order) - _LISTED_PROMPTS),
    )
