"""What the API server fills in where an object leaves a field out.

``fill`` walks an object by its schema; the table says what each type of value gets, whatever holds it: a
container is a container in a Pod and in a Deployment's template. ``complete`` adds what only a whole new
object gets. Recorded from a real server; sources: ``pkg/apis/*/v1/defaults.go``, the admission plugins
ServiceAccount, DefaultTolerationSeconds and Priority.
"""

from __future__ import annotations

import copy
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

from testbed.objects import schema
from testbed.objects.kinds import Object

_VOLUME_MODE = 0o644
ROOT_CA = "kube-root-ca.crt"
"""The ConfigMap of every namespace with the API server's certificate authority."""

NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""Letters of generated names: no vowels, no look-alikes (``apimachinery/pkg/util/rand``)."""

_RBAC = "rbac.authorization.k8s.io"

STATIC: dict[str, Object] = {
    "core.v1.PodSpec": {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 30,
        "schedulerName": "default-scheduler",
        "securityContext": {},
    },
    "core.v1.Container": {
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    },
    "core.v1.ContainerPort": {"protocol": "TCP"},
    "core.v1.Probe": {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
    "core.v1.HTTPGetAction": {"path": "/", "scheme": "HTTP"},
    "core.v1.GRPCAction": {"service": ""},
    "core.v1.ObjectFieldSelector": {"apiVersion": "v1"},
    "core.v1.ConfigMapVolumeSource": {"defaultMode": _VOLUME_MODE},
    "core.v1.SecretVolumeSource": {"defaultMode": _VOLUME_MODE},
    "core.v1.DownwardAPIVolumeSource": {"defaultMode": _VOLUME_MODE},
    "core.v1.ProjectedVolumeSource": {"defaultMode": _VOLUME_MODE},
    "core.v1.ServiceAccountTokenProjection": {"expirationSeconds": 3600},
    "core.v1.HostPathVolumeSource": {"type": ""},
    "core.v1.PersistentVolumeClaimSpec": {"volumeMode": "Filesystem"},
    "core.v1.PersistentVolumeSpec": {"volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Retain"},
    "core.v1.ReplicationControllerSpec": {"replicas": 1},
    "core.v1.ServicePort": {"protocol": "TCP"},
    "core.v1.ServiceSpec": {"type": "ClusterIP", "sessionAffinity": "None"},
    "core.v1.NamespaceSpec": {"finalizers": ["kubernetes"]},
    "core.v1.Secret": {"type": "Opaque"},
    "apps.v1.DeploymentSpec": {
        "replicas": 1,
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
        "strategy": {"type": "RollingUpdate"},
    },
    "apps.v1.RollingUpdateDeployment": {"maxSurge": "25%", "maxUnavailable": "25%"},
    "apps.v1.ReplicaSetSpec": {"replicas": 1},
    "apps.v1.StatefulSetSpec": {
        "replicas": 1,
        "revisionHistoryLimit": 10,
        "podManagementPolicy": "OrderedReady",
        "updateStrategy": {"type": "RollingUpdate"},
        "persistentVolumeClaimRetentionPolicy": {},
    },
    "apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy": {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    },
    "apps.v1.RollingUpdateStatefulSetStrategy": {"partition": 0},
    "apps.v1.DaemonSetSpec": {"revisionHistoryLimit": 10, "updateStrategy": {"type": "RollingUpdate"}},
    "apps.v1.RollingUpdateDaemonSet": {"maxSurge": 0, "maxUnavailable": 1},
    "batch.v1.JobSpec": {
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "manualSelector": False,
        "podReplacementPolicy": "TerminatingOrFailed",
        "suspend": False,
    },
    "batch.v1.CronJobSpec": {
        "concurrencyPolicy": "Allow",
        "suspend": False,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 1,
    },
    "autoscaling.v1.HorizontalPodAutoscalerSpec": {"minReplicas": 1},
    "autoscaling.v2.HorizontalPodAutoscalerSpec": {"minReplicas": 1},
    "discovery.v1.Endpoint": {"conditions": {}},
    "discovery.v1.EndpointPort": {"name": "", "protocol": "TCP"},
    "core.v1.EndpointPort": {"protocol": "TCP"},
    "networking.v1.NetworkPolicySpec": {"podSelector": {}},
    "networking.v1.NetworkPolicyPort": {"protocol": "TCP"},
    "rbac.v1.RoleRef": {"apiGroup": _RBAC},
    "scheduling.v1.PriorityClass": {"preemptionPolicy": "PreemptLowerPriority"},
    "storage.v1.StorageClass": {"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"},
}
"""Type → what a value of it gets where the field is absent; a struct among these is filled in turn."""


def fill(obj: Object) -> None:
    """Fill in the defaults of every value in ``obj``, in place: it must be the caller's own copy."""
    _fill(schema.type_of(obj["apiVersion"], obj["kind"]), obj)


