"""Changed manifests, each with the check that must refuse it and what that must say."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manifests import Document, find

GONE = object()
"""The value of a field that a mutation takes away."""

JOB, CLUSTER, MLFLOW = "overlays/cpu-smoke", "overlays/autoscale", "base"
GPU, QUEUE = "overlays/gpu", "overlays/kueue"

HEAD = "spec.rayClusterSpec.headGroupSpec"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs.0"
SUBMITTER = "spec.submitterPodTemplate.spec"
POD, RAY = "template.spec", "template.spec.containers.0"


SHM_SIZE = f"{WORKERS}.{POD}.volumes.2.emptyDir.sizeLimit"
STORE = f"{WORKERS}.rayStartParams.object-store-memory"
ACCOUNT = "ServiceAccount paft-ray"
DENY, DNS = "NetworkPolicy default-deny", "NetworkPolicy dns"
NODES, DASHBOARD = "NetworkPolicy ray-nodes", "NetworkPolicy ray-dashboard"
CLAIM = "PersistentVolumeClaim mlflow"
ARGUMENTS = f"spec.{RAY}.args"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of an overlay that a check must refuse."""

    check: str
    complaint: str
    """A part of what the check says."""
    overlay: str
    target: str
    """Kind, and where needed the name, of the document that is changed."""
    path: str
    value: Any
    """What stands there afterwards; GONE; or a function of what stood there."""

    @property
    def label(self) -> str:
        """How a test names it."""
        return f"{self.check}-{self.complaint.replace(' ', '_')}"

    def apply(self, documents: list[Document]) -> None:
        """Change the documents."""
        kind, _, name = self.target.partition(" ")
        *folders, last = self.path.split(".")
        node: Any = find(documents, kind, name or None)
        for step in folders:
            node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
        key: Any = int(last) if isinstance(node, list) else last
        if self.value is GONE:
            del node[key]
        elif isinstance(self.value, Callable):
            node[key] = self.value(copy.deepcopy(node[key]))
        else:
            node[key] = self.value


def plus(*entries: Any) -> Callable[[list[Any]], list[Any]]:
    """A list with more in it."""
    return lambda before: [*before, *entries]


def without(name: str) -> Callable[[list[Document]], list[Document]]:
    """A list without the entries of a name."""
    return lambda before: [entry for entry in before if entry.get("name") != name]


def job(check: str, complaint: str, path: str, value: Any) -> Mutation:
    """A change of the RayJob."""
    return Mutation(check, complaint, JOB, "RayJob", path, value)


def cluster(check: str, complaint: str, path: str, value: Any) -> Mutation:
    """A change of the RayCluster that scales itself."""
    return Mutation(check, complaint, CLUSTER, "RayCluster", path, value)


def platform(check: str, complaint: str, target: str, path: str, value: Any) -> Mutation:
    """A change of what stands around them."""
    return Mutation(check, complaint, MLFLOW, target, path, value)


MOUNTED = {"name": "s", "secret": {"secretName": "paft-keys"}}
LITERAL = {"name": "OPENAI_API_KEY", "value": "sk-1234"}
OTHER_KEY = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "mlflow-admin", "key": "root"}}}
RULES = {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}]}
RULE = RULES["deletionRules"][0]
EARLY = {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}}
TOKEN_MOUNT = {"name": "kubernetes-token", "mountPath": "/var/run/token"}
TO_ALL = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}
FROM_ALL = {"from": [{"namespaceSelector": {}}], "ports": [{"port": 8265}]}
TWICE = {"name": "again", "containerPort": 8265}

SCHEMA = "ray_kinds_fit_their_schemas"
CORE = "core_kinds_fit_their_schemas"
OPERATOR = "operator_accepts"
NAMESPACE = "namespace_is_restricted"
RESTRICTED = "pods_are_restricted"
WRITABLE = "writable_folders_are_mounted"
SHM = "shared_memory_fits"
MET = "references_are_met"
BUDGETS = "disruption_budgets_can_work"
RESOURCES = "resources_are_bounded"
SECRETS = "secrets_come_by_reference"
TOKENS = "no_kubernetes_tokens"
ENDS = "jobs_end_and_clean_up"
LEAVE = "pods_leave_in_order"
NETWORK = "only_needed_ways_are_open"
SERVER = "mlflow_is_closed_and_single"
SCALING = "queues_and_autoscaling_do_not_mix"

