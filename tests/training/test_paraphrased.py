"""Training examples in other words: written once, drawn by position, told by the ledger."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from openai_server import Body, Reply, Server, reply, said
from transformers import AutoModelForCausalLM

from factories import make_prompt, run_config
from paft_ray.config import total_steps
from paft_ray.config.errors import ConfigError, DataError, LLMError
from paft_ray.config.loading import load_config
from paft_ray.pipeline import perform
from paft_ray.pipeline.plan import describe_plan
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.pool import PromptPool
from paft_ray.prompts.rewrite import TRAINING_RECORD
from paft_ray.report.written import paraphrases
from paft_ray.runs.context import RunContext
from paft_ray.runs.examples import store_examples
from paft_ray.runs.paraphrases import StoredParaphrases
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.training.batch_plan import Planner
from paft_ray.training.distributed.build import build_planner
from paft_ray.training.identity import training_fingerprint
from paft_ray.training.ledger import Ledger
from paft_ray.training.paraphrased import TEXTS, read_by, read_by_any, with_paraphrases
from paft_ray.tuning.settings import check_search, read_by_trials

pytestmark = pytest.mark.usefixtures("warm_checks")

POOL = PromptPool(tuple(map(make_prompt, ("Say: {review} =", "{review} ->"))), (), ())
LETTERS = str.maketrans("0123456789", "klmnopqrst")
"""For digits, of which a paraphrase may have no other ones."""


class Rewriter(Server):
    """An LLM that rewrites reviews, but never those of films whose number ends in 7."""

    def __init__(self) -> None:
        self.written = 0
        self.fail_after: int | None = None
        self.words = "They say"
        super().__init__(self.complete)

    def complete(self, path: str, body: Body, attempt: int) -> Reply:
        if self.fail_after is not None and self.written >= self.fail_after:
            return reply(401, {"error": {"message": "no more"}})
        self.written += 1
        review = body["messages"][-1]["content"].partition("Text:\n")[2]
        stubborn = review.split()[2].endswith("7")
        mark = str(self.written).translate(LETTERS)
        return said(review if stubborn else f"{self.words} ({mark}): {review}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rewriter]:
    monkeypatch.setattr(EndpointLLM, "_pause_s", 0.01)
    with (rewriter := Rewriter()).running():
        yield rewriter


@pytest.fixture
def tree_of(
    server: Rewriter, tiny_model: Path, review_file: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    def make(asked: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
        writer = {
            "type": "openai", "base_url": server.url, "model": "writer", "concurrency": 1,
            "price": {"completion": 1},
        }  # fmt: skip
        own = {"per_example": 2, "llm": writer, **(asked or {})}
        return run_config(
            tiny_model, review_file, tmp_path / "storage",
            task={"max_length": 400, "test_share": 0.2},
            train={"variation": {"paraphrases": own}, "row_tokens": 800, **train},
            tracking={"type": "none"},
        )  # fmt: skip

    return make


def opened(tree: dict[str, Any]) -> RunContext:
    config = load_config(tree)
    task = load_task(config.task, config.seed, unlabelled=config.reads_unlabelled)
    return RunContext.create(config, task, Storage.open(config.storage))


def written(context: RunContext) -> RunContext:
    return with_paraphrases(context, POOL, perform.ModelCheckProcess())


def fingerprint_of(context: RunContext, number: int = 0) -> str:
    config = context.config.of_training(context.config.trainings[number])
    return training_fingerprint(context, config, POOL.train)


def planner_of(context: RunContext, tiny_model: Path) -> Planner:
    """What a rank makes of the job of a run's first training."""
    config = context.config.of_training(context.config.trainings[0])
    learned = context.task.learned_by(config.train.objective)
    job: Any = SimpleNamespace(
        config=config,
        task=context.task.without_examples(),
        examples=store_examples(context.storage, learned),
        base=str(tiny_model),
        prompts=tuple((prompt.id, prompt.text) for prompt in POOL.train),
        paraphrases=context.paraphrases,
    )
    return build_planner(job, AutoModelForCausalLM.from_pretrained(str(tiny_model)))


