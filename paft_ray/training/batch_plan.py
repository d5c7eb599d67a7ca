"""Batch plans: the global batch of a step, tokenised and dealt into rows for every rank.

A plan is a pure function of position. Each rank tokenises an equal part of the batch, one step
ahead in a thread, and the ranks exchange a few numbers about each slot; then each knows which
sequences it reads, and tokenises those of other parts too. All ranks get the same number of rows,
filled up with inert ones, because the collectives of ZeRO 2 and 3 hang otherwise.

Shapes: S slots of the global batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from paft_ray.config.errors import DataError
from paft_ray.models.packing import (
    IntArray,
    Row,
    TokenSequence,
    build_row,
    deal_batches,
    deal_rows,
    inert_row,
)
from paft_ray.models.tokenization import Encoded, Question, TextEncoder, choice_sequences
from paft_ray.prompts.template import Template
from paft_ray.prompts.variation import Put, Varying
from paft_ray.tasks import Example
from paft_ray.training.draws import COLUMNS, Draw, Draws
from paft_ray.training.prompt_weights import UNIFORM, BlockWeights
from paft_ray.training.sampler import PromptSampler, example_index

if TYPE_CHECKING:
    from paft_ray.training.reinforcement.own_labels import OwnLabels
    from paft_ray.training.reinforcement.rollouts import Policy


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step, for one rank."""

    step: int
    rows: tuple[Row, ...]
    """This rank's rows, as many as every other's; `members` are sequences of the global batch."""
    draws: Draws
    """One per slot of the global batch."""
    slot_of: IntArray
    """The slot of each sequence of the global batch."""
    tokens: int
    """Tokens read by all ranks, inert rows apart."""
    answer_tokens: int
    """Answer tokens of the global batch, which the loss is averaged over."""
    weights: BlockWeights = UNIFORM
    """Weights of the draws and of their losses."""
    policy: "Policy | None" = None
    """What the model wrote itself; None where it reads what the task says."""
    own: "OwnLabels | None" = None
    """Said of labels that the model gave; None where it learns answers of the data, or grades."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Who makes a plan together."""

    rank: int = 0
    ranks: int = 1
    exchange: Callable[[IntArray], Sequence[IntArray]] = lambda mine: [mine]
    """Returns what every rank gave, by rank; all arrays are of one shape; collective."""


