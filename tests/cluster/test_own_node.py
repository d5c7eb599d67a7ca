"""A Ray process of this machine that dies under a run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from factories import run_config, write_prompts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def of_ray(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith(name):
                found.append(child)
        except psutil.Error:  # it is gone
            continue
    return found


def test_raylet_that_is_killed_while_a_model_trains_is_named(
    tiny_model: Path, review_file: Path, tmp_path: Path
) -> None:
    texts = [f"{word}: {{review}}\nLabel:" for word in ("Review", "Text", "Film", "Say", "Read")]
    prompts = write_prompts(tmp_path / "prompts.jsonl", texts)
    config = run_config(
        tiny_model, review_file, tmp_path / "storage", train={"steps": 100_000},
        prompts={"files": [str(prompts)], "split": {"validation": 1, "test": 1}},
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("paft")), "train", str(tmp_path / "config.yaml")],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not of_ray(process, "ray::RayTrain"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    [raylet] = of_ray(process, "raylet")
    raylet.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"raylet, pid {raylet.pid}, by SIGKILL" in said
    assert "Traceback" not in said
