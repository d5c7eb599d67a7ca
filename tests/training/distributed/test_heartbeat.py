"""Who is stuck, judged from positions and times that are handed in."""

import queue
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paft_ray.cluster.control import ControlActor, Heartbeat
from paft_ray.models.load import load_base
from paft_ray.models.watch import watch_models
from paft_ray.training.distributed.heartbeat import (
    HangDetector,
    HeartbeatSender,
    Seen,
    Verdict,
    judge,
    observe,
)

TIMEOUT_S = 60.0


def heartbeat(rank: int, phase: str = "forward", step: int = 17, **more) -> Heartbeat:
    first = Heartbeat(attempt=1, rank=rank, ranks=2, node=f"10.0.0.{rank}", pid=400 + rank, steps=5)
    return replace(first, phase=phase, step=step, **more)


def seen(*places: tuple[Heartbeat, float, float]) -> Mapping[int, Seen]:
    return {b.rank: Seen(b, received_s=received, moved_s=moved) for b, received, moved in places}


def test_rank_that_others_wait_for_is_named_with_node_process_and_place():
    known = seen((heartbeat(0, "waiting"), 100, 30), (heartbeat(1, "forward", row=1), 100, 29))
    assert judge(known, 89, TIMEOUT_S) is None
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict == Verdict(
        attempt=1,
        end=(1,),
        text="rank 1 on node 10.0.0.1 (pid 401) has not moved for 71 s at step 17, row 2; "
        "the others wait for it",
    )


def test_rank_that_writes_rollouts_for_ever_is_named_with_how_far_it_came():
    known = seen((heartbeat(0, "waiting"), 100, 30), (heartbeat(1, "sampling", row=3), 100, 29))
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (1,)
    assert "at step 17, writing rollouts, 3 questions done" in verdict.text


def test_stopped_process_is_named_though_it_is_no_further_behind():
    known = seen((heartbeat(0, "waiting"), 100, 30), (heartbeat(1, "waiting"), 32, 30))
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (1,)
    assert "silent since 68 s" in verdict.text


