"""Tokens and passwords follow no redirect: real HTTP servers, of which one points at the other."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from paft_ray.cluster.access import check_dashboard_access
from paft_ray.cluster.jobs import Job, send
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.tracking import reach_server

TOKEN = "a-token-of-this-test"


@dataclass
class Servers:
    """One that people name, which redirects some paths to the other."""

    named: str
    other: str
    seen: list[str] = field(default_factory=list)
    """Paths that the other one was asked for."""
    redirected: str = ""
    """Beginning of the paths that are redirected."""
    code: int = 302


@pytest.fixture
def servers() -> Iterator[Servers]:
    made: list[ThreadingHTTPServer] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here = f"http://127.0.0.1:{self.server.server_port}"  # pyright: ignore
            if here == both.other:
                both.seen.append(self.path)
            elif self.path.startswith(both.redirected):
                self.send_response(both.code)
                self.send_header("Location", both.other + self.path)
                self.end_headers()
                return
            bodies = {
                "/api/authentication_mode": b'{"authentication_mode": "token"}',
                "/api/version": b'{"version": "4", "ray_version": "9.0.0"}',
            }
            body = bodies.get(urlsplit(self.path).path, b"{}")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET

        def log_message(self, *values: object) -> None:
            pass

    for _ in range(2):
        made.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=made[-1].serve_forever, args=(0.01,), daemon=True).start()
    both = Servers(*(f"http://127.0.0.1:{server.server_port}" for server in made))
    yield both
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["/api/authentication_mode", "/api/version"])
def test_token_does_not_follow_a_redirect_of_a_dashboard(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, path: str, code: int
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    servers.redirected, servers.code = path, code
    with pytest.raises(ConfigError, match="--address: "):
        check_dashboard_access(servers.named)
    assert servers.seen == []


def test_job_does_not_follow_a_redirect(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The token would not go along, but the code would: the job and its working directory."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    job = Job("python x.py", tmp_path, "job-1", {})
    for path in ("/api/version", "/api/packages", "/api/jobs"):
        servers.redirected, servers.code = path, 307
        with pytest.raises(PaftError, match=f"redirects to '{servers.other}/api"):
            send(job, servers.named)
    assert servers.seen == []


def test_mlflow_credentials_follow_no_redirect(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    servers.redirected = "/api"
    reason = reach_server(servers.named)
    assert reason is not None and "credentials follow no redirect" in reason
    assert servers.seen == []
