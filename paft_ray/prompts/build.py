"""Ray Data: from LLMs and files to the pool.

`generate.runner` sends the requests, `candidates` lints and deduplicates: in this process up to
some ten thousand candidates, on Ray Data if there are more. A complete pool is found by the
fingerprint of what would make it.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from paft_ray.cluster.remote import own_errors
from paft_ray.config import Config, FakeLLM, ProbeConfig, PromptsConfig
from paft_ray.config.affects import PROMPT_RULES, affecting, take
from paft_ray.config.errors import PoolError
from paft_ray.config.launchers import clear_launchers
from paft_ray.models.base_model import BaseSource, locate_base
from paft_ray.models.dtype import resolve_dtype
from paft_ray.models.gpu import prepare_gpu
from paft_ray.prompts.candidates import TableFile, keep_unique, lint_all
from paft_ray.prompts.dedup.deduplicate import InProcess
from paft_ray.prompts.dedup.distributed import OnRay
from paft_ray.prompts.files import holds_escapes, read_templates
from paft_ray.prompts.generate.llm import llm_key
from paft_ray.prompts.generate.requests import RequestBook
from paft_ray.prompts.generate.results import costs, refused_line
from paft_ray.prompts.generate.runner import generate
from paft_ray.prompts.lint import refused_by_rule_1
from paft_ray.prompts.pool import (
    CANDIDATES_SCHEMA,
    REJECTS_SCHEMA,
    Candidate,
    Origin,
    Prompt,
    PromptPool,
    Rejected,
    assemble_pool,
    load_pool,
    rejects_to_table,
)
from paft_ray.prompts.probe import ACCURACY, MASS, probe_prompts
from paft_ray.prompts.stock import STOCK
from paft_ray.prompts.template import clean, parse, touches_demonstrations
from paft_ray.runs.context import Identities, RunContext
from paft_ray.runs.progress import Stage
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import SPLITS, Task

logger = logging.getLogger(__name__)

_IN_DRIVER = 20_000
"""Up to this many candidates are linted and deduplicated by the driver: it takes seconds."""
_PROBED_TOGETHER = 16
"""Prompts that are probed in one call."""


def pool_fingerprint(context: RunContext) -> str:
    """Fingerprint of everything that a pool depends on; `pool_size` only says how much is used."""
    (seed, prompts, *probed), later = take(
        affecting(context.config, "pool"),
        *("seed", "prompts", "model.chat_template", "train.packing"),
    )
    if prompts["probe"] is None:  # else nothing renders a prompt here
        later = {name: fields for name, fields in later.items() if name != "model"}
    task, generation = context.task, context.config.prompts.generation
    files = [(path, read_templates(path, task)) for path in context.config.prompts.files]
    probe = context.config.prompts.probe
    arithmetic = resolve_dtype(context.config.model.dtype, probe.gpus if probe else 0)
    stored = {} if probe is None else context.stored(arithmetic, scored=True)
    rules = _newer_rules(context.config.prompts, task, files)
    return fingerprint(
        "pool",
        seed,
        [task.description, list(task.slots), task.answering, dict(task.option_slots)],
        [prompts, list(task.instructions)],
        [_marked(path, texts) for path, texts in files],
        [llm_key(llm) for llm in generation.llms] if generation else [],
        [] if prompts["probe"] is None else _probe_identity(context.identities, *probed),
        *([later] if later else []),
        *([rules] if rules else []),
        *([stored] if stored else []),
    )


def _marked(location: str, texts: Sequence[str]) -> list[str]:
    """The templates of a file; those of the stock, which are compared otherwise, after its name."""
    return [STOCK, *texts] if location.startswith(STOCK) else list(texts)


def _newer_rules(
    config: PromptsConfig, task: Task, files: Iterable[tuple[str, Sequence[str]]]
) -> dict[str, int]:
    """The rules of later versions that can make another pool of these prompts.

    What the fake writes is the same under all of them.
    """
    llms = config.generation.llms if config.generation else ()
    answered = any(not isinstance(llm, FakeLLM) for llm in llms)
    written = [(text, holds_escapes(path, text)) for path, texts in files for text in texts]
    linted = answered or any(
        refused_by_rule_1(text, task, config.lint, escapes=escapes) for text, escapes in written
    )
    exact = any(
        not escapes and clean(text) != clean(text, escapes=True) for text, escapes in written
    )
    cleaned = [clean(text, escapes=escapes) for text, escapes in written]
    moving = {
        "lint": linted,
        "parse": answered,
        "escapes": exact,
        "demonstrations": any(parse(text, task.slots).halves is not None for text in cleaned),
        "demonstrations_apart": any(touches_demonstrations(text) for text in cleaned),
    }
    return {rule: PROMPT_RULES[rule] for rule in moving if moving[rule] and PROMPT_RULES[rule] > 1}


def _probe_identity(identities: Identities, chat_template: str, packing: bool) -> list[str]:
    packed = "packed" if packing else "alone"
    return [identities.model, identities.task, chat_template, packed]


def request_book(context: RunContext) -> RequestBook | None:
    """Every request that the configuration could send; None where prompts come from files only."""
    generation = context.config.prompts.generation
    if generation is None:
        return None
    keys = tuple(llm_key(llm) for llm in generation.llms)
    task = replace(context.task, train=(), validation=(), test=())
    return RequestBook(task, generation, context.config.seed, keys)


def build_prompt_pool(context: RunContext) -> PromptPool:
    """Build the pool that the configuration describes, or find it built.

    Raises:
        LLMError: Too large a share of the requests failed.
        PoolError: Too few prompts survived.
    """
    identity = pool_fingerprint(context)
    folder = context.storage.child("pools", identity)
    with context.screen.stage("prompt pool") as stage:
        about, found = pool_record(folder), ", found complete"
        if about is None:
            with lock(folder, f"prompt pool {identity}", wait=True):
                about = pool_record(folder)  # another run may just have built it
                if about is None:
                    about, found = _build(context, folder, identity, stage), ""
        pool = load_pool(folder)
        stage.finish(
            f"{about['candidates']} candidates, {len(pool.train)} training, "
            f"{len(pool.validation)} validation, {len(pool.test)} test prompts{found}"
        )
    return pool


def pool_record(folder: Storage) -> dict[str, Any] | None:
    """The record of a complete pool: the funnel, rejects by reason, costs."""
    manifest = load_manifest(folder, check=True)
    return None if manifest is None else dict(manifest.about)


def pool_without_work(context: RunContext) -> PromptPool | None:
    """The pool where it is complete, or follows from files alone; nothing is written.

    None where an LLM writes or scores prompts, where there are too many for this process, or where
    too few survive.
    """
    folder = context.storage.child("pools", pool_fingerprint(context))
    if pool_record(folder) is not None:
        return load_pool(folder)
    config, seed = context.config.prompts, context.config.seed
    if config.generation is not None or config.probe is not None:
        return None
    files = _candidates_of_files(config, context.task)
    if len(files) > _IN_DRIVER:
        return None
    with TableFile(CANDIDATES_SCHEMA) as candidates, TableFile(REJECTS_SCHEMA) as rejects:
        rows = lint_all(files, None, context.task, config.lint, InProcess())
        found = keep_unique(rows, config, InProcess(), candidates, rejects)
        try:
            return assemble_pool(found, context.task, config, seed).pool
        except PoolError:  # building it says so
            return None


def _candidates_of_files(config: PromptsConfig, task: Task) -> list[Candidate]:
    return [
        Candidate(text=text, kind="template", origin=Origin(file=path))
        for path in config.files
        for text in read_templates(path, task)
    ]


def _build(context: RunContext, folder: Storage, identity: str, stage: Stage) -> dict[str, Any]:
    config, task, seed = context.config.prompts, context.task, context.config.seed
    files = _candidates_of_files(config, task)
    book = request_book(context)
    generated = None if book is None else generate(book, context.storage, stage)
    requested = 0 if generated is None else sum(t.requests for t in generated.tallies.values())
    with TableFile(CANDIDATES_SCHEMA) as candidates, TableFile(REJECTS_SCHEMA) as rejects:
        execution = InProcess() if len(files) + requested <= _IN_DRIVER else OnRay()
        rows = lint_all(files, generated, task, config.lint, execution)
        found = keep_unique(rows, config, execution, candidates, rejects)
        built = assemble_pool(found, task, config, seed)
        pool, dropped = _probe(context, built.pool)
        rejects.add(rejects_to_table([*built.rejected, *dropped]))
        writer = ArtifactWriter(folder)
        writer.add("candidates.parquet", candidates.content())
        writer.add("rejected.parquet", rejects.content())
    llms = [] if generated is None else costs(generated)
    for row in llms:
        if row["left_out"]:
            context.screen.line(f"note: {refused_line(row)}")
    about = {
        **built.counts,
        "from_files": len(files),
        "requests": requested,
        "answered": sum(row["answered"] for row in llms),
        "parsed": candidates.rows,
        "stopped": "" if generated is None else generated.stopped,
        "probed": 0 if config.probe is None else sum(built.counts[split] for split in SPLITS),
        **{split: len(pool.prompts(split)) for split in SPLITS},
        "rejected": {
            f"{stage}: {reason}": count
            for (stage, reason), count in sorted(rejects.reasons.items())
        },
        "llms": llms,
    }
    pool.save(writer)
    writer.commit(identity, about)
    return about


def _probe(context: RunContext, pool: PromptPool) -> tuple[PromptPool, list[Rejected]]:
    """The pool with the base model's scores, and the training prompts that they drop.

    Raises:
        PoolError: The configured least mass or accuracy leaves nothing to train on.
    """
    config = context.config.prompts.probe
    if config is None:
        return pool, []
    prompts = [prompt for split in SPLITS for prompt in pool.prompts(split)]
    scores = _probe_scores(context, config, prompts)
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
    context: RunContext, config: ProbeConfig, prompts: Sequence[Prompt]
) -> dict[str, dict[str, float]]:
    import ray.data

    whole, task = context.config, context.task
    shown = replace(task.without_examples(), train=task.train[: config.examples])
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
            locate_base(whole.model.path, whole.model.revision, context.storage),
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

        from paft_ray.models.load import load_base, load_tokenizer
        from paft_ray.models.logprobs import ForwardPass
        from paft_ray.models.narrow import Stored
        from paft_ray.models.row_check import Together
        from paft_ray.models.tokenization import TextEncoder

        clear_launchers()
        probe, model = config.prompts.probe, config.model
        assert probe is not None
        base = source.local()
        torch.set_num_threads(max(1, int(probe.cpus)))
        self._task = task
        tokenizer = load_tokenizer(base, model.revision, model.trust_remote_code)
        self._encoder = TextEncoder.from_config(tokenizer, config)
        stored = Stored.of(model, dtype, "cuda" if probe.gpus else "cpu")
        trust = model.trust_remote_code
        self._model: Any = load_base(base, model.revision, stored=stored, trust=trust)
        if probe.gpus:
            prepare_gpu()
            self._model.to(torch.device("cuda"))
        together = Together.of(self._model, config, probe.row_tokens)
        packing = config.train.packing and not together.rows
        self._reading = ForwardPass(dtype, probe.row_tokens, packing, padded=together.padded)

    def __call__(self, batch: Any) -> Any:
        import pandas as pd

        texts = list(batch["texts"].iloc[0])
        scores = probe_prompts(self._model, self._encoder, texts, self._task, self._reading)
        return pd.DataFrame({"ids": [list(batch["ids"].iloc[0])], "scores": [scores]})