def _fill(notation: str, value: Any) -> None:
    if schema.is_struct(notation):
        for name, default in STATIC.get(notation, {}).items():
            if name not in value:
                value[name] = copy.deepcopy(default)
        if computed := _COMPUTED.get(notation):
            computed(value)
        fields = schema.struct(notation).fields
        for name, item in value.items():
            _fill(fields[name], item)
    elif (items := schema.list_of(notation)) is not None:
        for item in value:
            _fill(items[1], item)
    elif (values := schema.map_of(notation)) and schema.is_struct(values):
        for item in value.values():
            _fill(values, item)


def _pod_spec(spec: Object) -> None:
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for constraint in spec.get("topologySpreadConstraints", ()):
        constraint.setdefault("whenUnsatisfiable", "DoNotSchedule")


def _container(container: Object) -> None:
    image = container.get("image", "")
    tag = image.rpartition("/")[2].partition(":")[2]
    always = "@" not in image and tag in ("", "latest")
    container.setdefault("imagePullPolicy", "Always" if always else "IfNotPresent")


def _volume(volume: Object) -> None:
    if not volume.keys() - {"name"}:
        volume["emptyDir"] = {}


def _service_port(port: Object) -> None:
    if port.get("targetPort") in (None, 0, "") and "port" in port:
        port["targetPort"] = port["port"]


def _service(spec: Object) -> None:
    if spec["sessionAffinity"] == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        config.setdefault("timeoutSeconds", 10800)
    elif spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    if spec["type"] in ("ClusterIP", "NodePort", "LoadBalancer"):
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer") or (
        spec["type"] == "ClusterIP" and spec.get("externalIPs")
    ):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _rolling_update(strategy: Object) -> None:
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {})


def _job_spec(spec: Object) -> None:
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)


def _network_policy(spec: Object) -> None:
    spec.setdefault("policyTypes", ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])


def _replication_controller(controller: Object) -> None:
    spec = controller.get("spec") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if labels:
        spec.setdefault("selector", dict(labels))
        controller["metadata"].setdefault("labels", dict(labels))


def _daemon_set(daemon_set: Object) -> None:
    annotations = daemon_set["metadata"].setdefault("annotations", {})
    annotations["deprecated.daemonset.template.generation"] = "1"


def _claim_template(claim: Object) -> None:
    if "accessModes" in claim.get("spec", {}):
        claim.setdefault("status", {"phase": "Pending"})


def _secret(secret: Object) -> None:
    plain = secret.pop("stringData", {})
    if plain:
        encoded = {key: b64encode(value.encode()).decode() for key, value in plain.items()}
        secret["data"] = {**secret.get("data", {}), **encoded}


def _subject(subject: Object) -> None:
    if subject.get("kind") in ("User", "Group"):
        subject.setdefault("apiGroup", _RBAC)


