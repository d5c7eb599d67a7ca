"""When the ranks of an elastic training are asked to stop so that more can begin."""

from dataclasses import replace

from paft_ray.cluster.control import Heartbeat
from paft_ray.training.distributed.elastic_size import ElasticSize

ONE = Heartbeat(
    attempt=7, rank=0, ranks=1, node="10.0.0.1", pid=1, steps=3, phase="waiting", step=4
)


def test_ranks_are_asked_once_when_new_nodes_have_settled():
    now, asked = [0.0], []
    cluster = {"nodes": frozenset({"a"}), "spare": 0}
    size = ElasticSize(
        2, lambda: (cluster["nodes"], cluster["spare"]), asked.append, lambda: now[0]
    )
    for second in range(100):
        now[0] = float(second)
        size.check([ONE])
    assert asked == []
    cluster.update(nodes=frozenset({"a", "b"}), spare=1)
    for second in range(100, 200):
        now[0] = float(second)
        size.check([ONE])
        assert asked == ([7] if second >= 130 else [])
    size.check([replace(ONE, attempt=8)])
    assert asked == [7]
    cluster.update(nodes=frozenset({"a", "c"}))
    for second in range(200, 240):
        now[0] = float(second)
        size.check([replace(ONE, attempt=8), replace(ONE, rank=1)])
    assert asked == [7, 8]


def test_full_or_beginning_or_finished_group_is_left_alone():
    now, asked = [0.0], []
    size = ElasticSize(2, lambda: (frozenset({"a"}), 4), asked.append, lambda: now[0])
    full = [replace(ONE, ranks=2), replace(ONE, ranks=2, rank=1)]
    for beats in ([], full, [replace(ONE, steps=0)], [replace(ONE, phase="done")]):
        for second in (0.0, 99.0):
            now[0] += second
            size.check(beats)
    assert asked == []