def test_trained_rows_hold_the_wordings_that_the_ledger_names(tree_of, tiny_model, tmp_path):
    context = written(opened(tree_of(steps=10, batch_size=16)))
    stored = pq.read_table(tmp_path / "storage" / "runs" / "small" / TEXTS).to_pylist()
    texts = {(row["example_id"], row["paraphrase"]): row["text"] for row in stored}
    assert {row["slot"] for row in stored} == {"review"}
    planner = planner_of(context, tiny_model)
    reviews = {example.id: example.fields["review"] for example in context.task.train}
    ledger, seen = Ledger(Storage.open(str(tmp_path)), 0, (), planner.describe), set()
    for step in range(10):
        plan = planner.plan(step)
        ledger.add(plan, [0.0] * 16)
        rows = "\n".join(
            str(planner.encoder.tokenizer.decode(row.input_ids_T)) for row in plan.rows
        )
        for slot, draw in enumerate(plan.draws):
            number = json.loads(planner.describe(step, slot, draw) or "").get("paraphrase", 0)
            review = reviews[draw.example_id]
            assert texts.get((draw.example_id, number), review) in rows
            assert (f"): {review}" in rows) == (number > 0)
            assert number == 0 or not review.split()[2].endswith("7")
            seen.add((number, review.split()[2].endswith("7")))
    assert seen == {(0, False), (1, False), (2, False), (0, True)}
    ledger.take(10)()
    [file] = (tmp_path / "ledger").iterdir()
    told = [
        json.loads(row).get("paraphrase") for row in pq.read_table(file)["variation"].to_pylist()
    ]
    assert {None, 1, 2} == set(told)


def test_they_are_written_once_for_all_seeds_variants_and_runs(server, tree_of, tmp_path):
    tree = tree_of(steps=5, batch_size=4)
    variants = [{"type": "paft"}, {"type": "bound_prompts", "prompts": 1}]
    context = opened({**tree, "seeds": [0, 1], "variants": variants})
    read = read_by_any(context.config, context.task)
    assert 20 < len(read) < 40
    context = written(context)
    stubborn = [e.id for e in read if e.fields["review"].split()[2].endswith("7")]
    about = context.run_folder.read_json(TRAINING_RECORD)
    assert about["without"] == stubborn and about["refused"] == {"unchanged": 6 * len(stubborn)}
    assert about["rewritten"] == len(read) - len(stubborn)
    assert about["wordings"] == 2 * about["rewritten"]
    assert server.written == about["asked"]["requests"] == 2 * len(read) + 4 * len(stubborn)
    told = " ".join(paraphrases({"training_paraphrases": about}))
    for part in (f"{about['rewritten']} of {len(read)} training", stubborn[0], "own text alone"):
        assert part in told
    sent = len(server.calls)
    again = written(opened({**tree, "seeds": [1, 0], "name": "other", "variants": variants}))
    assert again.paraphrases == context.paraphrases and len(server.calls) == sent
    assert max(server.answered.values()) == 1
    alone = written(opened({**tree, "name": "alone"}))
    assert len(server.calls) == sent
    assert fingerprint_of(alone) == fingerprint_of(context) != fingerprint_of(context, 1)
    assert len(pickle.dumps(context.paraphrases)) < 1000


def test_writing_that_was_stopped_goes_on_and_nobody_reads_half_of_it(server, tree_of, tmp_path):
    tree = tree_of({"per_example": 1}, steps=4, batch_size=4)
    server.fail_after = 5
    with pytest.raises(LLMError, match="no more"):
        written(opened(tree))
    storage = tmp_path / "storage"
    assert not (storage / "paraphrases").exists() and not (storage / "runs").exists()
    server.fail_after = None
    context = written(opened(tree))
    assert max(server.answered.values()) == 1
    assert len(list((storage / "paraphrases").iterdir())) == 1
    about = context.run_folder.read_json(TRAINING_RECORD)
    assert server.written == about["asked"]["requests"] > 5


def test_identity_of_a_training_has_the_texts_and_is_as_before_without_them(
    server, tree_of, tmp_path
):
    tree = tree_of(steps=2, batch_size=4)
    first = written(opened(tree))
    server.words = "One hears"
    other = written(opened({**tree, "storage": str(tmp_path / "elsewhere")}))
    assert fingerprint_of(first) != fingerprint_of(other)
    plain = opened({**tree, "train": {**tree["train"], "variation": {}}})
    assert written(plain) is plain
    assert fingerprint_of(plain) == fingerprint_of(replace(plain, paraphrases=first.paraphrases))
    assert fingerprint_of(plain) != fingerprint_of(first)


@pytest.mark.parametrize(
    "objective",
    [
        {"type": "cross_entropy"},
        {"type": "consistency"},
        {"type": "expected_reward"},
        {"type": "consensus", "prompts": 2},
        {"type": "prefix", "tokens": 2},
        {"type": "grpo", "rollouts": 4, "updates": 2, "max_new_tokens": 4},
    ],
    ids=lambda objective: objective["type"],
)
def test_what_is_rewritten_is_what_an_objective_reads(objective, tree_of, tiny_model):
    from paft_ray.prompts.variation import Put
    from paft_ray.training.prompt_weights import UNIFORM
    from paft_ray.training.reinforcement.rollouts import asked_at

    context = written(opened(tree_of(steps=6, batch_size=8, objective=objective)))
    config, planner = context.config, planner_of(context, tiny_model)
    put: list[Put] = []
    for step in range(6):
        if objective["type"] == "grpo":
            if step % 2 == 0:
                asked = asked_at(planner, config.train.objective, step, UNIFORM)  # pyright: ignore
                put += [one.put for one in asked]
            continue
        for slot, draw in enumerate(planner.plan(step).draws):
            put.append(planner.put(step, slot, draw.example, draw.prompt))
    own = {example.id for example in read_by(config.of_training(config.trainings[0]), context.task)}
    assert {one.example.id for one in put} == own
    reworded = [one for one in put if "): the film" in one.example.fields["review"]]
    assert 0 < len(reworded) < len(put)


