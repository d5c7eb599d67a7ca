"""The paraphrases of an evaluation's examples, as conditions under which they are asked.

An example without all of its paraphrases is named, and left out of this axis: nothing stands in
their place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray.prompts.rewrite import asked_for, nothing_usable, rewrite, table_of
from paft_ray.prompts.variation import Condition, paraphrased
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import to_parquet
from paft_ray.tasks import Example

FILE = "paraphrases.parquet"
"""The texts, in the folder of the results."""


def write_paraphrases(
    context: RunContext, examples: Sequence[Example], main: Condition
) -> tuple[list[Condition], Mapping[str, Any] | None]:
    """Write the paraphrases of examples, or find them written.

    Returns:
        A condition for each wording, and what became of requests and examples; nothing where the
        configuration asks for none.

    Raises:
        LLMError: Some requests were not answered, the budget is spent, or no example has all of its
            paraphrases; answers are kept.
    """
    if asked_for(context, "evaluation") is None:
        return [], None
    with context.screen.stage("paraphrase examples") as stage:
        found, asked = rewrite(context, "evaluation", examples, stage)
        written = found.complete()
        without = [example.id for example in examples if example.id not in written[0]]
        count = len(examples) - len(without)
        stage.finish(f"{count} of {len(examples)} examples in {len(written)} other wordings each")
    if not count:
        raise nothing_usable("evaluation", "all of its paraphrases", found)
    kept = {id: own for id, own in found.kept().items() if id in written[0]}
    context.results_folder.write_bytes(FILE, to_parquet(table_of(kept)))
    return paraphrased(main, written), {
        "per_example": len(written),
        "examples": count,
        "without": without,
        "refused": dict(found.refused),
        "asked": asked,
    }
