"""The columns ``get`` prints for each kind, after kubectl's printers.

Source: kubernetes ``pkg/printers/internalversion/printers.go``. A kind without columns of its own gets
NAME and AGE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from testbed.objects.grace import TERMINAL

Object = dict[str, Any]
Columns = tuple[Sequence[str], Callable[[Object], Sequence[object]]]


def age(obj: Object, now: datetime | None = None) -> str:
    """How long ago an object was made."""
    created = obj["metadata"].get("creationTimestamp")
    if not created:
        return "<unknown>"
    made = datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return human_duration(((now or datetime.now(UTC)) - made).total_seconds())


def human_duration(duration: float) -> str:
    """Seconds in ``5d3h`` style (apimachinery ``duration.HumanDuration``)."""
    seconds = max(0, int(duration))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m" + (f"{seconds % 60}s" if seconds % 60 else "")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    return f"{days}d" + (f"{hours % 24}h" if days < 8 and hours % 24 else "")


def _pod(pod: Object) -> Sequence[object]:
    status = pod.get("status", {})
    containers = status.get("containerStatuses") or ()
    sidecars = _sidecars(pod)
    ready = sum(bool(entry.get("ready")) and "running" in (entry.get("state") or {}) for entry in containers)
    ready += sum(
        bool(entry.get("ready") and entry.get("started"))
        for entry in status.get("initContainerStatuses") or ()
        if entry.get("name") in sidecars
    )
    total = len(pod["spec"].get("containers") or ()) + len(sidecars)
    restarts = sum(entry.get("restartCount", 0) for entry in containers)
    return [f"{ready}/{total}", pod_status(pod), restarts, age(pod)]


def _sidecars(pod: Object) -> set[str]:
    """The init containers that go on running."""
    initial = pod["spec"].get("initContainers") or ()
    return {entry["name"] for entry in initial if entry.get("restartPolicy") == "Always"}


def pod_status(pod: Object) -> str:
    """What kubectl prints of a pod under STATUS. Source: ``pkg/printers/internalversion/printers.go``
    (printPod)."""
    status = pod.get("status", {})
    phase = status.get("phase", "Pending")
    conditions = {entry["type"]: entry for entry in status.get("conditions") or ()}
    reason = status.get("reason") or phase
    if conditions.get("PodScheduled", {}).get("reason") == "SchedulingGated":
        reason = "SchedulingGated"
    initializing = _initializing(pod)
    reason = initializing or reason
    if not initializing or _is_true(conditions, "Initialized"):
        running = False
        for entry in reversed(status.get("containerStatuses") or ()):
            state = entry.get("state") or {}
            reason = (state.get("waiting") or {}).get("reason") or _ended(state) or reason
            running |= "running" in state and bool(entry.get("ready"))
        if reason == "Completed" and running:
            reason = "Running" if _is_true(conditions, "Ready") else "NotReady"
    if "deletionTimestamp" in pod["metadata"]:
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if phase not in TERMINAL:
            return "Terminating"
    return str(reason)


def _is_true(conditions: Mapping[str, Object], kind: str) -> bool:
    return bool(conditions.get(kind, {}).get("status") == "True")


def _initializing(pod: Object) -> str:
    """The word for the first init container that is neither over nor a sidecar that has started; "" where
    there is none."""
    total, sidecars = len(pod["spec"].get("initContainers") or ()), _sidecars(pod)
    for number, entry in enumerate(pod.get("status", {}).get("initContainerStatuses") or ()):
        state = entry.get("state") or {}
        started = entry.get("name") in sidecars and entry.get("started")
        if started or state.get("terminated", {}).get("exitCode") == 0:
            continue
        waiting = (state.get("waiting") or {}).get("reason", "")
        reason = _ended(state) or (waiting if waiting != "PodInitializing" else "")
        return f"Init:{reason or f'{number}/{total}'}"
    return ""


def _ended(state: Object) -> str:
    """How a container ended; "" for one that did not."""
    if "terminated" not in state:
        return ""
    ended = state["terminated"]
    if ended.get("reason"):
        return str(ended["reason"])
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"


def _pod_wide(pod: Object) -> Sequence[object]:
    status = pod.get("status", {})
    node = pod["spec"].get("nodeName") or "<none>"
    return [*_pod(pod), status.get("podIP") or "<none>", node]


def _node(node: Object) -> Sequence[object]:
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node.get("status", {}).get("conditions") or ()
    )
    text = "Ready" if ready else "NotReady"
    if node.get("spec", {}).get("unschedulable"):
        text += ",SchedulingDisabled"
    return [text, age(node)]


def _node_wide(node: Object) -> Sequence[object]:
    addresses = [
        entry["address"]
        for entry in node.get("status", {}).get("addresses") or ()
        if entry["type"] == "InternalIP"
    ]
    cidrs = node.get("spec", {}).get("podCIDRs") or ()
    zone = (node["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone", "<none>")
    return [*_node(node), ",".join(addresses) or "<none>", ",".join(cidrs) or "<none>", zone]


def _deployment(obj: Object) -> Sequence[object]:
    status = obj.get("status", {})
    return [
        f"{status.get('readyReplicas', 0)}/{obj['spec'].get('replicas', 1)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        age(obj),
    ]


def _replica_set(obj: Object) -> Sequence[object]:
    status = obj.get("status", {})
    return [
        obj["spec"].get("replicas", 1),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        age(obj),
    ]


def _stateful_set(obj: Object) -> Sequence[object]:
    return [f"{obj.get('status', {}).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 1)}", age(obj)]


def _daemon_set(obj: Object) -> Sequence[object]:
    status = obj.get("status", {})
    selector = obj["spec"]["template"]["spec"].get("nodeSelector") or {}
    return [
        status.get("desiredNumberScheduled", 0),
        status.get("currentNumberScheduled", 0),
        status.get("numberReady", 0),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        ",".join(f"{key}={value}" for key, value in selector.items()) or "<none>",
        age(obj),
    ]


def _service(obj: Object) -> Sequence[object]:
    spec = obj["spec"]
    ports = [
        f"{port['port']}" + (f":{port['nodePort']}" if port.get("nodePort") else "") + f"/{port['protocol']}"
        for port in spec.get("ports") or ()
    ]
    outside = [
        entry.get("ip", "") for entry in obj.get("status", {}).get("loadBalancer", {}).get("ingress", ())
    ]
    if spec.get("type") == "ExternalName":
        external = spec.get("externalName", "<none>")
    else:
        pending = "<pending>" if spec.get("type") == "LoadBalancer" else "<none>"
        external = ",".join([*outside, *(spec.get("externalIPs") or ())]) or pending
    return [
        spec.get("type", "ClusterIP"),
        spec.get("clusterIP") or "<none>",
        external,
        ",".join(ports) or "<none>",
        age(obj),
    ]


def _endpoint_slice(obj: Object) -> Sequence[object]:
    """Source: kubernetes ``pkg/printers/internalversion/printers.go``, printEndpointSlice."""
    ports = [str(port.get("port") or "*") for port in obj.get("ports") or ()]
    addresses = [address for endpoint in obj.get("endpoints") or () for address in endpoint["addresses"]]
    return [obj["addressType"], _first_three(ports), _first_three(addresses), age(obj)]


def _first_three(words: Sequence[str]) -> str:
    more = f" + {len(words) - 3} more..." if len(words) > 3 else ""
    return ",".join(words[:3]) + more or "<unset>"


def _namespace(obj: Object) -> Sequence[object]:
    return [obj.get("status", {}).get("phase", "Active"), age(obj)]


def _network_policy(obj: Object) -> Sequence[object]:
    labels = obj["spec"].get("podSelector", {}).get("matchLabels") or {}
    return [",".join(f"{key}={value}" for key, value in labels.items()) or "<none>", age(obj)]


def _cluster_policy(obj: Object) -> Sequence[object]:
    return [obj["spec"]["tier"], obj["spec"]["priority"], age(obj)]


def _admin_policy(obj: Object) -> Sequence[object]:
    return [obj["spec"]["priority"], age(obj)]


def _event(obj: Object) -> Sequence[object]:
    involved = obj.get("involvedObject") or {}
    return [
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{involved.get('kind', '').lower()}/{involved.get('name', '')}",
        obj.get("message", ""),
    ]


def _plain(obj: Object) -> Sequence[object]:
    return [age(obj)]


_POD = ("READY", "STATUS", "RESTARTS", "AGE")
_COLUMNS: dict[str, Columns] = {
    "Pod": (_POD, _pod),
    "Node": (("STATUS", "AGE"), _node),
    "Deployment": (("READY", "UP-TO-DATE", "AVAILABLE", "AGE"), _deployment),
    "ReplicaSet": (("DESIRED", "CURRENT", "READY", "AGE"), _replica_set),
    "StatefulSet": (("READY", "AGE"), _stateful_set),
    "DaemonSet": (
        ("DESIRED", "CURRENT", "READY", "UP-TO-DATE", "AVAILABLE", "NODE SELECTOR", "AGE"),
        _daemon_set,
    ),
    "Service": (("TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"), _service),
    "EndpointSlice": (("ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"), _endpoint_slice),
    "Namespace": (("STATUS", "AGE"), _namespace),
    "NetworkPolicy": (("POD-SELECTOR", "AGE"), _network_policy),
    "ClusterNetworkPolicy": (("TIER", "PRIORITY", "AGE"), _cluster_policy),
    "AdminNetworkPolicy": (("PRIORITY", "AGE"), _admin_policy),
    "Event": (("TYPE", "REASON", "OBJECT", "MESSAGE"), _event),
}
_WIDE: dict[str, Columns] = {
    "Pod": ((*_POD, "IP", "NODE"), _pod_wide),
    "Node": (("STATUS", "AGE", "INTERNAL-IP", "POD-CIDR", "ZONE"), _node_wide),
}


def columns(kind: str, *, wide: bool = False) -> Columns:
    """The headers after NAME and the cells of an object."""
    if wide and kind in _WIDE:
        return _WIDE[kind]
    return _COLUMNS.get(kind, (("AGE",), _plain))
