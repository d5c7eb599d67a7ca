"""Ray Data: LLMs write candidates in parallel actors; what survives becomes the pool.

Finished answers are kept under `generations/<author>/` as they arrive, so that a killed build asks
only for what is missing. A complete pool is found by the fingerprint of what would make it.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from paft_ray.artifacts import (
    ArtifactWriter,
    Parts,
    Storage,
    fingerprint,
    load_manifest,
    to_parquet,
)
from paft_ray.cluster import own_errors
from paft_ray.config import LLMConfig, TransformersLLM
from paft_ray.errors import LLMError
from paft_ray.lease import lease
from paft_ray.loading import result_fields, without
from paft_ray.prompts.files import read_prompt_files
from paft_ray.prompts.generation import Completion, Request, build_requests, parse_completion
from paft_ray.prompts.llm import batch_size, llm_key, llm_label, open_llm
from paft_ray.prompts.pool import (
    Candidate,
    Origin,
    PromptPool,
    Rejected,
    build_pool,
    candidates_to_table,
    load_pool,
    rejects_to_table,
)
from paft_ray.screen import Stage
from paft_ray.session import Session

logger = logging.getLogger(__name__)

_COMPLETION_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("status", pa.int64()),
        ("attempts", pa.int64()),
        ("seconds", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class _Written:
    """What the LLMs did."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    """Requests that failed, and answers without a prompt in them."""
    counts: Mapping[str, int]


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
    )


def build_prompt_pool(session: Session) -> PromptPool:
    """Build the pool that the configuration describes, or find it built.

    Raises:
        LLMError: Too large a share of the requests failed.
        PoolError: Too few prompts survived.
    """
    identity = pool_fingerprint(session)
    folder = session.storage.child("pools", identity)
    with session.screen.stage("prompt pool") as stage:
        about, found = _complete(folder), ", found complete"
        if about is None:
            with lease(folder, f"prompt pool {identity}", wait=True):
                about = _complete(folder)  # another run may just have built it
                if about is None:
                    about, found = _build(session, folder, identity, stage), ""
        pool = load_pool(folder)
        stage.finish(
            f"{about['candidates']} candidates, {len(pool.train)} training, "
            f"{len(pool.validation)} validation, {len(pool.test)} test prompts{found}"
        )
    return pool


def _complete(folder: Storage) -> dict[str, Any] | None:
    manifest = load_manifest(folder, check=True)
    return None if manifest is None else dict(manifest.about)


def _build(session: Session, folder: Storage, identity: str, stage: Stage) -> dict[str, Any]:
    config = session.config
    candidates = [
        Candidate(text=text, kind="template", origin=Origin(file=path))
        for path in config.prompts.files
        for text in read_prompt_files(path)
    ]
    counts: dict[str, int] = {"from_files": len(candidates)}
    rejected: list[Rejected] = []
    if config.prompts.generation is not None:
        written = _generate(session, stage)
        candidates += written.candidates
        rejected += written.rejected
        counts.update(written.counts)
    built = build_pool(candidates, session.task, config.prompts, config.seed)
    rejected += built.rejected
    about = {
        "candidates": len(candidates),
        **counts,
        **built.counts,
        "rejected": dict(sorted(Counter(f"{r.stage}: {r.reason}" for r in rejected).items())),
    }
    writer = ArtifactWriter(folder)
    writer.add("candidates.parquet", to_parquet(candidates_to_table(candidates)))
    writer.add("rejected.parquet", to_parquet(rejects_to_table(rejected)))
    built.pool.save(writer)
    writer.commit(identity, about)
    return about


def _generate(session: Session, stage: Stage) -> _Written:
    """Ask for whatever is not there yet, and read all answers back in the order of the requests."""
    generation = session.config.prompts.generation
    assert generation is not None
    keys = [llm_key(llm) for llm in generation.llms]
    requests = within_budget(
        build_requests(session.task, generation, session.config.seed, keys),
        generation.budget_tokens,
    )
    stores = [Parts(session.storage.child("generations", key)) for key in keys]
    answers = {id: c for store in stores for id, c in read_answers(store).items()}
    stage.expect(len(requests))
    failed: dict[str, Completion] = {}
    for number, (llm, store) in enumerate(zip(generation.llms, stores, strict=True)):
        units = cut_units([r for r in requests if r.llm == number], batch_size(llm))
        todo = [_missing(llm, unit, answers) for unit in units]
        stage.advance(sum(map(len, units)) - sum(map(len, todo)))
        if any(todo):
            failed.update(_ask(session, llm, [unit for unit in todo if unit], store, stage))
            answers.update(read_answers(store))
    _refuse_many_failures(failed, len(requests), generation.max_error_rate)
    return _parse(session, requests, answers, failed)


def within_budget(requests: Sequence[Request], budget_tokens: int | None) -> list[Request]:
    """The requests that may be sent: as many as could not cost more than the budget together.

    LLMs take turns, so that a tight budget still hears all of them.
    """
    if budget_tokens is None:
        return list(requests)
    position: Counter[int] = Counter()
    turns = []
    for order, request in enumerate(requests):
        turns.append((position[request.llm], order, request))
        position[request.llm] += 1
    spent, allowed = 0, set()
    for _, order, request in sorted(turns, key=lambda turn: turn[:2]):
        spent += request.max_tokens
        if spent > budget_tokens:
            break
        allowed.add(order)
    return [request for order, request in enumerate(requests) if order in allowed]


def cut_units(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Units of work, cut before anything is known to be finished: batches never change.

    What is generated together determines the answers; a unit shares its decoding settings.
    """
    units: list[list[Request]] = []
    for request in requests:
        if units and len(units[-1]) < size and units[-1][0].temperature == request.temperature:
            units[-1].append(request)
        else:
            units.append([request])
    return units


