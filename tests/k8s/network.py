"""Whether NetworkPolicies let a connection through: both ends must agree."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from manifests import NAMESPACE, Document

Pod = tuple[str, dict[str, str]]
"""A namespace and labels."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection that somebody opens."""

    name: str
    source: Pod
    target: Pod | str
    """A pod, or an address outside."""
    port: int
    wanted: bool
    """Whether it is to go through."""


def allowed(policies: list[Document], flow: Flow) -> bool:
    """Whether a connection goes through, by TCP."""
    out = _direction(policies, flow.source, "Egress", flow.target, flow.port)
    if isinstance(flow.target, str):
        return out
    return out and _direction(policies, flow.target, "Ingress", flow.source, flow.port)


def _direction(
    policies: list[Document], pod: Pod, direction: str, peer: Pod | str, port: int
) -> bool:
    namespace, labels = pod
    if namespace != NAMESPACE:
        return True
    mine = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], labels)
    ]
    return not mine or any(
        _rule_allows(rule, direction, peer, port) for rule in _rules(mine, direction)
    )


def _rules(specs: list[Document], direction: str) -> Iterator[Document]:
    for spec in specs:
        yield from spec.get(direction.lower(), [])


def _rule_allows(rule: Document, direction: str, peer: Pod | str, port: int) -> bool:
    ports = rule.get("ports")
    if ports and not any(p["port"] == port and p.get("protocol", "TCP") == "TCP" for p in ports):
        return False
    peers = rule.get("to" if direction == "Egress" else "from")
    return not peers or any(_is_peer(selector, peer) for selector in peers)


def _is_peer(selector: Document, peer: Pod | str) -> bool:
    if isinstance(peer, str):
        block = selector.get("ipBlock")
        return block is not None and _in_block(block, peer)
    if "ipBlock" in selector:
        return False  # pods' addresses are private, which every block here leaves out
    namespace, labels = peer
    if "namespaceSelector" in selector:
        names = {"kubernetes.io/metadata.name": namespace}
        if not _selects(selector["namespaceSelector"], names):
            return False
    elif namespace != NAMESPACE:
        return False
    return _selects(selector.get("podSelector", {}), labels)


def _in_block(block: Document, address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network(block["cidr"]) and not any(
        ip in ipaddress.ip_network(other) for other in block.get("except", [])
    )


def _selects(selector: Document, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels.items()
