"""What models wrote while they learned from their own texts: rewards over steps, and texts to read.

"At the beginning" and "at the end" are the first and the last tenth of the batches, three at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from paft_ray.report.axes import Axis
from paft_ray.report.files import Training
from paft_ray.report.tables import display_name
from paft_ray.report.training import smoothed

_SHOWN = 3
_MOST_PROMPTS = 100
_MOST_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Text:
    """A text that the model wrote."""

    step: int
    """From 1."""
    text: str
    reward: float
    ended: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and texts that answer it."""

    question: str
    texts: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class OfPrompt:
    """The rollouts under one prompt."""

    text: str
    count: int
    first: float | None
    """Mean reward at the beginning; None where it was not drawn there."""
    last: float | None
    """The same at the end."""
    unread: float
    """Share in which no reward found an answer."""
    cut: float
    """Share that reached the most tokens without an end."""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The rollouts of one training."""

    label: str
    name: str
    rewards: tuple[float, ...]
    """Mean of each batch."""
    axis: Axis
    prompts: tuple[OfPrompt, ...]
    """The worst at the end first."""
    unread: tuple[str, ...]
    """Prompts under which nothing was read in any text of the first batch."""
    kinds: tuple[tuple[str, tuple[Question, ...]], ...]
    """Texts to read, by what they are."""

    def points(self, rewards: Sequence[float]) -> str:
        """Rewards by batch as SVG points in a box of 100 x 100."""
        span = max(len(rewards) - 1, 1)
        return " ".join(
            f"{100 * i / span:.2f},{100 - self.axis.percent(reward):.2f}"
            for i, reward in enumerate(rewards)
        )

    @property
    def smooth(self) -> list[float]:
        """The rewards, smoothed."""
        return smoothed(self.rewards)


def rollouts_of(trainings: Sequence[Training], texts: Mapping[str, str]) -> tuple[Rollouts, ...]:
    """One entry per training that wrote any; `texts` are prompts by id."""
    return tuple(
        _describe(training, training.rollouts, texts)
        for training in trainings
        if training.rollouts is not None and training.rollouts.num_rows
    )


def _describe(training: Training, table: pa.Table, texts: Mapping[str, str]) -> Rollouts:
    step_N, reward_N = table["step"].to_numpy(), table["reward"].to_numpy()
    batches, batch_N = np.unique(step_N, return_inverse=True)
    rewards = np.bincount(batch_N, reward_N) / np.bincount(batch_N)
    reach = max(3, len(batches) // 10)
    first_N, last_N = batch_N < reach, batch_N >= len(batches) - reach
    prompt_N = np.array(table["prompt_id"].to_pylist())
    read_N = table["read"].to_numpy(zero_copy_only=False)
    cut_N = ~table["ended"].to_numpy(zero_copy_only=False)
    prompts, unread = [], []
    for prompt in np.unique(prompt_N):
        own_N = prompt_N == prompt
        early, late = reward_N[own_N & first_N], reward_N[own_N & last_N]
        text = texts.get(prompt, prompt)
        prompts.append(
            OfPrompt(
                text,
                int(own_N.sum()),
                float(early.mean()) if len(early) else None,
                float(late.mean()) if len(late) else None,
                float(1 - read_N[own_N].mean()),
                float(cut_N[own_N].mean()),
            )
        )
        begun_N = own_N & (batch_N == 0)
        if begun_N.any() and not read_N[begun_N].any():
            unread.append(text)
    prompts.sort(key=lambda own: (own.last is None, own.last, own.text))
    low, high = min(0.0, float(rewards.min())), max(1.0, float(rewards.max()))
    return Rollouts(
        training.label,
        f"{display_name(training.label)}, seed {training.seed}",
        tuple(rewards.tolist()),
        Axis(low, high, (low, (low + high) / 2, high)),
        tuple(prompts[:_MOST_PROMPTS]),
        tuple(unread),
        _to_read(table, batch_N, first_N, last_N),
    )


def _to_read(
    table: pa.Table, batch_N: np.ndarray, first_N: np.ndarray, last_N: np.ndarray
) -> tuple[tuple[str, tuple[Question, ...]], ...]:
    """Texts with the highest and the lowest reward at the end, and questions that came again."""
    reward_N = table["reward"].to_numpy()
    end = np.flatnonzero(last_N)
    order = end[np.argsort(reward_N[end], kind="stable")]
    best, worst = _different(table, order[::-1]), _different(table, order)
    again: list[Question] = []
    early: dict[str, int] = {}
    for place in np.flatnonzero(first_N).tolist():
        early.setdefault(table["example_id"][place].as_py(), place)
    for place in end.tolist():
        before = early.pop(table["example_id"][place].as_py(), None)
        if before is not None and batch_N[before] < batch_N[place]:
            again.append(_question(table, [before, place]))
    kinds = (
        ("The best at the end", tuple(_question(table, [place]) for place in best)),
        ("The worst at the end", tuple(_question(table, [place]) for place in worst)),
        ("The same question at the beginning and at the end", tuple(again[:_SHOWN])),
    )
    return tuple((name, found) for name, found in kinds if found)


def _different(table: pa.Table, order: np.ndarray) -> list[int]:
    """The first places of different questions."""
    found: dict[str, int] = {}
    for place in order.tolist():
        if len(found) == _SHOWN:
            break
        found.setdefault(table["example_id"][place].as_py(), place)
    return list(found.values())


def _question(table: pa.Table, places: Sequence[int]) -> Question:
    rows = [table.slice(place, 1).to_pylist()[0] for place in places]
    return Question(
        rows[-1]["question"][-_MOST_CHARACTERS:],
        tuple(
            Text(row["step"] + 1, row["text"][:_MOST_CHARACTERS], row["reward"], row["ended"])
            for row in rows
        ),
    )
