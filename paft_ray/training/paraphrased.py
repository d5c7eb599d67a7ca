"""Training examples in other words: written once for all trainings of a run or a search.

Each draw of an example is then its own text or one of those that could be used
(`prompts.variation.Varying`). An example without any is trained with its own text, and named.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paft_ray.config import Config, total_steps
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.prompts.pool import PromptPool
from paft_ray.prompts.rewrite import (
    TRAINING_RECORD,
    asked_for,
    nothing_usable,
    rewrite,
    table_of,
)
from paft_ray.runs.context import RunContext
from paft_ray.runs.paraphrases import store_paraphrases
from paft_ray.storage.paths import to_parquet
from paft_ray.tasks import Example, Task
from paft_ray.training.lengths import check_lengths
from paft_ray.training.sampler import Places, example_index

TEXTS = "training_paraphrases.parquet"
"""The texts, in the run's folder."""


def drawn(examples: Sequence[Example], seed: int, count: int) -> list[Example]:
    """The examples at the first `count` positions of a training, in their own order."""
    positions = range(min(count, len(examples)))
    return [examples[i] for i in sorted({example_index(seed, p, len(examples)) for p in positions})]


def read_by(config: Config, task: Task) -> list[Example]:
    """The examples that a training reads; `config` comes from `Config.of_training`."""
    learned = task.learned_by(config.train.objective)
    places = Places.of(config.train, total_steps(config.train, len(learned)))
    return drawn(learned, config.seed, places.count)


def read_by_any(config: Config, task: Task) -> list[Example]:
    """The examples that some training of a run reads."""
    own = [read_by(config.of_training(training), task) for training in config.trainings]
    ids = {example.id for examples in own for example in examples}
    return [example for example in (*task.train, *task.unlabelled) if example.id in ids]


def with_paraphrases(
    context: RunContext,
    pool: PromptPool,
    checks: ModelCheckProcess,
    examples: Sequence[Example] | None = None,
) -> RunContext:
    """Write the paraphrases that trainings draw from, or find them written; check their lengths.

    Args:
        context: The run.
        pool: Its prompts.
        checks: Process that tokenises texts.
        examples: What is rewritten; by default what the run's trainings read.

    Returns:
        The context with them; as it is where none are asked for.

    Raises:
        DataError: One is too long under a prompt, see `check_lengths`.
        LLMError: Some requests were not answered, the budget is spent, or nothing could be used;
            answers are kept.
    """
    if asked_for(context, "train") is None or not context.config.trainings:
        return context
    if examples is None:
        examples = read_by_any(context.config, context.task)
    with context.screen.stage("paraphrase for training") as stage:
        found, asked = rewrite(context, "train", examples, stage)
        kept = found.kept()
        about: dict[str, Any] = {
            "per_example": found.per_example,
            "examples": len(examples),
            "rewritten": len(kept),
            "wordings": sum(map(len, kept.values())),
            "without": [example.id for example in examples if example.id not in kept],
            "refused": dict(found.refused),
            "asked": asked,
        }
        own = f", {left} keep their own text" if (left := len(about["without"])) else ""
        stage.finish(
            f"{len(kept)} of {len(examples)} examples in {about['wordings']} other wordings{own}"
        )
    if not kept:
        raise nothing_usable("train", "a paraphrase that can be used", found)
    table = table_of(kept)
    context.run_folder.write_bytes(TEXTS, to_parquet(table))
    context.run_folder.write_json(TRAINING_RECORD, about)
    context = replace(context, paraphrases=store_paraphrases(context.storage, table))
    check_lengths(context, pool, checks)
    return context


def texts_of(context: RunContext, config: Config) -> list[Any]:
    """The paraphrases that a training draws from; empty where it draws from none."""
    if config.train.variation.paraphrases is None:
        return []
    assert context.paraphrases is not None  # written before the first training
    kept = context.paraphrases.open()
    return [
        [example.id, sorted((number, sorted(own.items())) for number, own in found.items())]
        for example in read_by(config, context.task)
        if (found := kept.get(example.id))
    ]
