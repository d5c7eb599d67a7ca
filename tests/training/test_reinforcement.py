"""Learning from texts that the model writes: the loss, what is written, and what comes of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import make_draws
from rank_program import PEFT, make_planner, train_config

from paft_ray.config import GRPO, ExpectedReward, TrainConfig
from paft_ray.config.errors import ConfigError, GradeError, TrainingError
from paft_ray.models.load import load_base, make_trainable
from paft_ray.models.packing import TokenSequence, build_row
from paft_ray.models.sampling import Sampled, Sampling
from paft_ray.tasks import Example
from paft_ray.tasks.grading import Grade, TextGrader
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.engine import Engine
from paft_ray.training.local import train_locally
from paft_ray.training.objective import row_loss
from paft_ray.training.prompt_weights import UNIFORM
from paft_ray.training.reinforcement.advantages import advantages
from paft_ray.training.reinforcement.backends import ByTransformers, Group
from paft_ray.training.reinforcement.rewards import Rewarded, Rewards
from paft_ray.training.reinforcement.rollouts import Policy, Rollout, asked_at
from paft_ray.training.reinforcement.steps import Writer, batch_plan, rollout_plans


@dataclass(frozen=True, slots=True)
class Begins(TextGrader):
    """1 where a text begins with one of some characters."""

    characters: str

    def grade(self, example: Example, text: str, where: str) -> Grade:
        right = text.lstrip()[:1] in tuple(self.characters)
        return Grade(float(right), text)


@dataclass(frozen=True, slots=True)
class Even(TextGrader):
    """1 where a text has an even number of characters."""

    def grade(self, example: Example, text: str, where: str) -> Grade:
        return Grade(float(len(text) % 2 == 0), text)


EVEN = Rewards((Even("even"),), (1.0,))


def rewards(characters: str) -> Rewards:
    return Rewards((Begins("begins", characters),), (1.0,))


def grpo(**settings) -> GRPO:
    return GRPO.model_validate({"type": "grpo", "rollouts": 6, "max_new_tokens": 4, **settings})


def engine_of(folder, peft=PEFT, **settings) -> tuple[Engine, TrainConfig]:
    train = train_config({"train": {"row_tokens": 200, **settings}})
    model = make_trainable(load_base(str(folder)), peft, seed=5)
    return Engine(model, train, "float32", deepspeed=False), train


def rollout(slot: int, tokens: list[int], reward: float, ended: bool = True) -> Rollout:
    """One that was drawn with a log-probability of -1 a token."""
    sampled = Sampled(tuple(tokens), (-1.0,) * len(tokens), "text", ended)
    return Rollout(slot, sampled, Rewarded(reward, (reward,), read=True), (5, 6), trimmed=False)


def toy_step(objective: GRPO, tokens_QG: np.ndarray, reward_V: np.ndarray) -> StepPlan:
    """A step on texts of one token each, of which `reward_V` are the rewards."""
    rollouts = [rollout(n, [int(t)], float(reward_V[t])) for n, t in enumerate(tokens_QG.ravel())]
    advantage_QG, _ = advantages(reward_V[tokens_QG])
    sequences = [TokenSequence((5, 6), (1,), r.sampled.token_ids, (0,)) for r in rollouts]
    row = build_row(sequences, range(len(sequences)))
    count = len(rollouts)
    draws = make_draws([1] * count, weights=advantage_QG.ravel().tolist())
    reward_S = np.array([r.rewarded.value for r in rollouts])
    policy = Policy((), tuple(rollouts), reward_S, 1.0, count, {}, fresh=True, last=True)
    return StepPlan(0, (row,), draws, np.arange(count), count, count, policy=policy)


@pytest.mark.parametrize("group", [2, 8])
def test_gradient_of_sampled_groups_converges_to_that_of_the_expected_reward(group: int) -> None:
    torch.manual_seed(0)
    vocabulary, rng = 6, np.random.default_rng(group)
    theta_V = torch.randn(vocabulary, dtype=torch.float64, requires_grad=True)
    reward_V = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    choices = TokenSequence((5, 6), (1,) * 6, tuple(range(6)), tuple(range(6)))
    plan = StepPlan(0, (), make_draws([1], owners=[1]), np.array([0]), 2, 1)
    row = build_row([choices], [0])
    oracle = ExpectedReward(type="expected_reward")
    exact = row_loss(oracle, theta_V.log_softmax(0), row, plan).loss
    (exact_V,) = torch.autograd.grad(exact, theta_V)

    def error(groups: int) -> float:
        p_V = theta_V.detach().softmax(0).numpy()
        tokens_QG = rng.choice(vocabulary, (groups, group), p=p_V)
        step = toy_step(grpo(rollouts=group), tokens_QG, reward_V)
        logprobs_A = theta_V.log_softmax(0)[torch.from_numpy(tokens_QG.ravel())]
        loss = row_loss(grpo(rollouts=group), logprobs_A, step.rows[0], step).loss
        (found_V,) = torch.autograd.grad(loss, theta_V)
        return float((found_V * group / (group - 1) - exact_V).norm())

    few, many = (np.mean([error(n) for _ in range(16)]) for n in (60, 960))
    assert many < 0.02 * float(exact_V.norm()) * math.sqrt(80 / group)
    assert few / many == pytest.approx(4, rel=0.35)  # as one over the root of their number


@given(
    st.lists(st.lists(st.floats(-5, 5, width=16), min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from(["none", "std"]),
)
def test_advantages_of_a_question_add_up_to_nothing(rewards_QG: list, scale: str) -> None:
    found_QG, differ_Q = advantages(np.array(rewards_QG), scale)
    assert np.allclose(found_QG.sum(axis=1), 0, atol=1e-9 if scale == "none" else 1e-6)
    assert [bool(row.any()) for row in found_QG] == differ_Q.tolist()
    assert not found_QG[[len(set(row)) == 1 for row in rewards_QG]].any()


def planned(engine: Engine, planner, objective: GRPO, rollouts: list[Rollout]) -> StepPlan:
    planner = replace(planner, batch_size=len(rollouts))
    writer = Writer(planner, objective, rewards("a"), engine)
    return batch_plan(writer, 0, asked_at(planner, objective, 0, UNIFORM), rollouts, UNIFORM)


def gradient(engine: Engine, objective: GRPO, plan: StepPlan) -> dict[str, torch.Tensor]:
    for row in plan.rows:
        engine.accumulate(row, lambda given, row=row: row_loss(objective, given, row, plan).loss)
    found = {name: p.grad.clone() for name, p in engine.trainable().items()}
    for parameter in engine.trainable().values():
        parameter.grad = None
    return found


@pytest.fixture(scope="module")
def tiny(tiny_model):
    objective = grpo(rollouts=3)
    engine, train = engine_of(tiny_model, objective=objective.model_dump(), batch_size=6)
    return engine, replace(make_planner(str(tiny_model), train, True), batch_size=6)


def test_question_whose_rewards_are_the_same_changes_no_bit_but_counts(tiny) -> None:
    engine, planner = tiny
    objective = grpo(rollouts=3)
    own = [rollout(n, [7, 8 + n, 9], float(n == 1)) for n in range(3)]
    same = [rollout(3 + n, [9, 9, 8 + n], 1.0) for n in range(3)]
    alone, both = (planned(engine, planner, objective, r) for r in (own, [*own, *same]))
    assert [row.members for row in alone.rows] == [row.members for row in both.rows]
    assert (alone.answer_tokens, both.answer_tokens) == (9, 18)
    first, second = (gradient(engine, objective, plan) for plan in (alone, both))
    assert any(tensor.any() for tensor in first.values())
    for name, tensor in first.items():
        assert torch.equal(tensor, 2 * second[name]), name
    nothing = planned(engine, planner, objective, [replace(r, slot=r.slot - 3) for r in same])
    assert nothing.rows[0].members == ()
    assert not any(t.any() for t in gradient(engine, objective, nothing).values())


def test_gradient_of_texts_that_share_their_question_is_that_of_each_alone(tiny) -> None:
    engine, planner = tiny
    objective = grpo(rollouts=3)
    texts = [rollout(n, [7, 8 + n, 9], float(n % 3 == 1)) for n in range(6)]
    together = planned(engine, planner, objective, texts)
    apart = planned(engine, replace(planner, packing=False), objective, texts)
    assert together.tokens == 2 + 6 * 2  # of rollouts without their last token, one context
    assert (len(apart.rows), apart.tokens) == (6, 6 * 4)
    shared, alone = (gradient(engine, objective, plan) for plan in (together, apart))
    for name, tensor in alone.items():
        largest = float(tensor.abs().max())
        assert float((shared[name] - tensor).abs().max()) <= 1e-4 * largest, name
    assert max(float(tensor.abs().max()) for tensor in alone.values()) > 0


def test_text_that_was_cut_is_compared_with_and_not_learned_from(tiny) -> None:
    engine, planner = tiny
    cut = [rollout(0, [7, 8], 1.0, ended=False), rollout(1, [7], 0.0), rollout(2, [9], 0.0)]
    masked = planned(engine, planner, grpo(rollouts=3), cut)
    assert [m for row in masked.rows for m in row.members] == [1, 2]
    assert masked.draws.weight_S.tolist() == pytest.approx([0, -1 / 3, -1 / 3])
    assert masked.answer_tokens == 4
    kept = planned(engine, planner, grpo(rollouts=3, truncated="keep"), cut)
    assert kept.draws.weight_S.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def test_constant_normalisation_divides_by_the_most_tokens_that_there_could_be(tiny) -> None:
    engine, planner = tiny
    texts = [rollout(0, [7, 8], 1.0), rollout(1, [7], 0.0), rollout(2, [9], 0.0)]
    by_tokens, constant = grpo(rollouts=3), grpo(rollouts=3, normalize="constant")
    first, second = (
        gradient(engine, objective, planned(engine, planner, objective, texts))
        for objective in (by_tokens, constant)
    )
    for name, tensor in first.items():  # 4 tokens, of 3 times 4 at most
        assert float((second[name] - tensor * 4 / 12).abs().max()) <= 1e-4 * float(
            second[name].abs().max()
        ), name


def test_rollouts_do_not_depend_on_what_else_is_written(tiny) -> None:
    engine, planner = tiny
    objective = grpo(rollouts=3, prompts_per_question=3)
    writer = Writer(planner, objective, rewards("a"), engine)
    asked = asked_at(planner, objective, 4, UNIFORM)
    assert len({one.prompt for one in asked[:3]}) == 3
    together = writer.write(4, asked)
    apart = [r for one in reversed(asked) for r in writer.write(4, [one])]
    assert sorted(apart, key=lambda r: r.slot) == together
    assert writer.write(5, asked_at(planner, objective, 5, UNIFORM)) != together


def test_log_probabilities_that_are_kept_are_those_of_the_model(tiny) -> None:
    engine, planner = tiny
    objective = grpo(rollouts=6, decoding_temperature=0.7, truncated="keep")
    hot = Engine(engine.model, train_config({"train": {"objective": objective.model_dump()}}),
                 "float32", deepspeed=False)  # fmt: skip
    plan = next(rollout_plans(Writer(planner, objective, EVEN, hot), 0, 1,
                              lambda step: UNIFORM))  # fmt: skip
    assert plan.policy is not None
    assert {len(r.sampled.token_ids) for r in plan.policy.rollouts} == {4}
    for row in plan.rows:
        with torch.no_grad():
            now_A = hot._logprobs(row).numpy()
        assert now_A == pytest.approx(plan.policy.drawn(row), abs=1e-5)


@pytest.mark.parametrize("updates", [1, 2])
def test_token_that_vllm_drew_weighs_as_much_as_it_is_likelier_here_up_to_the_cap(
    updates: int,
) -> None:
    reward_V, cap = np.array([0.0, 1.0, 2.0]), 1.5
    step = toy_step(grpo(rollouts=3, updates=updates), np.array([[0, 1, 2]]), reward_V)
    # they were drawn with -1 a token
    now_A = torch.tensor([-1.5, -0.8, -0.1], dtype=torch.float64, requires_grad=True)

    def slope(backend: dict) -> list[float]:
        objective = grpo(rollouts=3, updates=updates, backend=backend)
        [slope_A] = torch.autograd.grad(row_loss(objective, now_A, step.rows[0], step).loss, now_A)
        return slope_A.tolist()

    plain = slope({"type": "transformers"})
    assert plain == pytest.approx([1 / 3, 0, -1 / 3])
    weighed = slope({"type": "vllm", "ratio_cap": cap})
    assert weighed == pytest.approx([plain[0] * math.exp(-0.5), 0, plain[2] * cap])
    later = now_A.detach() - 5  # a later update is compared with what was before any
    now_A = later.requires_grad_()
    again = slope({"type": "vllm", "ratio_cap": cap})
    share = 1.0 if updates == 1 else math.exp(-5)
    assert again[2] == pytest.approx(weighed[2] * share)


class Stale(ByTransformers):
    """Writes with the adapter as it was when it was made, as if no later one had arrived."""

    def __init__(self, engine: Engine, tokenizer: Any) -> None:
        super().__init__(engine, tokenizer)
        self._weights = {name: p.detach().clone() for name, p in engine.trainable().items()}

    def sample(self, groups: Sequence[Group], sampling: Sampling) -> Iterator[list[Sampled]]:
        own = self._engine.trainable()
        new = {name: parameter.detach().clone() for name, parameter in own.items()}
        for weights in (self._weights, new):
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(weights[name])
            if weights is self._weights:
                written = list(super().sample(groups, sampling))
        yield from written


def test_rollouts_by_an_adapter_of_an_earlier_step_end_the_training(tiny_model) -> None:
    objective = grpo(rollouts=8, max_new_tokens=3, truncated="keep")
    engine, train = engine_of(
        tiny_model,
        objective=objective.model_dump(), batch_size=8, steps=8, learning_rate=0.05,
        schedule={"type": "constant", "warmup_share": 0},
    )  # fmt: skip
    planner, seen = replace(make_planner(str(tiny_model), train, True), batch_size=8), []
    stale = Stale(engine, planner.encoder.tokenizer)
    with pytest.raises(TrainingError, match="not the model that learns from them"):
        train_locally(engine, planner, train, seen.append, EVEN, stale)
    assert seen[0]["train/k3/backend"] < 1e-6


def test_training_that_asks_for_vllm_and_is_given_none_is_refused(tiny) -> None:
    engine, planner = tiny
    writer = Writer(planner, grpo(rollouts=3, backend={"type": "vllm"}), EVEN, engine)
    with pytest.raises(ConfigError, match="pass ByVLLM"):
        writer.write(0, [])


@pytest.mark.parametrize("updates", [1, 2])
def test_probability_of_what_is_rewarded_rises(tiny_model, updates: int) -> None:
    objective = grpo(rollouts=16, max_new_tokens=1, truncated="keep", updates=updates)
    engine, train = engine_of(
        tiny_model,
        peft=None, objective=objective.model_dump(), batch_size=16, steps=24 * updates,
        learning_rate=0.02, schedule={"type": "constant", "warmup_share": 0}, weight_decay=0.0,
    )  # fmt: skip
    planner = replace(make_planner(str(tiny_model), train, True), batch_size=16)
    found: list[float] = []

    def report(metrics) -> None:
        if "train/reward" in metrics:
            found.append(metrics["train/reward"])

    train_locally(engine, planner, train, report, rewards("abcdefgh"))
    assert np.mean(found[:3]) < 0.3
    assert np.mean(found[-3:]) > 0.9


@pytest.mark.parametrize(("graded", "warned"), [(rewards(""), True), (EVEN, False)])
def test_first_step_whose_rewards_are_all_alike_is_named(
    tiny_model, caplog: pytest.LogCaptureFixture, graded: Rewards, warned: bool
) -> None:
    objective = grpo(rollouts=16, max_new_tokens=1, truncated="keep")
    engine, train = engine_of(tiny_model, objective=objective.model_dump(), batch_size=16, steps=1)
    planner = replace(make_planner(str(tiny_model), train, True), batch_size=16)
    next(rollout_plans(Writer(planner, objective, graded, engine), 0, 1, lambda _: UNIFORM))
    assert ("no two texts of a question got different rewards" in caplog.text) == warned


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_reference_reads_a_row_without_the_adapter_s_own_tokens(tiny_model, method: str) -> None:
    peft = {"peft_type": method, "num_virtual_tokens": 5, "encoder_hidden_size": 8}
    if method == "PROMPT_TUNING":
        del peft["encoder_hidden_size"]
    engine, _ = engine_of(tiny_model, peft=peft, objective=grpo(kl=0.1).model_dump(), batch_size=6)
    plain, _ = engine_of(tiny_model, peft=None, batch_size=6)
    row = build_row([TokenSequence((5, 6, 7, 8), (1, 2, 3), (7, 8, 9), (0, 0, 0))], [0])
    wanted = plain._logprobs(row).detach()
    torch.testing.assert_close(engine.reference_logprobs(row), wanted, rtol=1e-5, atol=1e-5)


def test_texts_of_a_notebook_end_where_they_are_told_to(tiny_model) -> None:
    objective = grpo(max_new_tokens=6, truncated="keep")
    engine, train = engine_of(tiny_model, objective=objective.model_dump(), batch_size=6, steps=1)
    planner = replace(make_planner(str(tiny_model), train, True), batch_size=6)
    lengths = []
    for stop in ((), tuple("abcdefghijklmnopqrstuvwxyz ")):
        seen: list[float] = []
        train_locally(
            engine, planner, train, rewards=EVEN, stop=stop,
            report=lambda m, seen=seen: seen.append(m["rollouts/tokens"]),
        )  # fmt: skip
        lengths.append(seen[0])
    assert lengths[1] < lengths[0]


@pytest.mark.parametrize(
    ("peft", "changes", "said"),
    [(PEFT, {"rollouts": 5}, "no multiple of"), (None, {"kl": 0.1}, "model.peft: null has none")],
)
def test_notebook_s_training_is_refused_for_what_the_command_refuses(
    tiny_model, peft, changes, said: str
) -> None:
    objective = grpo(**changes).model_dump()
    engine, train = engine_of(tiny_model, peft=peft, objective=objective, batch_size=6)
    planner = replace(make_planner(str(tiny_model), train, True), batch_size=6)
    with pytest.raises(ConfigError, match=said):
        train_locally(engine, planner, train, rewards=EVEN)


def test_reward_beyond_all_numbers_is_named() -> None:
    huge = Rewards((Even("a"), Even("b")), (1.7e308, 1.7e308))
    with pytest.raises(GradeError, match="is inf"):
        huge.of(Example("e", {}, "x"), "ab", "here")
