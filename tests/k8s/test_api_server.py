"""A real API server takes every overlay without a warning, and refuses what our check refuses.

Asked through `kubectl proxy`, with PAFT_KUBECONFIG naming a cluster with KubeRay's CRDs and the
namespace of `k8s/base/platform`, whose level then judges the pods too; nothing is kept
there (`dryRun=All`). Kinds that it does not serve are left out, so that the server of
`api_server/main.go`, which has custom resources only, will do.
"""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import crd
import pytest
from kuberay import rendered_pods
from manifests import NAMESPACE, OVERLAYS, Document, build, kubectl, of_kind, title
from mutations import MUTATIONS, SCHEMA, Mutation

pytestmark = pytest.mark.slow

PLURALS = {"NetworkPolicy": "networkpolicies"}
KIND = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    warnings: list[str]
    text: str


class Server:
    """A running `kubectl proxy`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, body: Document | None = None) -> Answer:
        """GET, or server-side apply where there is a body."""
        request = urllib.request.Request(
            f"{self._address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method="GET" if body is None else "PATCH",
            headers={} if body is None else {"Content-Type": KIND},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                warnings = answer.headers.get_all("Warning") or []
                return Answer(answer.status, warnings, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, [], error.read().decode())

    def dry_run(self, document: Document) -> Answer:
        """Apply without keeping anything, unknown fields refused."""
        group, kind = document["apiVersion"], document["kind"]
        path = f"/apis/{group}" if "/" in group else f"/api/{group}"
        if "namespace" in document["metadata"]:
            path += f"/namespaces/{NAMESPACE}"
        plural = PLURALS.get(kind, kind.lower() + "s")
        options = "dryRun=All&fieldManager=paft&fieldValidation=Strict&force=true"
        return self.ask(f"{path}/{plural}/{document['metadata']['name']}?{options}", document)

    def serves(self, document: Document) -> bool:
        """Whether it knows the document's group."""
        group = document["apiVersion"]
        return self.ask(f"/apis/{group}" if "/" in group else f"/api/{group}").status == 200


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    kubeconfig = os.environ.get("PAFT_KUBECONFIG")
    if not kubeconfig:
        pytest.skip("no cluster to ask: name its kubeconfig in PAFT_KUBECONFIG")
    with subprocess.Popen(
        [kubectl(), "--kubeconfig", kubeconfig, "proxy", "--port=0", "--reject-methods=^POST$"],
        stdout=subprocess.PIPE,
        text=True,
    ) as proxy:
        assert proxy.stdout is not None
        address = re.search(r"127\.0\.0\.1:\d+", proxy.stdout.readline())
        assert address is not None
        yield Server(f"http://{address[0]}")
        proxy.terminate()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_server_accepts_an_overlay_without_a_warning(overlay: str, server: Server) -> None:
    served = [document for document in build(overlay) if server.serves(document)]
    assert served
    for document in served:
        answer = server.dry_run(document)
        assert answer.status in (200, 201), (title(document), answer.text)
        assert answer.warnings == [], title(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_server_accepts_the_pods_that_would_come(overlay: str, server: Server) -> None:
    pods = rendered_pods(build(overlay))
    if not server.serves(pods[0]):
        pytest.skip("this server has no core kinds")
    for number, pod in enumerate(pods):
        name = pod["metadata"]["name"]
        pod["metadata"]["name"] = f"pod-{number}"
        answer = server.dry_run(pod)
        assert answer.status in (200, 201), (name, answer.text)
        assert answer.warnings == [], name


@pytest.mark.parametrize(
    "mutation",
    [m for m in MUTATIONS if m.target.startswith("Ray")],
    ids=lambda mutation: mutation.label,
)
def test_server_and_schema_check_agree(mutation: Mutation, server: Server) -> None:
    documents = build(mutation.overlay)
    mutation.apply(documents)
    for document in of_kind(documents, "RayJob", "RayCluster"):
        if not server.serves(document):
            pytest.skip("this server has no Ray kinds")
        refused = server.dry_run(document).status not in (200, 201)
        assert refused == bool(crd.complaints(document))
        assert refused or mutation.check != SCHEMA
