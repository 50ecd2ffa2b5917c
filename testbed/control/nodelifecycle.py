"""A node's life as the control plane sees it: conditions, the taints they bring, who has to leave. Pure.

Sources: kubernetes v1.36 ``pkg/controller/nodelifecycle/node_lifecycle_controller.go``,
``pkg/controller/tainteviction/taint_eviction.go``, ``pkg/kubelet/nodestatus/setters.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from testbed.control.podstatus import timestamp
from testbed.control.scheduler import tolerates

Object = dict[str, Any]

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
STOPPED = "Kubelet stopped posting node status."
UNWIRED = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
    "message:Network plugin returns error: cni plugin not initialized"
)
"""What a kubelet says where there is no CNI configuration (``pkg/kubelet/runtime.go``; containerd)."""

CLOCKS: dict[str, float] = {
    "nodeStatusUpdateFrequency": 10.0,
    "nodeMonitorPeriod": 5.0,
    "nodeMonitorGracePeriod": 50.0,
}
"""Seconds, the defaults of kubelet and kube-controller-manager; ``spec.kubelet`` overrides them."""

_HEALTHY = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


# --- conditions ---------------------------------------------------------------------------------------


def conditions(
    old: Sequence[Object], alive: bool, heard: float, now: float, network: str = ""
) -> list[Object]:
    """A node's conditions: as its kubelet posts them, or all Unknown once it has stopped.

    heard: when it last said something; now: seconds since 1970, too; network: why its runtime has none.
    Those of others are kept.
    """
    found = {entry["type"]: entry for entry in old}
    new = []
    for kind, status, reason, message in _HEALTHY:
        if not alive:
            status, reason, message = "Unknown", "NodeStatusUnknown", STOPPED
        elif kind == "Ready" and network:
            status, reason, message = "False", "KubeletNotReady", network
        before = found.pop(kind, {})
        same = before.get("status") == status and "lastTransitionTime" in before
        new.append(
            {
                "type": kind,
                "status": status,
                "lastHeartbeatTime": timestamp(heard),
                "lastTransitionTime": before["lastTransitionTime"] if same else timestamp(now),
                "reason": reason,
                "message": message,
            }
        )
    return [*new, *found.values()]


def ready(node: Object) -> str:
    """The status of the node's Ready condition; ``""`` where it has none."""
    found = (node.get("status") or {}).get("conditions") or ()
    return next((str(entry["status"]) for entry in found if entry["type"] == "Ready"), "")


# --- taints -------------------------------------------------------------------------------------------


def taints(node: Object, now: float) -> list[Object]:
    """The node's taints with those its Ready condition asks for, and without those it no longer does."""
    key = {"False": NOT_READY, "Unknown": UNREACHABLE}.get(ready(node))
    current = (node.get("spec") or {}).get("taints") or []
    kept = [taint for taint in current if taint["key"] not in (NOT_READY, UNREACHABLE) or taint["key"] == key]
    if key is None:
        return kept
    there = {taint["effect"] for taint in kept if taint["key"] == key}
    return kept + [
        {"key": key, "effect": effect, "timeAdded": timestamp(now)}
        for effect in ("NoSchedule", "NoExecute")
        if effect not in there
    ]


def evicting(node: Object) -> list[Object]:
    """The taints that make pods leave."""
    return [taint for taint in (node.get("spec") or {}).get("taints") or () if taint["effect"] == "NoExecute"]


def eviction_time(pod: Object, found: Sequence[Object], now: float) -> float | None:
    """When a pod has to leave a node with these NoExecute taints (seconds since 1970); None: never.

    A taint that is not tolerated evicts at once; of several tolerationSeconds the least counts, from the
    moment the last of the taints came (one without ``timeAdded`` comes now).
    """
    if not found:
        return None
    tolerations = pod["spec"].get("tolerations") or ()
    used = []
    for taint in found:
        fitting = [toleration for toleration in tolerations if tolerates(toleration, taint)]
        if not fitting:
            return now
        used += fitting
    limits = [
        max(0.0, float(item["tolerationSeconds"]))
        for item in used
        if item.get("tolerationSeconds") is not None
    ]
    if not limits:
        return None
    added = [parse_time(taint["timeAdded"]) if taint.get("timeAdded") else now for taint in found]
    return max(added) + min(limits)


def parse_time(text: str) -> float:
    """A time as the API prints it, as seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
