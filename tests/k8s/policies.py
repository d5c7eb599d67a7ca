"""What we promise of jobs, clusters and what stands around them, beside security.

Each check yields its complaints about the documents of an overlay; `mutations.py` has a changed
manifest that each must refuse.
"""

import functools
import json
import re
from collections.abc import Iterator

import crd
import kuberay
import kubernetes_validate
from kuberay import each_container
from manifests import ROOT, Document, find, of_kind, quantity, ray_clusters, title

OLDEST, NEWEST = "1.32", "1.37"


@functools.cache
def _core_complaint(text: str, version: str) -> str | None:
    document = json.loads(text)
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{title(document)}: {'.'.join(map(str, error.path))}: {error.message}"
    return None


def core_kinds_fit_their_schemas(documents: list[Document]) -> Iterator[str]:
    """Kubernetes' own kinds, and the pods inside Ray's, strictly."""
    core = [document for document in documents if not document["apiVersion"].startswith("ray.io/")]
    for document in core:
        for version in (OLDEST, NEWEST):
            if complaint := _core_complaint(json.dumps(document, sort_keys=True), version):
                yield complaint
    for pod in kuberay.rendered_pods(documents):
        pod["metadata"]["name"] = pod["metadata"]["name"].lower().replace(" ", "-")
        if complaint := _core_complaint(json.dumps(pod, sort_keys=True), OLDEST):
            yield complaint


def ray_kinds_fit_their_schemas(documents: list[Document]) -> Iterator[str]:
    """RayJobs and RayClusters against the operator's definitions."""
    for document in of_kind(documents, "RayJob", "RayCluster"):
        yield from crd.complaints(document)


def operator_accepts(documents: list[Document]) -> Iterator[str]:
    """The operator's own rules."""
    yield from kuberay.complaints(documents)


def resources_are_bounded(documents: list[Document]) -> Iterator[str]:
    """CPU and memory are asked for and limited, memory by the same; all of it on GPUs."""
    for name, container, pod in each_container(documents):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for what in ("cpu", "memory"):
            if what not in requests or what not in limits:
                yield f"{name}: {what} is not both asked for and limited"
        if requests.get("memory") != limits.get("memory"):
            yield f"{name}: asks for less memory than its limit"
        if "nvidia.com/gpu" in limits:
            if requests != limits:
                yield f"{name}: has a GPU, and its requests are not its limits"
            spec = pod["spec"]
            if not any(t.get("key") == "nvidia.com/gpu" for t in spec.get("tolerations", [])):
                yield f"{name}: has a GPU and does not tolerate the taint of such nodes"
            env = {entry["name"] for entry in container.get("env", [])}
            if missing := {"NCCL_SOCKET_IFNAME", "NCCL_DEBUG"} - env:
                yield f"{name}: has a GPU and does not set {', '.join(sorted(missing))}"


def shared_memory_fits(documents: list[Document]) -> Iterator[str]:
    """Object store <= /dev/shm <= half of the memory limit, which it counts towards."""
    for owner, spec in ray_clusters(documents):
        for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
            name = f"{owner} {group.get('groupName', 'head')}"
            pod = group["template"]["spec"]
            ray = pod["containers"][0]
            mounts = {mount["mountPath"]: mount["name"] for mount in ray["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
            if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
                yield f"{name}: /dev/shm is not a bounded volume in memory"
                continue
            store = quantity(group["rayStartParams"].get("object-store-memory", "1e18"))
            limit = quantity(ray["resources"]["limits"]["memory"])
            if not store <= quantity(shm["sizeLimit"]) <= limit / 2:
                yield f"{name}: not object-store-memory <= /dev/shm <= half of the memory limit"


def one_ray_version(documents: list[Document]) -> Iterator[str]:
    """The clusters' version is that of constraints.txt, which the image is built from."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^ray==(\S+)$", constraints, re.MULTILINE)
    for owner, spec in ray_clusters(documents):
        if pinned is None or spec.get("rayVersion") != pinned[1]:
            yield f"{owner}: rayVersion {spec.get('rayVersion')} is not that of constraints.txt"


def the_head_only_drives(documents: list[Document]) -> Iterator[str]:
    """No CPUs of Ray's on the head, and the driver asks for none."""
    for owner, spec in ray_clusters(documents):
        if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield f"{owner}: the head offers CPUs to tasks"
    for job in of_kind(documents, "RayJob"):
        for field in ("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"):
            if job["spec"].get(field):
                yield f"{title(job)}: {field} could not be placed on the head"


def jobs_end_and_clean_up(documents: list[Document]) -> Iterator[str]:
    """Retries, a deadline, and nothing left behind; what is written goes to a claim."""
    for job in of_kind(documents, "RayJob"):
        spec = job["spec"]
        for field in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            if not spec.get(field):
                yield f"{title(job)}: no {field}"
        if not spec.get("shutdownAfterJobFinishes"):
            yield f"{title(job)}: its cluster stays"
        _, *words = re.findall(r"\S+", spec["entrypoint"].partition(" run ")[2])
        overrides = dict(word.split("=", 1) for word in words if "=" in word)
        pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        storage = volumes.get(mounts.get(overrides.get("storage", ""), ""), {})
        if "persistentVolumeClaim" not in storage:
            yield f"{title(job)}: its storage is not on a claim"
        uri = overrides.get("tracking.uri", "")
        services = [f"http://{s['metadata']['name']}:" for s in of_kind(documents, "Service")]
        if not uri.startswith(tuple(services)):
            yield f"{title(job)}: tracking.uri {uri} is no service of these documents"


def pods_leave_in_order(documents: list[Document]) -> Iterator[str]:
    """Workers say that they go and have the time to; drivers that are stopped have theirs."""
    for owner, spec in ray_clusters(documents):
        head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in head["env"]}
        if int(env.get("RAY_JOB_STOP_WAIT_TIME_S") or 3) < 60:
            yield f"{owner}: RAY_JOB_STOP_WAIT_TIME_S leaves a stopped driver less than a minute"
        for group in spec.get("workerGroupSpecs", []):
            pod = group["template"]["spec"]
            hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {})
            command = " ".join(hook.get("exec", {}).get("command", []))
            wait = re.search(r"leave\.py --wait (\d+)", command)
            if wait is None:
                yield f"{owner} {group['groupName']}: goes without a word"
            elif pod.get("terminationGracePeriodSeconds", 30) < int(wait[1]) + 30:
                yield f"{owner} {group['groupName']}: is killed while its ranks save"


