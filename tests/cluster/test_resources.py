"""CPUs of workers on one node and on several, whose resources are given as Ray counts them."""

import pytest

from paft_ray.cluster.resources import fit_workers, places
from paft_ray.config import TrainWorkersConfig, WorkersConfig

GPU_NODE = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([{"CPU": 4.0}] * 8, {"num": 8}, 4),
        ([{"CPU": 4.0}] * 8, {"num": 16}, 2),
        ([{"CPU": 4.0}] * 8, {"num": 9}, 2),
        ([{}, *[{"CPU": 4.0}] * 8], {"min": 1, "max": 8}, 4),
        ([{"CPU": 16.0}, {"CPU": 4.0}], {"num": 2}, 8),
        ([{"CPU": 16.0}, {"CPU": 4.0}], {"num": 5}, 4),
        ([{"CPU": 8.0}], {"num": 3}, 2),
        ([{"CPU": 8.0}], {"min": 1, "max": 16}, 1),
        ([GPU_NODE] * 8, {"num": 64, "gpus": 1}, 8),
        ([GPU_NODE] * 2, {"num": 8, "gpus": 1}, 8),
        ([GPU_NODE, {"CPU": 16.0}], {"num": 4, "gpus": 1}, 16),
        ([GPU_NODE], {"min": 1, "max": 16, "gpus": 1}, 8),
        ([{"CPU": 64.0, "GPU": 1.0}] * 8, {"num": 8, "gpus": 1}, 64),
    ],
)
def test_worker_has_its_share_of_the_cpus_of_its_own_node(nodes, workers, cpus) -> None:
    assert fit_workers(TrainWorkersConfig(**workers), "train.workers", nodes) == cpus


def test_actors_that_share_a_gpu_share_the_cpus_of_their_node() -> None:
    assert fit_workers(WorkersConfig(num=16, gpus=0.5), "evaluation.workers", [GPU_NODE]) == 4


@pytest.mark.parametrize(("share", "fit"), [(0.4, 16), (0.1, 80), (1, 8), (2, 4)])
def test_shares_of_a_gpu_lie_on_one_gpu(share: float, fit: int) -> None:
    assert places(GPU_NODE, 0.1, share) == fit
