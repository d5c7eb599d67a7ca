"""Whether a cluster asks who comes, and takes our token; found out before it is joined.

A Ray cluster without authentication runs the code of whoever reaches it. Neither Ray nor its
settings on this side say whether the other side asks: so we knock without a token first. Covered:
addresses for `ray.init` (gRPC, RAY_ADDRESS) and of dashboards (HTTP, `ray job submit`). Clusters
on this machine's loopback interface may be open, all others only where the user insists.
"""

import ipaddress
import json
import os
import socket
import tempfile
import urllib.error
import urllib.request
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from paft_ray.errors import ConfigError

INSIST = "--allow-unauthenticated-cluster"
"""The option of the command line that admits open clusters."""
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_PATIENCE_S = 10.0


class Answer(Enum):
    """What a cluster says to whoever knocks."""

    WELCOME = "welcome"
    REFUSED = "refused"
    NONE = "none"


def named_cluster() -> str | None:
    """The cluster that RAY_ADDRESS names, None where Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    return None if address == "local" else address


def admit(insist: bool = False) -> str | None:
    """Check the cluster of RAY_ADDRESS, if it names one: it is there, asks for a token, takes ours.

    Where it asks, Ray in this process is told to show the token.

    Args:
        insist: Join a cluster that asks for no token, too.

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
            f"RAY_ADDRESS: {address} is a Ray Client server, and training needs a driver inside "
            "the cluster: use paft submit with the dashboard's address"
        )
    where = _own_cluster() if address == "auto" else address
    if os.environ.get("RAY_USE_TLS") == "1":
        return where  # it asks for a certificate, and Ray shows ours
    answer = _knock(where, None)
    if answer is Answer.NONE:
        raise ConfigError(
            f"RAY_ADDRESS: no Ray cluster answers at {where}: start it, mend the address, or unset "
            "RAY_ADDRESS to work on this machine"
        )
    token = find_token()
    taken = token is not None and _knock(where, token) is Answer.WELCOME
    _judge("RAY_ADDRESS", where, answer is Answer.WELCOME, token, taken, insist)
    if answer is Answer.REFUSED:
        os.environ["RAY_AUTH_MODE"] = "token"
    return where


def admit_dashboard(address: str, insist: bool = False) -> None:
    """Check that jobs may be sent to a cluster's dashboard.

    Args:
        address: "http://host:8265", or https.
        insist: Send to a cluster that asks for no token, too.

    Raises:
        ConfigError: They must not, or cannot.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address: {address} is not the address of a dashboard, such as http://host:8265"
        )
    try:
        mode = json.loads(_get(f"{address}/api/authentication_mode", None))["authentication_mode"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--address: no Ray dashboard answers at {address}: {error}; start the cluster with "
            "its dashboard, or forward its port"
        ) from error
    token, taken = find_token(), False
    if token is not None:
        try:
            _get(f"{address}/api/version", token)
            taken = True
        except OSError:
            taken = False
    _judge("--address", address, mode == "disabled", token, taken, insist)
    if mode != "disabled":
        os.environ["RAY_AUTH_MODE"] = "token"


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


def is_loopback(address: str) -> bool:
    """Whether only processes of this machine reach an address such as "127.0.0.1:6379"."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(a.split("%")[0]).is_loopback for a in found)


def _judge(
    field: str, where: str, open_to_all: bool, token: str | None, taken: bool, insist: bool
) -> None:
    if open_to_all:
        if not insist and not is_loopback(where):
            raise ConfigError(
                f"{field}: the cluster at {where} asks for no token, so that whoever reaches it "
                "can run code there and read what we send: start it with RAY_AUTH_MODE=token "
                f"(authOptions.mode: token in KubeRay), or insist with {INSIST}"
            )
        return
    if token is None:
        raise ConfigError(
            f"{field}: the cluster at {where} asks for a token, and this process has none: set "
            "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    if not taken:
        raise ConfigError(
            f"{field}: the cluster at {where} does not take this process's token: set "
            "RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, to the cluster's"
        )


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


def _knock(address: str, token: str | None) -> Answer:
    """Ask a cluster's state server whether it lives, with a token or without."""
    import grpc

    shown = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
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
        raise OSError(f"{url} answered {error.code}") from error
