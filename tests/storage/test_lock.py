"""Who may write to a folder: one live process at a time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.storage import lock as module
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage

HOLD_A_LOCK = (
    "import sys\n"
    "from paft_ray.storage.paths import Storage\n"
    "from paft_ray.storage.lock import lock\n"
    "with lock(Storage.open(sys.argv[1]), 'run x'):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(str(tmp_path / "storage"))


def test_lock_is_gone_after_the_block_whether_it_failed_or_not(storage):
    with lock(storage, "run x"):
        assert storage.exists("lease.json")
    with pytest.raises(RuntimeError, match="boom"), lock(storage, "run x"):
        raise RuntimeError("boom")
    assert not storage.exists("lease.json")


def test_lock_of_a_live_process_is_refused_and_of_a_killed_one_taken_over_at_once(storage):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_LOCK, storage.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(ConfigError, match=rf"run x is in use by process {other.pid} on .*:"),
                lock(storage, "run x"),
            ):
                pass
            assert storage.read_json("lease.json")["pid"] == other.pid
        finally:
            other.kill()
    assert storage.exists("lease.json")
    with lock(storage, "run x"):
        assert storage.read_json("lease.json")["pid"] == os.getpid()


@pytest.mark.parametrize("age", [0.0, 0.9, 5.0])
def test_lock_of_another_host_that_is_not_renewed_is_waited_for_and_taken(
    storage, monkeypatch, age
):
    """As when a job is tried again on a new cluster, right after its node was lost."""
    monkeypatch.setattr(module, "_SECONDS", 1.0)
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    began = time.time()
    storage.write_json(
        "lease.json", {"host": "elsewhere", "pid": 1, "token": "t", "renewed": began - age}
    )
    with lock(storage, "run x"):
        assert time.time() - began >= 1.0 - age
        assert storage.read_json("lease.json")["host"] == socket.gethostname()


def test_lock_that_another_host_renews_is_refused(storage, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    other = {"host": "elsewhere", "pid": 1, "token": "t", "renewed": time.time()}
    storage.write_json("lease.json", other)

    def renew():
        time.sleep(0.3)
        storage.write_json("lease.json", {**other, "renewed": time.time()})

    thread = threading.Thread(target=renew)
    thread.start()
    with (
        pytest.raises(ConfigError, match=r"in use by process 1 on elsewhere.*another name"),
        lock(storage, "run x"),
    ):
        pass
    thread.join()
    assert storage.read_json("lease.json")["token"] == "t"


def test_lock_that_another_process_took_over_is_not_removed(storage):
    with lock(storage, "run x"):
        other = {"host": "elsewhere", "pid": 1, "token": "theirs", "renewed": time.time()}
        storage.write_json("lease.json", other)
    assert json.loads(storage.read_bytes("lease.json"))["token"] == "theirs"


def test_of_threads_that_start_together_one_gets_the_lock(storage):
    """Also where a dead process left one behind, which all of them want to take over."""
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "token": "dead", "renewed": time.time()}
    for round in range(20):
        folder = storage.child(f"round-{round}")
        if round % 2:
            folder.write_json("lease.json", dead)
        barrier, done, outcomes = threading.Barrier(8), threading.Barrier(8), []

        def enter(folder=folder, barrier=barrier, done=done, outcomes=outcomes):
            barrier.wait()
            try:
                with lock(folder, "run x"):
                    outcomes.append("held")
                    done.wait()
            except ConfigError:
                outcomes.append("refused")
                done.wait()

        threads = [threading.Thread(target=enter) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["held"] + ["refused"] * 7
        assert folder.names() == []


def test_process_that_waits_gets_the_lock_when_the_holder_is_done(storage, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    order = []
    entered = threading.Event()

    def hold():
        with lock(storage, "pool"):
            entered.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with lock(storage, "pool", wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("torn", [b"{", b"[]", b""])
def test_a_torn_lock_is_taken_over(storage, torn):
    storage.write_bytes("lease.json", torn)
    with lock(storage, "run x"):
        assert storage.read_json("lease.json")["pid"] == os.getpid()
    assert not storage.exists("lease.json")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_process_that_loses_the_lock_is_stopped_also_in_the_background(
    storage, monkeypatch, handler
):
    """A shell that begins a job with `&` in a script makes it ignore SIGINT."""
    monkeypatch.setattr(module, "_SECONDS", 0.4)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(ArtifactError, match="run x was taken over"), lock(storage, "run x"):
            other = {"host": "elsewhere", "pid": 1, "token": "theirs", "renewed": time.time()}
            for _ in range(50):  # a renewal that was under way may overwrite the first
                storage.write_json("lease.json", other)
                time.sleep(0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert storage.read_json("lease.json")["token"] == "theirs"


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_lock_of_a_dead_job_whose_clock_was_ahead_is_taken_once_nobody_renews_it(
    storage, monkeypatch, host
):
    """Also where its process number belongs to somebody now."""
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    dead = {"host": host or socket.gethostname(), "pid": 1, "token": "t"}
    storage.write_json("lease.json", {**dead, "renewed": time.time() + 1e6})
    began = time.monotonic()
    with lock(storage, "run x"):
        assert time.monotonic() - began >= 0.5
        assert storage.read_json("lease.json")["pid"] == os.getpid()


def test_lock_of_a_live_job_whose_clock_is_ahead_is_refused(storage, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    other = {"host": "elsewhere", "pid": 1, "token": "t"}
    storage.write_json("lease.json", {**other, "renewed": time.time() + 1e6})
    renewed = {**other, "renewed": time.time() + 1e6 + 15}
    shown: list[str] = []

    def renew(line: str) -> None:
        shown.append(line)
        storage.write_json("lease.json", renewed)

    with pytest.raises(ConfigError, match="in use by process 1"), lock(storage, "x", show=renew):
        pass
    assert len(shown) == 1 and storage.read_json("lease.json") == renewed


LEASE = {"host": "elsewhere", "pid": 1, "token": "t", "renewed": 4e9}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[1, 2]", b"3", b"[" * 100_000, b"{}",
        *(
            json.dumps({**LEASE, key: value}).encode()
            for key, value in [
                ("renewed", "soon"), ("renewed", None), ("renewed", [1]), ("renewed", 10**400),
                ("renewed", float("nan")), ("renewed", float("inf")), ("pid", "x"), ("pid", -1),
                ("pid", 0), ("pid", 2**70), ("pid", True), ("pid", 1.5), ("host", 3), ("token", {}),
            ]
        ),
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)  # fmt: skip
def test_garbage_in_a_lock_holds_nobody_up(storage, content):
    storage.write_bytes("lease.json", content)
    with lock(storage, "run x"):
        assert storage.read_json("lease.json")["pid"] == os.getpid()


def test_folder_in_the_place_of_a_lock_is_named(tmp_path):
    (tmp_path / "run" / "lease.json").mkdir(parents=True)
    folder = Storage.open(str(tmp_path / "run"))
    assert module.live_holder(folder) is None
    with (
        pytest.raises(ConfigError, match=r"run/lease.json is a folder.*remove it"),
        lock(folder, "x"),
    ):
        pass
