"""What a pod wants of other pods: affinity, anti-affinity and spreading over topologies.

Sources: ``pkg/scheduler/framework/plugins/{interpodaffinity,podtopologyspread}``.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from testbed.control import scheduler_nodes
from testbed.control.scheduler_load import Group, NodeLoad, Term, group_of, parsed, terms_of, with_label_keys
from testbed.objects import selectors

Object = dict[str, Any]

NO_AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING_ANTI_AFFINITY = "node(s) didn't satisfy existing pods anti-affinity rules"
SPREAD = "node(s) didn't match pod topology spread constraints"
NO_TOPOLOGY = f"{SPREAD} (missing required label)"


class Place(NamedTuple):
    """A node as these rules see it. hard_taints: those that keep pods away."""

    name: str
    labels: Mapping[str, str]
    hard_taints: Sequence[Object]
    load: NodeLoad


class Matcher:
    """Which pods a term is about; remembers its answers. namespaces: name → labels."""

    def __init__(self, namespaces: Mapping[str, Mapping[str, str]]) -> None:
        self._namespaces = namespaces
        self._known: dict[tuple[Term, Group], bool] = {}

    def __call__(self, term: Term, group: Group) -> bool:
        """Whether the term is about these pods."""
        known = self._known.get((term, group))
        if known is None:
            known = self._known[term, group] = self._matches(term, group)
        return known

    def _matches(self, term: Term, group: Group) -> bool:
        here = group.namespace in term.namespaces or selectors.matches(
            parsed(term.namespace_selector), self._namespaces.get(group.namespace)
        )
        return here and selectors.matches(parsed(term.selector), dict(group.labels))


class Affinity:
    """A pod's affinity to others, and theirs to it, over all nodes."""

    def __init__(self, pod: Object, places: Sequence[Place], matches: Matcher) -> None:
        self._group, self._places, self._matches = group_of(pod), places, matches
        self._terms = terms_of(pod)
        self._wanted = [term for term in self._terms if term.side == "podAffinity" and not term.weight]
        refused = [term for term in self._terms if term.side == "podAntiAffinity" and not term.weight]
        self._near = [
            (term, self._domains(term.topology_key, lambda group: self._all(group))) for term in self._wanted
        ]
        self._far = [
            (term, self._domains(term.topology_key, lambda group, term=term: matches(term, group)))  # type: ignore[misc]
            for term in refused
        ]
        self._closed = {
            (term.topology_key, place.labels[term.topology_key])
            for place in places
            for term in place.load.terms
            if term.side == "podAntiAffinity"
            and not term.weight
            and term.topology_key in place.labels
            and matches(term, self._group)
        }

    def _all(self, group: Group) -> bool:
        return all(self._matches(term, group) for term in self._wanted)

    def _domains(self, key: str, chosen: Callable[[Group], bool]) -> Counter[str]:
        """Topology value → pods of the chosen groups in it."""
        found: Counter[str] = Counter()
        for place in self._places:
            if key in place.labels:
                for group, count in place.load.groups.items():
                    if chosen(group):
                        found[place.labels[key]] += count
        return found

    def misfit(self, place: Place) -> tuple[str, bool]:
        """Why the pod may not be here, "" if it may; and whether others' leaving would help."""
        exist = True
        for term, domains in self._near:
            if term.topology_key not in place.labels:
                return NO_AFFINITY, False
            exist = exist and domains[place.labels[term.topology_key]] > 0
        if not exist and (any(domains for _, domains in self._near) or not self._all(self._group)):
            return NO_AFFINITY, False
        for term, domains in self._far:
            if domains[place.labels.get(term.topology_key, "")] > 0:
                return ANTI_AFFINITY, True
        if any(place.labels.get(key) == value for key, value in self._closed):
            return EXISTING_ANTI_AFFINITY, True
        return "", True

    def scores(self, fitting: Sequence[Place]) -> list[int]:
        """Points from preferences, the pod's and those of the pods that run, 0 to 100 for each node."""
        points: defaultdict[tuple[str, str], int] = defaultdict(int)
        own = [term for term in self._terms if term.weight]
        for place in self._places:
            for term in own:
                if value := place.labels.get(term.topology_key):
                    count = sum(n for group, n in place.load.groups.items() if self._matches(term, group))
                    points[term.topology_key, value] += _signed(term) * count
            for term, count in place.load.terms.items():
                counts = term.weight or term.side == "podAffinity"
                value = place.labels.get(term.topology_key, "")
                if counts and value and self._matches(term, self._group):
                    points[term.topology_key, value] += _signed(term) * count
        sums = [
            sum(count for (key, value), count in points.items() if place.labels.get(key) == value)
            for place in fitting
        ]
        least, most = min(sums), max(sums)
        return [100 * (each - least) // (most - least) if most > least else 0 for each in sums]


def _signed(term: Term) -> int:
    """A term's weight; a required one of a running pod counts 1 (hardPodAffinityWeight)."""
    return -term.weight if term.side == "podAntiAffinity" else term.weight or 1


class _Constraint(NamedTuple):
    key: str
    max_skew: int
    selector: Object | None
    min_domains: int
    honour_affinity: bool
    honour_taints: bool


class Spread:
    """A pod's topologySpreadConstraints of one kind over all nodes."""

    def __init__(self, pod: Object, places: Sequence[Place], when: str) -> None:
        self._pod, self._spec = pod, pod["spec"]
        self._constraints = [
            _constraint(pod, entry)
            for entry in self._spec.get("topologySpreadConstraints") or ()
            if entry["whenUnsatisfiable"] == when
        ]
        self._group = group_of(pod)
        self._counts = [self._count(constraint, places) for constraint in self._constraints]

    def __bool__(self) -> bool:
        return bool(self._constraints)

    def _count(self, constraint: _Constraint, places: Sequence[Place]) -> Counter[str]:
        """Topology value → matching pods, of the nodes that the pod could be on and that have every key."""
        found: Counter[str] = Counter()
        for place in places:
            if any(each.key not in place.labels for each in self._constraints):
                continue
            if constraint.honour_affinity and not scheduler_nodes.matches(
                self._spec, place.name, place.labels
            ):
                continue
            tolerations = self._spec.get("tolerations") or ()
            if constraint.honour_taints and scheduler_nodes.untolerated(place.hard_taints, tolerations):
                continue
            found[place.labels[constraint.key]] += sum(
                count
                for group, count in place.load.groups.items()
                if group.namespace == self._group.namespace
                and not group.terminating
                and selectors.matches(constraint.selector, dict(group.labels))
            )
        return found

    def misfit(self, place: Place) -> tuple[str, bool]:
        """Why the pod may not be here, "" if it may; and whether others' leaving would help."""
        for constraint, counts in zip(self._constraints, self._counts, strict=True):
            value = place.labels.get(constraint.key)
            if value is None:
                return NO_TOPOLOGY, False
            least = min(counts.values(), default=0) if len(counts) >= constraint.min_domains else 0
            itself = selectors.matches(constraint.selector, dict(self._group.labels))
            if counts[value] + itself - least > constraint.max_skew:
                return SPREAD, True
        return "", True

    def scores(self, fitting: Sequence[Place]) -> list[int]:
        """Points for nodes with few matching pods around, 0 to 100; none where a topology key is missing."""
        costs = [self._cost(place) for place in fitting]
        known = [cost for cost in costs if cost is not None]
        least, most = min(known, default=0), max(known, default=0)
        return [0 if cost is None else 100 * (most + least - cost) // most if most else 100 for cost in costs]

    def _cost(self, place: Place) -> int | None:
        cost = 0.0
        for constraint, counts in zip(self._constraints, self._counts, strict=True):
            value = place.labels.get(constraint.key)
            if value is None:
                return None
            cost += counts[value] * math.log(len(counts) + 2) + constraint.max_skew - 1
        return round(cost)


def _constraint(pod: Object, entry: Object) -> _Constraint:
    return _Constraint(
        entry["topologyKey"],
        entry["maxSkew"],
        with_label_keys(entry.get("labelSelector"), pod, entry.get("matchLabelKeys"), "In"),
        entry.get("minDomains") or 1,
        entry.get("nodeAffinityPolicy", "Honor") == "Honor",
        entry.get("nodeTaintsPolicy", "Ignore") == "Honor",
    )
