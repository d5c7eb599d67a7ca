"""The global batch of a step, rendered, tokenised and dealt into rows for every rank; pure.

Every rank computes the same plan, one step ahead in a thread, so that the ranks need not talk
about data. All ranks get the same number of rows, short ones inert rows, because the collectives
of ZeRO 2 and 3 hang otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from paft_ray.modeling.tokenization import (
    Encoded,
    Row,
    TextEncoder,
    TokenSequence,
    build_row,
    choice_sequences,
    deal_rows,
    inert_row,
)
from paft_ray.prompts.template import Template
from paft_ray.tasks import Example
from paft_ray.training.sampler import PromptSampler, example_index
from paft_ray.training.weighting import UNIFORM, BlockWeights


@dataclass(frozen=True, slots=True)
class Draw:
    """What stands in one slot of a global batch.

    With several views of every example, slot `view * batch_size + place` holds one of them.
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
    """Which of the answers in its sequences is the right one."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step, for all ranks."""

    step: int
    rows: tuple[tuple[Row, ...], ...]
    """For each rank its rows, equally many; a row's `members` are sequences of the batch."""
    draws: tuple[Draw, ...]
    """For each slot of the global batch what was drawn."""
    slots: tuple[int, ...]
    """For each sequence of the batch the slot that it belongs to."""
    weights: BlockWeights = UNIFORM
    """What the draws were made with."""

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
    """Everything that a plan depends on, besides the step, its weights and the number of ranks."""

    examples: Sequence[Example]
    prompts: Sequence[tuple[str, Template]]
    """Prompt ids and templates, in the pool's order."""
    encoder: TextEncoder
    sampler: PromptSampler
    seed: int
    batch_size: int
    row_tokens: int
    packing: bool
    end_token: bool
    """Whether the end token is trained: for free text, not for choices."""
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
            weights: What past losses ask for; uniform without.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        weights = weights or UNIFORM
        size, sequences, slots, draws = self.batch_size, [], [], []
        for slot in range(size * self.views):
            own, draw = self.draw(step, slot, weights)
            draws.append(draw)
            sequences += own
            slots += [slot] * len(own)
        # the views of an example are dealt as one, because a penalty compares them
        units = [
            [index for index, slot in enumerate(slots) if slot % size == place]
            for place in range(size)
        ]
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
        self, step: int, slot: int, weights: BlockWeights | None = None
    ) -> tuple[tuple[TokenSequence, ...], Draw]:
        """What stands in one slot of the global batch of `step`: its sequences, and what it is."""
        view, place = divmod(slot, self.batch_size)
        position = step * self.batch_size + place
        example = self.examples[example_index(self.seed, position, len(self.examples))]
        probability_N = weights.probability_N if weights else None
        prompt = self.sampler.index(step, place, view, probability_N)
        prompt_id, template = self.prompts[prompt]
        answers = self.choices or (example.answer,)
        encoded = self.encoder.encode(
            template.render,
            example.fields,
            answers,
            end=self.end_token,
            what=f"example {example.id} under prompt {prompt_id}",
        )
        owner = answers.index(example.answer)
        cut = tuple(map(self._cut, encoded))
        draw = Draw(
            example_id=example.id,
            prompt_id=prompt_id,
            prompt=prompt,
            answer_tokens=len(cut[owner].answer_ids),
            trimmed=encoded[owner].trimmed,
            weight=weights.weight(prompt) if weights else 1.0,
            owner=owner,
        )
        return choice_sequences(cut) if self.choices else (cut[0].sequence(),), draw

    def _cut(self, encoded: Encoded) -> Encoded:
        return replace(encoded, answer_ids=encoded.answer_ids[: self.answer_prefix])


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
        weigh: What past losses make of a step; asked in this thread, when the step two before it
            is done.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        ahead = None
        for step in range(first, last + 1):
            current = ahead
            if step < last:
                ahead = thread.submit(planner.plan, step, ranks, weigh(step))
            if current is not None:
                yield current.result()
