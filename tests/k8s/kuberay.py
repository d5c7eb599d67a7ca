"""What the operator makes of a manifest, and what it refuses although the schema lets it pass.

From reading KubeRay 1.7: the pods that it renders, with the containers that it adds and what those
take from ours, and the rules of its own validation. Names are bounded because it adds to them.
"""

import copy
import re
from collections.abc import Iterator

from manifests import Document, containers, of_kind, quantity, ray_clusters, title

AUTOSCALER = "autoscaler"
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def rendered_pods(documents: list[Document]) -> list[Document]:
    """Every pod that would come of the documents, the operator's additions included."""
    pods = []
    for owner, spec in ray_clusters(documents):
        pods.append(_head(owner, spec))
        pods += [_worker(owner, group) for group in spec.get("workerGroupSpecs", [])]
    for job in of_kind(documents, "RayJob"):
        if template := job["spec"].get("submitterPodTemplate"):
            pods.append(_pod(f"{title(job)} submitter", template))
    for deployment in of_kind(documents, "Deployment"):
        pods.append(_pod(title(deployment), deployment["spec"]["template"]))
    return pods


def each_container(documents: list[Document]) -> Iterator[tuple[str, Document, Document]]:
    """Every container of those pods: how complaints name it, itself, its pod."""
    for pod in rendered_pods(documents):
        for container in containers(pod):
            yield f"{pod['metadata']['name']}: {container['name']}", container, pod


def _pod(name: str, template: Document) -> Document:
    template = copy.deepcopy(template)
    metadata = {**template.get("metadata", {}), "name": name, "namespace": "paft"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _label(pod: Document, kind: str, group: str) -> None:
    labels = pod["metadata"].setdefault("labels", {})
    labels |= {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, "ray.io/group": group}


def _head(owner: str, spec: Document) -> Document:
    pod = _pod(f"{owner} head", spec["headGroupSpec"]["template"])
    _label(pod, "head", "headgroup")
    if spec.get("enableInTreeAutoscaling"):
        options = spec.get("autoscalerOptions", {})
        taken = ("securityContext", "volumeMounts", "env", "envFrom", "command", "args")
        pod["spec"]["containers"].append(
            {
                "name": AUTOSCALER,
                "image": options.get("image", pod["spec"]["containers"][0]["image"]),
                "resources": options.get(
                    "resources",
                    {
                        "limits": {"cpu": "500m", "memory": "512Mi"},
                        "requests": {"cpu": "500m", "memory": "512Mi"},
                    },
                ),
                **{name: options[name] for name in taken if name in options},
            }
        )
    return pod


def _worker(owner: str, group: Document) -> Document:
    pod = _pod(f"{owner} worker {group['groupName']}", group["template"])
    _label(pod, "worker", group["groupName"])
    ray = pod["spec"]["containers"][0]
    small = {"cpu": "200m", "memory": "256Mi"}
    waiting = {"name": "wait-gcs-ready", "resources": {"limits": small, "requests": dict(small)}}
    for name in ("image", "securityContext", "env", "volumeMounts"):
        if name in ray:
            waiting[name] = copy.deepcopy(ray[name])
    pod["spec"].setdefault("initContainers", []).append(waiting)
    return pod


def complaints(documents: list[Document]) -> Iterator[str]:
    """What the operator refuses."""
    for cluster in of_kind(documents, "RayCluster"):
        yield from _check_name(cluster, 53)
    for owner, spec in ray_clusters(documents):
        yield from (f"{owner}: {line}" for line in _check_cluster(spec))
    for job in of_kind(documents, "RayJob"):
        yield from _check_name(job, 47)
        yield from (f"{title(job)}: {line}" for line in _check_job(job["spec"]))
        yield from (f"{title(job)}: {line}" for line in _check_deletion(job["spec"]))


def _check_name(document: Document, most: int) -> Iterator[str]:
    name = document["metadata"]["name"]
    if len(name) > most:
        yield f"{title(document)}: a name of {len(name)} characters is longer than {most}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{title(document)}: the name is no DNS label that begins with a letter"


def _check_cluster(spec: Document) -> Iterator[str]:
    groups = spec.get("workerGroupSpecs", [])
    everyone = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in groups}
    if len(everyone) != 1 + len(groups):
        yield "two worker groups have one name"
    for name, group in everyone.items():
        params = group.get("rayStartParams", {})
        if any(not isinstance(value, str) for value in params.values()):
            yield f"{name}: rayStartParams are not all strings"
        if group.get("resources") and params.keys() & {"num-cpus", "num-gpus", "memory"}:
            yield f"{name}: resources stand in rayStartParams and beside them"
        if "labels" in params:
            yield f"{name}: labels stand in rayStartParams"
    for group in groups:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= group.get("replicas", least) <= most:
            yield f"{group['groupName']}: not 0 <= minReplicas <= replicas <= maxReplicas"
    version = tuple(int(part) for part in re.findall(r"\d+", spec.get("rayVersion", "0"))[:2])
    if spec.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        yield "authOptions.mode token needs a rayVersion of 2.52 or later"
    names = {entry["name"] for entry in _head_env(spec)}
    if "RAY_REDIS_ADDRESS" in names and not spec.get("gcsFaultToleranceOptions"):
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    yield from _check_autoscaling(spec, everyone, names)


def _head_env(spec: Document) -> list[Document]:
    return spec["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])


def _check_autoscaling(
    spec: Document, everyone: dict[str, Document], head_env: set[str]
) -> Iterator[str]:
    switch = "RAY_enable_autoscaler_v2"
    if not spec.get("enableInTreeAutoscaling"):
        if switch in head_env:
            yield f"{switch} without enableInTreeAutoscaling"
        return
    options = spec.get("autoscalerOptions", {})
    if "version" in options and switch in head_env:
        yield f"autoscalerOptions.version beside {switch}"
    for name, group in everyone.items():
        if group.get("suspend"):
            yield f"{name}: suspended under autoscaling"
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if options.get("version") == "v2" and policy != "Never":
            yield f"{name}: restartPolicy {policy} under autoscaler v2, which needs Never"


def _check_job(spec: Document) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode} is none of {', '.join(SUBMISSION_MODES)}"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend without shutdownAfterJobFinishes"
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "neither rayClusterSpec nor clusterSelector"
    if spec.get("clusterSelector"):
        if not spec["clusterSelector"].get("ray.io/cluster"):
            yield "clusterSelector names no cluster"
        if spec.get("suspend"):
            yield "clusterSelector with suspend"
        if spec.get("backoffLimit"):
            yield "clusterSelector with backoffLimit"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode with backoffLimit"
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if spec.get(name):
                yield f"SidecarMode with {name}"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds is not positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"


def _check_deletion(spec: Document) -> Iterator[str]:
    ttl, strategy = spec.get("ttlSecondsAfterFinished", 0), spec.get("deletionStrategy", {})
    if ttl < 0:
        yield "ttlSecondsAfterFinished is negative"
    if ttl > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if strategy.get("deletionRules") and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules beside shutdownAfterJobFinishes"
    seconds: dict[tuple[str, str], float] = {}
    for rule in strategy.get("deletionRules", []):
        status = str(rule["condition"].get("jobStatus"))
        key = (status, rule["policy"])
        if key in seconds:
            yield f"two deletionRules for {status} and {rule['policy']}"
        seconds[key] = quantity(rule["condition"].get("ttlSeconds", 0))
    for status in {status for status, _ in seconds}:
        times = [seconds[status, p] for p in DELETION_ORDER if (status, p) in seconds]
        if times != sorted(times):
            yield f"deletionRules for {status} delete the whole before its parts"