ALONE = Ranks()


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a global batch, tokenised."""

    sequences: Mapping[int, tuple[TokenSequence, ...]]
    """By slot."""
    table: IntArray
    """What the others need to know: a row per slot with `COLUMNS`. A slot below 0 fills the table
    up; no sequences stand for an example that does not fit."""


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
    """Several sequences in a row."""
    padded: bool = False
    """Without packing, sequences of like length in a batch."""
    answer_prefix: int | None = None
    """Train on the first so many answer tokens only."""
    views: int = 1
    """Renderings of every example, each through a prompt of its own; they share a row."""
    choices_of: Callable[[Example], Sequence[str] | None] | None = None
    """Read the likelihood of each of these, not of the right answer alone."""
    varying: Varying | None = None
    """Further ways in which an example is put at each step."""
    rollouts: int = 1
    """Slots of one question, which the model answers itself; they share what is varied."""
    updates: int = 1
    """Steps on one batch of such texts; they share what is varied at the first."""

    def plan(self, step: int, weights: BlockWeights = UNIFORM, ranks: Ranks = ALONE) -> StepPlan:
        """The plan of one step.

        Args:
            step: From 0.
            weights: From past losses; uniform by default.
            ranks: This rank and the others, who call this at the same time.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        share = self.share(step, ranks.rank, ranks.ranks, weights)
        tables = ranks.exchange(share.table)
        return self.deal(step, share, tables, ranks.rank, weights)

    def share(self, step: int, rank: int, ranks: int, weights: BlockWeights = UNIFORM) -> Share:
        """Tokenise a rank's part of the batch of `step`."""
        places = range(rank, self.batch_size, ranks)
        own = [view * self.batch_size + place for view in range(self.views) for place in places]
        most = -(-self.batch_size // ranks) * self.views
        table = np.full((most, len(COLUMNS)), -1, np.int64)
        found: dict[int, tuple[TokenSequence, ...]] = {}
        try:
            for row, slot, drawn in zip(table, own, self.draw(step, own, weights), strict=False):
                sequences, draw = drawn
                found[slot] = sequences
                row[:] = (
                    slot, draw.example, draw.prompt,
                    len(sequences), sum(len(s.input_ids) for s in sequences),
                    sequences[0].input_ids[0], draw.answer_tokens, draw.trimmed, draw.owner,
                )  # fmt: skip
        except DataError:  # which all ranks have to raise
            found.clear()
            table[: len(own)] = 0
            table[: len(own), 0] = own
        return Share(found, table)

    def deal(
        self,
        step: int,
        share: Share,
        tables: Sequence[IntArray],
        rank: int,
        weights: BlockWeights = UNIFORM,
    ) -> StepPlan:
        """The plan of a rank, given what all ranks found in their shares.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        whole = np.concatenate(tables)
        whole = whole[whole[:, 0] >= 0]
        table = dict(zip(COLUMNS, whole[np.argsort(whole[:, 0])].T, strict=True))
        if missing := np.flatnonzero(table["sequences"] == 0).tolist():
            self.draw(step, missing, weights)  # raises
        # the views of an example are dealt as one, because a penalty compares them
        lengths = table["tokens"].reshape(self.views, self.batch_size).sum(0).tolist()
        if self.padded:
            rows = deal_batches(lengths, self.row_tokens, len(tables))[rank]
        else:
            rows = deal_rows(lengths, self.row_tokens, len(tables), self.packing)[rank]
        slots = [
            [view * self.batch_size + place for place in row for view in range(self.views)]
            for row in rows
        ]
        others = [slot for row in slots for slot in row if slot not in share.sequences]
        drawn = self.draw(step, others, weights)
        sequences = {**share.sequences, **dict(zip(others, (own for own, _ in drawn), strict=True))}
        first_S = np.cumsum(table["sequences"]) - table["sequences"]
        numbered_of = {
            slot: dict(enumerate(sequences[slot], int(first_S[slot])))
            for row in slots
            for slot in row
        }
        numbered = {n: s for own in numbered_of.values() for n, s in own.items()}
        filler = int(table["first_token"][0])
        return StepPlan(
            step,
            tuple(
                build_row(numbered, [n for slot in row for n in numbered_of[slot]], self.padded)
                if row
                else inert_row(filler)
                for row in slots
            ),
            Draws(table, weights, lambda i: self.examples[i].id, lambda i: self.prompts[i][0]),
            np.repeat(np.arange(len(first_S)), table["sequences"]),
            int(table["tokens"].sum()),
            int(table["answer_tokens"].sum()),
            weights,
        )

    def draw(
        self, step: int, slots: Sequence[int], weights: BlockWeights = UNIFORM
    ) -> list[tuple[tuple[TokenSequence, ...], Draw]]:
        """The sequences and the draw of each of some slots of the global batch of `step`.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        if not slots:
            return []
        indices = [self._choose(step, slot, weights.probability_N) for slot in slots]
        put = [self.put(step, slot, *at) for slot, at in zip(slots, indices, strict=True)]
        questions = [
            Question(
                one.render,
                one.example.fields,
                (self.choices_of and one.choices) or (one.example.some_answer,),
                one.example.under(self.prompts[prompt][0]),
            )
            for one, (_, prompt) in zip(put, indices, strict=True)
        ]
        encoded = self.encoder.encode_all(questions)
        return [
            self._describe(at, one, own, weights.weight(at[1]))
            for at, one, own in zip(indices, put, encoded, strict=True)
        ]

    def put(self, step: int, slot: int, example: int, prompt: int) -> Put:
        """The example and the prompt of a slot, as the model is asked."""
        template, own = self.prompts[prompt][1], self.examples[example]
        if self.varying is not None:  # both views of an example alike, since answers are compared
            return self.varying.put(template, own, step, slot % self.batch_size)
        return Put(template.render, own, self.choices_of and self.choices_of(own))

    def describe(self, step: int, slot: int, draw: Draw) -> str | None:
        """What was drawn for a slot besides example and prompt, as JSON; None for nothing."""
        if self.varying is None:
            return None
        template = self.prompts[draw.prompt][1]
        first, place = step - step % self.updates, slot % self.batch_size // self.rollouts
        return self.varying.describe(template, self.examples[draw.example], first, place)

    def first_sequences(self) -> tuple[TokenSequence, ...]:
        """Sequences of the first slots of a training, four at most, to check a model with."""
        drawn = self.draw(0, range(min(4, self.batch_size)))
        return tuple(sequence for own, _ in drawn for sequence in own)

    def _choose(self, step: int, slot: int, probability_N: np.ndarray | None) -> tuple[int, int]:
        """Indices of the example and the prompt of a slot."""
        view, place = divmod(slot, self.batch_size)
        position = step * self.batch_size + place
        example = example_index(self.seed, position, len(self.examples))
        prompt = self.sampler.index(step, place, view, probability_N, example)
        return example, prompt

    def _describe(
        self, at: tuple[int, int], one: Put, encoded: Sequence[Encoded], weight: float
    ) -> tuple[tuple[TokenSequence, ...], Draw]:
        (index, prompt), choices = at, one.choices if self.choices_of else None
        owner = choices.index(one.example.answer) if choices and one.example.answer else 0
        cut = [replace(e, answer_ids=e.answer_ids[: self.answer_prefix]) for e in encoded]
        draw = Draw(
            example_id=one.example.id,
            prompt_id=self.prompts[prompt][0],
            example=index,
            prompt=prompt,
            answer_tokens=len(cut[owner].answer_ids),
            trimmed=encoded[owner].trimmed,
            weight=weight,
            owner=owner,
        )
        return choice_sequences(cut) if choices else (cut[0].sequence(),), draw


def plans(
    planner: Planner,
    first: int,
    last: int,
    ranks: Ranks = ALONE,
    weigh: Callable[[int], BlockWeights] = lambda step: UNIFORM,
) -> Iterator[StepPlan]:
    """The plans of steps `first` to `last - 1`, each made while the one before is trained on.

    Args:
        planner: Makes them.
        first: First step.
        last: One after the last.
        ranks: This rank and the others; they exchange in a thread.
        weigh: Returns a step's weights; called in this thread, when the step two before is done.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        ahead = None
        for step in range(first, last + 1):
            current = ahead
            if step < last:
                ahead = thread.submit(planner.plan, step, weigh(step), ranks)
            if current is not None:
                yield current.result()
