"""Keeps EndpointSlices and Endpoints right: which services a change concerns, and the writing.

A pod event costs what the services of its namespace that select it cost; what became due since the last run
is planned and written once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from testbed.cluster.events import Recorder
from testbed.control.endpoints import hints, legacy, slices
from testbed.control.endpoints.members import Member, member, selects
from testbed.control.workloads import is_ready
from testbed.objects.quantity import milli
from testbed.objects.selectors import matches_labels
from testbed.objects.store import Event, Store

log = logging.getLogger(__name__)
Object = dict[str, Any]
Key = tuple[str, str]  # namespace and name of a Service


class _Tracked:
    """A service with a selector and its pods. since: the earliest change since the last run."""

    def __init__(self, service: Object) -> None:
        self.service = service
        self.members: dict[str, Member] = {}
        self.since = ""
        self.known = False

    def note(self, before: Member | None, now: Member) -> None:
        """Remember when a pod's readiness changed (``trigger_time_tracker.go``)."""
        if now.since > (before.since if before else ""):
            self.since = min(self.since, now.since) if self.since else now.since


class Endpoints:
    """The controllers endpointslice, endpoint and endpointslicemirroring over one store."""

    def __init__(self, store: Store, recorder: Recorder) -> None:
        self._store, self._recorder = store, recorder
        self._due: dict[Key, None] = {}
        self._tracked: dict[Key, _Tracked] = {}
        self._selecting: defaultdict[tuple[str, str, str], dict[Key, None]] = defaultdict(dict)
        self._selected_by: dict[str, set[Key]] = {}  # a pod's uid → services
        self._pods: defaultdict[str, dict[str, Object]] = defaultdict(dict)  # namespace → uid → pod
        self._slices: defaultdict[Key, dict[str, Object]] = defaultdict(dict)
        self._mirrored: defaultdict[Key, dict[str, Object]] = defaultdict(dict)
        self._gone: set[Key] = set()  # services deleted since the last run
        self._nodes: dict[str, Object] = {}
        self._shares: dict[str, float] | None = None
        self._writing = False

    @property
    def due(self) -> bool:
        """Whether any service waits to be looked at."""
        return bool(self._due)

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        match event.kind:
            case "Pod":
                self._observe_pod(event)
            case "Service":
                self._observe_service(event)
            case "EndpointSlice":
                self._observe_slice(event)
            case "Endpoints":
                if not self._writing:
                    self._due[_key(event.object)] = None
            case "Node":
                self._observe_node(event)

    # --- pods ---------------------------------------------------------------------------------------

    def _observe_pod(self, event: Event) -> None:
        pod, metadata = event.object, event.object["metadata"]
        uid, namespace = metadata["uid"], metadata["namespace"]
        before = self._selected_by.get(uid, set())
        if event.type == "DELETED":
            self._pods[namespace].pop(uid, None)
            self._selected_by.pop(uid, None)
            now: set[Key] = set()
        else:
            self._pods[namespace][uid] = pod
            now = set(self._selectors_of(namespace, metadata.get("labels") or {}))
            if now:
                self._selected_by[uid] = now
            elif before:
                del self._selected_by[uid]
        for key in before - now:
            self._leave(key, uid)
        for key in now:
            self._join(key, pod)

    def _selectors_of(self, namespace: str, labels: Mapping[str, str]) -> Iterator[Key]:
        """The services that select a pod with these labels; each is filed under one pair of its selector."""
        for name, value in labels.items():
            for key in self._selecting.get((namespace, name, value), ()):
                if matches_labels(self._tracked[key].service["spec"]["selector"], labels):
                    yield key

    def _join(self, key: Key, pod: Object) -> None:
        tracked = self._tracked[key]
        uid = pod["metadata"]["uid"]
        before = tracked.members.get(uid)
        now = member(tracked.service, pod, self._node_labels(pod))
        if now == before:
            return
        tracked.members[uid] = now
        tracked.note(before, now)
        if now.counts or (before is not None and before.counts):
            self._due[key] = None

    def _leave(self, key: Key, uid: str) -> None:
        tracked = self._tracked.get(key)
        if tracked is not None and (gone := tracked.members.pop(uid, None)) is not None and gone.counts:
            self._due[key] = None

    def _node_labels(self, pod: Object) -> Object | None:
        node = self._nodes.get(pod["spec"].get("nodeName", ""))
        return None if node is None else node["metadata"].get("labels") or {}

    # --- services, slices, nodes --------------------------------------------------------------------

    def _observe_service(self, event: Event) -> None:
        service, key = event.object, _key(event.object)
        tracked = self._tracked.get(key)
        if event.type == "DELETED":
            self._gone.add(key)
        if event.type == "DELETED" or not selects(service):
            self._untrack(key)
        elif tracked is None or not _same_service(tracked.service, service):
            self._track(key, service, tracked)
        else:
            tracked.service = service
            return
        self._due[key] = None

    def _track(self, key: Key, service: Object, before: _Tracked | None) -> None:
        """Start over with a service's pods: what selects them or what they look like changed."""
        self._untrack(key)
        tracked = self._tracked[key] = _Tracked(service)
        if before is not None and before.service["metadata"]["uid"] == service["metadata"]["uid"]:
            tracked.known, tracked.since = before.known, before.since
        selector = service["spec"]["selector"]
        self._selecting[(key[0], *_filed_under(selector))][key] = None
        for uid, pod in self._pods[key[0]].items():
            if matches_labels(selector, pod["metadata"].get("labels")):
                now = member(service, pod, self._node_labels(pod))
                tracked.members[uid] = now
                tracked.note(before.members.get(uid) if before else None, now)
                self._selected_by.setdefault(uid, set()).add(key)

    def _untrack(self, key: Key) -> None:
        tracked = self._tracked.pop(key, None)
        if tracked is None:
            return
        place = (key[0], *_filed_under(tracked.service["spec"]["selector"]))
        self._selecting[place].pop(key, None)
        if not self._selecting[place]:
            del self._selecting[place]
        for uid in tracked.members:
            self._selected_by.get(uid, set()).discard(key)

    def _observe_slice(self, event: Event) -> None:
        for labels, metadata in _labelled(event):
            place = self._place_of(labels)
            if place is not None:
                place[_service_of(labels, metadata)].pop(metadata["name"], None)
                self._note_foreign(_service_of(labels, metadata))
        if event.type == "DELETED":
            return
        metadata = event.object["metadata"]
        labels = metadata.get("labels") or {}
        place = self._place_of(labels)
        if place is not None:
            place[_service_of(labels, metadata)][metadata["name"]] = event.object
            self._note_foreign(_service_of(labels, metadata))

    def _note_foreign(self, key: Key) -> None:
        """Somebody else touched a slice of ours."""
        if not self._writing:
            self._due[key] = None

    def _place_of(self, labels: Mapping[str, str]) -> defaultdict[Key, dict[str, Object]] | None:
        if not labels.get(slices.SERVICE_NAME):
            return None
        places = {slices.CONTROLLER: self._slices, legacy.MIRRORED_BY: self._mirrored}
        return places.get(labels.get(slices.MANAGED_BY, ""))

    def _observe_node(self, event: Event) -> None:
        node, name = event.object, event.object["metadata"]["name"]
        known = self._nodes.get(name)
        if event.type == "DELETED":
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        if event.type != "MODIFIED" or known is None or _zone(known) != _zone(node):
            for tracked in self._tracked.values():
                self._look_again(tracked, name)
        if known is None or event.type == "DELETED" or _capacity(known) != _capacity(node):
            self._shares = hints.zone_shares(map(_capacity, self._nodes.values()))
            for key, tracked in self._tracked.items():
                if hints.is_auto(tracked.service):
                    self._due[key] = None

    def _look_again(self, tracked: _Tracked, node: str) -> None:
        key = _key(tracked.service)
        for uid in list(tracked.members):
            pod = self._pods[key[0]][uid]
            if pod["spec"].get("nodeName") == node:
                self._join(key, pod)

    # --- writing ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Plan and write every service that is due."""
        self._writing = True
        try:
            while self._due:
                due, self._due = self._due, {}
                for key in due:
                    try:
                        self._sync(key)
                        self._gone.discard(key)
                    except Exception:
                        # What one service does to us must not stop the others.
                        log.exception("Service %s/%s: its endpoints cannot be worked out", *key)
        finally:
            self._writing = False

    def _sync(self, key: Key) -> None:
        service = self._store.find("Service", *key)
        endpoints = self._store.find("Endpoints", *key)
        tracked = self._tracked.get(key)
        if tracked is not None:
            self._sync_selected(key, tracked, endpoints)
            self._delete(self._mirrored.get(key, {}).values())
        elif service is None:
            self._delete(self._mirrored.get(key, {}).values())
            if key in self._gone and endpoints is not None:
                self._delete([endpoints])
        elif not service["spec"].get("selector") and endpoints is not None and legacy.is_mirrored(endpoints):
            self._write(key[0], legacy.mirror(endpoints, list(self._mirrored[key].values())))
        else:
            self._delete(self._mirrored.get(key, {}).values())

    def _sync_selected(self, key: Key, tracked: _Tracked, endpoints: Object | None) -> None:
        trigger = tracked.since if tracked.known else tracked.service["metadata"].get("creationTimestamp", "")
        tracked.known, tracked.since = True, ""
        plan = slices.plan(
            tracked.service,
            tracked.members.values(),
            list(self._slices[key].values()),
            trigger=trigger,
            shares=self._shares,
        )
        self._write(key[0], plan)
        for kind, reason, message in plan.events:
            self._recorder.record(tracked.service, kind, reason, message, "endpoint-slice-controller")
        made = legacy.endpoints_object(tracked.service, tracked.members.values(), endpoints, trigger=trigger)
        if made is not None and self._takes_new(key[0]):
            if endpoints is None:
                self._store.create(made, trusted=True)
            else:
                self._store.update(made, trusted=True)

    def _write(self, namespace: str, plan: slices.Plan) -> None:
        for obj in plan.create if self._takes_new(namespace) else ():
            self._store.create(obj, trusted=True)
        for obj in plan.update:
            self._store.update(obj, trusted=True)
        self._delete(plan.delete)

    def _takes_new(self, namespace: str) -> bool:
        found = self._store.find("Namespace", "", namespace)
        return found is not None and "deletionTimestamp" not in found["metadata"]

    def _delete(self, objects: Iterable[Object]) -> None:
        for obj in list(objects):
            place = obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]
            if self._store.find(*place) is not None:
                self._store.delete(*place)


