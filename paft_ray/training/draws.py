"""Which example was put through which prompt in every slot of a global batch.

Shapes: S slots of the global batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.models.packing import IntArray
from paft_ray.training.prompt_weights import BlockWeights


@dataclass(frozen=True, slots=True)
class Draw:
    """The example and prompt in one slot of a global batch.

    With several views of every example, each is in slot `view * batch_size + place`.
    """

    example_id: str
    prompt_id: str
    example: int
    """Index of the example."""
    prompt: int
    """Index of the prompt."""
    answer_tokens: int
    """Tokens of the answer that are trained on."""
    trimmed: bool
    weight: float = 1.0
    """Of this slot in the loss."""
    owner: int = 0
    """Index of the right answer among those in its sequences."""


COLUMNS: tuple[str, ...] = (
    *("slot", "example", "prompt", "sequences", "tokens", "first_token"),
    *("answer_tokens", "trimmed", "owner"),
)
"""What ranks exchange about each slot."""


class Draws(Sequence[Draw]):
    """The draw of every slot of a global batch; columns are arrays of shape [S]."""

    def __init__(
        self,
        table: Mapping[str, IntArray],
        weights: BlockWeights,
        example_ids: Callable[[int], str],
        prompt_ids: Callable[[int], str],
        weight_S: NDArray[np.float64] | None = None,
    ) -> None:
        """Describe slots.

        Args:
            table: Arrays by the names of `COLUMNS`.
            weights: Of the step.
            example_ids: Returns the id of an example by its index.
            prompt_ids: Returns the id of a prompt by its index.
            weight_S: Of every slot in the loss; by default as its prompt's.
        """
        self.prompt_S, self.owner_S = table["prompt"], table["owner"]
        self.answer_tokens_S, self.trimmed_S = table["answer_tokens"], table["trimmed"]
        self.weight_S = weights.weights(self.prompt_S) if weight_S is None else weight_S
        self._example_S = table["example"]
        self._example_ids, self._prompt_ids = example_ids, prompt_ids

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self.prompt_S)

    def __getitem__(self, slot: Any) -> Any:
        """Return the draw of one slot."""
        example, prompt = int(self._example_S[slot]), int(self.prompt_S[slot])
        return Draw(
            example_id=self._example_ids(example),
            prompt_id=self._prompt_ids(prompt),
            example=example,
            prompt=prompt,
            answer_tokens=int(self.answer_tokens_S[slot]),
            trimmed=bool(self.trimmed_S[slot]),
            weight=float(self.weight_S[slot]),
            owner=int(self.owner_S[slot]),
        )