_COMPUTED: dict[str, Callable[[Object], None]] = {
    "core.v1.PodSpec": _pod_spec,
    "core.v1.Container": _container,
    "core.v1.Volume": _volume,
    "core.v1.ServicePort": _service_port,
    "core.v1.ServiceSpec": _service,
    "core.v1.Secret": _secret,
    "core.v1.ReplicationController": _replication_controller,
    "core.v1.PersistentVolumeClaim": _claim_template,
    "apps.v1.DeploymentStrategy": _rolling_update,
    "apps.v1.StatefulSetUpdateStrategy": _rolling_update,
    "apps.v1.DaemonSetUpdateStrategy": _rolling_update,
    "apps.v1.DaemonSet": _daemon_set,
    "batch.v1.JobSpec": _job_spec,
    "networking.v1.NetworkPolicySpec": _network_policy,
    "rbac.v1.Subject": _subject,
}
"""Type → what depends on the value's other fields; runs after the static defaults, on its own copy."""


# --- a new object as a whole ------------------------------------------------------------------------------

TOLERATION_SECONDS = {"not-ready": 300, "unreachable": 300}
"""How long a pod stays on a node in that state: plugin DefaultTolerationSeconds, by its own defaults."""


def complete(obj: Object) -> Object:
    """A new object with what its kind adds at the top; shares with ``obj`` all that it does not change."""
    added = _COMPLETED.get(obj["kind"])
    return added(obj) if added else obj


def _pod(pod: Object) -> Object:
    spec = {
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "enableServiceLinks": True,
        "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        **pod["spec"],
    }
    spec["tolerations"] = _tolerations(spec.get("tolerations") or [])
    for field in ("containers", "initContainers"):
        if field in spec:
            spec[field] = [_with_requests(container) for container in spec[field]]
            if spec.get("hostNetwork"):
                spec[field] = [_with_host_ports(container) for container in spec[field]]
    if spec.get("automountServiceAccountToken", True):
        _mount_token(spec, pod["metadata"].get("uid", ""))
    status = pod.get("status") or {"phase": "Pending", "qosClass": _quality(spec)}
    return {**pod, "spec": spec, "status": status}


TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
TOKEN_VOLUME = "kube-api-access-"  # noqa: S105 - a name
_TOKEN_SOURCES: list[Object] = [
    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
    {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": ROOT_CA}},
    {
        "downwardAPI": {
            "items": [
                {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}, "path": "namespace"}
            ]
        }
    },
]


def _mount_token(spec: Object, uid: str) -> None:
    """The service account's token in every container that mounts nothing in its place.

    ``plugin/pkg/admission/serviceaccount`` draws the volume's last five letters; here they come from the
    pod's uid. Account objects that say not to mount it are not looked at.
    """
    volumes = spec.get("volumes") or []
    known = (volume["name"] for volume in volumes if volume["name"].startswith(TOKEN_VOLUME))
    name = next(known, "")
    if not name:
        name = TOKEN_VOLUME + letters_of(uid)
        projected = {"defaultMode": _VOLUME_MODE, "sources": _TOKEN_SOURCES}
        volumes = [*volumes, {"name": name, "projected": projected}]
    mount = {"name": name, "mountPath": TOKEN_PATH, "readOnly": True}
    for field in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            mounts = container.get("volumeMounts") or []
            if all(one["mountPath"] != TOKEN_PATH for one in mounts):
                spec[field][index] = {**container, "volumeMounts": [*mounts, mount]}
                spec["volumes"] = volumes


def letters_of(uid: str) -> str:
    """Five of the letters generated names end in, always the same ones for a uid."""
    number = int(uid.replace("-", "") or "0", 16)
    letters = ""
    for _ in range(5):
        number, index = divmod(number, len(NAME_LETTERS))
        letters += NAME_LETTERS[index]
    return letters


def tolerating(pod: Object, seconds: Mapping[str, int]) -> Object:
    """A pod that stays on a node in these states for so long, but for what it says itself."""
    spec = pod["spec"]
    return {**pod, "spec": {**spec, "tolerations": _tolerations(spec.get("tolerations") or [], seconds)}}


