"""Learning without answers: labels that the model gives itself, and what comes of them."""

import copy
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from peft.tuners.lora import LoraLayer
from rank_program import PEFT, make_planner, train_config

from paft_ray.config import Consensus
from paft_ray.config.variation import VariationConfig
from paft_ray.models.load import load_base, make_trainable
from paft_ray.models.packing import Row
from paft_ray.models.tokenization import Encoded
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import Varying
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.tasks.example import lettered
from paft_ray.training.batch_plan import Planner, StepPlan
from paft_ray.training.engine import Engine
from paft_ray.training.ledger import Ledger
from paft_ray.training.local import train_locally
from paft_ray.training.objective import row_loss
from paft_ray.training.prompt_weights import UNIFORM
from paft_ray.training.reinforcement.consensus import Vote, Voter, majority
from paft_ray.training.reinforcement.kept import FOLDER, SCHEMA
from paft_ray.training.reinforcement.labellers import open_labeller
from paft_ray.training.reinforcement.own_labels import Labeller, OwnLabel, labelled_plans
from paft_ray.training.reinforcement.prefix import Written

CHOICES = ("b", "c", "d", "e")


def made(
    folder: Path, objective: dict[str, Any], peft: dict[str, Any] | None = PEFT, **settings: Any
) -> tuple[Labeller, Any]:
    """What labels examples that have no answer, for a model of its own."""
    train = train_config({"train": {"objective": objective, "row_tokens": 200, **settings}})
    model = make_trainable(load_base(str(folder)), peft, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a model that listens to its context, and an adapter that matters
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=generator)
    engine = Engine(model, train, "float32", deepspeed=False)
    planner = without_answers(make_planner(str(folder), train, True))
    labeller = open_labeller(train.objective, planner, engine)
    assert labeller is not None
    return labeller, train


def without_answers(planner: Planner) -> Planner:
    examples = [replace(example, answer="") for example in planner.examples]
    choices_of = None if planner.choices_of is None else (lambda example: CHOICES)
    return replace(planner, examples=examples, choices_of=choices_of)


def first_plans(labeller: Labeller, count: int) -> list[StepPlan]:
    return list(islice(labelled_plans(labeller, 0, count, lambda step: UNIFORM), count))


def log_likelihood(model: Any, encoded: Encoded) -> float:
    """Of an answer, from all logits of its text alone."""
    ids = torch.tensor([[*encoded.context_ids, *encoded.answer_ids]])
    with torch.no_grad():
        logprobs_TV = model(input_ids=ids).logits[0].double().log_softmax(-1)
    first = len(encoded.context_ids) - 1
    return sum(float(logprobs_TV[first + n, t]) for n, t in enumerate(encoded.answer_ids))


@given(arrays.arrays(float, st.tuples(st.integers(1, 7), st.integers(2, 5)),
                     elements=st.floats(-9, 0, width=16)))  # fmt: skip
def test_majority_has_the_most_votes_and_of_these_the_highest_mean(logprob_KC: np.ndarray) -> None:
    label, share = majority(logprob_KC)
    votes = Counter(int(row.argmax()) for row in logprob_KC)
    assert share == votes[label] / len(logprob_KC) == max(votes.values()) / len(logprob_KC)
    means = {c: logprob_KC[:, c].mean() for c, n in votes.items() if n == votes[label]}
    assert means[label] == max(means.values())


@pytest.fixture(scope="module")
def voter(tiny_model: Path) -> Voter:
    labeller, _ = made(tiny_model, {"type": "consensus", "prompts": 3})
    assert isinstance(labeller, Voter)
    return labeller


def test_label_is_what_most_prompts_lead_the_model_to_and_weighs_their_share(voter: Voter) -> None:
    planner, engine = voter.planner, voter.engine
    shares: list[float] = []
    for step in range(4):
        for vote in voter.labels(step, UNIFORM):
            assert isinstance(vote, Vote)
            prompts = planner.sampler.different(step, vote.slot, 3, None, vote.text.example)
            assert len(set(prompts)) == 3
            assert prompts[0] == vote.text.prompt == planner.sampler.index(step, vote.slot)
            fields = planner.examples[vote.text.example].fields
            said: list[str] = []
            with engine.evaluating() as model:
                for prompt in prompts:
                    render = planner.prompts[prompt][1].render
                    answers = planner.encoder.encode(render, fields, CHOICES, "")
                    found = [log_likelihood(model, answer) for answer in answers]
                    said.append(CHOICES[int(np.argmax(found))])
            [(most, count), *others] = Counter(said).most_common()
            assert vote.weight == pytest.approx(count / 3)
            assert vote.right is None
            if count > 1 or not others:
                assert vote.answer == most
            render = planner.prompts[prompts[0]][1].render
            [expected] = planner.encoder.encode(render, fields, [vote.answer], "")
            assert vote.text.encoded.answer_ids == expected.answer_ids
            shares.append(vote.weight)
    assert len(set(shares)) > 1


