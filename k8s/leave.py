"""What a worker pod runs before it is stopped: tell Ray that its node goes, let the ranks save.

Ray Train hears of a node that is drained, all ranks save the step they are at, and begin anew on
the nodes that are left. Run from a preStop hook; KubeRay sets the two variables that it reads.
"""

import argparse
import os
import time

import psutil
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2


def drain_own_node(seconds: int) -> None:
    """Tell the cluster that this pod's node is gone in so many seconds."""
    client = GcsClient(address=os.environ["RAY_ADDRESS"])
    instance = os.environ["RAY_CLOUD_INSTANCE_ID"]
    for node_id, node in client.get_all_node_info().items():
        if node.instance_id == instance:
            client.drain_node(
                node_id.hex(),
                autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
                f"pod {instance} is being stopped",
                int((time.time() + seconds) * 1000),
            )


def ranks() -> list[int]:
    """Process ids of this pod's training workers."""
    processes = psutil.process_iter(["cmdline"])
    return [p.pid for p in processes if "TrainWorker" in " ".join(p.info["cmdline"] or ())]


def main() -> None:
    """Announce, then wait until no training worker is left here, or the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wait", type=int, default=120, help="seconds")
    seconds = parser.parse_args().wait
    drain_own_node(seconds)
    end = time.monotonic() + seconds
    while ranks() and time.monotonic() < end:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
