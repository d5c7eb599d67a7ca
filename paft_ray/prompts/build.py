"""Ray Data: from LLMs and files to the pool.

Asking the LLMs is `asking`'s part. Up to some ten thousand candidates are linted and deduplicated
by the driver; of more it sees only those that survive, see `bulk`: the same rules, the same result.
A complete pool is found by the fingerprint of what would make it.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paft_ray.artifacts import ArtifactWriter, Storage, fingerprint, load_manifest
from paft_ray.cluster import own_errors, resolve_dtype
from paft_ray.config import Config, ProbeConfig
from paft_ray.errors import PoolError
from paft_ray.lease import lease
from paft_ray.loading import result_fields, without
from paft_ray.modeling.base import BaseSource, locate_base
from paft_ray.prompts.asking import ask, costs, parse_unit
from paft_ray.prompts.bulk import TableFile, build_in_bulk
from paft_ray.prompts.files import read_prompt_files
from paft_ray.prompts.generation import RequestBook
from paft_ray.prompts.llm import llm_key, llm_label
from paft_ray.prompts.pool import (
    CANDIDATES_SCHEMA,
    REJECTS_SCHEMA,
    Candidate,
    Origin,
    Prompt,
    PromptPool,
    Rejected,
    build_pool,
    candidates_to_table,
    load_pool,
    rejects_to_table,
)
from paft_ray.prompts.probe import ACCURACY, MASS, probe_prompts
from paft_ray.screen import Stage
from paft_ray.session import Session
from paft_ray.tasks.base import SPLITS, Task

logger = logging.getLogger(__name__)

_IN_DRIVER = 20_000
"""Up to this many candidates are linted and deduplicated by the driver: it takes seconds."""
_PROBED_TOGETHER = 16
"""Prompts that are probed in one call."""


def pool_fingerprint(session: Session) -> str:
    """Fingerprint of everything that a pool depends on; `pool_size` only says how much is used."""
    prompts = without(result_fields(session.config)["prompts"], ["pool_size"])
    task, generation = session.task, session.config.prompts.generation
    return fingerprint(
        "pool",
        session.config.seed,
        [task.description, list(task.slots), list(task.choices or ()), dict(task.option_slots)],
        [prompts, list(task.instructions)],
        [read_prompt_files(path) for path in session.config.prompts.files],
        [llm_key(llm) for llm in generation.llms] if generation else [],
        _probe_identity(session),
    )


def _probe_identity(session: Session) -> list[str]:
    if session.config.prompts.probe is None:
        return []
    packing = "packed" if session.config.train.packing else "alone"
    return [
        session.model_identity, session.task_identity, session.config.model.chat_template, packing
    ]  # fmt: skip


def request_book(session: Session) -> RequestBook | None:
    """Every request that the configuration could send; None where prompts come from files only."""
    generation = session.config.prompts.generation
    if generation is None:
        return None
    keys = tuple(llm_key(llm) for llm in generation.llms)
    task = replace(session.task, train=(), validation=(), test=())
    return RequestBook(task, generation, session.config.seed, keys)


def build_prompt_pool(session: Session) -> PromptPool:
    """Build the pool that the configuration describes, or find it built.

    Raises:
        LLMError: Too large a share of the requests failed.
        PoolError: Too few prompts survived.
    """
    identity = pool_fingerprint(session)
    folder = session.storage.child("pools", identity)
    with session.screen.stage("prompt pool") as stage:
        about, found = pool_record(folder), ", found complete"
        if about is None:
            with lease(folder, f"prompt pool {identity}", wait=True):
                about = pool_record(folder)  # another run may just have built it
                if about is None:
                    about, found = _build(session, folder, identity, stage), ""
        pool = load_pool(folder)
        stage.finish(
            f"{about['candidates']} candidates, {len(pool.train)} training, "
            f"{len(pool.validation)} validation, {len(pool.test)} test prompts{found}"
        )
    return pool


def pool_record(folder: Storage) -> dict[str, Any] | None:
    """What the builder of a complete pool wrote down: the funnel, rejects by reason, costs."""
    manifest = load_manifest(folder, check=True)
    return None if manifest is None else dict(manifest.about)


def _build(session: Session, folder: Storage, identity: str, stage: Stage) -> dict[str, Any]:
    config, task, seed = session.config.prompts, session.task, session.config.seed
    files = [
        Candidate(text=text, kind="template", origin=Origin(file=path))
        for path in config.files
        for text in read_prompt_files(path)
    ]
    book = request_book(session)
    asked = None if book is None else ask(book, session.storage, stage)
    requested = 0 if asked is None else sum(t.requests for t in asked.tallies.values())
    with TableFile(CANDIDATES_SCHEMA) as candidates, TableFile(REJECTS_SCHEMA) as rejects:
        if len(files) + requested <= _IN_DRIVER:
            parsed = (
                [entry for unit in asked.tallies for entry in parse_unit(asked, unit)]
                if asked
                else []
            )
            good = [*files, *(entry for entry in parsed if isinstance(entry, Candidate))]
            candidates.add(candidates_to_table(good))
            rejects.add(rejects_to_table(e for e in parsed if isinstance(e, Rejected)))
            built = build_pool(good, task, config, seed)
        else:
            built = build_in_bulk(files, asked, task, config, seed, candidates, rejects)
        pool, dropped = _probe(session, built.pool)
        rejects.add(rejects_to_table([*built.rejected, *dropped]))
        writer = ArtifactWriter(folder)
        writer.add("candidates.parquet", candidates.content())
        writer.add("rejected.parquet", rejects.content())
    llms = [] if asked is None else costs(asked, [llm_label(c) for c in asked.book.config.llms])
    about = {
        **built.counts,
        "from_files": len(files),
        "requests": requested,
        "answered": sum(row["answered"] for row in llms),
        "parsed": candidates.rows,
        "stopped": "" if asked is None else asked.stopped,
        "probed": 0 if config.probe is None else sum(built.counts[split] for split in SPLITS),
        **{split: len(pool.prompts(split)) for split in SPLITS},
        "rejected": dict(sorted(rejects.reasons.items())),
        "llms": llms,
    }
    pool.save(writer)
    writer.commit(identity, about)
    return about


def _probe(session: Session, pool: PromptPool) -> tuple[PromptPool, list[Rejected]]:
    """The pool with the base model's scores, and the training prompts that they drop.

    Raises:
        PoolError: The configured least mass or accuracy leaves nothing to train on.
    """
    config = session.config.prompts.probe
    if config is None:
        return pool, []
    prompts = [prompt for split in SPLITS for prompt in pool.prompts(split)]
    scores = _probe_scores(session, config, prompts)
    splits: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    dropped = []
    for prompt in prompts:
        found = scores[prompt.id]
        low = [
            f"{name} {found[name]:.3f}, less than {least:g}"
            for name, least in ((MASS, config.min_mass), (ACCURACY, config.min_accuracy))
            if name in found and found[name] < least
        ]
        if prompt.split == "train" and low:
            dropped.append(Rejected(prompt.text, "probe", "low_score", prompt.origin, low[0]))
        else:
            splits[prompt.split].append(replace(prompt, scores=found))
    if not splits["train"]:
        raise PoolError(
            f"prompts.probe: none of the {len(dropped)} training prompts reaches min_mass "
            f"({config.min_mass:g}) and min_accuracy ({config.min_accuracy:g}): lower them"
        )
    return PromptPool(**{split: tuple(found) for split, found in splits.items()}), dropped


def _probe_scores(
    session: Session, config: ProbeConfig, prompts: Sequence[Prompt]
) -> dict[str, dict[str, float]]:
    import ray.data

    whole, task = session.config, session.task
    shown = replace(task, train=task.train[: config.examples], validation=(), test=())
    rows = [
        {"ids": [p.id for p in group], "texts": [p.text for p in group]}
        for start in range(0, len(prompts), _PROBED_TOGETHER)
        for group in [prompts[start : start + _PROBED_TOGETHER]]
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ProbeActor,
        batch_size=1,
        batch_format="pandas",
        compute=ray.data.ActorPoolStrategy(size=min(config.actors, len(rows))),
        num_cpus=config.cpus,
        num_gpus=config.gpus or None,
        fn_constructor_args=(
            whole,
            shown,
            locate_base(whole.model.path, whole.model.revision, session.storage),
            resolve_dtype(whole.model.dtype, config.gpus),
        ),
    )
    scores: dict[str, dict[str, float]] = {}
    with own_errors():
        batches: Any = dataset.iter_batches(batch_size=1, batch_format="pandas", prefetch_batches=0)
        for batch in batches:
            for id, found in zip(batch["ids"].iloc[0], batch["scores"].iloc[0], strict=True):
                scores[id] = {name: value for name, value in found.items() if value is not None}
    return scores


class _ProbeActor:
    """Holds the base model; scores groups of prompts."""

    def __init__(self, config: Config, task: Task, source: BaseSource, dtype: str) -> None:
        import torch

        from paft_ray.modeling.model import load_base, load_tokenizer, store_frozen_in_bf16
        from paft_ray.modeling.tokenization import TextEncoder

        probe, revision = config.prompts.probe, config.model.revision
        assert probe is not None
        base = source.local()
        torch.set_num_threads(max(1, int(probe.cpus)))
        self._task, self._dtype = task, dtype
        self._rows = probe.row_tokens, config.train.packing
        self._encoder = TextEncoder(
            load_tokenizer(base, revision),
            config.model.chat_template,
            config.task.max_length,
            config.task.overlong,
        )
        self._model: Any = load_base(base, revision)
        if probe.gpus:
            self._model.to(torch.device("cuda"))
        if dtype == "bfloat16":
            store_frozen_in_bf16(self._model)

    def __call__(self, batch: Any) -> Any:
        import pandas as pd

        texts, task = list(batch["texts"].iloc[0]), self._task
        scores = probe_prompts(
            self._model, self._encoder, texts, task, task.train, self._dtype, *self._rows
        )
        return pd.DataFrame({"ids": [list(batch["ids"].iloc[0])], "scores": [scores]})
