"""Building a pool: requests, answers, candidates, and prompts or rejects."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from paft_ray.config import Config
from paft_ray.config.affects import PROMPT_RULES
from paft_ray.config.errors import LLMError
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import (
    build_prompt_pool,
    pool_fingerprint,
    pool_without_work,
    request_book,
)
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.requests import Request
from paft_ray.prompts.generate.units import answers_of, unit_size
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import SPLITS

# how long an example takes says how busy the machine is, not whether anything is wrong
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Ray Data warns of fields of its own context, which it sets itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:`use_(push_based_shuffle|polars|arrow_tensor_v2)` is deprecated:DeprecationWarning"
)

PER_LLM = 20


OpenContext = Callable[..., RunContext]


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt that is good, the same once more, and one that shows no review."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    good = "Say how the writer of this {review} liked the film. Verdict:"
    path.write_text("\n".join([good, good, "Say something about a film:"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def open_at(tiny_model: Path, review_file: Path, prompt_file: Path) -> OpenContext:
    def open_context_at(
        storage: Path,
        form: str = "template",
        fail_every: int = 7,
        max_error_rate: float = 0.5,
        **changes,
    ) -> RunContext:
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
        return open_context(Config.model_validate({**config, **changes}))

    return open_context_at


def test_pool_fingerprint_changes_with_what_moves_the_pool_only(
    open_at, tmp_path, prompt_file, monkeypatch
):
    context = open_at(tmp_path / "one")
    first = pool_fingerprint(context)
    prompts = context.config.prompts
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
        with_one_more = pool_fingerprint(context)
        assert with_one_more != first
        prompt_file.write_text(before + '\nSay {"a": "b"} of {review} now.', encoding="utf-8")
        with_braces = pool_fingerprint(context)
        monkeypatch.setitem(PROMPT_RULES, "lint", 1)
        assert pool_fingerprint(context) != with_braces
        prompt_file.write_text(before + "\nIs this {review} kind?", encoding="utf-8")
        assert pool_fingerprint(context) == with_one_more
    finally:
        prompt_file.write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("demonstrations", "These were solved. {demonstrations} Now this one: {review} ="),
        ("demonstrations_apart", "These were solved.\n{demonstrations}Now this one: {review} ="),
    ],
)
def test_template_that_shows_demonstrations_is_in_the_pool_and_names_another_one(
    rule, shown, open_at, tmp_path, monkeypatch
):
    texts = ["How does this feel? {review} ->", "{review} || mood ||", "Classify: {review} ="]
    texts += ["<film> {review} </film>", "Was somebody pleased with {review}? Verdict:"]

    def pool_of(more: list[str]) -> tuple[set[str], bool]:
        path = tmp_path / f"{len(more)}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *more]))
        small = {"split": {"test": 1, "validation": 1}}
        context = open_at(tmp_path / "one", prompts={"files": [str(path)], **small})
        with monkeypatch.context() as patch:
            patch.setitem(PROMPT_RULES, rule, 1)
            before = pool_fingerprint(context)
        pool = pool_without_work(context)
        assert pool is not None
        found = {prompt.text for split in SPLITS for prompt in pool.prompts(split)}
        return found, pool_fingerprint(context) == before

    found, same = pool_of([shown])
    assert shown in found and not same
    assert pool_of([])[1]


def test_backslash_in_a_table_of_prompts_is_a_backslash_and_moves_only_pools_that_have_one(
    open_at, tmp_path, monkeypatch
):
    """In plain text, which has no other way to write one, a literal backslash-n is a line end."""
    said, folder = r"Is {review} kind? Separate words by \n.", tmp_path / "one"
    texts = ["How does this feel? {review} ->", "{review} || mood ||", "Classify: {review} ="]
    texts += ["<film> {review} </film>", "Was somebody pleased with {review}? Verdict:"]

    small = {"split": {"test": 1, "validation": 1}}

    def pool_of(name: str, content: str) -> tuple[set[str], str, str]:
        (tmp_path / name).write_text(content)
        context = open_at(folder, prompts={"files": [str(tmp_path / name)], **small})
        with monkeypatch.context() as patch:
            patch.setitem(PROMPT_RULES, "escapes", 1)
            before = pool_fingerprint(context)
        pool = pool_without_work(context)
        assert pool is not None
        found = {prompt.text for split in SPLITS for prompt in pool.prompts(split)}
        return found, pool_fingerprint(context), before

    table = "".join(json.dumps({"text": text}) + "\n" for text in [*texts, said])
    found, identity, before = pool_of("p.jsonl", table)
    assert said in found
    assert identity != before, "pools in which it was a line end would pass for this one"
    found, identity, before = pool_of("p.txt", "\n".join([*texts, said]))
    assert said.replace(r" \n", "\n") in found
    assert identity == before
    _, identity, before = pool_of("same.jsonl", table.replace(r" Separate words by \\n", ""))
    assert identity == before


@dataclass(frozen=True)
class Built:
    """A pool that was built once for several tests."""

    storage: Path
    context: RunContext
    pool: PromptPool

    @property
    def folder(self) -> Path:
        return self.storage / "pools" / pool_fingerprint(self.context)

    def rows(self, name: str) -> list[dict]:
        return pq.read_table(self.folder / name).to_pylist()


def requests_of(context: RunContext) -> list[Request]:
    book = request_book(context)
    assert book is not None
    return [r for unit in book.units(0, PER_LLM) for r in book.requests(unit)]


def failing(context: RunContext, every: int) -> set[str]:
    """The requests that the fake fails."""
    return {request.id for request in requests_of(context) if int(request.id, 16) % every == 0}


def stores_of(context: RunContext) -> list[Answers]:
    book = request_book(context)
    assert book is not None
    units = book.units(0, unit_size(book.config.llms[0]))
    return [answers_of(book, unit, context.storage) for unit in units]


def answers_in(context: RunContext) -> dict[str, Completion]:
    return {id: answer for store in stores_of(context) for id, answer in store.read().items()}


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
    open_at: OpenContext,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    storage = tmp_path_factory.mktemp("storage")
    context = open_at(storage, form=request.param)
    return Built(storage, context, build_prompt_pool(context))


@pytest.mark.ray
def test_pool_that_was_built_is_complete_and_counted(built):
    manifest = load_manifest(Storage.open(str(built.folder)), check=True)
    assert manifest is not None
    assert sorted(manifest.files) == ["candidates.parquet", "pool.parquet", "rejected.parquet"]
    about, failed = manifest.about, failing(built.context, 7)
    assert about["requests"] == 2 * PER_LLM
    assert 0 < len(failed) < PER_LLM
    assert about["answered"] == 2 * PER_LLM - len(failed)
    assert about["from_files"] == 3
    assert about["candidates"] == len(built.rows("candidates.parquet"))
    for split, size in [("train", None), ("validation", 2), ("test", 4)]:
        assert about[split] == len(built.pool.prompts(split)) == (size or about[split]) > 0
    assert sum(about["rejected"].values()) == len(built.rows("rejected.parquet"))
    assert PromptPool.from_table(pq.read_table(built.folder / "pool.parquet")) == built.pool
    [llm] = about["llms"]
    assert (llm["llm"], llm["requests"], llm["failed"]) == ("fake", 2 * PER_LLM, len(failed))
    assert llm["prompt_tokens"] > llm["answered"] == about["answered"]
    assert llm["completion_tokens"] > llm["answered"]


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
        ("request_failed", "HTTP 500", ""): len(failing(built.context, 7))
    }
    sent = {request.seed for request in requests_of(built.context)}
    seen = [row["origin"]["seed"] for row in [*candidates, *early] if not row["origin"]["file"]]
    assert sorted(seen) == sorted(sent)
    generation = built.context.config.prompts.generation
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
        assert build_prompt_pool(built.context) == built.pool
        assert not away.exists()
    finally:
        kept.rename(away)
    assert stamps(built.storage / "pools") == before


@pytest.mark.slow
@pytest.mark.ray
def test_pool_with_too_many_failures_keeps_answers_and_is_built_from_them_later(
    ray_cluster, open_at, tmp_path
):
    strict = open_at(tmp_path, fail_every=3, max_error_rate=0.1)
    failed = failing(strict, 3)
    assert 0.1 < len(failed) / (2 * PER_LLM) < 0.5
    message = rf"{len(failed)} of 40 requests failed \(mostly HTTP 500\).*answers are kept"
    with pytest.raises(LLMError, match=message):
        build_prompt_pool(strict)
    assert not list((tmp_path / "pools").rglob("*.parquet"))
    answers = answers_in(strict)
    assert answers.keys() == {request.id for request in requests_of(strict)} - failed
    assert all(answer.text for answer in answers.values())

    first = Path(tmp_path / "generations").rglob("*.jsonl")
    path = next(p for p in sorted(first) if "failed" not in p.name)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]) + lines[-3][:25])  # three are lost, one of them torn
    patient = open_at(tmp_path, fail_every=3, max_error_rate=0.9)
    pool = build_prompt_pool(patient)
    assert answers_in(patient) == answers
    assert len(path.read_bytes().splitlines()) == len(lines) + 1, "only these were sent again"

    shutil.rmtree(tmp_path / "pools")
    generations = tmp_path / "generations"
    before = stamps(generations)
    assert build_prompt_pool(patient) == pool
    changed = {name for name, stamp in stamps(generations).items() if before.get(name) != stamp}
    assert all("failed" in name for name in changed), "no answered request is sent again"


@pytest.mark.ray
@pytest.mark.parametrize("form", ["template", pytest.param("instruction", marks=pytest.mark.slow)])
def test_many_candidates_become_the_same_pool_as_few(
    form, ray_cluster, open_at, tmp_path, monkeypatch
):
    """The path of a million candidates, taken by a few."""
    context = open_at(tmp_path, form=form)
    pool = build_prompt_pool(context)
    folder = tmp_path / "pools" / pool_fingerprint(context)

    def tables() -> tuple[list[str], Counter[tuple[str, ...]]]:
        candidates = pq.read_table(folder / "candidates.parquet").to_pylist()
        rejected = pq.read_table(folder / "rejected.parquet").to_pylist()
        return (
            sorted(json.dumps(row, sort_keys=True) for row in candidates),
            Counter((r["stage"], r["reason"], r["text"], str(r["origin"])) for r in rejected),
        )

    few, about = tables(), load_manifest(Storage.open(str(folder))).about  # pyright: ignore
    assert ("dedup", "duplicate") in {key[:2] for key in few[1]}
    shutil.rmtree(tmp_path / "pools")
    monkeypatch.setattr("paft_ray.prompts.build._IN_DRIVER", 5)
    assert build_prompt_pool(context) == pool
    assert tables() == few
    assert load_manifest(Storage.open(str(folder))).about == about  # pyright: ignore