def test_answers_of_the_data_are_measured_against_and_move_nothing(voter: Voter) -> None:
    examples = [replace(e, answer=CHOICES[n % 4]) for n, e in enumerate(voter.planner.examples)]
    answered = replace(voter, planner=replace(voter.planner, examples=examples))
    [plain], [told] = first_plans(voter, 1), first_plans(answered, 1)
    assert plain.own is not None
    assert told.own is not None
    assert "train/labels_right" not in plain.own.metrics
    votes = answered.labels(0, UNIFORM)
    right = [v.answer == answered.planner.examples[v.text.example].answer for v in votes
             if isinstance(v, Vote)]  # fmt: skip
    assert told.own.metrics["train/labels_right"] == np.mean(right)
    assert told.own.columns == plain.own.columns
    assert np.array_equal(told.draws.weight_S, plain.draws.weight_S)
    for one, other in zip(plain.rows, told.rows, strict=True):
        assert np.array_equal(one.input_ids_T, other.input_ids_T)
        assert np.array_equal(one.targets_A, other.targets_A)


def parts_of(labeller: Labeller, ranks: int, step: int) -> list[list[OwnLabel]]:
    found = []
    for rank in range(ranks):
        engine = copy.copy(labeller.engine)
        engine.rank, engine.ranks = rank, ranks
        found.append(replace(labeller, engine=engine).labels(step, UNIFORM))
    return found


KINDS = [{"type": "consensus", "prompts": 3}, {"type": "prefix", "tokens": 4}]


@pytest.mark.parametrize("objective", KINDS, ids=lambda each: each["type"])
def test_labels_do_not_depend_on_the_number_of_ranks(
    tiny_model: Path, objective: dict[str, Any]
) -> None:
    labeller, _ = made(tiny_model, objective)
    alone = labeller.labels(2, UNIFORM)
    together = [label for part in parts_of(labeller, 4, 2) for label in part]
    assert sorted(together, key=lambda label: label.slot) == alone


@pytest.mark.parametrize("objective", KINDS, ids=lambda each: each["type"])
def test_loss_is_the_weighted_log_likelihood_of_labels_per_token(
    tiny_model: Path, objective: dict[str, Any]
) -> None:
    labeller, train = made(tiny_model, objective)
    engine = labeller.engine
    labels = labeller.labels(1, UNIFORM)
    plan = first_plans(labeller, 2)[1]
    losses: list[float] = []
    for row in plan.rows:

        def loss_of(given: torch.Tensor, row: Row = row) -> torch.Tensor:
            loss = row_loss(train.objective, given, row, plan).loss
            losses.append(float(loss.detach()))
            return loss

        engine.accumulate(row, loss_of)
    tokens = sum(len(label.text.encoded.answer_ids) for label in labels)
    assert plan.answer_tokens == tokens
    with engine.evaluating() as model:
        expected = [x.weight * log_likelihood(model, x.text.encoded) for x in labels]
    assert sum(losses) == pytest.approx(-sum(expected) / tokens, rel=1e-4)


def test_single_prompt_votes_alone(voter: Voter) -> None:
    sampler = replace(voter.planner.sampler, prompts=1)
    alone = replace(voter, planner=replace(
        voter.planner, prompts=voter.planner.prompts[:1], sampler=sampler))  # fmt: skip
    assert {label.weight for label in alone.labels(0, UNIFORM)} == {1.0}


def test_ledger_names_label_and_agreement_of_every_slot(voter: Voter, tmp_path: Path) -> None:
    home = Storage.open(str(tmp_path))
    ledger = Ledger(home, 0)
    plans = first_plans(voter, 2)
    for plan in plans:
        ledger.add(plan, [0.0] * 6)
    ledger.take(2)()
    table = home.child("ledger").read_table("steps-000000000-000000002.parquet")
    labels = [label for step in (0, 1) for label in voter.labels(step, UNIFORM)]
    assert table["agreement"].to_pylist() == [label.weight for label in labels]
    assert table["label"].to_pylist() == [v.answer for v in labels if isinstance(v, Vote)]
    assert not home.child("rollouts").exists()


def test_training_on_the_consensus_brings_prompts_to_agree(tiny_model: Path) -> None:
    labeller, train = made(
        tiny_model,
        {"type": "consensus", "prompts": 3},
        peft=None,
        steps=15,
        learning_rate=0.01,
        schedule={"type": "constant", "warmup_share": 0},
    )
    found: list[float] = []

    def report(metrics: Any) -> None:
        found.append(metrics["train/agreement"])

    train_locally(labeller.engine, labeller.planner, train, report)
    assert np.mean(found[:5]) < 0.95
    assert np.mean(found[-5:]) > 0.99


