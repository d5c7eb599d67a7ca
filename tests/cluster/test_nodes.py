"""Nodes of a cluster in network namespaces, and what must be where in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
WHERE_ACTORS_ARE = """
import json, ray
from paft_ray.cluster.session import ray_session
from paft_ray.cluster.control import Control

with ray_session():
    driver = ray.get_runtime_context().get_node_id()
    node_of = lambda actor: ray.get_runtime_context().get_node_id()
    controls = [Control() for _ in range(6)]
    nodes = [control._actor.__ray_call__.remote(node_of) for control in controls]
    print(json.dumps({"nodes": len(ray.nodes()), "here": [n == driver for n in ray.get(nodes)]}))
"""


def test_control_actors_of_a_driver_on_a_head_without_cpus_live_on_its_node(
    tmp_path: Path,
) -> None:
    """An actor elsewhere would be lost with a node that the training itself survives."""
    from nodes import lan, why_unavailable

    if (reason := why_unavailable()) is not None:
        pytest.skip(reason)
    with lan(tmp_path, {"PYTHONPATH": str(ROOT)}) as cluster:
        head = cluster.start(cpus=0)
        cluster.start(cpus=2)
        command = [sys.executable, "-c", WHERE_ACTORS_ARE]
        driver = cluster.popen(head, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"nodes": 2, "here": [True] * 6}
