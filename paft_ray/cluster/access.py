"""Whether a cluster asks who comes, and takes our token; found out before it is joined.

A Ray cluster without authentication runs the code of whoever reaches it. Neither Ray nor its
settings on this side say whether the other side asks: so we knock without a token first. Covered:
addresses for `ray.init` (gRPC, RAY_ADDRESS) and of dashboards (HTTP, `ray job submit`). A cluster
that only this machine reaches may be open, all others only where the user insists. Ray's state
server listens on every interface, also where it is called 127.0.0.1: so we knock there, too.
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
from urllib.parse import urlsplit

from paft_ray.config.errors import ConfigError, one_line

INSIST = "--allow-unauthenticated-cluster"
"""The option of the command line that admits open clusters."""
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_PATIENCE_S = 10.0
_NO_PROXY = [("grpc.enable_http_proxy", 0)]
"""As Ray itself speaks; a proxy would see the token."""


class Answer(Enum):
    """What a cluster says to whoever knocks."""

    WELCOME = "welcome"
    REFUSED = "refused"
    NONE = "none"


def named_cluster() -> str | None:
    """The cluster that RAY_ADDRESS names, None where Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    return None if address == "local" else address


def check_access(insist: bool = False, field: str = "RAY_ADDRESS") -> str | None:
    """Check the cluster of RAY_ADDRESS, if it names one: it is there, asks for a token, takes ours.

    Where it asks, Ray in this process is told to show the token.

    Args:
        insist: Join a cluster that asks for no token, too.
        field: Where the user named it, with which messages begin.

    Returns:
        Its address, host and port; None where RAY_ADDRESS names none.

    Raises:
        ConfigError: It must not or cannot be joined.
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
    if os.environ.get("RAY_USE_TLS") == "1":  # it asks for a certificate, and Ray shows ours
        if token is not None:
            os.environ["RAY_AUTH_MODE"] = "token"
        return where
    answer = _ask_for_access(where, None)
    if answer is Answer.NONE:
        raise ConfigError(
            f"{field}: no Ray cluster answers at {where}: start it, mend the address, or unset "
            "RAY_ADDRESS to work on this machine"
        )
    if answer is Answer.WELCOME:
        _refuse_open(
            field, where, insist, lambda other: _ask_for_access(other, None) is Answer.WELCOME
        )
    else:
        taken = token is not None and _ask_for_access(where, token) is Answer.WELCOME
        _require_token(field, where, token, taken)
    return where


def check_dashboard_access(address: str, insist: bool = False) -> None:
    """Check that jobs may be sent to a cluster's dashboard.

    Args:
        address: "http://host:8265", or https.
        insist: Send to a cluster that asks for no token, too.

    Raises:
        ConfigError: They must not, or cannot.
    """
    if not address.startswith(("http://", "https://")) or "@" in address:
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
    taken = token is not None and _answers(f"{address}/api/version", token)
    _require_token("--address", address, token, taken)


def find_token() -> str | None:
    """The token that Ray would show: from the environment, or from the file it keeps.

    None where RAY_AUTH_MODE forbids to show any.
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
    """What another machine would call an address on this one's loopback interface.

    Returns:
        The same with this machine's own network address: equal to the given one where that is no
        loopback address; None where this machine has no other.
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
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the way out
        except OSError:
            return None
        own = str(probe.getsockname()[0])
    if ipaddress.ip_address(own).is_loopback:
        return None
    return address.replace(parts.netloc, f"{own}:{parts.port}")


def _refuse_open(field: str, where: str, insist: bool, welcomes: Callable[[str], bool]) -> None:
    """Refuse a cluster that asks for no token, unless nobody else reaches it."""
    outside = elsewhere(where)
    if insist or outside is None or (outside != where and not welcomes(outside)):
        return
    also = "" if outside == where else f", and answers at {outside} as well"
    raise ConfigError(
        f"{field}: the cluster at {where} asks for no token{also}, so that whoever reaches it can "
        "run code there and read what we send: start it with RAY_AUTH_MODE=token and a "
        f"RAY_AUTH_TOKEN (authOptions.mode: token in KubeRay), or insist with {INSIST}"
    )


def _require_token(field: str, where: str, token: str | None, taken: bool) -> None:
    """Refuse to come without the token that a cluster asks for; Ray shows it from now on."""
    if token is None:
        raise ConfigError(
            f"{field}: the cluster at {where} asks for a token, and this process has none: set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    if not taken:
        raise ConfigError(
            f"{field}: the cluster at {where} does not take this process's token: set "
            "RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, to the cluster's"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def _own_cluster() -> str:
    """The cluster that this node belongs to, as `ray start` noted it."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    note = Path(folder) / "ray" / "ray_current_cluster"
    try:
        return note.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS: auto, and {note} names no cluster on this node: name host:port, or "
            "unset RAY_ADDRESS to work on this machine"
        ) from error


def _ask_for_access(address: str, token: str | None) -> Answer:
    """Ask a cluster's state server whether it lives, with a token or without."""
    import grpc

    shown = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=_NO_PROXY) as channel:
        call = channel.unary_unary(_ALIVE, _as_it_is, _as_it_is)
        try:
            call(b"", timeout=_PATIENCE_S, metadata=shown)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return Answer.REFUSED if code in refusals else Answer.NONE
    return Answer.WELCOME


def _as_it_is(message: bytes) -> bytes:
    """No protocol: an empty question, and any answer."""
    return message


def _get(url: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise OSError(f"it answered {error.code}") from error
    except HTTPException as error:
        raise OSError(f"what answers speaks no HTTP: {error!r}") from error


def _answers(url: str, token: str | None = None) -> bool:
    try:
        _get(url, token)
    except OSError:
        return False
    return True
