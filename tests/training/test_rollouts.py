"""Rollouts on several ranks, and who watches them being written."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_program import PEFT, EvenGrader, make_planner, train_config

from paft_ray.cluster.control import ControlActor, Heartbeat
from paft_ray.config import GRPO
from paft_ray.models.load import load_base, make_trainable
from paft_ray.models.sampling import Sampled
from paft_ray.tasks import Example
from paft_ray.tasks.grading import Grade, TextGrader
from paft_ray.training.batch_plan import Planner
from paft_ray.training.distributed.heartbeat import HangDetector, HeartbeatSender, Verdict
from paft_ray.training.engine import Engine
from paft_ray.training.prompt_weights import UNIFORM
from paft_ray.training.reinforcement.rewards import Rewarded, Rewards
from paft_ray.training.reinforcement.rollouts import Rollout, asked_at
from paft_ray.training.reinforcement.steps import Writer, batch_plan
from paft_ray.training.sampler import PromptSampler

EVEN = Rewards((EvenGrader("even"),), (1.0,))


def grpo(**settings) -> GRPO:
    return GRPO.model_validate({"type": "grpo", "rollouts": 6, "max_new_tokens": 4, **settings})


@pytest.fixture(scope="module")
def tiny(tiny_model) -> tuple[Engine, Planner]:
    train = train_config({"train": {"row_tokens": 200, "objective": grpo().model_dump()}})
    model = make_trainable(load_base(str(tiny_model)), PEFT, seed=5)
    engine = Engine(model, train, "float32", deepspeed=False)
    return engine, make_planner(str(tiny_model), train, packing=True)


def as_rank(engine: Engine, rank: int, ranks: int) -> Engine:
    """The engine as one rank of several, which are not there."""
    other = copy.copy(engine)
    other.rank, other.ranks = rank, ranks
    return other


@settings(max_examples=5)
@given(
    st.integers(0, 10**6),
    st.integers(0, 30),
    st.sampled_from([(2, 1), (3, 3), (4, 2)]),
    st.integers(1, 3),
)
def test_rollouts_do_not_depend_on_the_number_of_ranks(
    tiny: tuple[Engine, Planner], seed: int, step: int, each: tuple[int, int], questions: int
) -> None:
    engine, planner = tiny
    rollouts, prompts = each
    objective = grpo(rollouts=rollouts, prompts_per_question=prompts, truncated="keep")
    planner = replace(planner, seed=seed, batch_size=questions * rollouts)
    found, learned = [], []
    for ranks in (1, 2, 3):
        writers = [
            Writer(planner, objective, EVEN, as_rank(engine, rank, ranks)) for rank in range(ranks)
        ]
        asked = asked_at(planner, objective, step, UNIFORM)
        parts = [writer.timed(step, asked)[0] for writer in writers]
        whole = sorted((r for part in parts for r in part), key=lambda r: r.slot)
        assert [r.slot for r in whole] == list(range(planner.batch_size))
        plans = [batch_plan(writer, step, asked, whole, UNIFORM) for writer in writers]
        assert len({len(plan.rows) for plan in plans}) == 1  # every rank takes part in each
        found.append(whole)
        learned.append(sorted(m for plan in plans for row in plan.rows for m in row.members))
    assert found[0] == found[1] == found[2]
    assert learned[0] == learned[1] == learned[2]


def test_prompts_of_a_question_differ_also_where_the_rest_is_never_drawn() -> None:
    probability_N = np.array([0.0, 1.0, 0.0])
    found = PromptSampler(3, 3).different(0, 0, 3, probability_N)
    assert found[0] == 1
    assert sorted(found) == [0, 1, 2]


Text = st.tuples(st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())


@given(st.lists(st.lists(Text, min_size=3, max_size=3), min_size=1, max_size=5))
def test_tokens_of_groups_without_variance_and_of_cut_texts_count_in_the_mean(
    tiny: tuple[Engine, Planner], texts_QG: list[list[tuple[int, float, bool]]]
) -> None:
    engine, planner = tiny
    objective = grpo(rollouts=3)
    flat = [text for group in texts_QG for text in group]
    rollouts = [
        Rollout(
            slot,
            Sampled((7,) * tokens, (-1.0,) * tokens, "text", ended),
            Rewarded(reward, (reward,), read=True),
            (5, 6),
            trimmed=False,
        )
        for slot, (tokens, reward, ended) in enumerate(flat)
    ]
    planner = replace(planner, batch_size=len(flat))
    writer = Writer(planner, objective, EVEN, engine)
    asked = asked_at(planner, objective, 0, UNIFORM)
    plan = batch_plan(writer, 0, asked, rollouts, UNIFORM)
    assert plan.answer_tokens == sum(tokens for tokens, _, _ in flat)
    same_Q = [len({reward for _, reward, _ in group}) == 1 for group in texts_QG]
    skipped = np.repeat(same_Q, 3) | [not ended for _, _, ended in flat]
    in_rows = {slot for row in plan.rows for slot in row.members}
    assert not in_rows & set(np.flatnonzero(skipped))
    assert not plan.draws.weight_S[skipped].any()
    assert plan.policy is not None
    assert plan.policy.learned == sum(flat[slot][0] for slot in in_rows)


@dataclass
class WatchedRank:
    """A rank that is past its first step and writes rollouts, and who watches its heartbeats."""

    now_s: float = 0.0
    control: ControlActor = field(default_factory=ControlActor)
    ended: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = Heartbeat(1, 0, 2, "here", 7, phase="waiting", step=4, steps=3, longest_step_s=1.0)
        self.sender = HeartbeatSender(first, self.control.report_heartbeat, lambda: self.now_s)
        self.detector = HangDetector(
            60, lambda text: None, self.ended.append, clock=lambda: self.now_s
        )
        self.other = replace(first, rank=1, pid=8, step=5)

    def wait(self, seconds: int) -> None:
        """Let time pass, in which heartbeats are sent and judged."""
        for _ in range(seconds):
            self.now_s += 1
            count = int(self.now_s)
            for heartbeat in (self.sender.current, self.other):
                self.control.report_heartbeat(replace(heartbeat, count=count))
            self.detector.check(self.control.state())

    @contextmanager
    def with_slow(self, model: torch.nn.Module, seconds: int) -> Iterator[None]:
        """Let every forward pass of the model take some seconds."""
        hook = model.register_forward_hook(lambda *_: self.wait(seconds))
        yield
        hook.remove()


@dataclass(frozen=True, slots=True)
class WaitingGrader(TextGrader):
    """Takes its time."""

    wait: Callable[[], None]

    def grade(self, example: Example, text: str, where: str) -> Grade:
        self.wait()
        return Grade(1.0, text)


@pytest.mark.parametrize(
    ("token_s", "reward_s", "stuck"),
    [(50, 1, False), (1, 50, False), (70, 1, True), (1, 70, True)],
    ids=["slow tokens", "slow rewards", "a token for ever", "a reward for ever"],
)
def test_rank_that_writes_slowly_is_not_taken_for_one_that_hangs(
    tiny: tuple[Engine, Planner], token_s: int, reward_s: int, stuck: bool
) -> None:
    engine, planner = tiny
    rank = WatchedRank()
    watched = copy.copy(engine)
    watched.work = rank.sender.work
    slow = Rewards((WaitingGrader("waits", lambda: rank.wait(reward_s)),), (1.0,))
    objective = grpo(rollouts=6)
    writer = Writer(planner, objective, slow, watched, at=rank.sender.move)
    with rank.with_slow(engine.model.get_base_model(), token_s):
        writer.write(4, asked_at(planner, objective, 4, UNIFORM))
    assert rank.now_s > 4 * 60
    assert bool(rank.ended) == stuck
    if stuck:
        assert rank.ended[0].end == (0,)
        assert "at step 5, writing rollouts" in rank.ended[0].text