def references_are_met(documents: list[Document]) -> Iterator[str]:
    """Claims, ConfigMaps and accounts that pods name are among the documents."""
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    there.add(("ConfigMap", "kube-root-ca.crt"))  # in every namespace
    for pod in kuberay.rendered_pods(documents):
        spec, name = pod["spec"], pod["metadata"]["name"]
        wanted = {("ServiceAccount", spec.get("serviceAccountName"))}
        for volume in spec.get("volumes", []):
            sources = [volume, *volume.get("projected", {}).get("sources", [])]
            wanted |= {("ConfigMap", s["configMap"]["name"]) for s in sources if "configMap" in s}
            if claim := volume.get("persistentVolumeClaim"):
                wanted.add(("PersistentVolumeClaim", claim["claimName"]))
        for kind, other in sorted(wanted - there, key=str):
            yield f"{name}: there is no {kind} {other}"


def disruption_budgets_can_work(documents: list[Document]) -> Iterator[str]:
    """An absolute minAvailable, as for pods of owners without a scale; a job's head is kept."""
    budgets = of_kind(documents, "PodDisruptionBudget")
    for budget in budgets:
        if not isinstance(budget["spec"].get("minAvailable"), int):
            yield f"{title(budget)}: minAvailable is no number of pods"
    kept = set()
    for pod in kuberay.rendered_pods(documents):
        labels = pod["metadata"].get("labels", {})
        for budget in budgets:
            if budget["spec"]["selector"]["matchLabels"].items() <= labels.items():
                kept.add(pod["metadata"]["name"])
    heads = {f"{title(job)} head" for job in of_kind(documents, "RayJob")}
    if kept != heads:
        yield f"budgets keep {sorted(kept)} and not {sorted(heads)}"


def mlflow_is_closed_and_single(documents: list[Document]) -> Iterator[str]:
    """Passwords, host names that it answers to, and never two servers on one sqlite."""
    deployment, service = find(documents, "Deployment", "mlflow"), find(documents, "Service")
    spec = deployment["spec"]
    if spec["replicas"] != 1 or spec["strategy"] != {"type": "Recreate"}:
        yield "MLflow: two servers could hold one database"
    arguments = dict(
        argument.removeprefix("--").partition("=")[::2]
        for argument in spec["template"]["spec"]["containers"][0]["args"]
    )
    hook = spec["template"]["spec"]["containers"][0].get("lifecycle", {}).get("postStart", {})
    if "mlflow_user.py" not in str(hook.get("exec")):
        yield "MLflow: nobody makes the user that runs record with"
    if arguments.get("app-name") != "basic-auth":
        yield "MLflow: asks for no password"
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    hosts = arguments.get("allowed-hosts", "").split(",")
    if f"{name}:{port}" not in hosts:
        yield f"MLflow: does not answer to {name}:{port}"
    if "*" in hosts:
        yield "MLflow: answers to any host name"
    if "disable-security-middleware" in arguments:
        yield "MLflow: does not look at host names"


def queues_and_autoscaling_do_not_mix(documents: list[Document]) -> Iterator[str]:
    """Kueue starts what is suspended, and refuses Ray's own autoscaling; that has bounds."""
    for document in of_kind(documents, "RayJob", "RayCluster"):
        queue = document["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        if queue and not document["spec"].get("suspend"):
            yield f"{title(document)}: in a queue, and not suspended"
        if queue and next(ray_clusters([document]))[1].get("enableInTreeAutoscaling"):
            yield f"{title(document)}: in a queue, and scales itself"
    for owner, spec in ray_clusters(documents):
        if spec.get("enableInTreeAutoscaling"):
            options = spec.get("autoscalerOptions", {})
            if options.get("version") != "v2" or not options.get("idleTimeoutSeconds"):
                yield f"{owner}: not autoscaler v2 with an idle timeout"
            for group in spec["workerGroupSpecs"]:
                if not group["minReplicas"] < group["maxReplicas"] < 1000:
                    yield f"{owner} {group['groupName']}: nothing to scale between"


CHECKS = (
    core_kinds_fit_their_schemas,
    ray_kinds_fit_their_schemas,
    operator_accepts,
    resources_are_bounded,
    shared_memory_fits,
    one_ray_version,
    the_head_only_drives,
    jobs_end_and_clean_up,
    pods_leave_in_order,
    references_are_met,
    disruption_budgets_can_work,
    mlflow_is_closed_and_single,
    queues_and_autoscaling_do_not_mix,
)
