"""Batch plans: the global batch of a step, tokenised and dealt into rows for every rank; pure.

Every rank computes the same plan, one step ahead in a thread, so that ranks exchange no data. All
ranks get the same number of rows, filled up with inert ones, because the collectives of ZeRO 2 and
3 hang otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from paft_ray.models.packing import Row, TokenSequence, build_row, deal_rows, inert_row
from paft_ray.models.tokenization import Encoded, Question, TextEncoder, choice_sequences
from paft_ray.prompts.template import Template
from paft_ray.tasks import Example
from paft_ray.training.prompt_weights import UNIFORM, BlockWeights
from paft_ray.training.sampler import PromptSampler, example_index


@dataclass(frozen=True, slots=True)
class Draw:
    """The example and prompt in one slot of a global batch.

    With several views of every example, each is in slot `view * batch_size + place`.
    """

    example_id: str
    prompt_id: str
    prompt: int
    """Index of the prompt."""
    answer_tokens: int
    """Tokens of the answer that are trained on."""
    trimmed: bool
    weight: float = 1.0
    """Of this slot in the loss."""
    owner: int = 0
    """Index of the right answer among those in its sequences."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step, for all ranks."""

    step: int
    rows: tuple[tuple[Row, ...], ...]
    """The rows of each rank, equally many; a row's `members` are sequences of the batch."""
    draws: tuple[Draw, ...]
    """One per slot of the global batch."""
    slots: tuple[int, ...]
    """The slot of each sequence of the batch."""
    weights: BlockWeights = UNIFORM
    """Weights of the draws and of their losses."""

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of the global batch, which the loss is averaged over."""
        return sum(draw.answer_tokens for draw in self.draws)

    @property
    def tokens(self) -> int:
        """Tokens read by all ranks, inert rows apart."""
        return sum(row.tokens for rows in self.rows for row in rows if row.members)


@dataclass(frozen=True)
class Planner:
    """Makes plans; holds all they depend on except step, weights and number of ranks."""

    examples: Sequence[Example]
    prompts: Sequence[tuple[str, Template]]
    """Prompt ids and templates, in the pool's order."""
    encoder: TextEncoder
    sampler: PromptSampler
    seed: int
    batch_size: int
    row_tokens: int
    packing: bool
    answer_prefix: int | None = None
    """Train on the first so many answer tokens only."""
    views: int = 1
    """Renderings of every example, each through a prompt of its own; they share a row."""
    choices: tuple[str, ...] | None = None
    """Read every choice's likelihood, not the right one's alone."""

    def plan(self, step: int, ranks: int, weights: BlockWeights | None = None) -> StepPlan:
        """The plan of one step.

        Args:
            step: From 0.
            ranks: Workers to deal to.
            weights: From past losses; uniform by default.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        weights = weights or UNIFORM
        drawn = self.draw(step, range(self.batch_size * self.views), weights)
        sequences, slots, draws = [], [], []
        # the views of an example are dealt as one, because a penalty compares them
        units: list[list[int]] = [[] for _ in range(self.batch_size)]
        for slot, (own, draw) in enumerate(drawn):
            first = len(sequences)
            sequences += own
            slots += [slot] * len(own)
            draws.append(draw)
            units[slot % self.batch_size] += range(first, len(sequences))
        lengths = [sum(len(sequences[i].input_ids) for i in unit) for unit in units]
        filler = sequences[0].input_ids[0]
        rows = tuple(
            tuple(
                build_row(sequences, [i for unit in row for i in units[unit]])
                if row
                else inert_row(filler)
                for row in rank_rows
            )
            for rank_rows in deal_rows(lengths, self.row_tokens, ranks, self.packing)
        )
        return StepPlan(step, rows, tuple(draws), tuple(slots), weights)

    def draw(
        self, step: int, slots: Sequence[int], weights: BlockWeights = UNIFORM
    ) -> list[tuple[tuple[TokenSequence, ...], Draw]]:
        """The sequences and the draw of each of some slots of the global batch of `step`.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        chosen = [self._choose(step, slot, weights.probability_N) for slot in slots]
        questions = [
            Question(
                self.prompts[prompt][1].render,
                example.fields,
                self.choices or (example.answer,),
                example.under(self.prompts[prompt][0]),
            )
            for example, prompt in chosen
        ]
        encoded = self.encoder.encode_all(questions)
        return [
            self._describe(example, prompt, own, weights.weight(prompt))
            for (example, prompt), own in zip(chosen, encoded, strict=True)
        ]

    def first_sequences(self) -> tuple[TokenSequence, ...]:
        """Sequences of the first slots of a training, four at most, to check a model with."""
        drawn = self.draw(0, range(min(4, self.batch_size)))
        return tuple(sequence for own, _ in drawn for sequence in own)

    def _choose(
        self, step: int, slot: int, probability_N: np.ndarray | None
    ) -> tuple[Example, int]:
        """Example and prompt of a slot."""
        view, place = divmod(slot, self.batch_size)
        position = step * self.batch_size + place
        example = example_index(self.seed, position, len(self.examples))
        prompt = self.sampler.index(step, place, view, probability_N, example)
        return self.examples[example], prompt

    def _describe(
        self, example: Example, prompt: int, encoded: Sequence[Encoded], weight: float
    ) -> tuple[tuple[TokenSequence, ...], Draw]:
        owner = self.choices.index(example.answer) if self.choices else 0
        cut = [replace(e, answer_ids=e.answer_ids[: self.answer_prefix]) for e in encoded]
        draw = Draw(
            example_id=example.id,
            prompt_id=self.prompts[prompt][0],
            prompt=prompt,
            answer_tokens=len(cut[owner].answer_ids),
            trimmed=encoded[owner].trimmed,
            weight=weight,
            owner=owner,
        )
        return choice_sequences(cut) if self.choices else (cut[0].sequence(),), draw


def plans(
    planner: Planner,
    first: int,
    last: int,
    ranks: int,
    weigh: Callable[[int], BlockWeights] = lambda step: UNIFORM,
) -> Iterator[StepPlan]:
    """The plans of steps `first` to `last - 1`, each made while the one before is trained on.

    Args:
        planner: Makes them.
        first: First step.
        last: One after the last.
        ranks: Workers to deal to.
        weigh: Returns a step's weights; called in this thread, when the step two before is done.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        ahead = None
        for step in range(first, last + 1):
            current = ahead
            if step < last:
                ahead = thread.submit(planner.plan, step, ranks, weigh(step))
            if current is not None:
                yield current.result()
