"""Which node a pod goes to, and why it goes nowhere, in kube-scheduler's words.

Pure: pods, nodes and what runs on them in, a node's name out. Filters run in upstream's order and a node is
counted under the first that refuses it; of the nodes that remain the best by preferences wins, then the one
with the fewest pods, then the first. Nothing is preempted.
Sources: ``pkg/scheduler/framework/plugins``, ``pkg/scheduler/framework/types.go`` (FitError).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from testbed.control import scheduler_nodes
from testbed.control.scheduler_load import HostPort, NodeLoad, host_ports, requests, terms_of
from testbed.control.scheduler_nodes import tolerates
from testbed.control.scheduler_pods import Affinity, Matcher, Place, Spread
from testbed.objects.quantity import milli

__all__ = ["MAX_PODS", "NodeLoad", "Scheduler", "Unschedulable", "host_ports", "place", "tolerates"]

Object = dict[str, Any]

MAX_PODS = 110
"""The kubelet's default ``maxPods``."""

COMPONENT = "default-scheduler"

_CORDONED: Object = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
_TAINT_WEIGHT = 3
_OTHER_WEIGHT = 2
"""Weights of default plugins: ``pkg/scheduler/apis/config/v1/default_plugins.go``."""


class Unschedulable(Exception):
    """No node fits; the message is that of a FailedScheduling event."""


def place(pod: Object, nodes: Sequence[Object], loads: Mapping[str, NodeLoad]) -> str:
    """The name of the node for ``pod``; nodes: Node objects in order. Raises Unschedulable."""
    return Scheduler(nodes, loads).place(pod)


class _Node:
    """A node as filters read it."""

    def __init__(self, node: Object, load: NodeLoad) -> None:
        spec, status = node.get("spec") or {}, node.get("status") or {}
        self.name: str = node["metadata"]["name"]
        self.labels: Mapping[str, str] = node["metadata"].get("labels") or {}
        self.load = load
        self.cordoned = bool(spec.get("unschedulable"))
        taints = spec.get("taints") or ()
        self.hard = [taint for taint in taints if taint["effect"] in ("NoSchedule", "NoExecute")]
        self.soft = [taint for taint in taints if taint["effect"] == "PreferNoSchedule"]
        declared = status.get("allocatable") or {}
        self.room = {name: milli(value) for name, value in declared.items()}
        self.max_pods = self.room.pop("pods", MAX_PODS * 1000) // 1000
        self.place = Place(self.name, self.labels, self.hard, load)


class _Wish:
    """A pod as filters read it, and what it wants of others where it wants anything."""

    def __init__(self, pod: Object, places: Sequence[Place], matcher: Matcher, *, watched: bool) -> None:
        self.spec: Object = pod["spec"]
        self.tolerations: Sequence[Object] = self.spec.get("tolerations") or ()
        self.host_ports = host_ports(pod)
        self.requests = requests(pod)
        affinity = self.spec.get("affinity")
        self.picky = bool(self.spec.get("nodeSelector") or affinity)
        self.names = scheduler_nodes.named(self.spec) if affinity else None
        self.spread = self.prefers_spread = None
        if self.spec.get("topologySpreadConstraints"):
            self.spread = Spread(pod, places, "DoNotSchedule")
            self.prefers_spread = Spread(pod, places, "ScheduleAnyway")
        # What running pods want of others concerns every pod.
        self.affinity = Affinity(pod, places, matcher) if watched or (affinity and terms_of(pod)) else None