MUTATIONS = (
    # schemas
    job(SCHEMA, "'backofLimit' was unexpected", "spec.backofLimit", 3),
    job(SCHEMA, "'3' is not of type 'integer'", "spec.backoffLimit", "3"),
    job(
        SCHEMA, "is not one of ['disabled', 'token']", "spec.rayClusterSpec.authOptions.mode", "on"
    ),
    job(SCHEMA, "'groupName' is a required property", f"{WORKERS}.groupName", GONE),
    job(SCHEMA, "requires either BOTH onSuccess and onFailure", "spec.deletionStrategy", {}),
    job(SCHEMA, "must be either", "spec.managedBy", "me"),
    job(SCHEMA, "2 entries with", f"{HEAD}.{RAY}.ports", plus(TWICE)),
    job(SCHEMA, "'runAsRoot' was unexpected", f"{HEAD}.{RAY}.securityContext.runAsRoot", True),
    job(SCHEMA, "does not match", f"{HEAD}.{RAY}.resources.limits.memory", "8 GB"),
    cluster(SCHEMA, "'v3' is not one of", "spec.autoscalerOptions.version", "v3"),
    platform(CORE, "'replica' was unexpected", "Deployment", "spec.replica", 2),
    platform(CORE, "is not of type 'integer'", "Service", "spec.ports.0.port", "http"),
    platform(CORE, "was unexpected", DNS, "spec.egres", []),
    job(CORE, "was unexpected", f"{WORKERS}.{RAY}.imagePullpolicy", "Always"),
    # the operator's rules
    job(OPERATOR, "submissionMode", "spec.submissionMode", "Sidecar"),
    job(OPERATOR, "<= maxReplicas", f"{WORKERS}.minReplicas", 9),
    job(OPERATOR, "ttlSecondsAfterFinished is negative", "spec.ttlSecondsAfterFinished", -1),
    job(OPERATOR, "longer than 47", "metadata.name", "p" * 48),
    job(OPERATOR, "no DNS label", "metadata.name", "8-gpus"),
    job(OPERATOR, "without shutdownAfterJobFinishes", "spec.shutdownAfterJobFinishes", False),
    job(OPERATOR, "SidecarMode with submitterPodTemplate", "spec.submissionMode", "SidecarMode"),
    job(OPERATOR, "InteractiveMode with backoffLimit", "spec.submissionMode", "InteractiveMode"),
    job(OPERATOR, "neither rayClusterSpec", "spec.rayClusterSpec", GONE),
    job(OPERATOR, "clusterSelector names no cluster", "spec.clusterSelector", {"a": "b"}),
    job(OPERATOR, "activeDeadlineSeconds is not positive", "spec.activeDeadlineSeconds", 0),
    job(OPERATOR, "backoffLimit is negative", "spec.backoffLimit", -1),
    job(OPERATOR, "deletionRules beside", "spec.deletionStrategy", RULES),
    job(OPERATOR, "two deletionRules", "spec.deletionStrategy", {"deletionRules": [RULE, RULE]}),
    job(OPERATOR, "the whole before", "spec.deletionStrategy", {"deletionRules": [RULE, EARLY]}),
    job(OPERATOR, "not all strings", f"{HEAD}.rayStartParams.num-cpus", 0),
    job(OPERATOR, "beside them", f"{HEAD}.resources", {"CPU": "1"}),
    job(OPERATOR, "labels stand in", f"{HEAD}.rayStartParams.labels", "a=b"),
    job(OPERATOR, "needs a rayVersion of 2.52", "spec.rayClusterSpec.rayVersion", "2.51.0"),
    job(
        *(OPERATOR, "without gcsFaultToleranceOptions", f"{HEAD}.{RAY}.env"),
        plus({"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}),
    ),
    job(OPERATOR, "one name", "spec.rayClusterSpec.workerGroupSpecs", lambda groups: groups * 2),
    cluster(OPERATOR, "which needs Never", f"spec.headGroupSpec.{POD}.restartPolicy", "Always"),
    cluster(OPERATOR, "suspended under autoscaling", "spec.workerGroupSpecs.0.suspend", True),
    cluster(OPERATOR, "longer than 53", "metadata.name", "p" * 54),
    # the namespace, and pods at its level
    platform(
        *(NAMESPACE, "enforce is baseline", "Namespace"),
        *(
            "metadata.labels",
            lambda labels: labels | {"pod-security.kubernetes.io/enforce": "baseline"},
        ),
    ),
    platform(
        *(NAMESPACE, "enforce-version is not pinned", "Namespace", "metadata.labels"),
        lambda labels: labels | {"pod-security.kubernetes.io/enforce-version": "latest"},
    ),
    platform(NAMESPACE, "is not in paft", "Service", "metadata.namespace", "default"),
    job(RESTRICTED, "hostNetwork", f"{WORKERS}.{POD}.hostNetwork", True),
    job(
        *(RESTRICTED, "is of kind hostPath", f"{WORKERS}.{POD}.volumes"),
        plus({"name": "host", "hostPath": {"path": "/"}}),
    ),
    job(RESTRICTED, "not root", f"{HEAD}.{POD}.securityContext.runAsUser", 0),
    job(
        RESTRICTED,
        "seccompProfile",
        "spec.submitterPodTemplate.spec.securityContext.seccompProfile",
        GONE,
    ),
    job(RESTRICTED, "wait-gcs-ready: may gain", f"{WORKERS}.{RAY}.securityContext", {}),
    job(RESTRICTED, "may run as root", f"{HEAD}.{RAY}.securityContext.runAsUser", 0),
    job(
        *(RESTRICTED, "all capabilities", f"{WORKERS}.{RAY}.securityContext.capabilities"),
        {"drop": ["ALL"], "add": ["SYS_PTRACE"]},
    ),
    platform(
        *(RESTRICTED, "can write to its root", "Deployment"),
        *(f"spec.{RAY}.securityContext.readOnlyRootFilesystem", False),
    ),
    cluster(RESTRICTED, "autoscaler: may gain", "spec.autoscalerOptions.securityContext", GONE),
    job(WRITABLE, "nothing is mounted at /tmp", f"{WORKERS}.{RAY}.volumeMounts", without("tmp")),
    job(WRITABLE, "which is no volume", f"{WORKERS}.{POD}.volumes", without("models")),
    job(WRITABLE, "has no sizeLimit", SHM_SIZE, GONE),
    # who may do what
    job("ray_asks_for_a_token", "is not token", "spec.rayClusterSpec.authOptions", GONE),
    cluster("ray_asks_for_a_token", "is not token", "spec.authOptions.mode", "disabled"),
    job(
        *("ray_asks_for_a_token", "sets RAY_AUTH_MODE", f"{WORKERS}.{RAY}.env"),
        plus({"name": "RAY_AUTH_MODE", "value": "disabled"}),
    ),
    job("images_are_pinned", "is not pinned", f"{HEAD}.{RAY}.image", "paft:latest"),
    job("images_are_pinned", "is not pinned", f"{HEAD}.{RAY}.image", "registry:5000/paft"),
    cluster("images_are_pinned", "different images", "spec.autoscalerOptions.image", "ray:2.60.0"),
    Mutation(
        *(RESOURCES, "requests are not its limits", GPU, "RayJob"),
        *(f"{WORKERS}.{RAY}.resources.requests.cpu", "4"),
    ),
    Mutation(RESOURCES, "does not tolerate", GPU, "RayJob", f"{WORKERS}.{POD}.tolerations", []),
    Mutation(
        *(RESOURCES, "does not set NCCL_SOCKET_IFNAME", GPU, "RayJob"),
        *(f"{WORKERS}.{RAY}.env", without("NCCL_SOCKET_IFNAME")),
    ),
    job(RESOURCES, "cpu is not both", f"{HEAD}.{RAY}.resources.limits.cpu", GONE),
    job(RESOURCES, "less memory than its limit", f"{HEAD}.{RAY}.resources.limits.memory", "9Gi"),
    job(
        SHM,
        "half of the memory",
        f"{WORKERS}.{POD}.volumes.2.emptyDir.sizeLimit",
        "4Gi",
    ),
    job(
        SHM,
        "half of the memory",
        f"{WORKERS}.rayStartParams.object-store-memory",
        "3e9",
    ),
    job(
        SHM,
        "not a bounded volume",
        f"{WORKERS}.{RAY}.volumeMounts",
        without("shm"),
    ),
    platform("nothing_is_exposed", "not ClusterIP only", "Service", "spec.type", "LoadBalancer"),
    platform("nothing_is_exposed", "exposes", "Service", "kind", "Ingress"),
    job("nothing_is_exposed", "the head's service", f"{HEAD}.serviceType", "NodePort"),
    job("nothing_is_exposed", "the head's service", f"{HEAD}.enableIngress", True),
    job("nothing_is_exposed", "hostPort", f"{HEAD}.{RAY}.ports.1.hostPort", 8265),
    platform(SECRETS, "a secret in a manifest", CLAIM, "kind", "Secret"),
    Mutation(
        *(SECRETS, "looks like a secret", CLUSTER, "ConfigMap", "data"),
        {"mlflow.ini": "[mlflow]\nadmin_password = hunter2"},
    ),
    job(SECRETS, "does not come by secretKeyRef", f"{WORKERS}.{RAY}.env", plus(LITERAL)),
    job(SECRETS, "no documented key", f"{WORKERS}.{RAY}.env", plus(OTHER_KEY)),
    job(SECRETS, "takes whole objects", f"{HEAD}.{RAY}.envFrom", [{"secretRef": {"name": "a"}}]),
    job(RESTRICTED, "is of kind secret", f"{HEAD}.{POD}.volumes", plus(MOUNTED)),
    platform(
        TOKENS,
        "its token is mounted",
        ACCOUNT,
        "automountServiceAccountToken",
        GONE,
    ),
    job(TOKENS, "the pod mounts a token", f"{HEAD}.{POD}.automountServiceAccountToken", True),
    cluster(TOKENS, "has a token", f"spec.headGroupSpec.{RAY}.volumeMounts", plus(TOKEN_MOUNT)),
    cluster(
        TOKENS,
        "needs the token",
        "spec.autoscalerOptions.volumeMounts",
        without("kubernetes-token"),
    ),
    job("one_ray_version", "not that of constraints", "spec.rayClusterSpec.rayVersion", "2.59.0"),
    # how a job lives and ends
    job("the_head_only_drives", "offers CPUs", f"{HEAD}.rayStartParams.num-cpus", "2"),
    job("the_head_only_drives", "entrypointNumCpus", "spec.entrypointNumCpus", 1),
    job(ENDS, "no backoffLimit", "spec.backoffLimit", 0),
    job(ENDS, "no activeDeadlineSeconds", "spec.activeDeadlineSeconds", GONE),
    job(ENDS, "its cluster stays", "spec.shutdownAfterJobFinishes", GONE),
    job(ENDS, "not on a claim", "spec.entrypoint", lambda e: e.replace("=/storage", "=/tmp")),
    job(ENDS, "no service of these", "spec.entrypoint", lambda e: e.replace("mlflow:", "mlfow:")),
    job(LEAVE, "goes without a word", f"{WORKERS}.{RAY}.lifecycle", GONE),
    job(LEAVE, "is killed while", f"{WORKERS}.{POD}.terminationGracePeriodSeconds", 30),
    job(LEAVE, "less than a minute", f"{HEAD}.{RAY}.env", without("RAY_JOB_STOP_WAIT_TIME_S")),
    job(
        *(MET, "no ConfigMap paft-config"),
        *(f"{HEAD}.{POD}.volumes.0.configMap.name", "paft-config"),
    ),
    job(
        MET,
        "no ServiceAccount default",
        f"{HEAD}.{POD}.serviceAccountName",
        "default",
    ),
    platform(MET, "Claim mlflow", CLAIM, "metadata.name", "x"),
    # what stands around it
    platform(NETWORK, "to another namespace is open", NODES, "spec.egress", [{}]),
    platform(
        NETWORK,
        "cloud metadata's TLS is open",
        NODES,
        "spec.egress",
        plus(TO_ALL),
    ),
    platform(
        NETWORK,
        "the dashboard is open",
        DASHBOARD,
        "spec.ingress",
        plus(FROM_ALL),
    ),
    platform(
        NETWORK,
        "any other pod is open",
        DENY,
        "spec.policyTypes",
        ["Egress"],
    ),
    platform(NETWORK, "to MLflow is closed", "NetworkPolicy ray-to-mlflow", "spec.egress", []),
    platform(NETWORK, "to DNS is closed", DNS, "spec.egress.0.ports", [{"port": 54}]),
    platform(
        *(NETWORK, "the operator to the dashboard is closed", DASHBOARD),
        *("spec.ingress.0.from", lambda peers: peers[:1]),
    ),
    platform(
        BUDGETS,
        "no number of pods",
        "PodDisruptionBudget",
        "spec.minAvailable",
        "50%",
    ),
    platform(
        *(BUDGETS, "budgets keep", "PodDisruptionBudget"),
        *("spec.selector.matchLabels", {"app.kubernetes.io/part-of": "paft"}),
    ),
    platform(SERVER, "two servers", "Deployment", "spec.replicas", 2),
    platform(SERVER, "two servers", "Deployment", "spec.strategy.type", "RollingUpdate"),
    platform(SERVER, "nobody makes the user", "Deployment", f"spec.{RAY}.lifecycle", GONE),
    platform(SERVER, "no password", "Deployment", ARGUMENTS, lambda a: a[:-2] + a[-1:]),
    platform(SERVER, "does not answer to", "Deployment", ARGUMENTS, lambda a: a[:-1]),
    platform(
        *(SERVER, "any host name", "Deployment", ARGUMENTS),
        lambda arguments: [*arguments[:-1], arguments[-1] + ",*"],
    ),
    platform(
        *(SERVER, "does not look at host names", "Deployment", ARGUMENTS),
        plus("--disable-security-middleware"),
    ),
    Mutation(SCALING, "not suspended", QUEUE, "RayJob", "spec.suspend", False),
    Mutation(
        *(SCALING, "scales itself", QUEUE, "RayJob"),
        *("spec.rayClusterSpec.enableInTreeAutoscaling", True),
    ),
    cluster(SCALING, "idle timeout", "spec.autoscalerOptions.idleTimeoutSeconds", GONE),
    cluster(SCALING, "nothing to scale", "spec.workerGroupSpecs.0.maxReplicas", 0),
)
