"""Who is stuck, judged from positions and times that are handed in."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from paft_ray.training.distributed.heartbeat import (
    OVER,
    Beat,
    Pulse,
    Seen,
    Verdict,
    Watch,
    judge,
    observe,
)

TIMEOUT_S = 60.0


def beat(rank: int, phase: str = "forward", step: int = 17, **more) -> Beat:
    first = Beat(attempt=1, rank=rank, ranks=2, node=f"10.0.0.{rank}", pid=400 + rank, steps=5)
    return replace(first, phase=phase, step=step, **more)


def seen(*places: tuple[Beat, float, float]) -> Mapping[int, Seen]:
    return {b.rank: Seen(b, heard_s=heard, moved_s=moved) for b, heard, moved in places}


def test_rank_that_others_wait_for_is_named_with_node_process_and_place():
    known = seen((beat(0, "waiting"), 100, 30), (beat(1, "forward", row=1), 100, 29))
    assert judge(known, 89, TIMEOUT_S) is None
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict == Verdict(
        attempt=1,
        end=(1,),
        text="rank 1 on node 10.0.0.1 (pid 401) has not moved for 71 s at step 17, row 2; "
        "the others wait for it",
    )


def test_stopped_process_is_named_though_it_is_no_further_behind():
    known = seen((beat(0, "waiting"), 100, 30), (beat(1, "waiting"), 32, 30))
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (1,)
    assert "silent since 68 s" in verdict.text


def test_ranks_that_all_wait_for_each_other_are_all_ended():
    known = seen((beat(0, "waiting"), 100, 30), (beat(1, "waiting"), 100, 30))
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (0, 1)
    assert "network" in verdict.text


@pytest.mark.parametrize(
    ("slow", "bound_s"),
    [
        (beat(1, "loading", step=0), 600),
        (beat(1, "checkpoint"), 600),
        (beat(1, "forward", steps=0), 600),
        (beat(1, "forward", longest_step_s=9.0), 90),
    ],
    ids=["loading", "checkpoint", "first step", "slow steps"],
)
def test_what_takes_long_has_a_longer_bound(slow, bound_s):
    for now_s, ends in ((bound_s - 1, None), (bound_s + 1, (1,))):
        known = seen((beat(0, "waiting", step=18), now_s, 0), (slow, now_s, 0))
        verdict = judge(known, now_s, TIMEOUT_S)
        assert (verdict.end if verdict else None) == ends


def test_process_stopped_in_its_checkpoint_is_not_waited_for():
    known = seen((beat(0, "checkpoint"), 5, 0), (beat(1, "waiting", step=18), 61, 0))
    verdict = judge(known, 66, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (0,)


def test_rank_that_never_began_is_named():
    known = seen((beat(0, "loading", step=0), 600, 0))
    assert judge(known, 599, TIMEOUT_S) is None
    verdict = judge(known, 601, TIMEOUT_S)
    assert verdict is not None
    assert "rank 1 did not begin in 601 s" in verdict.text


def test_rank_that_is_done_is_accused_of_nothing():
    known = seen((beat(0, "saving"), 100, 30), (beat(1, "done"), 30, 30))
    assert judge(known, 100, TIMEOUT_S) is None
    assert judge(seen((beat(0, "done"), 1, 1), (beat(1, "done"), 1, 1)), 9999, TIMEOUT_S) is None


def test_observed_times_tell_moving_from_living():
    known = observe({}, [beat(0, moves=3, count=1)], 10)
    known = observe(known, [beat(0, moves=3, count=2)], 20)
    assert (known[0].moved_s, known[0].heard_s) == (10, 20)
    known = observe(known, [beat(0, moves=3, count=2)], 30)
    assert known[0].heard_s == 20
    known = observe(known, [beat(0, moves=4, count=3)], 40)
    assert (known[0].moved_s, known[0].heard_s) == (40, 40)


def test_beats_of_an_earlier_attempt_count_no_more():
    old, new = beat(1, moves=9), replace(beat(0, "loading"), attempt=2, ranks=1)
    known = observe(observe({}, [old], 0), [old, new], 500)
    assert set(known) == {0}
    assert judge(known, 501, TIMEOUT_S) is None


def test_watch_ends_each_attempt_once_and_none_that_is_already_over():
    now, said, ended = [0.0], [], []
    watch = Watch(TIMEOUT_S, said.append, ended.append, lambda: now[0])
    board = {"beat/0": beat(0, "waiting"), "beat/1": beat(1), "step": 16}
    for second in range(200):
        now[0] = float(second)
        watch.look({**board, "beat/0": replace(beat(0, "waiting"), count=second)})
    assert len(said) == len(ended) == len(watch.verdicts) == 1
    assert ended[0].end == (1,)
    later = {key: replace(b, attempt=2) for key, b in board.items() if isinstance(b, Beat)}
    watch.look(later)
    now[0] += 500
    watch.look({**later, OVER: 2})
    assert len(said) == 1


def test_pulse_measures_steps_but_the_first_one():
    now = [0.0]
    pulse = Pulse(Beat(1, 0, 1, "10.0.0.1", 1), lambda beat: False, lambda: now[0])
    for step, at_s in ((1, 50.0), (2, 90.0), (3, 92.0), (4, 95.0), (5, 96.0)):
        now[0] = at_s
        pulse.move("forward", step=step)
    assert (pulse.beat.steps, pulse.beat.longest_step_s) == (4, 3.0)
    pulse.move("waiting")
    assert (pulse.beat.step, pulse.beat.phase, pulse.beat.moves) == (5, "waiting", 6)
    ahead = replace(pulse.beat, phase="checkpoint").position
    assert pulse.beat.position < ahead < replace(pulse.beat, phase="forward", step=6).position


def test_beating_pulse_sends_at_once_and_says_when_it_is_done():
    sent = []

    def send(beat: Beat) -> bool:
        sent.append(beat)
        return len(sent) == 1

    pulse = Pulse(Beat(1, 0, 1, "10.0.0.1", 1), send)
    with pulse.beating():
        pass
    assert pulse.asked_to_leave
    assert (sent[0].phase, sent[0].count, sent[-1].phase) == ("loading", 1, "done")
