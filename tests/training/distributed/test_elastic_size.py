"""When the ranks of an elastic training are asked to leave so that more can begin."""

from dataclasses import replace

from paft_ray.training.distributed.elastic_size import Growth
from paft_ray.training.distributed.heartbeat import Beat

ONE = Beat(attempt=7, rank=0, ranks=1, node="10.0.0.1", pid=1, steps=3, phase="waiting", step=4)


def test_ranks_are_asked_once_when_new_nodes_have_settled():
    now, asked = [0.0], []
    cluster = {"nodes": frozenset({"a"}), "spare": 0}
    growth = Growth(2, lambda: (cluster["nodes"], cluster["spare"]), asked.append, lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        growth.look([ONE])
    assert asked == []
    cluster.update(nodes=frozenset({"a", "b"}), spare=1)
    for second in range(100, 200):
        now[0] = float(second)
        growth.look([ONE])
        assert asked == ([7] if second >= 130 else [])
    growth.look([replace(ONE, attempt=8)])
    assert asked == [7]
    cluster.update(nodes=frozenset({"a", "c"}))
    for second in range(200, 240):
        now[0] = float(second)
        growth.look([replace(ONE, attempt=8), replace(ONE, rank=1)])
    assert asked == [7, 8]


def test_full_or_beginning_or_finished_group_is_left_alone():
    now, asked = [0.0], []
    growth = Growth(2, lambda: (frozenset({"a"}), 4), asked.append, lambda: now[0])
    full = [replace(ONE, ranks=2), replace(ONE, ranks=2, rank=1)]
    for beats in ([], full, [replace(ONE, steps=0)], [replace(ONE, phase="done")]):
        for second in (0.0, 99.0):
            now[0] += second
            growth.look(beats)
    assert asked == []
