"""EndpointSlices of one Service: which to create, update and delete so that they hold its members.

What is right stays where it is; new endpoints go into slices that change anyway, the fullest first, then into
one unchanged slice with room for all the rest, else into new ones. Nothing is rebalanced.
Source: ``staging/src/k8s.io/endpointslice/reconciler.go``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.control.endpoints import hints, ports
from testbed.control.endpoints.members import Member, address_types, is_headless

Object = dict[str, Any]

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
MAX_ENDPOINTS = 100
"""The controller manager's default ``--max-endpoints-per-slice``."""


@dataclass
class Plan:
    """What to do with slices, in this order; events: type, reason and message, on the Service."""

    create: list[Object] = field(default_factory=list)
    update: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    events: list[hints.HintEvent] = field(default_factory=list)


@dataclass
class _Draft:
    """A slice in the making. stored: the one it replaces, None for a new one."""

    ports: ports.Ports
    endpoints: list[Object]
    stored: Object | None = None
    touched: bool = False


def plan(
    service: Object,
    members: Iterable[Member],
    stored: Sequence[Object],
    *,
    trigger: str = "",
    shares: Mapping[str, float] | None = None,
) -> Plan:
    """Bring the service's ``stored`` slices (those of this controller) to hold its members.

    trigger: time of the change behind it, "" for none. shares: zone → part of the cluster's CPU, None where
    it is not known; only services with topology-mode Auto ask for it.
    """
    out = Plan()
    families = address_types(service)
    out.delete += [one for one in stored if one["addressType"] not in families]
    members = list(members)
    for family in families:
        own = [one for one in stored if one["addressType"] == family]
        done = _Family(service, family, trigger).plan(members, own, shares)
        out.create += done.create
        out.update += done.update
        out.delete += done.delete
        out.events += done.events
    return out