def _missing(
    llm: LLMConfig, unit: list[Request], answers: Mapping[str, Completion]
) -> list[Request]:
    missing = [request for request in unit if request.id not in answers]
    return unit if missing and isinstance(llm, TransformersLLM) else missing


def _ask(
    session: Session, llm: LLMConfig, units: list[list[Request]], store: Parts, stage: Stage
) -> dict[str, Completion]:
    """Send requests through Ray Data actors; answers land in `store`, failures are returned."""
    import ray.data

    cpus, gpus, actors = 0.1, 0.0, 1
    if isinstance(llm, TransformersLLM):
        cpus, gpus, actors = llm.cpus, llm.gpus, llm.actors
    rows = [{"requests": [asdict(request) for request in unit]} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _WriterActor,
        batch_size=1,
        batch_format="pandas",
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
        num_cpus=cpus,
        num_gpus=gpus or None,
        fn_constructor_args=(llm, session.storage, store),
    )
    failed = {}
    with own_errors():
        batches: Any = dataset.iter_batches(batch_size=1, batch_format="pandas", prefetch_batches=0)
        for batch in batches:
            stage.advance(int(batch["asked"].iloc[0]))
            for failure in batch["failed"].iloc[0]:
                failed[failure["request_id"]] = Completion(**failure)
    return failed


class _WriterActor:
    """Holds one LLM; answers units of requests and keeps every group of answers as a part."""

    def __init__(self, llm: LLMConfig, storage: Storage, store: Parts) -> None:
        self._llm = open_llm(llm, storage)
        self._store = store

    def __call__(self, batch: Any) -> Any:
        import pandas as pd

        requests = [_request(row) for row in batch["requests"].iloc[0]]
        failed = []
        for group in self._llm.complete(requests):
            failed += [asdict(completion) for completion in group if completion.text is None]
            good = [asdict(completion) for completion in group if completion.text is not None]
            if good:
                key = fingerprint([completion["request_id"] for completion in good])
                self._store.write(key, pa.Table.from_pylist(good, _COMPLETION_SCHEMA))
        return pd.DataFrame({"asked": [len(requests)], "failed": [failed]})


def _request(row: Mapping[str, Any]) -> Request:
    messages = tuple((str(role), str(text)) for role, text in row["messages"])
    return Request(**{**row, "messages": messages})


def read_answers(store: Parts) -> dict[str, Completion]:
    """All answers of one author that are on storage, by request id."""
    return {
        row["request_id"]: Completion(**row)
        for table in store.read(sorted(store.finished()))
        for row in table.to_pylist()
    }


def _refuse_many_failures(
    failed: Mapping[str, Completion], asked: int, max_error_rate: float
) -> None:
    if len(failed) <= max_error_rate * asked:
        return
    [(reason, count)] = Counter(str(f.error) for f in failed.values()).most_common(1)
    raise LLMError(
        f"{len(failed)} of {asked} requests failed ({count}x {reason}), more than "
        f"prompts.generation.max_error_rate ({max_error_rate:g}): finished answers are kept; mend "
        "the endpoint and run the same command again"
    )


def _parse(
    session: Session,
    requests: Sequence[Request],
    answers: Mapping[str, Completion],
    failed: Mapping[str, Completion],
) -> _Written:
    generation = session.config.prompts.generation
    assert generation is not None
    candidates, rejected = [], []
    for request in requests:
        origin = Origin(
            llm=llm_label(generation.llms[request.llm]),
            strategy=request.strategy,
            decoding_temperature=request.temperature,
            seed=request.seed,
        )
        if request.id not in answers:
            failure = failed[request.id]
            rejected.append(
                Rejected("", "generation", "request_failed", origin, detail=str(failure.error))
            )
            continue
        text = answers[request.id].text or ""
        if (parsed := parse_completion(text, generation.form)) is None:
            rejected.append(Rejected(text, "parse", "no_prompt_found", origin))
        else:
            candidates.append(Candidate(text=parsed, kind=generation.form, origin=origin))
    used = [answers[r.id] for r in requests if r.id in answers]
    counts = {
        "requests": len(requests),
        "answered": len(used),
        "prompt_tokens": sum(c.prompt_tokens for c in used),
        "completion_tokens": sum(c.completion_tokens for c in used),
    }
    return _Written(tuple(candidates), tuple(rejected), counts)
