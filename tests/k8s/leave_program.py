"""A cluster of two nodes, one told to leave as by a preStop hook; run by test_leave."""

import json
import os
import subprocess
import sys
import time

import ray
from ray.cluster_utils import Cluster


def main(script: str) -> None:
    """Run the hook of the second node; print what became of both."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    pod = cluster.add_node(num_cpus=1, env_vars={"RAY_CLOUD_INSTANCE_ID": "pod-2"})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, configure_logging=False)
    env = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_CLOUD_INSTANCE_ID": "pod-2"}
    code = subprocess.run([sys.executable, script, "--wait", "20"], env=env, check=False).returncode
    deadline = time.monotonic() + 60
    alive = {pod.node_id}
    while pod.node_id in alive and time.monotonic() < deadline:
        time.sleep(0.5)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    reason = next(n.get("DeathReasonMessage") for n in ray.nodes() if n["NodeID"] == pod.node_id)
    sys.stdout.write(json.dumps({"code": code, "alive": len(alive), "reason": reason}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
