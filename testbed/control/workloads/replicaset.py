"""ReplicaSet and ReplicationController: as many pods as wanted.

Sources: ``pkg/controller/replicaset/{replica_set,replica_set_utils}.go``, ``ActivePodsWithRanks`` of
``pkg/controller/controller_utils.go``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from testbed.control.workloads.common import (
    Object,
    Outcome,
    count_available,
    counts,
    is_active,
    is_finished,
    is_ready,
    pod_from,
    ready_since,
    seconds_of,
    timestamp,
    whole,
    with_condition,
    without_condition,
)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def replica_set(owner: Object, pods: Sequence[Object], now: float, failure: str = "") -> Outcome:
    """Create or delete what is missing or too many. pods: the owner's; failure: why creating one failed."""
    out = Outcome()
    wanted = owner["spec"].get("replicas", 1)
    active = [pod for pod in pods if is_active(pod)]
    if len(active) < wanted:
        out.create = [pod_from(owner["spec"]["template"], owner)] * (wanted - len(active))
    elif len(active) > wanted:
        out.delete = dispensable(active, now)[: len(active) - wanted]
    labels = (owner["spec"]["template"].get("metadata") or {}).get("labels") or {}
    ready = [pod for pod in active if is_ready(pod)]
    available = count_available(ready, owner["spec"].get("minReadySeconds", 0), now, out)
    complete = sum(labels.items() <= (pod["metadata"].get("labels") or {}).items() for pod in active)
    out.status = {
        "replicas": len(active),
        **counts(fullyLabeledReplicas=complete, readyReplicas=len(ready), availableReplicas=available),
        "observedGeneration": owner["metadata"].get("generation", 1),
    }
    if owner["kind"] == "ReplicaSet":
        out.status["terminatingReplicas"] = sum(not is_active(pod) and not is_finished(pod) for pod in pods)
    conditions = owner.get("status", {}).get("conditions") or []
    if failure:
        conditions = with_condition(conditions, _failed(failure, now))
    elif len(active) >= wanted:
        conditions = without_condition(conditions, "ReplicaFailure")
    if conditions:
        out.status["conditions"] = conditions
    return out


def _failed(message: str, now: float) -> Object:
    return {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": message,
        "lastTransitionTime": timestamp(now),
    }


def dispensable(pods: Sequence[Object], now: float) -> list[Object]:
    """The pods in the order in which they are given up.

    Without a node before with one, pending before running, not ready before ready, cheap ones
    (DELETION_COST) first, those on crowded nodes, those that became ready lately (by powers of two), those
    that restarted often, the youngest. Upstream counts the pods of all sets of a Deployment for the crowd.
    """
    crowd = Counter(pod["spec"].get("nodeName") for pod in pods)

    def key(pod: Object) -> tuple[Any, ...]:
        metadata, status = pod["metadata"], pod.get("status", {})
        node, ready = pod["spec"].get("nodeName"), is_ready(pod)
        return (
            bool(node),
            _PHASES.get(status.get("phase", "Pending"), 0),
            ready,
            _cost(metadata),
            -crowd[node],
            _magnitude(now - ready_since(pod)) if ready else 0,
            -max(
                (entry.get("restartCount", 0) for entry in status.get("containerStatuses") or ()), default=0
            ),
            _magnitude(now - seconds_of(metadata["creationTimestamp"])),
            metadata["uid"],
        )

    return sorted(pods, key=key)


def _cost(metadata: Object) -> int:
    return whole((metadata.get("annotations") or {}).get(DELETION_COST, ""))


def _magnitude(age: float) -> int:
    return math.frexp(age)[1] if age > 0 else -1
