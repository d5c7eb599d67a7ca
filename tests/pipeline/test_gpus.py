"""Memory of GPUs, from what their driver's tool says, and in a plan."""

from pathlib import Path

import pytest

from paft_ray.pipeline.gpus import gpu_memory_gb, smallest_gpu_gb


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("81559, Disabled\n81559, Disabled\n", 85.5),
        ("24564, [N/A]\n81559, Disabled\n", 25.8),
        ("81559, Enabled\n", None),  # split into parts of unknown size
        ("[Unknown Error], [N/A]\n", None),
        ("No devices were found\n", None),
        ("", None),
    ],
)
def test_memory_is_that_of_the_smallest_whole_gpu(told: str, found: float | None) -> None:
    assert smallest_gpu_gb(told) == (found and pytest.approx(found, abs=0.05))


def test_memory_of_this_node_is_what_its_tool_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_gb() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 24564, Disabled\n", encoding="utf-8")
    tool.chmod(0o755)
    assert gpu_memory_gb() == pytest.approx(25.76, abs=0.01)