class _Family:
    """The slices of one address type of a service."""

    def __init__(self, service: Object, family: str, trigger: str) -> None:
        self._service, self._type, self._trigger = service, family, trigger
        self._labels = slice_labels(service)
        self._auto = hints.is_auto(service)

    def plan(
        self, members: Sequence[Member], stored: Sequence[Object], shares: Mapping[str, float] | None
    ) -> Plan:
        uid = self._service["metadata"]["uid"]
        mine = [one for one in stored if is_owned(one, uid)]
        delete = [one for one in stored if not is_owned(one, uid)]
        wanted: dict[ports.Ports, dict[str, Object]] = {}
        for member in members:
            if member.counts:
                group = wanted.setdefault(member.ports, {})
                if endpoint := member.endpoints.get(self._type):
                    group[member.uid] = endpoint
        by_ports: defaultdict[ports.Ports, list[Object]] = defaultdict(list)
        for one in mine:
            by_ports[ports.sorted_for_slice(ports.of_slice(one))].append(one)
        drafts: list[_Draft] = []
        for group_ports, group in wanted.items():
            drafts += self._pack(group_ports, group, by_ports.pop(group_ports, []), delete)
        for leftover in by_ports.values():
            delete += leftover
        created = [draft for draft in drafts if draft.stored is None]
        if len(delete) == len(stored) and not created:
            if len(delete) == 1 and self._is_placeholder(delete[0], uid):
                delete = []
            else:
                created = [_Draft((), [])]
                drafts.append(created[0])
        events = self._hint(drafts, stored, shares) if self._auto else []
        create = [self._new(draft) for draft in created]
        update = [
            self._changed(draft, draft.stored)
            for draft in drafts
            if draft.stored is not None and draft.touched
        ]
        create, recycled, delete = recycle(create, delete, uid)
        return Plan(create, update + recycled, delete, events)

    def _pack(
        self, group_ports: ports.Ports, wanted: dict[str, Object], stored: list[Object], delete: list[Object]
    ) -> list[_Draft]:
        drafts = []
        for one in stored:
            before = one.get("endpoints") or []
            draft = _Draft(group_ports, [], one, touched=one["metadata"].get("labels") != self._labels)
            changed = False
            for old in before:
                new = wanted.pop((old.get("targetRef") or {}).get("uid", ""), None)
                if new is None:
                    continue
                same = old is new or (hints.without(old) if self._auto else old) == new
                draft.endpoints.append(old if same else new)
                changed = changed or not same
            if changed or len(before) != len(draft.endpoints):
                draft.touched = True
                if not draft.endpoints:
                    delete.append(one)
                    continue
            drafts.append(draft)
        rest = list(wanted.values())
        for draft in sorted((d for d in drafts if d.touched), key=lambda d: -len(d.endpoints)):
            room = MAX_ENDPOINTS - len(draft.endpoints)
            draft.endpoints += rest[:room]
            rest = rest[room:]
        while rest:
            filled = self._with_room(drafts, len(rest))
            if filled is None:
                filled = _Draft(group_ports, [], touched=True)
                drafts.append(filled)
            filled.touched = True
            room = MAX_ENDPOINTS - len(filled.endpoints)
            filled.endpoints += rest[:room]
            rest = rest[room:]
        return drafts

    @staticmethod
    def _with_room(drafts: Iterable[_Draft], count: int) -> _Draft | None:
        """The unchanged slice that is fullest once ``count`` endpoints are in it, if one has the room."""
        room = [d for d in drafts if not d.touched and len(d.endpoints) + count <= MAX_ENDPOINTS]
        return max(room, key=lambda d: len(d.endpoints), default=None) if count < MAX_ENDPOINTS else None

    def _hint(
        self, drafts: Sequence[_Draft], stored: Sequence[Object], shares: Mapping[str, float] | None
    ) -> list[hints.HintEvent]:
        had = any("hints" in endpoint for one in stored for endpoint in one.get("endpoints") or ())
        hinted, events = hints.auto(
            [draft.endpoints for draft in drafts],
            [draft.touched or draft.stored is None for draft in drafts],
            shares,
            had_hints=had,
            address_type=self._type,
        )
        for draft, endpoints in zip(drafts, hinted, strict=True):
            if endpoints != draft.endpoints:
                draft.endpoints, draft.touched = endpoints, True
        return events

    def _is_placeholder(self, stored: Object, uid: str) -> bool:
        return (
            is_owned(stored, uid)
            and not stored.get("endpoints")
            and not stored.get("ports")
            and stored["metadata"].get("labels") == self._labels
        )

    def _new(self, draft: _Draft) -> Object:
        metadata = self._service["metadata"]
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "namespace": metadata["namespace"],
                "labels": self._labels,
                "ownerReferences": [owner_reference(self._service)],
                **with_trigger(None, self._trigger),
            },
            "addressType": self._type,
            "endpoints": draft.endpoints or None,
            "ports": ports.in_slice(draft.ports),
        }

    def _changed(self, draft: _Draft, stored: Object) -> Object:
        rest = {key: value for key, value in stored["metadata"].items() if key != "annotations"}
        annotations = with_trigger(stored["metadata"].get("annotations"), self._trigger)
        return {
            **stored,
            "metadata": {**rest, "labels": self._labels, **annotations},
            "endpoints": draft.endpoints or None,
        }


def slice_labels(service: Object) -> dict[str, str]:
    """A slice's labels: the service's own and the reserved ones."""
    given = service["metadata"].get("labels") or {}
    labels = {key: value for key, value in given.items() if key not in (SERVICE_NAME, MANAGED_BY, HEADLESS)}
    if is_headless(service):
        labels[HEADLESS] = ""
    return {**labels, SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: CONTROLLER}


def with_trigger(annotations: Mapping[str, str] | None, trigger: str) -> Object:
    """``{"annotations": …}`` with this trigger time, or without one; nothing where none are left."""
    kept = {key: value for key, value in (annotations or {}).items() if key != TRIGGER_TIME}
    if trigger:
        kept[TRIGGER_TIME] = trigger
    return {"annotations": kept} if kept else {}


def recycle(
    create: Sequence[Object], delete: Sequence[Object], uid: str
) -> tuple[list[Object], list[Object], list[Object]]:
    """What to create, update and delete once new slices take the names of the owner's that would go."""
    left, update, gone = list(create), [], []
    for old in delete:
        if left and old["addressType"] == left[-1]["addressType"] and is_owned(old, uid):
            new = left.pop()
            metadata = {key: value for key, value in new["metadata"].items() if key != "generateName"}
            update.append({**new, "metadata": {**metadata, "name": old["metadata"]["name"]}})
        else:
            gone.append(old)
    return left, update, gone


def owner_reference(owner: Object) -> Object:
    """The controller reference to a Service or an Endpoints object."""
    return {
        "apiVersion": "v1",
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_owned(endpoint_slice: Object, uid: str) -> bool:
    """Whether the object with this uid is one of the slice's owners."""
    return any(
        reference["uid"] == uid for reference in endpoint_slice["metadata"].get("ownerReferences") or ()
    )
