"""The prompts of a search: one pool per way to generate, and one set of held-out prompts for all.

A search over `prompts.generation` compares models that were trained on different pools. The
held-out prompts that they are compared on are drawn once from all of these pools together, and no
pool trains on prompts like them.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from paft_ray.config import Choice, PromptsConfig, RandInt, TuningConfig
from paft_ray.config.errors import PoolError
from paft_ray.prompts.build import pool_fingerprint
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.report.pool import build_published_pool
from paft_ray.runs.context import RunContext
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tuning.space import Sample, all_values, apply, describe, edges, sample_key

_POOL_SIZE = "prompts.pool_size"


@dataclass(frozen=True)
class SearchPools:
    """Training prompts for every way to generate, with the same held-out prompts."""

    by_generation: Mapping[str, PromptPool]
    """By the generation of a sample, see `generation_key`."""
    registered: Mapping[str, str]
    """By the same key, the fingerprint of the pool as it was built and tracked."""

    @property
    def any(self) -> PromptPool:
        """One of the pools, for its held-out prompts."""
        return next(iter(self.by_generation.values()))

    @property
    def trained(self) -> tuple[Prompt, ...]:
        """All training prompts of all pools."""
        pools = self.by_generation.values()
        return tuple({prompt.id: prompt for pool in pools for prompt in pool.train}.values())

    def of(self, sample: Sample, size: int | None) -> PromptPool:
        """The pool of one sample, shortened to `size` training prompts."""
        pool = self.by_generation[generation_key(sample)]
        return pool if size is None else pool.take(size)

    def without_test(self) -> "SearchPools":
        """The same pools without test prompts, which no trial may see."""
        pools = {key: replace(pool, test=()) for key, pool in self.by_generation.items()}
        return SearchPools(pools, self.registered)


def generation_key(sample: Sample) -> str:
    """The part of a sample that concerns the generation of prompts, as a text."""
    return sample_key({path: v for path, v in sample.items() if _is_of_generation(path)})


def _is_of_generation(path: str) -> bool:
    section, _, field = path.partition(".")
    note = PromptsConfig.declared.get(field.partition(".")[0])
    return section == "prompts" and note is not None and "pool" in note.targets


def generation_samples(tuning: TuningConfig) -> list[Sample]:
    """Every combination of the space's values for the generation of prompts; at least one."""
    space = {
        path: all_values(dimension)
        for path, dimension in tuning.space.items()
        if _is_of_generation(path) and isinstance(dimension, Choice | RandInt)
    }
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def pools_fingerprint(context: RunContext, tuning: TuningConfig) -> str:
    """Fingerprint of everything that the pools depend on, known before they are built."""
    samples = generation_samples(tuning)
    return fingerprint([pool_fingerprint(_generating(context, sample)) for sample in samples])


def _generating(context: RunContext, sample: Sample) -> RunContext:
    return context.of_config(apply(context.config, sample), context.screen)


def build_pools(context: RunContext, tuning: TuningConfig) -> SearchPools:
    """Build every pool, or find it built, and hold prompts out of all of them.

    Raises:
        PoolError: Too few prompts survive, for validation or for the largest `prompts.pool_size`.
    """
    config = context.config
    built: dict[str, PromptPool] = {}
    names: dict[str, str] = {}
    for sample in generation_samples(tuning):
        key = generation_key(sample)
        built[key] = build_published_pool(_generating(context, sample))
        names[key] = describe(sample)
    kept = hold_out(built, config.prompts.split.similarity, config.seed)
    pools = SearchPools(kept, {key: pool.fingerprint for key, pool in built.items()})
    if not pools.any.validation:
        raise PoolError(
            "prompts.split.validation: no validation prompts are left, by which a search compares: "
            "raise it"
        )
    if len(built) > 1:
        dropped = sum(len(pool.train) - len(kept[key].train) for key, pool in built.items())
        context.screen.line(
            f"{len(built)} pools with the same {len(pools.any.validation)} validation and "
            f"{len(pools.any.test)} test prompts; {dropped} training prompts like them are left out"
        )
    _check_sizes(pools, names, config.prompts.pool_size, tuning)
    return pools


def _check_sizes(
    pools: SearchPools, names: Mapping[str, str], size: int | None, tuning: TuningConfig
) -> None:
    dimension = tuning.space.get(_POOL_SIZE)
    sizes = [s for s in (edges(dimension) if dimension else [size]) if s]
    for key, pool in pools.by_generation.items():
        if sizes and max(sizes) > len(pool.train):
            where = f" generated with {names[key]}" if names[key] else ""
            raise PoolError(
                f"tuning.space: {_POOL_SIZE} may be {max(sizes)}, but the pool{where} has "
                f"{len(pool.train)} training prompts: lower it, or raise prompts.generation.per_llm"
            )


def hold_out(pools: Mapping[str, PromptPool], limit: float, seed: int) -> Mapping[str, PromptPool]:
    """Give all pools the same held-out prompts, and leave out training prompts like them.

    Each split gets as many prompts as it has in the largest pool, first by hash; no validation
    prompt is like a test prompt. A training prompt like a held-out one leaves with its cluster. A
    single pool stays as it is.

    Args:
        pools: Pools by any key.
        limit: Least similarity of two instructions that are alike.
        seed: Seed of the draw.

    Raises:
        PoolError: A pool has nothing left to train on.
    """
    if len(pools) == 1:
        return pools
    test = _draw((p.test for p in pools.values()), (), limit, seed)
    validation = _draw((p.validation for p in pools.values()), test, limit, seed)
    held_out = [*test, *validation]
    found: dict[str, PromptPool] = {}
    for key, pool in pools.items():
        like = [p for p in pool.train if first_like(p, held_out, limit)]
        clusters = {prompt.cluster for prompt in like}
        train = tuple(p for p in pool.train if p not in like and p.cluster not in clusters)
        if not train:
            raise PoolError(
                f"tuning.space: all {len(pool.train)} training prompts of a pool are like prompts "
                "that are held out of another one: raise prompts.split.similarity, or "
                "prompts.generation.per_llm"
            )
        found[key] = PromptPool(train, validation, test)
    return found


def _draw(
    splits: Iterable[Sequence[Prompt]], others: Sequence[Prompt], limit: float, seed: int
) -> tuple[Prompt, ...]:
    splits = list(splits)
    candidates = {prompt.id: prompt for split in splits for prompt in split}
    order = sorted(candidates.values(), key=lambda prompt: fingerprint("held out", seed, prompt.id))
    drawn = [prompt for prompt in order if first_like(prompt, others, limit) is None]
    return tuple(sorted(drawn[: max(map(len, splits))], key=lambda prompt: prompt.id))
