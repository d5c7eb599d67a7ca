"""What a security team asks of the manifests, each question a check that yields its complaints."""

import re
from collections.abc import Iterator

import kuberay
from kuberay import each_container
from manifests import NAMESPACE, Document, find, of_kind, ray_clusters, title
from network import Flow, allowed

SECRETS = {
    "mlflow-admin": {"username", "password", "flask-secret-key"},
    "mlflow-client": {"username", "password"},
    "paft-keys": {"HF_TOKEN", "OPENAI_API_KEY"},
}
"""Every Secret that manifests may name, with its keys; the README says how to make them."""

TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


def namespace_is_restricted(documents: list[Document]) -> Iterator[str]:
    """One namespace, at the restricted level by a pinned version, and everything in it."""
    namespace = find(documents, "Namespace")
    labels = namespace["metadata"].get("labels", {})
    for mode in ("enforce", "warn", "audit"):
        key = f"pod-security.kubernetes.io/{mode}"
        if labels.get(key) != "restricted":
            yield f"{title(namespace)}: {key} is {labels.get(key)}"
        if not re.fullmatch(r"v1\.\d+", labels.get(f"{key}-version", "")):
            yield f"{title(namespace)}: {key}-version is not pinned"
    for document in documents:
        if document is not namespace and document["metadata"].get("namespace") != NAMESPACE:
            yield f"{title(document)}: is not in {NAMESPACE}"


def pods_are_restricted(documents: list[Document]) -> Iterator[str]:
    """The restricted Pod Security Standard, for every container by itself, and no root on disk."""
    for pod in kuberay.rendered_pods(documents):
        name, spec = pod["metadata"]["name"], pod["spec"]
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{name}: {field}"
        for volume in spec.get("volumes", []):
            kinds = set(volume) - {"name"}
            if not kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected"}:
                yield f"{name}: volume {volume['name']} is of kind {', '.join(kinds)}"
        context = spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser", 0) > 0:
            yield f"{name}: does not run as a user that is not root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: seccompProfile is not RuntimeDefault"
    for name, container, _ in each_container(documents):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: may gain privileges"
        if context.get("runAsUser", 1) == 0 or context.get("runAsNonRoot") is not True:
            yield f"{name}: may run as root"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: does not drop all capabilities"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: can write to its root"


def writable_folders_are_mounted(documents: list[Document]) -> Iterator[str]:
    """What is written to on a read-only root, with a bound; every mount has its volume."""
    for name, container, pod in each_container(documents):
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for folder in ("/tmp", "/home/paft"):
            if folder not in mounts and not (
                container["name"] == kuberay.AUTOSCALER and folder == "/home/paft"
            ):
                yield f"{name}: nothing is mounted at {folder}"
        for path, volume in mounts.items():
            if volume not in volumes:
                yield f"{name}: {path} is mounted from {volume}, which is no volume"
        for volume in volumes.values():
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{name}: volume {volume['name']} has no sizeLimit"


def ray_asks_for_a_token(documents: list[Document]) -> Iterator[str]:
    """Token authentication, on in every cluster and switched off by no variable."""
    for owner, spec in ray_clusters(documents):
        if spec.get("authOptions", {}).get("mode") != "token":
            yield f"{owner}: authOptions.mode is not token"
    for name, container, _ in each_container(documents):
        for entry in container.get("env", []):
            if entry["name"] in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
                yield f"{name}: sets {entry['name']}, which is the operator's to set"


def images_are_pinned(documents: list[Document]) -> Iterator[str]:
    """A tag that is not latest, or a digest; the same image in all pods."""
    images = set()
    for name, container, _ in each_container(documents):
        image = container.get("image", "")
        images.add(image)
        tag = re.search(r":([\w.-]+)$", image.split("@")[0])
        digest = re.search(r"@sha256:[0-9a-f]{64}$", image)
        if not digest and (tag is None or tag[1] == "latest"):
            yield f"{name}: image {image} is not pinned"
    if len(images) > 1:
        yield f"pods run different images: {', '.join(sorted(images))}"


def nothing_is_exposed(documents: list[Document]) -> Iterator[str]:
    """Services of type ClusterIP, and no other way in."""
    for document in of_kind(documents, "Ingress", "Route", "Gateway", "HTTPRoute"):
        yield f"{title(document)}: exposes"
    for service in of_kind(documents, "Service"):
        spec = service["spec"]
        if spec.get("type", "ClusterIP") != "ClusterIP" or spec.get("externalIPs"):
            yield f"{title(service)}: is not ClusterIP only"
    for owner, spec in ray_clusters(documents):
        head = spec["headGroupSpec"]
        if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
            yield f"{owner}: the head's service is not ClusterIP only"
    for name, container, _ in each_container(documents):
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name}: hostPort"


def secrets_come_by_reference(documents: list[Document]) -> Iterator[str]:
    """No Secret is here, mounted or taken whole; each key that is named is documented."""
    for document in of_kind(documents, "Secret"):
        yield f"{title(document)}: a secret in a manifest"
    secret = re.compile(r"password|passwd|token|secret|api_?key|credential", re.IGNORECASE)
    for document in of_kind(documents, "ConfigMap"):
        for file in document.get("data", {}).values():
            if re.search(r"(password|token|secret|api_key)\s*[:=]\s*\S", file, re.IGNORECASE):
                yield f"{title(document)}: holds what looks like a secret"
    for name, container, _ in each_container(documents):
        if container.get("envFrom"):
            yield f"{name}: envFrom takes whole objects"
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference is None and secret.search(entry["name"]):
                yield f"{name}: {entry['name']} does not come by secretKeyRef"
            if reference and reference["key"] not in SECRETS.get(reference["name"], ()):
                yield f"{name}: no documented key {reference['key']} in {reference['name']}"