def _key(obj: Object) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _labelled(event: Event) -> Iterator[tuple[Mapping[str, str], Object]]:
    """The labels a slice had before the change, with its metadata."""
    before = event.object if event.type == "DELETED" else event.old
    if before is not None:
        yield before["metadata"].get("labels") or {}, before["metadata"]


def _service_of(labels: Mapping[str, str], metadata: Object) -> Key:
    return metadata["namespace"], labels[slices.SERVICE_NAME]


def _filed_under(selector: Mapping[str, str]) -> tuple[str, str]:
    """The pair of a selector that its service is filed under: any one that every selected pod has."""
    return min(selector.items())


def _same_service(one: Object, other: Object) -> bool:
    """Whether nothing that endpoints depend on differs."""
    return one["spec"] == other["spec"] and all(
        one["metadata"].get(field) == other["metadata"].get(field)
        for field in ("uid", "labels", "annotations")
    )


def _zone(node: Object) -> str:
    zone: str = (node["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone", "")
    return zone


def _capacity(node: Object) -> tuple[Mapping[str, str], bool, float]:
    """A node's labels, readiness and allocatable CPU in cores."""
    cpu = (node.get("status", {}).get("allocatable") or {}).get("cpu")
    return node["metadata"].get("labels") or {}, is_ready(node), milli(cpu) / 1000 if cpu else 0.0
