"""Checks, before a cluster is joined, that it requires a token and accepts this process's token.

A Ray cluster without authentication runs the code of anybody who reaches it, and neither Ray nor
local settings show whether a cluster requires a token: so the first request carries none. Covered:
addresses for `ray.init` (gRPC, RAY_ADDRESS) and of dashboards (HTTP, `ray job submit`). A cluster
that only this machine reaches may be open, others only where the user insists. Ray's state server
listens on every interface, even with the address 127.0.0.1: so the outside address is tried too.
"""

import ipaddress
import json
import os
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from enum import Enum
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paft_ray.config.errors import ConfigError, one_line
from paft_ray.config.uris import has_password

INSIST = "--allow-unauthenticated-cluster"
"""The option of the command line that allows clusters without authentication."""
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_TIMEOUT_S = 10.0
_LONGEST_ANSWER = 1 << 20
_NO_PROXY = [("grpc.enable_http_proxy", 0)]
"""As in Ray's own channels; a proxy would see the token."""


class Access(Enum):
    """The response of a cluster's state server to a request."""

    GRANTED = "granted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


def named_cluster() -> str | None:
    """The cluster that RAY_ADDRESS names, None where Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    return None if address == "local" else address


def check_access(insist: bool = False, field: str = "RAY_ADDRESS") -> str | None:
    """Check that the cluster of RAY_ADDRESS is reachable, requires a token and accepts ours.

    Where it does, Ray in this process is set to send the token.

    Args:
        insist: Accept a cluster that requires no token.
        field: Where the user named the cluster, for messages.

    Returns:
        The cluster's host and port; None where RAY_ADDRESS names no cluster.

    Raises:
        ConfigError: The cluster must not or cannot be joined.
    """
    address = named_cluster()
    if address is None:
        return None
    if address.startswith("ray://"):
        raise ConfigError(
            f"{field}: {address} is a Ray Client server, and training needs a driver inside the "
            "cluster: use paft submit with the dashboard's address"
        )
    where = _own_cluster() if address == "auto" else address
    token = find_token()
    if os.environ.get("RAY_USE_TLS") == "1":  # certificates identify both sides
        if token is not None:
            os.environ["RAY_AUTH_MODE"] = "token"
        return where
    access = _request_access(where, None)
    if access is Access.UNREACHABLE:
        raise ConfigError(
            f"{field}: no Ray cluster answers at {where}: start it, mend the address, or unset "
            "RAY_ADDRESS to work on this machine"
        )
    if access is Access.GRANTED:
        _refuse_open(
            field, where, insist, lambda other: _request_access(other, None) is Access.GRANTED
        )
    else:
        accepted = token is not None and _request_access(where, token) is Access.GRANTED
        _require_token(field, where, token, accepted)
    return where


def check_dashboard_access(address: str, insist: bool = False) -> None:
    """Check that jobs may be sent to a cluster's dashboard.

    Args:
        address: "http://host:8265", or https.
        insist: Accept a cluster that requires no token.

    Raises:
        ConfigError: Jobs must not or cannot be sent.
    """
    if not address.startswith(("http://", "https://")) or has_password(address) or "@" in address:
        raise ConfigError(
            "--address: not the address of a dashboard, such as http://host:8265, without a name "
            "or a password"
        )
    address = address.rstrip("/")
    try:
        mode = json.loads(_get(f"{address}/api/authentication_mode", None))["authentication_mode"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--address: no Ray dashboard answers at {address} ({one_line(error)}): start the "
            "cluster with its dashboard, or forward its port"
        ) from error
    if mode == "disabled":
        _refuse_open("--address", address, insist, lambda other: _answers(f"{other}/api/version"))
        return
    token = find_token()
    accepted = token is not None and _answers(f"{address}/api/version", token)
    _require_token("--address", address, token, accepted)


def find_token() -> str | None:
    """The token that Ray would send, from the environment or from Ray's file.

    None where RAY_AUTH_MODE disables tokens.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def elsewhere(address: str) -> str | None:
    """The address at which other machines would reach a loopback address of this one.

    Returns:
        The given address, with this machine's network address if it was a loopback address; None
        where this machine has no other address.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    host = parts.hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return address
    if not all(ipaddress.ip_address(a.split("%")[0]).is_loopback for a in found):
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; selects an interface
        except OSError:
            return None
        own = str(probe.getsockname()[0])
    if ipaddress.ip_address(own).is_loopback:
        return None
    return address.replace(parts.netloc, f"{own}:{parts.port}")


def _refuse_open(field: str, where: str, insist: bool, is_open: Callable[[str], bool]) -> None:
    """Refuse a cluster that requires no token, unless only this machine reaches it."""
    outside = elsewhere(where)
    if insist or outside is None or (outside != where and not is_open(outside)):
        return
    also = "" if outside == where else f", and answers at {outside} as well"
    raise ConfigError(
        f"{field}: the cluster at {where} asks for no token{also}, so that whoever reaches it can "
        "run code there and read what we send: start it with RAY_AUTH_MODE=token and a "
        f"RAY_AUTH_TOKEN (authOptions.mode: token in KubeRay), or insist with {INSIST}"
    )


def _require_token(field: str, where: str, token: str | None, accepted: bool) -> None:
    """Refuse a cluster that does not accept the token; else Ray sends it from now on."""
    if token is None:
        raise ConfigError(
            f"{field}: the cluster at {where} asks for a token, and this process has none: set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    if not accepted:
        raise ConfigError(
            f"{field}: the cluster at {where} does not take this process's token: set "
            "RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, to the cluster's"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def _own_cluster() -> str:
    """The cluster that this node belongs to, from the file that `ray start` writes."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    note = Path(folder) / "ray" / "ray_current_cluster"
    try:
        return note.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS: auto, and {note} names no cluster on this node: name host:port, or "
            "unset RAY_ADDRESS to work on this machine"
        ) from error


def _request_access(address: str, token: str | None) -> Access:
    """Send an empty request to a cluster's state server, with a token or without."""
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=_NO_PROXY) as channel:
        check_alive = channel.unary_unary(_ALIVE)  # takes and returns bytes
        try:
            check_alive(b"", timeout=_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return Access.REFUSED if code in refusals else Access.UNREACHABLE
    return Access.GRANTED


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets an answer that points elsewhere fail: where it points, a token would go along."""

    def redirect_request(self, *request: Any, **more: Any) -> None:
        return None


def _get(url: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return response.read(_LONGEST_ANSWER).decode()
    except urllib.error.HTTPError as error:
        where = error.headers.get("Location")
        to = f", which redirects to {where!r}: name the cluster's own address" if where else ""
        raise OSError(f"it answered {error.code}{to}") from error
    except HTTPException as error:
        raise OSError(f"what answers speaks no HTTP: {error!r}") from error


def _answers(url: str, token: str | None = None) -> bool:
    try:
        _get(url, token)
    except OSError:
        return False
    return True
