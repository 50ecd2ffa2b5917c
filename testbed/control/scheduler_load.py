"""What runs on a node as the scheduler counts it (``NodeInfo`` of ``pkg/scheduler/framework/types.go``).

Pods are counted by namespace and labels: those of one workload look alike, so that asking how many match a
selector costs the workloads of a node and not its pods.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from testbed.objects.quantity import milli

Object = dict[str, Any]

HostPort = tuple[str, str, int]  # protocol, host address, port
Side = Literal["podAffinity", "podAntiAffinity"]


class Group(NamedTuple):
    """Pods that look alike to selectors."""

    namespace: str
    labels: tuple[tuple[str, str], ...]
    terminating: bool = False


class Term(NamedTuple):
    """One term of pod (anti-)affinity as a value: selectors as JSON text, weight 0 where it is required."""

    side: Side
    weight: int
    topology_key: str
    selector: str
    namespaces: frozenset[str]
    namespace_selector: str


class _Counted(NamedTuple):
    group: Group
    host_ports: frozenset[HostPort]
    requests: Mapping[str, int]
    terms: tuple[Term, ...]


@dataclass
class NodeLoad:
    """The pods of a node, in sums. requested: resource → thousandths; terms: what its pods want of others.

    version: grows with every change of what is counted.
    """

    pods: int = 0
    host_ports: Counter[HostPort] = field(default_factory=Counter)
    requested: Counter[str] = field(default_factory=Counter)
    groups: Counter[Group] = field(default_factory=Counter)
    terms: Counter[Term] = field(default_factory=Counter)
    version: int = 0
    _counted: dict[str, _Counted] = field(default_factory=dict)
    _seen: dict[str, Object] = field(default_factory=dict)

    def put(self, pod: Object) -> None:
        """Count a pod that is on the node, or count it as it is now; one that has ended counts no more."""
        uid = pod["metadata"]["uid"]
        seen = self._seen.get(uid)
        if seen is not None and _looks_alike(seen, pod):
            return
        self.drop(uid)
        if _has_ended(pod):
            return
        self._seen[uid] = pod
        counted = self._counted[uid] = _Counted(group_of(pod), host_ports(pod), requests(pod), terms_of(pod))
        self.version += 1
        self.pods += 1
        self.groups[counted.group] += 1
        self.requested.update(counted.requests)
        self.host_ports.update(counted.host_ports)
        self.terms.update(counted.terms)

    def drop(self, uid: str) -> None:
        """The pod is gone; nothing where it was not counted."""
        self._seen.pop(uid, None)
        counted = self._counted.pop(uid, None)
        if counted is None:
            return
        self.version += 1
        self.pods -= 1
        _take(self.groups, [counted.group])
        _take(self.host_ports, counted.host_ports)
        _take(self.terms, counted.terms)
        self.requested.subtract(counted.requests)


def _take(counter: Counter[Any], keys: Any) -> None:
    for key in keys:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


def _looks_alike(one: Object, other: Object) -> bool:
    return (
        one["spec"] is other["spec"]
        and one["metadata"].get("labels") == other["metadata"].get("labels")
        and ("deletionTimestamp" in one["metadata"]) == ("deletionTimestamp" in other["metadata"])
        and not _has_ended(other)
    )


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def group_of(pod: Object) -> Group:
    """The group a pod belongs to."""
    metadata = pod["metadata"]
    labels = tuple(sorted((metadata.get("labels") or {}).items()))
    return Group(metadata.get("namespace", ""), labels, "deletionTimestamp" in metadata)


def host_ports(pod: Object) -> frozenset[HostPort]:
    """The host ports a pod takes on its node."""
    return frozenset(
        (port.get("protocol", "TCP"), port.get("hostIP", "") or "0.0.0.0", port["hostPort"])  # noqa: S104
        for container in pod["spec"].get("containers", ())
        for port in container.get("ports") or ()
        if port.get("hostPort")
    )


def requests(pod: Object) -> Mapping[str, int]:
    """What a pod asks of its node, resource → thousandths (``component-helpers/resource``, PodRequests)."""
    spec = pod["spec"]
    total = Counter[str]()
    for container in spec.get("containers", ()):
        total.update(_requests(container))
    sidecars = Counter[str]()
    starting: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        own = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars.update(own)
            own = sidecars
        else:
            own = {name: own.get(name, 0) + sidecars[name] for name in own.keys() | sidecars.keys()}
        starting = {
            name: max(starting.get(name, 0), own.get(name, 0)) for name in starting.keys() | own.keys()
        }
    total.update(sidecars)
    for name, most in starting.items():
        total[name] = max(total[name], most)
    total.update(_milli(spec.get("overhead")))
    return {**total, **_requests(spec)}


def _requests(container: Object) -> dict[str, int]:
    return _milli((container.get("resources") or {}).get("requests"))


def _milli(amounts: Object | None) -> dict[str, int]:
    return {name: milli(value) for name, value in (amounts or {}).items()}


def terms_of(pod: Object) -> tuple[Term, ...]:
    """All terms of a pod's (anti-)affinity to others."""
    affinity = pod["spec"].get("affinity")
    return tuple(_terms(pod, affinity)) if affinity else ()


def _terms(pod: Object, affinity: Object) -> Iterator[Term]:
    sides: tuple[Side, ...] = ("podAffinity", "podAntiAffinity")
    for side in sides:
        rules = affinity.get(side) or {}
        for term in rules.get("requiredDuringSchedulingIgnoredDuringExecution") or ():
            yield _term(pod, side, 0, term)
        for preference in rules.get("preferredDuringSchedulingIgnoredDuringExecution") or ():
            yield _term(pod, side, preference["weight"], preference["podAffinityTerm"])


def _term(pod: Object, side: Side, weight: int, term: Object) -> Term:
    namespaces = frozenset(term.get("namespaces") or ())
    by_label = term.get("namespaceSelector")
    if not namespaces and by_label is None:
        namespaces = frozenset({pod["metadata"].get("namespace", "")})
    selector = with_label_keys(term.get("labelSelector"), pod, term.get("matchLabelKeys"), "In")
    selector = with_label_keys(selector, pod, term.get("mismatchLabelKeys"), "NotIn")
    return Term(side, weight, term["topologyKey"], json.dumps(selector), namespaces, json.dumps(by_label))


def with_label_keys(selector: Object | None, pod: Object, keys: Any, operator: str) -> Object | None:
    """A selector that also asks for (or against) the pod's own values of these labels."""
    labels = pod["metadata"].get("labels") or {}
    added = [
        {"key": key, "operator": operator, "values": [labels[key]]} for key in keys or () if key in labels
    ]
    if selector is None or not added:
        return selector
    return {**selector, "matchExpressions": [*(selector.get("matchExpressions") or ()), *added]}


@lru_cache(maxsize=4096)
def parsed(selector: str) -> Object | None:
    """The selector of a term, ``Term.selector`` or ``Term.namespace_selector``."""
    found: Object | None = json.loads(selector)
    return found
