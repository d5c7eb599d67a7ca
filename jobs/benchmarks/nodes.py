"""Several Ray nodes on one machine, each with an address, processes and a /tmp/ray of its own.

A node is a set of Linux namespaces (network, processes, mounts, host name) that hangs on a bridge
in a namespace of its own. Nothing has a name outside of these namespaces, so that runs beside each
other do not meet, and all of it ends with the process that made it, even one killed by SIGKILL.
Covered: a head and workers, commands inside a node, a node killed or cut off, own files.
Not covered: links that are slow or lose packets. Needs root, util-linux and iproute2, and a thread
that outlives what it starts: the kernel ends a child with its thread.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERFACE = "eth0"
_NETWORK = "10.87.0"
_GCS_PORT = 6379
DASHBOARD_PORT = 8265
_START_S = 120.0
_TOOLS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
_BIND_TO_US = ("setpriv", "--pdeathsig", "KILL")
_SYSTEM_CONFIG = (
    '{"health_check_initial_delay_ms": 3000, "health_check_period_ms": 1000, '
    '"health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}'
)
"""A lost node is given up after some 12 s instead of 60."""
_NODE_SCRIPT = """
set -e
hostname "$1"
ip link set lo up
mount --bind "$2" /tmp/ray
mount -t tmpfs tmpfs /dev/shm
echo ready
read go
exec >"$3" 2>&1
shift 3
"$@" &
wait
"""
_OWN_FILES_SCRIPT = """
set -e
hostname "$1"
ip link set lo up
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$2/upper,workdir=$2/work" "$2/root"
for folder in proc sys dev; do mount --rbind "/$folder" "$2/root/$folder"; done
mount -t tmpfs tmpfs "$2/root/dev/shm"
mount -t tmpfs tmpfs "$2/root/tmp"
cd "$2/root"
for pair in $4; do
  mkdir -p ".${pair%%=*}"
  mount --bind "${pair#*=}" ".${pair%%=*}"
