"""Actors through which a driver and its workers communicate."""

import pickle
from dataclasses import replace

import pytest

from paft_ray.cluster.control import Control, ControlState, Count, Heartbeat, follow
from paft_ray.config.errors import TrainingError

pytestmark = pytest.mark.ray

FIRST = Heartbeat(attempt=7, rank=0, ranks=2, node="10.0.0.1", pid=1)


@pytest.fixture
def control(ray_cluster: None) -> Control:
    return Control()


def test_driver_reads_what_workers_report(control: Control) -> None:
    worker: Control = pickle.loads(pickle.dumps(control))
    worker.report_heartbeat(FIRST)
    worker.report_heartbeat(replace(FIRST, rank=1))
    worker.report_heartbeat(replace(FIRST, count=1))
    worker.report_progress(5)
    worker.report_validated(4)
    worker.report_ended(6)
    error = TrainingError("step 6: the loss is not finite")
    worker.refuse(error)
    state = control.state()
    assert isinstance(state.refusal, TrainingError)
    assert str(state.refusal) == str(error)
    heartbeats = {0: replace(FIRST, count=1), 1: replace(FIRST, rank=1)}
    assert replace(state, refusal=None) == ControlState(heartbeats, 5, 4, 6)


def test_attempt_learns_from_its_heartbeats_that_it_has_to_stop(control: Control) -> None:
    import ray

    assert not ray.get(control.report_heartbeat(FIRST))
    control.request_stop(7)
    assert ray.get(control.report_heartbeat(FIRST))
    assert not ray.get(control.report_heartbeat(replace(FIRST, attempt=8)))
    assert control.stop_requested(7)
    assert not control.stop_requested(8)


def test_worker_is_found_by_its_attempt_and_rank(control: Control) -> None:
    control.keep_worker(7, 1, "a handle")
    assert control.worker(7, 1) == "a handle"
    assert control.worker(8, 1) is None


def test_count_that_two_add_to_is_shown_with_all_that_was_added(ray_cluster: None) -> None:
    count, shown = Count(), []
    other: Count = pickle.loads(pickle.dumps(count))
    with follow(count.total, shown.append):
        count.add(2)
        other.add(3)
        assert other.total() in (3, 5)
    assert shown[-1] == 5
