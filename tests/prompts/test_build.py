"""Building a pool: what may be asked, who is asked, and what becomes of every answer."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paft_ray.api import open_session
from paft_ray.artifacts import Parts, Storage, load_manifest
from paft_ray.config import Config
from paft_ray.errors import LLMError
from paft_ray.prompts.build import (
    build_prompt_pool,
    cut_units,
    pool_fingerprint,
    read_answers,
    within_budget,
)
from paft_ray.prompts.generation import Request, build_requests
from paft_ray.prompts.llm import llm_key
from paft_ray.prompts.pool import PromptPool
from paft_ray.session import Session

# how long an example takes says how busy the machine is, not whether anything is wrong
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Ray Data warns of fields of its own context, which it sets itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:`use_(push_based_shuffle|polars|arrow_tensor_v2)` is deprecated:DeprecationWarning"
)

PER_LLM = 20


def make_request(
    number: int, llm: int = 0, max_tokens: int = 10, temperature: float = 1
) -> Request:
    messages = (("user", "Write."),)
    return Request(f"{number:016x}", llm, "zero_shot", messages, temperature, 1.0, 0, max_tokens)


def ids(requests: list[Request]) -> list[int]:
    return [int(request.id, 16) for request in requests]


def test_budget_that_is_not_set_lets_every_request_pass():
    requests = [make_request(number) for number in range(5)]
    assert within_budget(requests, None) == requests


@pytest.mark.parametrize(
    ("budget", "allowed"),
    [(9, []), (10, [0]), (39, [0, 1, 4]), (40, [0, 1, 4, 5]), (60, [0, 1, 2, 4, 5, 6])],
)
def test_budget_is_shared_by_llms_in_turns_and_never_exceeded(budget, allowed):
    requests = [make_request(number, llm=number // 4) for number in range(8)]
    assert ids(within_budget(requests, budget)) == allowed


@patient
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=30), st.integers(1, 900))
def test_budget_keeps_the_first_requests_of_every_llm_in_order(shapes, budget):
    requests = [make_request(n, llm, tokens) for n, (llm, tokens) in enumerate(shapes)]
    allowed = within_budget(requests, budget)
    assert sum(request.max_tokens for request in allowed) <= budget
    assert ids(allowed) == sorted(ids(allowed))
    for llm in range(4):
        mine = [request for request in requests if request.llm == llm]
        assert [r for r in allowed if r.llm == llm] == mine[: sum(r.llm == llm for r in allowed)]
    if len(allowed) < len(requests):  # the next in turn is what would have been too much
        left = [r for r in requests if r not in allowed]
        assert sum(r.max_tokens for r in allowed) + max(r.max_tokens for r in left) > budget


@patient
@given(st.lists(st.sampled_from([0.5, 1.0]), max_size=40), st.integers(1, 9))
def test_units_are_full_in_order_and_of_one_temperature(temperatures, size):
    requests = [make_request(n, temperature=t) for n, t in enumerate(temperatures)]
    units = cut_units(requests, size)
    assert [request for unit in units for request in unit] == requests
    assert all(1 <= len(unit) <= size for unit in units)
    assert all(len({request.temperature for request in unit}) == 1 for unit in units)
    for unit, following in pairwise(units):
        assert len(unit) == size or unit[0].temperature != following[0].temperature


def test_units_of_more_requests_begin_with_the_same_batches():
    requests = [make_request(number) for number in range(25)]
    assert cut_units(requests, 8)[:2] == cut_units(requests[:20], 8)[:2]


OpenSession = Callable[..., Session]


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt that is good, the same once more, and one that shows no review."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    good = "Say how the writer of this {review} liked the film. Verdict:"
    path.write_text("\n".join([good, good, "Say something about a film:"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def open_at(tiny_model: Path, review_file: Path, prompt_file: Path) -> OpenSession:
    def open_session_at(
        storage: Path,
        form: str = "template",
        fail_every: int = 7,
        max_error_rate: float = 0.5,
        **changes,
    ) -> Session:
        generation = {
            "llms": [{"type": "fake", "fail_every": fail_every}], "form": form,
            "per_llm": PER_LLM, "max_error_rate": max_error_rate,
        }  # fmt: skip
        config = {
            "name": "build",
            "storage": str(storage),
            "task": {
                "type": "custom", "name": "reviews", "path": str(review_file),
                "description": "Say whether a short film review is positive or negative.",
                "fields": {"review": "review"}, "answer": "label",
                "choices": ["positive", "negative"],
            },
            "prompts": {
                "files": [str(prompt_file)], "generation": generation,
                "split": {"test": 4, "validation": 2},
            },
            "model": {"path": str(tiny_model)},
            "train": {"steps": 1},
            "tracking": {"type": "none"},
        }  # fmt: skip
        return open_session(Config.model_validate({**config, **changes}))

    return open_session_at


def test_pool_fingerprint_changes_with_what_moves_the_pool_only(open_at, tmp_path, prompt_file):
    session = open_at(tmp_path / "one")
    first = pool_fingerprint(session)
    prompts = session.config.prompts
    assert pool_fingerprint(open_at(tmp_path / "two", name="other", train={"steps": 9})) == first
    for change, same in [
        ({"prompts": {**prompts.model_dump(), "pool_size": 3}}, True),
        ({"prompts": {**prompts.model_dump(), "layouts_per_instruction": 2}}, False),
        ({"seed": 1}, False),
    ]:
        assert (pool_fingerprint(open_at(tmp_path / "one", **change)) == first) is same, change
    before = prompt_file.read_text(encoding="utf-8")
    try:
        prompt_file.write_text(before + "\nIs this {review} kind?", encoding="utf-8")
        assert pool_fingerprint(session) != first
    finally:
        prompt_file.write_text(before, encoding="utf-8")


@dataclass(frozen=True)
class Built:
    """A pool that was built once for several tests."""

    storage: Path
    session: Session
    pool: PromptPool

    @property
    def folder(self) -> Path:
        return self.storage / "pools" / pool_fingerprint(self.session)

    def rows(self, name: str) -> list[dict]:
        return pq.read_table(self.folder / name).to_pylist()


def requests_of(session: Session) -> list[Request]:
    generation = session.config.prompts.generation
    assert generation is not None
    key = llm_key(generation.llms[0])
    return list(build_requests(session.task, generation, session.config.seed, [key]))


def failing(session: Session, every: int) -> set[str]:
    """The requests that the fake fails."""
    return {request.id for request in requests_of(session) if int(request.id, 16) % every == 0}


def parts_of(session: Session) -> Parts:
    generation = session.config.prompts.generation
    assert generation is not None
    return Parts(session.storage.child("generations", llm_key(generation.llms[0])))


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When and as which file each file of a folder was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module", params=["template", "instruction"])
def built(
    request: pytest.FixtureRequest,
    ray_cluster: None,
    open_at: OpenSession,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    storage = tmp_path_factory.mktemp("storage")
    session = open_at(storage, form=request.param)
    return Built(storage, session, build_prompt_pool(session))


@pytest.mark.ray
def test_pool_that_was_built_is_complete_and_counted(built):
    manifest = load_manifest(Storage.open(str(built.folder)), check=True)
    assert manifest is not None
    assert sorted(manifest.files) == ["candidates.parquet", "pool.parquet", "rejected.parquet"]
    about, failed = manifest.about, failing(built.session, 7)
    assert about["requests"] == 2 * PER_LLM
    assert 0 < len(failed) < PER_LLM
    assert about["answered"] == 2 * PER_LLM - len(failed)
    assert about["from_files"] == 3
    assert about["candidates"] == len(built.rows("candidates.parquet"))
    for split, size in [("train", None), ("validation", 2), ("test", 4)]:
        assert about[split] == len(built.pool.prompts(split)) == (size or about[split]) > 0
    assert sum(about["rejected"].values()) == len(built.rows("rejected.parquet"))
    assert PromptPool.from_table(pq.read_table(built.folder / "pool.parquet")) == built.pool
    counted = sum(about[name] for name in ("prompt_tokens", "completion_tokens"))
    assert counted > about["answered"]


@pytest.mark.ray
def test_every_candidate_is_in_the_pool_or_rejected_for_a_reason(built):
    def key(row: dict) -> str:
        """A candidate by its origin; those of a file share theirs, and differ by text."""
        return json.dumps([row["origin"], row["text"] if row["origin"]["file"] else ""])

    def texts(rows: list[dict], name: str = "text") -> dict[str, str]:
        return {key(row): row[name] for row in rows}

    candidates = built.rows("candidates.parquet")
    pool, rejected = built.rows("pool.parquet"), built.rows("rejected.parquet")
    early = [row for row in rejected if row["stage"] in ("generation", "parse")]
    late = [row for row in rejected if row["stage"] not in ("generation", "parse")]
    accepted = Counter(set(map(key, pool)))
    assert Counter(map(key, candidates)) == accepted + Counter(map(key, late))
    assert {row["stage"] for row in late} <= {"lint", "dedup", "split"}
    assert all(row["reason"] for row in rejected)
    reasons = {(row["stage"], row["reason"]) for row in late if row["origin"]["file"]}
    assert reasons == {("lint", "missing_slot"), ("dedup", "duplicate")}
    assert Counter((row["reason"], row["detail"], row["text"]) for row in early) == {
        ("request_failed", "HTTP 500", ""): len(failing(built.session, 7))
    }
    asked = {request.seed for request in requests_of(built.session)}
    seen = [row["origin"]["seed"] for row in [*candidates, *early] if not row["origin"]["file"]]
    assert sorted(seen) == sorted(asked)
    generation = built.session.config.prompts.generation
    name = "text" if generation and generation.form == "template" else "instruction"
    by_llm = [row for row in pool if not row["origin"]["file"]]
    given = texts(candidates)
    assert {k: given[k] for k in texts(by_llm)} == texts(by_llm, name)


@pytest.mark.ray
def test_pool_that_is_complete_is_found_and_not_built_again(built):
    before = stamps(built.storage / "pools")
    away = built.storage / "generations"
    kept = away.rename(built.storage / "away")
    try:
        assert build_prompt_pool(built.session) == built.pool
        assert not away.exists()
    finally:
        kept.rename(away)
    assert stamps(built.storage / "pools") == before


@pytest.mark.ray
def test_pool_with_too_many_failures_keeps_answers_and_is_built_from_them_later(
    ray_cluster, open_at, tmp_path
):
    strict = open_at(tmp_path, fail_every=3, max_error_rate=0.1)
    failed = failing(strict, 3)
    assert 0.1 < len(failed) / (2 * PER_LLM) < 0.5
    message = rf"{len(failed)} of 40 requests failed \({len(failed)}x HTTP 500\).*answers are kept"
    with pytest.raises(LLMError, match=message):
        build_prompt_pool(strict)
    assert not list((tmp_path / "pools").rglob("*.parquet"))
    answers = read_answers(parts_of(strict))
    assert answers.keys() == {request.id for request in requests_of(strict)} - failed
    assert all(answer.text for answer in answers.values())

    lost = sorted(parts_of(strict).finished())[:3]
    generations = tmp_path / "generations"
    for key in lost:
        Path(parts_of(strict).folder.path(f"{key}.parquet")).unlink()
    before = stamps(generations)
    patient = open_at(tmp_path, fail_every=3, max_error_rate=0.9)
    pool = build_prompt_pool(patient)
    after = stamps(generations)
    assert {name: stamp for name, stamp in after.items() if name in before} == before
    assert len(after) == len(before) + len(lost)
    assert read_answers(parts_of(patient)) == answers

    shutil.rmtree(tmp_path / "pools")
    assert build_prompt_pool(patient) == pool
    assert stamps(generations) == after