def _tolerations(given: list[Object], seconds: Mapping[str, int] = TOLERATION_SECONDS) -> list[Object]:
    def covered(wanted: Object) -> bool:
        return any(
            toleration.get("effect", "NoExecute") == "NoExecute"
            and toleration.get("key") in (None, "", wanted["key"])
            for toleration in given
        )

    wanted = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": limit,
        }
        for state, limit in seconds.items()
    ]
    return [*given, *(toleration for toleration in wanted if not covered(toleration))]


def _with_requests(container: Object) -> Object:
    """A container whose limits are its requests where it names none (SetDefaults_Pod)."""
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    if not limits.keys() - requests.keys():
        return container
    return {**container, "resources": {**resources, "requests": {**limits, **requests}}}


def _with_host_ports(container: Object) -> Object:
    """A container of a hostNetwork pod: each of its ports is the node's (SetHostNetworkPortsDefaults)."""
    if not container.get("ports"):
        return container
    ports = [
        {**port, "hostPort": port.get("hostPort") or port["containerPort"]} for port in container["ports"]
    ]
    return {**container, "ports": ports}


def _quality(spec: Object) -> str:
    """The quality-of-service class: ``pkg/apis/core/helper/qos``."""
    resources = [container.get("resources") or {} for container in spec.get("containers", ())]
    if not any(one.get("requests") or one.get("limits") for one in resources):
        return "BestEffort"
    for one in resources:
        limits = one.get("limits") or {}
        requests = {**limits, **(one.get("requests") or {})}
        if not {"cpu", "memory"} <= limits.keys() or any(
            requests[name] != limits[name] for name in ("cpu", "memory")
        ):
            return "Burstable"
    return "Guaranteed"


def _namespace(namespace: Object) -> Object:
    metadata = namespace["metadata"]
    labels = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata.get("name", "")}
    spec = namespace.get("spec") or {"finalizers": ["kubernetes"]}
    status = namespace.get("status") or {"phase": "Active"}
    return {**namespace, "metadata": {**metadata, "labels": labels}, "spec": spec, "status": status}


def _job(job: Object) -> Object:
    """Labels and the selector by which a job knows its pods (``pkg/registry/batch/job/strategy.go``)."""
    metadata, spec = job["metadata"], job["spec"]
    template = spec.get("template") or {}
    given = (template.get("metadata") or {}).get("labels") or {}
    made: Object = {}
    if not spec.get("manualSelector") and "selector" not in spec:
        prefix, uid = "batch.kubernetes.io/", metadata.get("uid", "")
        made = {f"{prefix}controller-uid": uid, f"{prefix}job-name": metadata.get("name", "")}
        made |= {"controller-uid": uid, "job-name": metadata.get("name", "")}
        labelled = {**(template.get("metadata") or {}), "labels": {**given, **made}}
        spec = {
            **spec,
            "selector": {"matchLabels": {f"{prefix}controller-uid": uid}},
            "template": {**template, "metadata": labelled},
        }
    labels = metadata.get("labels") or given or made  # SetDefaults_Job; the last one on the way out of etcd
    if labels:
        metadata = {**metadata, "labels": labels}
    return {**job, "metadata": metadata, "spec": spec, "status": job.get("status") or {}}


def _with_status(status: Object) -> Callable[[Object], Object]:
    def add(obj: Object) -> Object:
        return obj if "status" in obj else {**obj, "status": status}

    return add


_COMPLETED: dict[str, Callable[[Object], Object]] = {
    "Pod": _pod,
    "Namespace": _namespace,
    "Service": _with_status({"loadBalancer": {}}),
    "Deployment": _with_status({}),
    "ReplicaSet": _with_status({"replicas": 0}),
    "ReplicationController": _with_status({"replicas": 0}),
    "StatefulSet": _with_status({"replicas": 0, "availableReplicas": 0}),
    "DaemonSet": _with_status(
        dict.fromkeys(
            ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"), 0
        )
    ),
    "Job": _job,
    "CronJob": _with_status({}),
    "Ingress": _with_status({"loadBalancer": {}}),
    "PersistentVolumeClaim": _with_status({"phase": "Pending"}),
    "PersistentVolume": _with_status({"phase": "Pending"}),
}
