"""Generation by LLMs: rounds, budget, an end when nothing new comes, and costs."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from paft_ray.config import GenerationConfig
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.llm import llm_key
from paft_ray.prompts.generate.requests import RequestBook
from paft_ray.prompts.generate.results import Generated, costs, parse_unit
from paft_ray.prompts.generate.runner import generate
from paft_ray.prompts.generate.units import answers_of
from paft_ray.prompts.pool import Candidate, Rejected
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import Task

TASK = Task(
    "reviews", "Say whether a film review is positive or negative.", ("review",), {},
    ("positive", "negative"), (), (), (),
)  # fmt: skip

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings(
        "ignore:`use_(push_based_shuffle|polars|arrow_tensor_v2)` is deprecated:DeprecationWarning"
    ),
]


@pytest.fixture
def run(ray_cluster: None, tmp_path) -> Callable[..., Generated]:
    def call(*llms: dict, **generation) -> Generated:
        config = GenerationConfig.model_validate(
            {"llms": [{"type": "fake", **llm} for llm in llms], **generation}
        )
        keys = tuple(llm_key(llm) for llm in config.llms)
        book = RequestBook(TASK, config, 0, keys)
        with SilentScreen().stage("generate") as stage:
            return generate(book, Storage.open(str(tmp_path)), stage)

    return call


def entries(generated: Generated) -> list[Candidate | Rejected]:
    return [entry for unit in generated.tallies for entry in parse_unit(generated, unit)]


@pytest.mark.slow
def test_several_llms_generate_at_once_and_are_accounted_for(run):
    price = {"prompt": 1.0, "completion": 10.0}
    generated = run(
        {"temperatures": [0.5, 1.0], "price": price}, {"fail_every": 5}, {"seconds": 0.001},
        per_llm=11,
    )  # fmt: skip
    rows = costs(generated)
    assert [row["requests"] for row in rows] == [22, 22, 22]
    assert rows[0]["answered"] == rows[2]["answered"] == 22
    assert 0 < rows[1]["failed"] == 22 - rows[1]["answered"]
    expected = (rows[0]["prompt_tokens"] * 1 + rows[0]["completion_tokens"] * 10) / 1e6
    assert rows[0]["cost"] == pytest.approx(expected)
    assert rows[1]["cost"] is None
    found = entries(generated)
    assert len(found) == 66
    failed = [entry for entry in found if isinstance(entry, Rejected)]
    assert [(r.stage, r.reason, r.detail) for r in failed] == [
        ("generation", "request_failed", "HTTP 500")
    ] * rows[1]["failed"]
    temperatures = [e.origin.decoding_temperature for e in found[:22]]
    assert Counter(temperatures) == {0.5: 12, 1.0: 10}


def test_budget_is_never_exceeded_and_nothing_paid_is_sent_again(run):
    spent = []
    for budget in (120, 100_000):
        generated = run({}, per_llm=300, budget_tokens=budget)
        spent.append(sum(t.completion_tokens for t in generated.tallies.values()))
        assert budget - 96 < spent[-1] <= budget or budget == 100_000
        assert (generated.stopped == "budget") is (budget < 100_000)
    assert all(a < b for a, b in pairwise(spent))
    again = run({}, per_llm=300, budget_tokens=100_000)
    files = [answers_of(again.book, unit, again.storage) for unit in again.tallies]
    for store in files:
        lines = store.folder.read_bytes(f"{store.name}.jsonl").splitlines()
        assert len(lines) == len(store.read())


@pytest.mark.slow
def test_generation_ends_when_llms_repeat_themselves(run):
    stop = {"new_share": 0.02, "round": 256}
    generated = run({}, per_llm=2000, stop=stop)
    requests = sum(t.requests for t in generated.tallies.values())
    assert generated.stopped == "nothing new"
    assert requests % 256 == 0
    assert 256 <= requests < 4000
    everything = run({}, per_llm=64)
    assert everything.stopped == ""
    assert sum(t.requests for t in everything.tallies.values()) == 128


def test_too_many_failures_end_generation_early_and_keep_answers(run, tmp_path):
    with pytest.raises(LLMError, match=r"requests failed \(mostly HTTP 500\).*answers are kept"):
        run({"fail_every": 2}, per_llm=5000, max_error_rate=0.2)
    lines = [
        line
        for path in tmp_path.rglob("*.jsonl")
        if "failed" not in path.name
        for line in path.read_bytes().splitlines()
    ]
    assert 10 < len(lines) < 1000


def test_failed_requests_are_sent_again_and_answered_ones_are_not(run):
    generated = run({"fail_every": 3}, per_llm=30)
    [*units] = generated.tallies
    broken = [generated.answers(unit).failed() for unit in units]
    assert all(broken)
    for unit, failures in zip(units, broken, strict=True):
        lost = next(iter(failures))
        generated.answers(unit).add(
            [Completion(lost, "Now {review} is it good?", None, 200, 1, 0, 1, 1)]
        )
    again = run({"fail_every": 3}, per_llm=30)
    for unit in units:
        assert again.tallies[unit].answered == generated.tallies[unit].answered + 1