def no_kubernetes_tokens(documents: list[Document]) -> Iterator[str]:
    """Accounts and pods mount none; only an autoscaler's container gets one."""
    for account in of_kind(documents, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)}: its token is mounted"
    for name, container, pod in each_container(documents):
        if pod["spec"].get("automountServiceAccountToken") is not False:
            yield f"{name}: the pod mounts a token"
        tokens = {
            volume["name"]
            for volume in pod["spec"].get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        mounts = {m["name"]: m["mountPath"] for m in container.get("volumeMounts", [])}
        if container["name"] == kuberay.AUTOSCALER:
            if [mounts.get(token) for token in tokens] != [TOKEN_FOLDER]:
                yield f"{name}: needs the token of its account at {TOKEN_FOLDER}"
        elif tokens & mounts.keys():
            yield f"{name}: has a token of Kubernetes"


def only_needed_ways_are_open(documents: list[Document]) -> Iterator[str]:
    """What may speak to whom, asked of the policies as a network would ask them."""
    node = {"ray.io/is-ray-node": "yes"}
    kind = {"RayJob": "job", "RayCluster": "cluster"}
    components = [kind[d["kind"]] for d in of_kind(documents, *kind)]
    autoscaled = any(spec.get("enableInTreeAutoscaling") for _, spec in ray_clusters(documents))
    head = {
        **node,
        "ray.io/node-type": "head",
        "app.kubernetes.io/component": components[-1] if components else "job",
    }
    worker = {**node, "ray.io/node-type": "worker"}
    submitter = {"app.kubernetes.io/component": "submitter"}
    mlflow, other = {"app.kubernetes.io/name": "mlflow"}, {"app": "other"}
    operator = ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"})
    dns, elsewhere = ("kube-system", {"k8s-app": "kube-dns"}), ("default", {})
    flows = [
        Flow("a worker to the head's GCS", (NAMESPACE, worker), (NAMESPACE, head), 6379, True),
        Flow("the head to a worker", (NAMESPACE, head), (NAMESPACE, worker), 10002, True),
        Flow("a worker to MLflow", (NAMESPACE, worker), (NAMESPACE, mlflow), 5000, True),
        Flow("the head to MLflow", (NAMESPACE, head), (NAMESPACE, mlflow), 5000, True),
        Flow(
            "the submitter to the dashboard", (NAMESPACE, submitter), (NAMESPACE, head), 8265, True
        ),
        Flow("the operator to the dashboard", operator, (NAMESPACE, head), 8265, True),
        Flow("a worker to DNS", (NAMESPACE, worker), dns, 53, True),
        Flow("the submitter to DNS", (NAMESPACE, submitter), dns, 53, True),
        Flow("a worker to a hub", (NAMESPACE, worker), "93.184.215.14", 443, True),
        Flow("the submitter to the GCS", (NAMESPACE, submitter), (NAMESPACE, head), 6379, False),
        Flow(
            "the submitter to a worker", (NAMESPACE, submitter), (NAMESPACE, worker), 10002, False
        ),
        Flow("the submitter to MLflow", (NAMESPACE, submitter), (NAMESPACE, mlflow), 5000, False),
        Flow("the operator to the GCS", operator, (NAMESPACE, head), 6379, False),
        Flow("the operator to MLflow", operator, (NAMESPACE, mlflow), 5000, False),
        Flow("another pod to the dashboard", (NAMESPACE, other), (NAMESPACE, head), 8265, False),
        Flow("another pod to MLflow", (NAMESPACE, other), (NAMESPACE, mlflow), 5000, False),
        Flow("another namespace to the dashboard", elsewhere, (NAMESPACE, head), 8265, False),
        Flow("another namespace to MLflow", elsewhere, (NAMESPACE, mlflow), 5000, False),
        Flow("another namespace to any other pod", elsewhere, (NAMESPACE, other), 80, False),
        Flow("a worker to another namespace", (NAMESPACE, worker), elsewhere, 443, False),
        Flow("a worker to cloud metadata", (NAMESPACE, worker), "169.254.169.254", 80, False),
        Flow(
            "a worker to cloud metadata's TLS", (NAMESPACE, worker), "169.254.169.254", 443, False
        ),
        Flow("the head to cloud metadata", (NAMESPACE, head), "169.254.169.254", 443, False),
        Flow("a worker to a private address", (NAMESPACE, worker), "10.96.0.1", 443, False),
        Flow("a worker to a hub without TLS", (NAMESPACE, worker), "93.184.215.14", 80, False),
        Flow("the head to Kubernetes", (NAMESPACE, head), "10.96.0.1", 443, autoscaled),
        Flow("MLflow to the internet", (NAMESPACE, mlflow), "93.184.215.14", 443, False),
        Flow("MLflow to a worker", (NAMESPACE, mlflow), (NAMESPACE, worker), 10002, False),
        Flow("the submitter to the internet", (NAMESPACE, submitter), "93.184.215.14", 443, False),
    ]
    policies = of_kind(documents, "NetworkPolicy")
    for flow in flows:
        if allowed(policies, flow) != flow.wanted:
            yield f"{flow.name} is {'closed' if flow.wanted else 'open'}"


CHECKS = (
    namespace_is_restricted,
    pods_are_restricted,
    writable_folders_are_mounted,
    ray_asks_for_a_token,
    images_are_pinned,
    nothing_is_exposed,
    secrets_come_by_reference,
    no_kubernetes_tokens,
    only_needed_ways_are_open,
)
