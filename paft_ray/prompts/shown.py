"""Prompts and examples under them, for a person to look at."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from paft_ray.config.errors import PoolError, TemplateError
from paft_ray.config.task import DEMONSTRATIONS_SLOT
from paft_ray.prompts.template import names_in_braces, parse

if TYPE_CHECKING:
    from paft_ray.prompts.pool import Prompt


def sampled(prompts: "Sequence[Prompt]", count: int, seed: int) -> "tuple[Prompt, ...]":
    """Return some of the prompts, none twice; a larger sample begins with a smaller one.

    Raises:
        PoolError: There are fewer, or `count` is not positive.
    """
    if not 1 <= count <= len(prompts):
        raise PoolError(
            f"count ({count}) is not between 1 and the {len(prompts)} prompts of this split"
        )
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(prompts))
    return tuple(prompts[place] for place in order[:count])


def rendered(prompts: "Sequence[Prompt]", fields: Mapping[str, str]) -> Iterator[str]:
    """Yield the text of an example under each prompt.

    Raises:
        TemplateError: The fields are not the slots of a prompt.
    """
    for prompt in prompts:
        template = parse(prompt.text, tuple(fields))
        named = {name for name, plain in names_in_braces(prompt.text) if not plain}
        if (slots := named - {DEMONSTRATIONS_SLOT}) != set(fields):
            raise TemplateError(
                f"the prompt has the slots {sorted(slots)}, the fields are {sorted(fields)}: give "
                "a text for each slot, by its name"
            )
        yield template.render(fields)
