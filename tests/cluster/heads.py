"""A Ray head on this machine as `ray start` makes it, with its dashboard."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_LOWEST_PORT = 20_000
"""Ray gives workers the ports below."""


@dataclass(frozen=True)
class Head:
    """A head that runs."""

    address: str
    dashboard: str
    environment: Mapping[str, str]
    """What a process needs to join it or to send it jobs, its token included."""

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `paft` on this side of the dashboard, with the project as its working directory."""
        return subprocess.run(
            [sys.executable, "-m", "paft_ray.cli", *words],
            env={**clean_environment(), **self.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A configuration as a file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def clean_environment() -> dict[str, str]:
    """This process's, less what concerns Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@contextmanager
def running_head(cpus: int, token: str | None) -> Iterator[Head]:
    """A head on loopback that ends with the block.

    Args:
        cpus: What it offers.
        token: The token that it requires, if any.
    """
    port, dashboard, client, agent = _free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # sockets have short names
    auth = {"RAY_AUTH_MODE": "disabled"}
    if token is not None:
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    log = folder / "start.log"
    process = subprocess.Popen(
        [
            str(BIN / "ray"), "start", "--head", "--block", f"--port={port}",
            "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats",
        ],
        env={
            **clean_environment(), **auth, "RAY_TMPDIR": str(folder),
            "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_JOB_STOP_WAIT_TIME_S": "60",
        },
        cwd=folder,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", auth)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=3)  # `ray start` itself would wait for 30 s
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port > _LOWEST_PORT and port not in ports:
            ports.append(port)
    return ports
