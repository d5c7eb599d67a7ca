"""Units of a grid: one subject, one prompt, a few examples; what they are kept under; no Ray.

A unit is scored by itself, so that how many actors there are changes no result. Only texts that are
generated on a GPU, and all that vLLM does, are computed with those of the units beside it: a batch
of 64 would leave a large part of it idle. These are the same ones in every run of a configuration;
a later evaluation that finds some of them finished computes the rest without them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.config import EndpointSubject, VLLMBackend
from paft_ray.config.affects import PROMPT_RULES, affecting, take
from paft_ray.prompts.pool import Prompt
from paft_ray.prompts.template import touches_demonstrations
from paft_ray.prompts.variation import PLAIN, Condition
from paft_ray.runs.context import RunContext
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example

_UNIT_EXAMPLES = 64
_TOGETHER = 16
"""Units that a GPU writes texts for, or vLLM scores, together."""
MOST_UNITS = 64
"""Units that an actor gets at a time at most."""
_SHARES = 32
"""Shares of an actor, at least, so that progress shows, and the last share is soon done."""

SERVED = -1
"""`Subject.base` of a model behind an endpoint."""

Unit = dict[str, Any]
"""A row of Ray Data: `key`, `subject` and `condition` (as indices), `group`, `prompt_id`, `text`,
`examples`."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The base model, or one training of a variant."""

    label: str
    """`base`, or the name of a variant."""
    seed: int
    """Seed of its training; the run's own for the base model."""
    identity: str
    """Fingerprint of its weights, empty for the base model."""
    weights: Storage | None = None
    """The folder `adapter/`, or `model/` where all weights were trained; None for the base."""
    base: int = 0
    """Number of its base model in `Grid.others`, counted from 1; 0 is the run's, and `SERVED` none
    that is loaded here."""
    endpoint: EndpointSubject | None = None
    """The endpoint that serves it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The combinations to evaluate: every subject under every prompt on every example."""

    subjects: Sequence[Subject]
    prompts: Sequence[Prompt]
    examples: Sequence[Example]
    others: Sequence[RunContext] = ()
    """The run's context with other base models than its own."""
    conditions: Sequence[Condition] = (PLAIN,)
    """Ways in which each example is put through each prompt."""

    @property
    def asked(self) -> int:
        """How often one subject is asked about everything."""
        ids = [example.id for example in self.examples]
        return len(self.prompts) * sum(sum(map(how.covers, ids)) for how in self.conditions)

    @property
    def shape(self) -> tuple[int, int]:
        """Prompts and examples of one subject."""
        return len(self.prompts), len(self.examples)


def cut(
    context: RunContext, grid: Grid, wanted: Sequence[NDArray[np.bool_]], kind: str = "scores"
) -> list[Unit]:
    """Return the units of the wanted pairs of every subject, [P, E], in the order of the result.

    Args:
        context: The run.
        grid: The whole grid.
        wanted: A mask for every subject.
        kind: What is kept of a unit.
    """
    fixed = _scored_by(context, grid)
    evaluation, seed = context.config.evaluation, context.config.seed
    writes = context.task.generates and evaluation.workers.gpus > 0
    writes |= isinstance(evaluation.backend, VLLMBackend)
    units = [
        {
            "key": fingerprint(
                *(kind, fixed[subject.base], subject.identity, prompt.text, chunk, *drawn),
                *grid.conditions[number].rewritten(chunk),
                *_set_apart(grid.conditions[number], prompt.text),
            ),
            "subject": index,
            "condition": number,
            "prompt_id": prompt.id,
            "text": prompt.text,
            "examples": chunk,
        }
        for index, (subject, wanted_PE) in enumerate(zip(grid.subjects, wanted, strict=True))
        for number, drawn in enumerate(_drawn(each, seed) for each in grid.conditions)
        for prompt, wanted_E in zip(grid.prompts, wanted_PE, strict=True)
        for chunk in _chunks(grid.examples, wanted_E, grid.conditions[number])
    ]
    for _, of_subject in groupby(units, key=itemgetter("subject")):
        for place, unit in enumerate(of_subject):
            unit["group"] = place // (_TOGETHER if writes else 1)
    return units


def scored_as(context: RunContext, grid: Grid, subject: Subject) -> list[Any]:
    """Return all but prompt and example on which the scores of a subject depend."""
    return [*_scored_by(context, grid)[subject.base], subject.identity]


def _scored_by(context: RunContext, grid: Grid) -> list[list[Any]]:
    """Return all but subject, prompt and examples on which scores depend, by `Subject.base`."""
    fixed = [_score_identity(each) for each in (context, *grid.others)]
    return [*fixed, _endpoint_rules(context)]  # the last one for `SERVED`


def _drawn(condition: Condition, seed: int) -> list[Any]:
    """Return what a condition adds to the key of a unit: nothing where it is plain."""
    return [*condition.identity, seed] if condition.identity else []


def _set_apart(condition: Condition, text: str) -> list[Any]:
    """Return the rule by which demonstrations are set apart, where a prompt's scores need it."""
    first = condition.crossed[0][0] if condition.crossed else condition
    rule = PROMPT_RULES["demonstrations_apart"]
    moved = rule > 1 and first.demonstrations and touches_demonstrations(text)
    return ["demonstrations_apart", rule] if moved else []


def _score_identity(context: RunContext) -> list[Any]:
    """Return all but subject, prompt and examples on which a score depends."""
    (_, chat_template, *limits, rows, packing, new_tokens, kept_tokens), later = take(
        affecting(context.config, "scores"),
        *("model.dtype", "model.chat_template", "task.max_length", "task.overlong"),
        *("evaluation.row_tokens", "train.packing", "evaluation.max_new_tokens"),
        "evaluation.generation_tokens",
    )
    task = context.task
    stored = context.stored(context.scoring_dtype, scored=True)
    return [
        context.model_identity,
        context.scoring_dtype,
        chat_template,
        [*limits, task.answering],
        [rows, packing, new_tokens],
        *([kept_tokens] if task.generates else []),
        *([later] if later else []),
        *([stored] if stored else []),
        *([code] if (code := context.grading_code) else []),
    ]


def _endpoint_rules(context: RunContext) -> list[Any]:
    """Return all of the run on which a score of an endpoint depends."""
    config, task = context.config, context.task
    fields = affecting(config.task, "scores")
    return [fields, task.answering, config.evaluation.max_new_tokens, context.grading_code]


def _chunks(
    examples: Sequence[Example], wanted_E: NDArray[np.bool_], how: Condition
) -> Iterator[list[str]]:
    """Ids of the wanted examples that can be put so, a unit's at a time."""
    pairs = zip(examples, wanted_E, strict=True)
    ids = [example.id for example, wanted in pairs if wanted and how.covers(example.id)]
    for start in range(0, len(ids), _UNIT_EXAMPLES):
        yield ids[start : start + _UNIT_EXAMPLES]


def shares(units: Sequence[Unit], actors: int) -> Iterator[list[Unit]]:
    """Divide units: those of a share follow one another under one subject, in whole groups."""
    most = max(1, min(MOST_UNITS, len(units) // (_SHARES * actors)))
    share: list[Unit] = []
    for (subject, _), group in groupby(units, key=itemgetter("subject", "group")):
        together = list(group)
        if share and (share[0]["subject"] != subject or len(share) + len(together) > most):
            yield share
            share = []
        share += together
    if share:
        yield share