def test_choices_that_are_shuffled_and_renamed_are_voted_on_as_they_are_put(
    tiny_model: Path,
) -> None:
    options = ("good", "bad", "fine")
    examples = tuple(
        Example(f"{n:016x}", {"text": f"the film {n}", "choices": lettered(options)}, "",
                options=options)
        for n in range(12)
    )  # fmt: skip
    task = Task("asked", "How it feels.", ("text", "choices"), {}, ("A", "B", "C"), (), (), (),
                unlabelled=examples, choices_as="letters")  # fmt: skip
    variation = VariationConfig.model_validate(
        {"choices": {"order": "shuffled", "names": ["digits", "lowercase"]}}
    )
    labeller, _ = made(tiny_model, {"type": "consensus", "prompts": 3}, variation=variation)
    texts = ["{text}\n{choices}\nAnswer:", "{choices}\n{text}\n->", "{text} {choices}\nlabel:"]
    planner = replace(
        labeller.planner, examples=examples, choices_of=task.choices_of,
        varying=Varying(task, variation, 3),
        prompts=[(str(n), parse(text, task.slots)) for n, text in enumerate(texts)],
    )  # fmt: skip
    named = {"1", "2", "3", "a", "b", "c"}
    for step in range(3):
        for vote in replace(labeller, planner=planner).labels(step, UNIFORM):
            assert isinstance(vote, Vote)
            assert vote.answer in named
            text = planner.encoder.tokenizer.decode(list(vote.text.encoded.answer_ids[:-1]))
            assert str(text).strip() == vote.answer
    assert planner.first_sequences()


def test_no_labeller_where_answers_are_read(voter: Voter) -> None:
    assert open_labeller(train_config({}).objective, voter.planner, voter.engine) is None
    assert voter.objective == Consensus(type="consensus", prompts=3)


def greedy(model: Any, context_ids: tuple[int, ...], tokens: int, ends: set[int]) -> list[int]:
    """The likeliest tokens, one by one, from all logits of the text so far."""
    found: list[int] = []
    while len(found) < tokens and not ends.intersection(found):
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([[*context_ids, *found]])).logits[0]
        found.append(int(logits_TV[-1].argmax()))
    return found


PROMPT_TUNING = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}


@pytest.mark.parametrize("peft", [PEFT, PROMPT_TUNING], ids=lambda each: each["peft_type"])
def test_prefix_is_what_the_model_without_its_adapter_writes(tiny_model: Path, peft: dict) -> None:
    objective = {"type": "prefix", "tokens": 5, "decoding_temperature": 1e-4}
    labeller, _ = made(tiny_model, objective, peft)
    engine, planner = labeller.engine, labeller.planner
    with engine.evaluating() as model:
        adapted: Any = model
        plain = copy.deepcopy(adapted.get_base_model())
    for module in plain.modules():
        if isinstance(module, LoraLayer):
            module.scaling = dict.fromkeys(module.scaling, 0.0)
    ends, moved = set(planner.encoder.end_ids), 0
    for label in labeller.labels(0, UNIFORM):
        assert isinstance(label, Written)
        context = label.text.encoded.context_ids
        assert list(label.sampled.token_ids) == greedy(plain, context, 5, ends)
        assert label.text.encoded.answer_ids == label.sampled.token_ids
        with engine.evaluating() as model:
            moved += greedy(model, context, 5, ends) != list(label.sampled.token_ids)
    assert moved


def test_example_has_one_prefix_under_each_prompt_in_all_passes(tiny_model: Path) -> None:
    labeller, _ = made(tiny_model, {"type": "prefix", "tokens": 4, "decoding_temperature": 1.5})
    planner = replace(labeller.planner, examples=labeller.planner.examples[:6])
    few = replace(labeller, planner=planner)
    found: dict[tuple[int, int], set] = {}
    for step in range(6):
        for label in few.labels(step, UNIFORM):
            text = label.text
            found.setdefault((text.example, text.prompt), set()).add(text.encoded.answer_ids)
    assert len(found) < 36
    assert {len(texts) for texts in found.values()} == {1}
    assert len({text for texts in found.values() for text in texts}) > 6


def test_prefixes_are_on_storage_and_nothing_grades_them(tiny_model: Path, tmp_path: Path) -> None:
    labeller, _ = made(tiny_model, {"type": "prefix", "tokens": 4})
    home = Storage.open(str(tmp_path))
    ledger = Ledger(home, 0)
    plans = first_plans(labeller, 2)
    for plan in plans:
        ledger.add(plan, [0.0] * 6)
    ledger.take(2)()
    [name] = home.child(FOLDER).names()
    table = home.child(FOLDER).read_table(name)
    assert table.schema == SCHEMA
    labels = [label for step in (0, 1) for label in labeller.labels(step, UNIFORM)]
    tokens = [list(label.text.encoded.answer_ids) for label in labels]
    assert table["token_ids"].to_pylist() == tokens
    assert plans[0].own is not None
    assert plans[0].own.new_tokens == sum(map(len, tokens[:6]))
    for column in ("reward", "grades", "read"):
        assert table[column].null_count == 12
    assert set(table["weight"].to_pylist()) == {1.0}


def test_training_on_prefixes_makes_them_likelier(tiny_model: Path) -> None:
    labeller, train = made(
        tiny_model,
        {"type": "prefix", "tokens": 3},
        steps=20,
        schedule={"type": "constant", "warmup_share": 0},
    )
    few = replace(labeller.planner, examples=labeller.planner.examples[:6])
    losses: list[float] = []

    def report(metrics: Any) -> None:
        losses.append(metrics["train/loss"])

    progress = train_locally(labeller.engine, few, train, report)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert progress.rollout_tokens == progress.answer_tokens