def test_paraphrase_that_is_too_long_is_refused_before_training(server, tree_of):
    server.words = "They say " + "that one hears of it " * 20
    tree = tree_of(steps=5, batch_size=4)
    tree["task"]["max_length"] = 60
    with pytest.raises(DataError, match=r"in other words .* more than task.max_length \(60\)"):
        written(opened(tree))


def test_nothing_usable_and_a_spent_budget_end_the_run(server, tree_of):
    few = tree_of({"budget_tokens": 256 + 4 * 3}, steps=5, batch_size=4)
    with pytest.raises(LLMError, match=r"train.variation.paraphrases.budget_tokens"):
        written(opened(few))
    server.words = "I cannot do that"
    assert 0 < server.written <= 4
    context = opened(tree_of(steps=5, batch_size=4))
    stubborn = [e for e in context.task.train if e.fields["review"].split()[2].endswith("7")]
    with pytest.raises(LLMError, match=r"no example has a paraphrase that can be used \(6 unch"):
        with_paraphrases(context, POOL, perform.ModelCheckProcess(), stubborn[:1])


def test_plan_says_what_would_be_asked_for_training(tree_of):
    context = opened(tree_of(steps=5, batch_size=4))
    plan = describe_plan(context)["training_paraphrases"]
    assert (plan["llm"], plan["examples"], plan["requests"]) == ("writer", 20, 40)
    assert plan["requests_at_most"] == 120
    assert plan["completion_tokens_at_most"] == 120 * 256
    assert plan["cost_at_most"] == pytest.approx(120 * 256 / 1e6, abs=1e-4)
    assert not Path(context.storage.path("generations")).exists()
    epochs = describe_plan(opened(tree_of(steps=None, epochs=3, batch_size=4)))
    assert epochs["training_paraphrases"]["examples"] == len(context.task.train)


def test_llm_of_training_is_needed_only_where_something_is_trained(tree_of):
    tree = tree_of({"llm": None})
    tree["prompts"] = {"files": ["stock:choices"]}
    with pytest.raises(ConfigError, match=r"train.variation.paraphrases.llm: no LLM is named"):
        load_config(tree)
    assert load_config({**tree, "variants": []}).llms == {}
    assert "train.variation.paraphrases.llm" in load_config(tree_of()).llms


def test_trials_share_what_is_written_and_cannot_ask_for_other_paraphrases(tree_of):
    space = {
        "train.batch_size": {"type": "randint", "low": 2, "high": 6},
        "train.steps": {"type": "randint", "low": 2, "high": 5},
    }
    tree = tree_of(steps=3, batch_size=4)
    search = {"space": space, "trials": 6, "seeds": [5], "finalists": 1}
    prompts = {**tree["prompts"], "split": {"validation": 1, "test": 1}}
    tree |= {"tuning": search, "prompts": prompts}
    context = opened(tree)
    config, tuning = context.config, context.config.tuning
    assert tuning is not None
    everything = {example.id for example in read_by_trials(config, tuning, context.task)}
    assert len(everything) < len(context.task.train)
    for trial in check_search(context):
        for seed in (0, 5):
            own = trial.model_copy(update={"seed": seed})
            assert total_steps(own.train, len(context.task.train)) <= 5
            assert {example.id for example in read_by(own, context.task)} <= everything
    field = "train.variation.paraphrases"
    with_or_without = {field: {"type": "choice", "values": [None]}}
    check_search(opened({**tree, "tuning": {**search, "space": with_or_without}}))
    others = {f"{field}.per_example": {"type": "choice", "values": [2, 3]}}
    with pytest.raises(ConfigError, match="all trials draw from the same ones"):
        check_search(opened({**tree, "tuning": {**search, "space": others}}))


def test_copy_of_the_texts_that_was_changed_is_not_trained_on(tree_of, tmp_path):
    stored = written(opened(tree_of(steps=2, batch_size=4))).paraphrases
    assert isinstance(stored, StoredParaphrases)
    table = stored.open()
    again = pickle.loads(pickle.dumps(table))
    assert dict(again) == dict(table) and all(list(own) == [1, 2] for own in table.values())
    [file] = (tmp_path / "storage").glob("paraphrases/*/*.arrow")
    file.write_bytes(file.read_bytes().replace(b"They", b"Thej"))
    with pytest.raises(Exception, match="not what was written"):
        stored.open()
