"""A training on a cluster of two nodes that loses one or gets one; run by test_elastic."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from small_training import TellingScreen, small_config, train_small

from paft_ray.training.distributed.elastic_size import ElasticSize


def main(what: str, model: str, data: str, storage: str, steps: int, answer: str) -> None:
    """Lose a node after ten steps, or get one; tell what became of it in the file `answer`."""
    ElasticSize._settled_s = 22.0  # Ray Train looks at the nodes every 20 s
    # a node that is added in a thread cannot set handlers of signals, so that none does
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, shutdown_at_exit=False)
    second = cluster.add_node(num_cpus=1) if what != "grow" else None
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, configure_logging=False)
    done: list[int] = []

    def change(step: int) -> None:
        if done or step < 10 or what == "fixed":
            return
        done.append(step)
        if what == "shrink":
            cluster.remove_node(second, allow_graceful=False)
        elif what == "drain":
            drain(second.node_id)
        else:  # beside the thread that looks at the cluster
            threading.Thread(target=cluster.add_node, kwargs={"num_cpus": 1}, daemon=True).start()

    workers = {"num": 2} if what == "fixed" else {"min": 1, "max": 2}
    config = small_config(model, data, storage, steps, **workers)
    screen = TellingScreen(change)
    try:
        adapter = train_small(config, screen)
        found = {"workers": adapter.record.workers, "lines": screen.lines, "changed": done}
        Path(answer).write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


def drain(node_id: str) -> None:
    """What a cloud's notice becomes: Ray is told that the node goes in a minute."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    accepted, reason = client.drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "a test",
        int((time.time() + 60) * 1000),
    )
    assert accepted, reason


if __name__ == "__main__":
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6])