class Scheduler:
    """Places pods one after the other among the same nodes; loads are read anew for each.

    loads: node name → what runs there, kept up to date by the caller. namespaces: name → labels, for
    affinity that selects namespaces.
    """

    def __init__(
        self,
        nodes: Iterable[Object],
        loads: Mapping[str, NodeLoad],
        namespaces: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._nodes = [_Node(node, loads.get(node["metadata"]["name"]) or NodeLoad()) for node in nodes]
        self._places = [node.place for node in self._nodes]
        self._tainted = any(node.soft for node in self._nodes)
        self._matcher = Matcher(namespaces or {})

    def place(self, pod: Object) -> str:
        """The name of the node for ``pod``. Raises Unschedulable."""
        if not self._nodes:
            raise Unschedulable("no nodes available to schedule pods")
        watched = any(node.load.terms for node in self._nodes)
        wish = _Wish(pod, self._places, self._matcher, watched=watched)
        reasons: Counter[str] = Counter()
        helpless = 0
        fitting: list[_Node] = []
        for node in self._nodes:
            found, helped = _misfit(wish, node)
            if found:
                reasons.update(found)
                helpless += not helped
            else:
                fitting.append(node)
        if not fitting:
            raise Unschedulable(_words(wish.spec, len(self._nodes), reasons, helpless))
        return self._best(wish, fitting).name

    def _best(self, wish: _Wish, fitting: Sequence[_Node]) -> _Node:
        scores = self._scores(wish, fitting) if len(fitting) > 1 else None
        if scores is None:
            return min(fitting, key=lambda node: node.load.pods)
        ranked = sorted(zip(scores, fitting, strict=True), key=lambda entry: (-entry[0], entry[1].load.pods))
        return ranked[0][1]

    def _scores(self, wish: _Wish, fitting: Sequence[_Node]) -> list[int] | None:
        """Each node's points by preferences; None where nobody prefers anything."""
        parts: list[tuple[int, list[int]]] = []
        places = [node.place for node in fitting]
        if self._tainted:
            tolerations = [
                toleration
                for toleration in wish.tolerations
                if toleration.get("effect") in (None, "", "PreferNoSchedule")
            ]
            counts = [scheduler_nodes.untolerated(node.soft, tolerations) for node in fitting]
            most = max(counts)
            parts.append((_TAINT_WEIGHT, [100 - 100 * count // most if most else 100 for count in counts]))
        if wish.picky and scheduler_nodes.has_preference(wish.spec):
            points = [scheduler_nodes.preference(wish.spec, node.name, node.labels) for node in fitting]
            most = max(points)
            parts.append((_OTHER_WEIGHT, [100 * each // most if most else 0 for each in points]))
        if wish.prefers_spread:
            parts.append((_OTHER_WEIGHT, wish.prefers_spread.scores(places)))
        if wish.affinity is not None:
            parts.append((_OTHER_WEIGHT, wish.affinity.scores(places)))
        if not parts:
            return None
        return [sum(weight * points[i] for weight, points in parts) for i in range(len(fitting))]


def _misfit(wish: _Wish, node: _Node) -> tuple[Sequence[str], bool]:
    """Why a pod cannot be on a node, nothing if it can; and whether pods leaving it would help."""
    if wish.names is not None and node.name not in wish.names:
        return ("node(s) didn't satisfy plugin(s) [NodeAffinity]",), False
    if node.cordoned and not any(tolerates(toleration, _CORDONED) for toleration in wish.tolerations):
        return ("node(s) were unschedulable",), False
    if node.hard and scheduler_nodes.untolerated(node.hard, wish.tolerations):
        return ("node(s) had untolerated taint(s)",), False
    if wish.picky and not scheduler_nodes.matches(wish.spec, node.name, node.labels):
        return ("node(s) didn't match Pod's node affinity/selector",), False
    taken = node.load.host_ports
    if wish.host_ports and any(_conflicts(one, other) for one in wish.host_ports for other in taken):
        return ("node(s) didn't have free ports for the requested pod ports",), True
    if short := _short(wish, node):
        return short, all(need <= node.room.get(name, need) for name, need in wish.requests.items())
    if wish.spread:
        reason, helped = wish.spread.misfit(node.place)
        if reason:
            return (reason,), helped
    if wish.affinity is not None:
        reason, helped = wish.affinity.misfit(node.place)
        if reason:
            return (reason,), helped
    return (), True


def _short(wish: _Wish, node: _Node) -> list[str]:
    """What a node has too little of (``noderesources/fit.go``); only what it declares is counted."""
    found = ["Too many pods"] if node.load.pods >= node.max_pods else []
    if node.room:
        for name, need in wish.requests.items():
            if need and name in node.room and need > node.room[name] - node.load.requested[name]:
                found.append(f"Insufficient {name}")
    return found


def _conflicts(one: HostPort, other: HostPort) -> bool:
    any_address = "0.0.0.0"  # noqa: S104
    return (
        one[0] == other[0]
        and one[2] == other[2]
        and (one[1] == other[1] or any_address in (one[1], other[1]))
    )


def _words(spec: Object, nodes: int, reasons: Mapping[str, int], helpless: int) -> str:
    """FitError's message with what the PostFilter plugins add: dynamicresources, then defaultpreemption."""
    head = f"0/{nodes} nodes are available"
    if spec.get("preemptionPolicy") == "Never":
        preemption = "not eligible due to preemptionPolicy=Never."
    else:
        tried = {
            "Preemption is not helpful for scheduling": helpless,
            "No preemption victims found for incoming pod": nodes - helpless,
        }
        preemption = f"{head}: {_counted({reason: count for reason, count in tried.items() if count})}."
    return f"{head}: {_counted(reasons)}. no new claims to deallocate, preemption: {preemption}"


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
