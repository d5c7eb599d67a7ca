"""Access checks against real clusters that require a token or do not."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from heads import ROOT, Head, running_head

from paft_ray.cluster.access import INSIST, check_access, check_dashboard_access, elsewhere
from paft_ray.config.errors import ConfigError

pytestmark = pytest.mark.ray

JOIN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from paft_ray.cluster.access import check_access
from paft_ray.config.errors import ConfigError
try:
    check_access("insist" in sys.argv)
    print("accepted")
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing known of any token; what `check_access` sets is undone afterwards."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_token_decides_who_joins_a_cluster(head: Head, no_token, tmp_path: Path) -> None:
    no_token.setenv("RAY_ADDRESS", head.address)
    for check in (check_access, lambda: check_dashboard_access(head.dashboard)):
        no_token.delenv("RAY_AUTH_TOKEN", raising=False)
        with pytest.raises(ConfigError, match="asks for a token, and this process has none"):
            check()
        no_token.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with pytest.raises(ConfigError, match="does not take this process's token"):
            check()
        no_token.setenv("RAY_AUTH_TOKEN", head.environment["RAY_AUTH_TOKEN"])
        check()
        assert os.environ["RAY_AUTH_MODE"] == "token"
    no_token.delenv("RAY_AUTH_TOKEN")
    no_token.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(head.environment["RAY_AUTH_TOKEN"] + "\n", encoding="utf-8")
    check_access()


@pytest.mark.slow
def test_open_cluster_is_known_by_who_reaches_it_not_by_its_name(no_token) -> None:
    """Ray's state server listens everywhere; its dashboard on loopback, as it is started here."""
    with running_head(cpus=1, token=None) as head:
        no_token.setenv("RAY_ADDRESS", head.address)
        with pytest.raises(ConfigError, match="asks for no token, and answers at"):
            check_access()
        assert check_access(insist=True) == head.address
        check_dashboard_access(head.dashboard)
    assert "RAY_AUTH_MODE" not in os.environ


def test_nobody_at_the_address_is_said_at_once(no_token) -> None:
    no_token.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:9"):
        check_access()
    with pytest.raises(ConfigError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        check_dashboard_access("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "message"),
    [("ray://head:10001", "paft submit"), ("auto", "names no cluster on this node")],
)
def test_address_that_cannot_be_joined_is_explained(no_token, tmp_path, address, message) -> None:
    no_token.setenv("RAY_TMPDIR", str(tmp_path))
    no_token.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=message):
        check_access()


@pytest.mark.parametrize(
    "address", ["10.0.0.1:6379", "http://192.168.1.1:8265", "no-such-host.invalid:1"]
)
def test_address_that_is_no_loopback_is_its_own_outside(address: str) -> None:
    assert elsewhere(address) == address


@pytest.mark.parametrize(
    "address", ["127.0.0.1:6379", "localhost:6379", "http://[::1]:6379", "127.8.9.1:6379"]
)
def test_loopback_is_another_address_from_outside_or_none(address: str) -> None:
    outside = elsewhere(address)
    assert outside is None or (outside != address and outside.endswith(":6379"))


@pytest.mark.parametrize(
    "address", ["head:8265", "http://someone:hunter2@head:8265", "http://127.0.0.1:80b"]
)
def test_dashboard_needs_a_url_without_secrets(no_token, address: str) -> None:
    with pytest.raises(ConfigError, match="--address") as raised:
        check_dashboard_access(address)
    assert "hunter2" not in str(raised.value)


def test_port_that_speaks_no_http_is_no_dashboard(head: Head, no_token) -> None:
    with pytest.raises(ConfigError, match="no Ray dashboard answers"):
        check_dashboard_access(f"http://{head.address}")


def test_proxy_is_not_asked_for_a_cluster(head: Head, no_token) -> None:
    no_token.setenv("http_proxy", "http://127.0.0.1:9")
    no_token.setenv("RAY_ADDRESS", head.address)
    no_token.setenv("RAY_AUTH_TOKEN", head.environment["RAY_AUTH_TOKEN"])
    assert check_access() == head.address


@pytest.mark.slow
def test_open_cluster_that_others_reach_is_refused_unless_insisted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nodes import lan, why_unavailable

    if (reason := why_unavailable()) is not None:
        pytest.skip(reason)
    with lan(tmp_path, {"RAY_AUTH_MODE": "disabled"}) as cluster:
        node = cluster.start(cpus=1)
        outputs = []
        for words in ([], ["insist"]):
            command = [sys.executable, "-c", JOIN, *words]
            driver = cluster.popen(node, command, stdout=subprocess.PIPE)
            outputs.append(driver.communicate(timeout=60)[0])
    assert "asks for no token, so that whoever reaches it can run code there" in outputs[0]
    assert INSIST in outputs[0]
    assert outputs[1] == "accepted\n"