done
echo ready
read go
exec >"$3" 2>&1
shift 4
exec chroot . sh -c '"$@" & wait' sh "$@"
"""
"""What a node writes to its own root, an overlay in memory over the machine's, no other node sees;
but for the folders named in the fourth argument, as "/there=/here" with spaces between."""


class NodesUnavailable(RuntimeError):  # noqa: N818
    """This machine cannot make network namespaces; the message says why."""


def why_unavailable() -> str | None:
    """Why this machine cannot have several nodes, or None where it can."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"{tool} is missing: install {package}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    commands = "ip link add v0 type veth peer name v1 && ip link add b0 type bridge"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--uts", "sh", "-c", commands],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"namespaces are refused: {tried.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Node:
    """One running Ray node."""

    name: str
    """Its host name."""
    address: str
    pid: int
    """Of its first process, as the machine counts: all others end with it."""
    port: str
    """Where it is plugged into the bridge."""
    log: Path
    """What `ray start` said."""
    process: subprocess.Popen[str] = field(repr=False)


class Lan:
    """A network of Ray nodes; see `lan`."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        shared: Mapping[str, Path] | None,
        stack: ExitStack,
    ) -> None:
        self._folder, self._shared = folder, shared
        self._stack = stack
        self._made = 0
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": "/tmp",  # a socket has at most 107 characters, TMPDIR may be longer
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "NCCL_SOCKET_IFNAME": INTERFACE,
            **environment,
        }
        self.nodes: list[Node] = []
        """Alive, the head first."""
        self._bridge = self._unshare(["sh", "-c", "echo ready; read go"], processes=False)
        self._ip(self._bridge.pid, "link", "add", "lan", "type", "bridge")
        self._ip(self._bridge.pid, "link", "set", "lan", "up")

    @property
    def head(self) -> Node:
        """Where the cluster's state lives and commands run; it has to stay."""
        return self.nodes[0]

    @property
    def workers(self) -> list[Node]:
        """The other nodes."""
        return self.nodes[1:]

    def start(self, cpus: int) -> Node:
        """Start a node with an address that none had before; the first one is the head.

        Args:
            cpus: What it offers to Ray.

        Raises:
            RuntimeError: Ray did not start there in two minutes.
        """
        self._made += 1
        name, address = f"node{self._made}", f"{_NETWORK}.{self._made}"
        folder = self._folder / name
        for part in ("ray", "tmp"):
            (folder / part).mkdir(parents=True)
        log = folder / "start.log"
        as_head = ["--head", f"--port={_GCS_PORT}", f"--system-config={_SYSTEM_CONFIG}"]
        where = (
            [f"--address={self.head.address}:{_GCS_PORT}"]
            if self.nodes
            else [*as_head, "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
        )
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", *where),
            *(f"--node-ip-address={address}", f"--num-cpus={cpus}", "--num-gpus=0"),
            *("--object-store-memory=100000000", "--log-color=false"),
        ]
        start = ["sh", "-c", _NODE_SCRIPT, "sh", name, str(folder / "ray"), str(log)]
        if self._shared is not None:
            pairs = " ".join(f"{there}={here}" for there, here in self._shared.items())
            start[2:] = [_OWN_FILES_SCRIPT, "sh", name, str(folder / "ray"), str(log), pairs]
        process = self._unshare([*start, *command], processes=True, TMPDIR=self._tmp(name))
        pid, port = _children(process.pid)[0], f"port{self._made}"
        self._plug(pid, port, address)
        node = Node(name, address, pid, port, log, process)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        self._wait_for_ray(node)
        self.nodes.append(node)
        return node

    def kill(self, node: Node) -> None:
        """End every process of a node at once, as when its operating system dies."""
        self.nodes = [other for other in self.nodes if other is not node]
        _end(node.process, node.pid)

    def cut(self, node: Node) -> None:
        """Pull a node's cable: its processes live on, and no connection to them is closed.

        It is no longer among `nodes`; `kill` ends it.
        """
        self.nodes = [other for other in self.nodes if other is not node]
        self._ip(self._bridge.pid, "link", "set", node.port, "down")

    def popen(self, node: Node, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command inside a node, which `process_of` then finds.

        Args:
            node: Where.
            command: Program and arguments; RAY_ADDRESS names the cluster to it.
            options: For `subprocess.Popen`.
        """
        inside = ["--net", "--pid", "--mount", "--uts"]
        home = f"{self.files_of(node)}{Path.cwd()}" if self._own_files else str(Path.cwd())
        inside += [*(["--root"] if self._own_files else []), f"--wd={home}"]
        return subprocess.Popen(
            [*_BIND_TO_US, "nsenter", f"--target={node.pid}", *inside, "--", *command],
            env={
                **self._environment,
                "RAY_ADDRESS": f"{self.head.address}:{_GCS_PORT}",
                "TMPDIR": self._tmp(node.name),
            },
            text=True,
            **options,
        )

    @property
    def token(self) -> str:
        """What the cluster asks for."""
        return self._environment["RAY_AUTH_TOKEN"]

    def files_of(self, node: Node) -> Path:
        """A node's root folder as this process sees it."""
        return Path(f"/proc/{node.pid}/root")

    def _tmp(self, name: str) -> str:
        """Folder for temporary files, as a node names it."""
        return "/tmp" if self._own_files else str(self._folder / name / "tmp")

    @property
    def _own_files(self) -> bool:
        return self._shared is not None

    def _unshare(
        self, command: Sequence[str], processes: bool, **environment: str
    ) -> subprocess.Popen[str]:
        """A process in namespaces of its own that has said "ready" and waits for a line."""
        own = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts"]
        process = subprocess.Popen(
            [*_BIND_TO_US, "unshare", "--net", *(own if processes else []), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**self._environment, **environment},
        )
        self._stack.callback(_end, process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise NodesUnavailable(f"a namespace ended with {process.wait()} before it began")
        return process

    def _plug(self, pid: int, port: str, address: str) -> None:
        peer = ["peer", "name", INTERFACE, "netns", str(pid)]
        self._ip(self._bridge.pid, "link", "add", port, "type", "veth", *peer)
        self._ip(self._bridge.pid, "link", "set", port, "master", "lan", "up")
        self._ip(pid, "address", "add", f"{address}/24", "dev", INTERFACE)
        self._ip(pid, "link", "set", INTERFACE, "up")
        # Ray asks which of its addresses would reach the internet
        self._ip(pid, "route", "add", "default", "dev", INTERFACE)

    def _ip(self, pid: int, *arguments: str) -> None:
        subprocess.run(["nsenter", f"--target={pid}", "--net", "ip", *arguments], check=True)

    def _wait_for_ray(self, node: Node) -> None:
        deadline = time.monotonic() + _START_S
        said = ""
        while "Ray runtime started" not in said:
            if node.process.poll() is not None or time.monotonic() > deadline:
                _end(node.process, node.pid)
                raise RuntimeError(f"Ray did not start on {node.name}: {said[-1000:]}")
            time.sleep(0.1)
            said = node.log.read_text(encoding="utf-8") if node.log.exists() else ""


@contextmanager
def lan(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    shared: Mapping[str, Path] | None = None,
) -> Iterator[Lan]:
    """A network without nodes yet; all that runs in it has ended when the block has.

    Args:
        folder: Takes every node's /tmp/ray and temporary files.
        environment: Added to that of the nodes and of the commands in them. Of ours they inherit
            all but what concerns Ray; the token that the cluster asks for is made here.
        shared: Where given, every node has files of its own, and these folders, by their names
            there, are the same for all: what a cluster's shared storage is.

    Raises:
        NodesUnavailable: This machine cannot.
    """
    if (reason := why_unavailable()) is not None:
        raise NodesUnavailable(reason)
    Path("/tmp/ray").mkdir(exist_ok=True)  # each node mounts its own over it
    with ExitStack() as stack:
        yield Lan(folder, environment or {}, shared, stack)


def process_of(command: subprocess.Popen[str]) -> int:
    """The process, as the machine counts, of a command started by `Lan.popen`.

    Raises:
        ProcessLookupError: It has ended.
    """
    while command.poll() is None:
        if children := _children(command.pid):
            return children[0]
        time.sleep(0.01)  # nsenter has not forked yet
    raise ProcessLookupError(f"the command ended with {command.returncode}")


def processes_of(node: Node, titled: str) -> list[int]:
    """Processes of a node, as the machine counts, whose command line holds this text."""
    inside = _namespace(node.pid)
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and inside is not None and _namespace(int(path.name)) == inside:
            with suppress(OSError):  # it has just ended
                if titled.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
    return sorted(found)


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _end(process: subprocess.Popen[str], first: int | None = None) -> None:
    """Kill a namespace's first process, and with it all in there; fine where it has ended."""
    with suppress(ProcessLookupError):
        if first is not None and process.poll() is None:
            os.kill(first, signal.SIGKILL)
    with suppress(ProcessLookupError):
        process.kill()
    process.communicate()