def test_ranks_that_all_wait_for_each_other_are_all_ended():
    known = seen((heartbeat(0, "waiting"), 100, 30), (heartbeat(1, "waiting"), 100, 30))
    verdict = judge(known, 100, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (0, 1)
    assert "network" in verdict.text


@pytest.mark.parametrize(
    ("slow", "bound_s"),
    [
        (heartbeat(1, "loading", step=0), 600),
        (heartbeat(1, "checkpoint"), 600),
        (heartbeat(1, "forward", steps=0), 600),
        (heartbeat(1, "forward", longest_step_s=9.0), 90),
    ],
    ids=["loading", "checkpoint", "first step", "slow steps"],
)
def test_what_takes_long_has_a_longer_bound(slow, bound_s):
    for now_s, ends in ((bound_s - 1, None), (bound_s + 1, (1,))):
        known = seen((heartbeat(0, "waiting", step=18), now_s, 0), (slow, now_s, 0))
        verdict = judge(known, now_s, TIMEOUT_S)
        assert (verdict.end if verdict else None) == ends


def test_process_stopped_in_its_checkpoint_is_not_waited_for():
    known = seen((heartbeat(0, "checkpoint"), 5, 0), (heartbeat(1, "waiting", step=18), 61, 0))
    verdict = judge(known, 66, TIMEOUT_S)
    assert verdict is not None
    assert verdict.end == (0,)


def test_rank_that_never_began_is_named():
    known = seen((heartbeat(0, "loading", step=0), 600, 0))
    assert judge(known, 599, TIMEOUT_S) is None
    verdict = judge(known, 601, TIMEOUT_S)
    assert verdict is not None
    assert "rank 1 did not begin in 601 s" in verdict.text


def test_rank_that_is_done_is_accused_of_nothing():
    known = seen((heartbeat(0, "saving"), 100, 30), (heartbeat(1, "done"), 30, 30))
    assert judge(known, 100, TIMEOUT_S) is None
    assert (
        judge(seen((heartbeat(0, "done"), 1, 1), (heartbeat(1, "done"), 1, 1)), 9999, TIMEOUT_S)
        is None
    )


def test_observed_times_tell_moving_from_living():
    known = observe({}, [heartbeat(0, moves=3, count=1)], 10)
    known = observe(known, [heartbeat(0, moves=3, count=2)], 20)
    assert (known[0].moved_s, known[0].received_s) == (10, 20)
    known = observe(known, [heartbeat(0, moves=3, count=2)], 30)
    assert known[0].received_s == 20
    known = observe(known, [heartbeat(0, moves=4, count=3)], 40)
    assert (known[0].moved_s, known[0].received_s) == (40, 40)


def test_heartbeats_of_an_earlier_attempt_count_no_more():
    old, new = heartbeat(1, moves=9), replace(heartbeat(0, "loading"), attempt=2, ranks=1)
    known = observe(observe({}, [old], 0), [old, new], 500)
    assert set(known) == {0}
    assert judge(known, 501, TIMEOUT_S) is None


def test_detector_ends_each_attempt_once_and_none_that_is_already_over():
    now, said, ended = [0.0], [], []
    detector = HangDetector(TIMEOUT_S, said.append, ended.append, lambda: now[0])
    control = ControlActor()
    control.update(step=16)
    control.report_heartbeat(heartbeat(1))
    for second in range(200):
        now[0] = float(second)
        control.report_heartbeat(replace(heartbeat(0, "waiting"), count=second))
        detector.check(control.state())
    assert len(said) == len(ended) == len(detector.verdicts) == 1
    assert ended[0].end == (1,)
    for rank, phase in enumerate(("waiting", "forward")):
        control.report_heartbeat(heartbeat(rank, phase, attempt=2))
    detector.check(control.state())
    now[0] += 500
    control.update(ended_attempt=2)
    detector.check(control.state())
    assert len(said) == 1


def stuck_again(phase: str, attempts: int) -> list[Verdict]:
    """What a detector ends where rank 0 never moves, in one attempt after the other."""
    now, ended = [0.0], []
    detector = HangDetector(TIMEOUT_S, lambda text: None, ended.append, lambda: now[0])
    control = ControlActor()
    for attempt in range(1, attempts + 1):
        control.update(ended_attempt=attempt - 1)
        for beat in range(2):
            sent = replace(heartbeat(0, phase, ranks=1), attempt=attempt, count=beat)
            control.report_heartbeat(sent)
            detector.check(control.state())
            now[0] += 11 * TIMEOUT_S
    return ended


def test_rank_that_is_stuck_alone_at_the_same_place_twice_is_not_tried_a_third_time():
    assert [verdict.again for verdict in stuck_again("saving", 2)] == [False, True]
    assert [verdict.again for verdict in stuck_again("forward", 2)] == [False, False]


def test_weights_that_are_read_and_layers_that_run_move_a_heartbeat_at_its_place(tiny_model: Path):
    sender = HeartbeatSender(heartbeat(0, "saving"), lambda heartbeat: False)
    with watch_models(sender.work):
        model = load_base(str(tiny_model))
        read = sender.current
        model(input_ids=torch.tensor([[5, 6]]))
    ran = sender.current
    model(input_ids=torch.tensor([[5, 6]]))
    assert read.moves >= len(list(model.parameters()))
    assert ran.moves >= read.moves + len(model.model.layers)
    assert sender.current == ran
    assert ran.position == sender.heartbeat.position


def test_process_that_fetches_files_moves_while_it_loads(tmp_path: Path):
    sent: queue.Queue[Heartbeat] = queue.Queue()
    sender = HeartbeatSender(heartbeat(0, "loading"), lambda heartbeat: bool(sent.put(heartbeat)))
    sender._every_s = 0.01
    with sender.sending(), (tmp_path / "model").open("wb") as file:
        first = sent.get(timeout=30)
        while sent.get(timeout=30).moves == first.moves:
            file.write(b"0" * 2**20)
            file.flush()


def test_heartbeat_measures_steps_but_the_first_one():
    now = [0.0]
    first = Heartbeat(1, 0, 1, "10.0.0.1", 1)
    sender = HeartbeatSender(first, lambda heartbeat: False, lambda: now[0])
    for step, at_s in ((1, 50.0), (2, 90.0), (3, 92.0), (4, 95.0), (5, 96.0)):
        now[0] = at_s
        sender.move("forward", step=step)
    assert (sender.heartbeat.steps, sender.heartbeat.longest_step_s) == (4, 3.0)
    sender.move("waiting")
    assert (sender.heartbeat.step, sender.heartbeat.phase, sender.heartbeat.moves) == (
        5,
        "waiting",
        6,
    )
    ahead = replace(sender.heartbeat, phase="checkpoint").position
    assert (
        sender.heartbeat.position
        < ahead
        < replace(sender.heartbeat, phase="forward", step=6).position
    )


def test_heartbeat_is_sent_at_once_and_when_its_rank_is_done():
    sent = []

    def send(heartbeat: Heartbeat) -> bool:
        sent.append(heartbeat)
        return len(sent) == 1

    sender = HeartbeatSender(Heartbeat(1, 0, 1, "10.0.0.1", 1), send)
    with sender.sending():
        pass
    assert sender.stop_requested
    assert (sent[0].phase, sent[0].count, sent[-1].phase) == ("loading", 1, "done")
