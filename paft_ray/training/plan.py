"""The global batch of a step, rendered, tokenised and dealt into rows for every rank; pure.

Every rank computes the same plan, one step ahead in a thread, so that the ranks need not talk
about data. All ranks get the same number of rows, short ones inert rows, because the collectives
of ZeRO 2 and 3 hang otherwise.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from paft_ray.modeling.tokenization import (
    Row,
    TextEncoder,
    TokenSequence,
    build_row,
    deal_rows,
    inert_row,
)
from paft_ray.prompts.template import Template
from paft_ray.tasks import Example
from paft_ray.training.sampler import PromptSampler, example_index


@dataclass(frozen=True, slots=True)
class Draw:
    """What stands in one slot of a global batch."""

    example_id: str
    prompt_id: str
    answer_tokens: int
    trimmed: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step, for all ranks."""

    step: int
    rows: tuple[tuple[Row, ...], ...]
    """For each rank its rows, equally many; a row's `members` are slots."""
    draws: tuple[Draw, ...]
    """For each slot of the global batch what was drawn."""

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
    """Everything that a plan depends on, besides the step and the number of ranks."""

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

    def plan(self, step: int, ranks: int) -> StepPlan:
        """The plan of one step.

        Raises:
            DataError: An example does not fit `task.max_length` under its prompt.
        """
        sequences, draws = zip(*map(partial(self.draw, step), range(self.batch_size)), strict=True)
        lengths = [len(sequence.input_ids) for sequence in sequences]
        filler = sequences[0].input_ids[0]
        rows = tuple(
            tuple(build_row(sequences, row) if row else inert_row(filler) for row in rank_rows)
            for rank_rows in deal_rows(lengths, self.row_tokens, ranks, self.packing)
        )
        return StepPlan(step, rows, draws)

    def draw(self, step: int, slot: int) -> tuple[TokenSequence, Draw]:
        """What stands in one slot of the global batch of `step`."""
        position = step * self.batch_size + slot
        example = self.examples[example_index(self.seed, position, len(self.examples))]
        prompt_id, template = self.prompts[self.sampler.index(step, slot)]
        [encoded] = self.encoder.encode(
            template.render,
            example.fields,
            [example.answer],
            end=self.end_token,
            what=f"example {example.id} under prompt {prompt_id}",
        )
        draw = Draw(example.id, prompt_id, len(encoded.answer_ids), encoded.trimmed)
        return encoded.sequence(), draw


def plans(planner: Planner, first: int, last: int, ranks: int) -> Iterator[StepPlan]:
    """The plans of steps `first` to `last - 1`, each made while the one before is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        ahead = thread.submit(planner.plan, first, ranks) if first < last else None
        for step in range(first, last):
            assert ahead is not None
            current = ahead.result()
            ahead = thread.submit(planner.plan, step + 1, ranks) if step + 1 < last else None
            yield current
