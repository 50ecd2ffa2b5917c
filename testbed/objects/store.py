"""The store: every object of a cluster, its versions, its watchers. What etcd and the API's storage are.

Single-threaded: calls come from one event loop. Nothing here waits, reads a file or knows HTTP.

Objects are shared, never copied on reading: **whoever gets an object must not change it**. A write puts a
new object in the old one's place; a watcher keeps the old one unchanged. Every refusal is an ``ApiError``
that reads as a real server's.

Sources of the rules: ``apiserver/pkg/registry/generic/registry/store.go``,
``apiserver/pkg/registry/rest/{create,update,delete}.go``.
"""

from __future__ import annotations

import random
import time
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal

from testbed.objects import admission
from testbed.objects.allocate import Allocator, ServiceRanges
from testbed.objects.defaults import NAME_LETTERS, TOLERATION_SECONDS, tolerating
from testbed.objects.grace import termination_grace
from testbed.objects.kinds import BY_NAME, Kind, Object, find
from testbed.objects.merge import merge_patch
from testbed.objects.selectors import parse_fields, parse_labels
from testbed.objects.status import ApiError, quoted

Key = tuple[str, str]
"""Namespace ("" for cluster-scoped kinds) and name."""

_GENERATED_NAME_LENGTH = 63
_HISTORY = 20_000
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_IMMORTAL = frozenset({"default", "kube-public", "kube-system"})  # plugin/namespace/lifecycle

_TOPOLOGY = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")

_FOREGROUND = "foregroundDeletion"
"""The finalizer of an owner that waits for what it owns (``pkg/controller/garbagecollector``)."""

Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, slots=True)
class Event:
    """One change. object: after it (the last state, if DELETED); old: before it, None if ADDED."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Object
    old: Object | None = None

    @property
    def kind(self) -> str:
        """The object's kind."""
        kind: str = self.object["kind"]
        return kind

    @property
    def version(self) -> int:
        """The resourceVersion this change made."""
        return int(self.object["metadata"]["resourceVersion"])


# Names for list[…] in a class that has a method called list.
Objects = list[Object]
Events = list[Event]
Places = list[tuple[str, Key]]

Callback = Callable[[Event], None]
Selected = Callable[[Object], bool]


def _seen_through(event: Event, selected: Selected) -> Event | None:
    """The event as a watcher with a selector sees it: an object that no longer matches is deleted."""
    now = event.type != "DELETED" and selected(event.object)
    before = event.old is not None and selected(event.old)
    if now:
        return event if before or event.type == "ADDED" else Event("ADDED", event.object)
    return Event("DELETED", event.object, event.old) if before else None


class Store:
    """The objects of one cluster.

    ranges: where service addresses and node ports come from; None gives Services none. history: events
    kept for watches from an earlier resourceVersion. seed: makes generated names and allocations
    repeatable. now: the wall clock in seconds. toleration_seconds: see ``defaults.TOLERATION_SECONDS``.
    """

    def __init__(
        self,
        ranges: ServiceRanges | None = None,
        *,
        history: int = _HISTORY,
        seed: int | None = None,
        now: Callable[[], float] = time.time,
        toleration_seconds: Mapping[str, int] = TOLERATION_SECONDS,
    ) -> None:
        self._toleration_seconds = toleration_seconds
        self.allocator = Allocator(ranges, seed) if ranges else None
        self._objects: dict[str, dict[Key, Object]] = {name: {} for name in BY_NAME}
        self._dependants: dict[str, dict[tuple[str, Key], None]] = {}  # owner's uid → kinds and keys
        self._version = 0
        self._random = random.Random(seed)  # noqa: S311 - names, not secrets
        self._now = now
        self._history: deque[Event] = deque(maxlen=history)
        self._subscribers: dict[int, tuple[str | None, Callback]] = {}
        self._next_subscriber = 0
        self._undelivered: deque[Event] = deque()
        self._delivering = False

    # --- reading ------------------------------------------------------------------------------------

    @property
    def resource_version(self) -> str:
        """The version of the last change."""
        return str(self._version)

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """One object; namespace "" for cluster-scoped kinds. Raises ApiError (404)."""
        obj = self.find(kind, namespace, name)
        if obj is None:
            raise ApiError.not_found(BY_NAME[kind], name)
        return obj

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        return self._objects[kind].get((namespace, name))

    def list(
        self, kind: str, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> Objects:
        """The objects of a kind by namespace and name; namespace None means every one.

        Selectors as kubectl's ``-l`` and ``--field-selector``. Raises ApiError (400) for a bad selector.
        """
        selected = _selection(kind, namespace, label_selector, field_selector)
        objects = self._objects[kind]
        return [objects[key] for key in sorted(objects) if selected(objects[key])]

    def everything(self) -> Iterator[Object]:
        """Every object, kind by kind in the order of the table of kinds."""
        for objects in list(self._objects.values()):
            yield from list(objects.values())

    # --- watching -----------------------------------------------------------------------------------

    def subscribe(self, callback: Callback, kind: str | None = None) -> Callable[[], None]:
        """Call ``callback`` with each later change (of a kind); returns what ends it.

        Callbacks run before the write that caused them returns, in the order of the changes; a callback
        may write: what that changes is delivered after the present event went to everybody.
        """
        number, self._next_subscriber = self._next_subscriber, self._next_subscriber + 1
        self._subscribers[number] = (kind, callback)
        return lambda: self._subscribers.pop(number, None) and None

    def watch(
        self,
        kind: str,
        namespace: str | None,
        callback: Callback,
        *,
        resource_version: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> Callable[[], None]:
        """Like subscribe, but first what happened after ``resource_version``; "" or "0": all there is.

        An object that no longer matches the selectors is reported as DELETED, one that now does as ADDED.
        Raises ApiError: 410 where the history no longer reaches back that far, 400 for what is no version.
        """
        selected = _selection(kind, namespace, label_selector, field_selector)
        if resource_version in ("", "0"):
            past = [Event("ADDED", obj) for obj in self.list(kind)]
        else:
            past = [event for event in self._since(resource_version) if event.kind == kind]

        def pass_on(event: Event) -> None:
            if (seen := _seen_through(event, selected)) is not None:
                callback(seen)

        for event in past:
            pass_on(event)
        return self.subscribe(pass_on, kind)

    def _since(self, resource_version: str) -> Events:
        if not resource_version.isdecimal():
            raise ApiError.bad_request(f"Invalid value: {quoted(resource_version)}: must be a number")
        asked = int(resource_version)
        oldest = self._history[0].version if self._history else self._version + 1
        if asked + 1 < oldest:
            raise ApiError.expired(asked, oldest - 1)
        first = bisect_right(self._history, asked, key=lambda event: event.version)
        return list(islice(self._history, first, None))

    # --- writing ------------------------------------------------------------------------------------

    def create(self, obj: Object, *, trusted: bool = False) -> Object:
        """Store a new object and return it as stored: named, defaulted, with uid and addresses.

        trusted: made by our own controllers from what was checked before, so schema, rules and most
        defaults are skipped and the object is shared instead of copied: do not change it afterwards.
        Raises ApiError: 400 unreadable, 404 no such namespace, 409 exists, 422 invalid.
        """
        kind, obj = self._typed(obj, trusted)
        metadata = self._new_metadata(kind, obj["metadata"])
        obj = {**obj, "metadata": metadata}
        namespace, name = metadata.get("namespace", ""), metadata.get("name", "")
        self._refuse_bad_namespace(kind, namespace, name)
        if kind.kind == "Pod" and self._toleration_seconds is not TOLERATION_SECONDS:
            obj = tolerating(obj, self._toleration_seconds)
        obj = admission.admit_new(kind, obj, trusted=trusted)
        if (namespace, name) in self._objects[kind.kind]:
            raise ApiError.already_exists(kind, name)
        if self.allocator and kind.kind == "Service":
            obj = self.allocator.admit(obj, None)
        self._put(kind, None, obj)
        return obj

    def update(self, obj: Object, *, trusted: bool = False) -> Object:
        """Replace an object but, unless trusted, for its status; returns it as stored.

        A resourceVersion or uid in ``obj`` must be the stored one. Raises ApiError: 404, 409, 400, 422.
        """
        kind, obj = self._typed(obj, trusted)
        old = self._current(kind, obj["metadata"])
        new = {**obj, "metadata": self._kept_metadata(obj["metadata"], old["metadata"])}
        if not trusted:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        new = admission.admit_update(kind, new, old, trusted=trusted)
        if self.allocator and kind.kind == "Service":
            new = self.allocator.admit(new, old)
        if new == old:
            return old
        if kind.generation and _desired(new) != _desired(old):
            generation = old["metadata"].get("generation", 0) + 1
            new = {**new, "metadata": {**new["metadata"], "generation": generation}}
        return self._put(kind, old, new)

    def update_status(self, obj: Object, *, trusted: bool = True) -> Object:
        """Replace an object's status alone; the rest of ``obj`` only says which one.

        trusted: from our own controllers, as most statuses are; else the object is read strictly.
        Raises ApiError: 404, 409, 400, 422.
        """
        kind, obj = self._typed(obj, trusted)
        old = self._current(kind, obj["metadata"])
        if obj.get("status") == old.get("status"):
            return old
        new = {**old, "status": obj.get("status", {}), "metadata": dict(old["metadata"])}
        return self._put(kind, old, admission.admit_status(kind, new, trusted=trusted))

    def patch_merge(
        self, kind: str, namespace: str, name: str, patch: Object, *, subresource: str = ""
    ) -> Object:
        """Apply a JSON merge patch (RFC 7386), to the status alone if subresource is "status"."""
        old = self.get(kind, namespace, name)
        new: Object = merge_patch(old, patch)
        # A patch is for the object it names, whatever it says inside.
        new |= {"apiVersion": old["apiVersion"], "kind": kind}
        if isinstance(metadata := new.setdefault("metadata", {}), dict):
            new["metadata"] = metadata | {
                key: old["metadata"][key] for key in ("name", "namespace") if key in old["metadata"]
            }
        if subresource == "status":
            return self.update_status(new, trusted=False)
        return self.update(new)

    def bind(self, namespace: str, name: str, node: str) -> Object:
        """Put a pod on a node, once. Raises ApiError: 404, 409 where it is on one."""
        pod = self.get("Pod", namespace, name)
        if assigned := pod["spec"].get("nodeName"):
            why = f"pod {name} is already assigned to node {quoted(assigned)}"
            raise ApiError.conflict(BY_NAME["Pod"], name, why)
        new = {**pod, "spec": {**pod["spec"], "nodeName": node}, "metadata": dict(pod["metadata"])}
        return self._put(BY_NAME["Pod"], pod, new)

    def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        grace: int = 0,
        uid: str = "",
        version: str = "",
        propagation: Propagation = "Background",
    ) -> Object:
        """Remove an object and, unless orphaned, what it owns; a namespace with all that is in it.

        grace: seconds a pod on a node gets: it is marked with a deletionTimestamp now, and whoever runs it
        deletes it with grace 0 when it has ended. An object with finalizers is marked, too, and goes when
        an update takes the last one away. Foreground: what it owns goes first. Returns the object as it
        was last. uid, version: if given, those that it must have. Raises ApiError: 404, 409.
        """
        old = self.get(kind, namespace, name)
        if uid and uid != old["metadata"]["uid"]:
            raise _other_uid(BY_NAME[kind], old, uid)
        if version and version != (found := old["metadata"]["resourceVersion"]):
            why = f"Precondition failed: ResourceVersion in precondition: {version}, "
            why += f"ResourceVersion in object meta: {found}"
            raise ApiError.conflict(BY_NAME[kind], name, why)
        if kind == "Namespace" and name in _IMMORTAL:
            raise ApiError.forbidden(BY_NAME[kind], name, "this namespace may not be deleted")
        if kind == "Namespace" and self._in_namespace(name):
            # Marked first: what its contents' end brings about, an event say, is refused and holds nothing.
            marked = self._mark_deleted(BY_NAME[kind], old, 0)
            self._empty_namespace(name)
            return marked
        if propagation == "Foreground" and self._dependants.get(old["metadata"]["uid"]):
            return self._delete_after_dependants(BY_NAME[kind], old)
        graceful = kind == "Pod" and grace > 0 and bool(old["spec"].get("nodeName"))
        if graceful or old["metadata"].get("finalizers"):
            return self._mark_deleted(BY_NAME[kind], old, grace if graceful else 0)
        self._remove(BY_NAME[kind], old, propagation)
        return old

    @contextmanager
    def transaction(self) -> Iterator[Store]:
        """A copy of this store to write to; on a clean exit its changes become this store's, all at once.

        An exception leaves this store as it was. Cheap: objects are shared. Do not write to this store
        or wait in between.
        """
        copy = Store(history=_HISTORY, now=self._now, toleration_seconds=self._toleration_seconds)
        copy.allocator = self.allocator.copy() if self.allocator else None
        copy._objects = {name: dict(objects) for name, objects in self._objects.items()}
        copy._dependants = {uid: dict(keys) for uid, keys in self._dependants.items()}
        copy._version = self._version
        copy._random.setstate(self._random.getstate())
        changes: list[Event] = []
        copy.subscribe(changes.append)
        yield copy
        self.allocator, self._objects = copy.allocator, copy._objects
        self._dependants, self._version, self._random = copy._dependants, copy._version, copy._random
        for event in changes:
            self._announce(event)
        self._deliver()

    # --- the insides --------------------------------------------------------------------------------

    def _typed(self, obj: Object, trusted: bool) -> tuple[Kind, Object]:
        if trusted:
            return BY_NAME[obj["kind"]], obj
        kind = find(str(obj.get("apiVersion", "")), str(obj.get("kind", "")))
        if kind is None:
            raise ApiError.no_such_kind(str(obj.get("apiVersion", "")), str(obj.get("kind", "")))
        return kind, admission.readable(kind, obj)

    def _new_metadata(self, kind: Kind, given: Object) -> Object:
        metadata = {key: value for key, value in given.items() if key not in ("managedFields", "selfLink")}
        if not metadata.get("name") and (base := metadata.get("generateName")):
            letters = "".join(self._random.choices(NAME_LETTERS, k=5))
            metadata["name"] = base[: _GENERATED_NAME_LENGTH - 5] + letters
        if kind.namespaced:
            metadata["namespace"] = metadata.get("namespace") or "default"
        else:
            metadata.pop("namespace", None)
        metadata["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        metadata["creationTimestamp"] = self.timestamp()
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation"):
            metadata.pop(key, None)
        if kind.generation:
            metadata["generation"] = 1
        return metadata

    def _kept_metadata(self, given: Object, old: Object) -> Object:
        """What an update may say of metadata, with what it may not change taken from the old object."""
        metadata = {key: value for key, value in given.items() if key not in ("managedFields", "selfLink")}
        for key in (
            "name", "namespace", "uid", "creationTimestamp", "generateName", "generation", "resourceVersion",
            "deletionTimestamp", "deletionGracePeriodSeconds",
        ):  # fmt: skip
            metadata.pop(key, None)
            if key in old:
                metadata[key] = old[key]
        return metadata

    def _current(self, kind: Kind, given: Object) -> Object:
        """The stored object that an update is for, once its preconditions hold."""
        name = given.get("name", "")
        old = self.get(kind.kind, (given.get("namespace") or "default") if kind.namespaced else "", name)
        if given.get("uid") and given["uid"] != old["metadata"]["uid"]:
            raise _other_uid(kind, old, given["uid"])
        if given.get("resourceVersion") and given["resourceVersion"] != old["metadata"]["resourceVersion"]:
            raise ApiError.conflict(kind, name)
        return old

    def _refuse_bad_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        found = self.find("Namespace", "", namespace)
        if found is None:
            raise ApiError.not_found(BY_NAME["Namespace"], namespace)
        if "deletionTimestamp" in found["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise ApiError.forbidden(kind, name, why)

    def _put(self, kind: Kind, old: Object | None, new: Object) -> Object:
        """Store ``new``, whose metadata is the store's own copy, under a new version."""
        metadata = new["metadata"]
        if kind.kind == "Pod" and _node_of(new) != _node_of(old):
            self._label_topology(new)
        if old is not None and "deletionTimestamp" in old["metadata"] and self._may_go(kind, metadata):
            self._remove(kind, old, "Background")
            return new
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        key = (metadata.get("namespace", ""), metadata["name"])
        if old is None or old["metadata"].get("ownerReferences") != metadata.get("ownerReferences"):
            self._index_owners(kind, key, old, new)
        self._objects[kind.kind][key] = new
        self._announce(Event("MODIFIED" if old else "ADDED", new, old))
        if old is not None and _owners(old) != _owners(new):
            self._finish_owners(old)
        self._deliver()
        return new

    def _label_topology(self, pod: Object) -> None:
        """Give a pod that is put on a node the node's place (plugin/pkg/admission/podtopologylabels)."""
        node = self.find("Node", "", _node_of(pod))
        labels = (node or {}).get("metadata", {}).get("labels") or {}
        place = {key: labels[key] for key in _TOPOLOGY if key in labels}
        if place:
            pod["metadata"]["labels"] = {**(pod["metadata"].get("labels") or {}), **place}

    def _index_owners(self, kind: Kind, key: Key, old: Object | None, new: Object | None) -> None:
        for owner in _owners(old):
            dependants = self._dependants.get(owner, {})
            dependants.pop((kind.kind, key), None)
            if not dependants:
                self._dependants.pop(owner, None)
        for owner in _owners(new):
            self._dependants.setdefault(owner, {})[kind.kind, key] = None

    def _mark_deleted(self, kind: Kind, old: Object, grace: int) -> Object:
        """Say when the object's time is over; said again, it can only become shorter.

        Source: ``apiserver/pkg/registry/rest/delete.go`` (BeforeDelete).
        """
        given = old["metadata"].get("deletionGracePeriodSeconds", 0)
        if "deletionTimestamp" not in old["metadata"]:
            until = self.timestamp(grace)
        elif grace < given and kind.kind == "Pod":
            until = _shifted(old["metadata"]["deletionTimestamp"], grace - given)
        else:
            return old
        metadata = {
            **old["metadata"],
            "deletionTimestamp": until,
            "deletionGracePeriodSeconds": grace,
        }
        new = {**old, "metadata": metadata}
        if kind.kind == "Namespace":
            new["status"] = {**old.get("status", {}), "phase": "Terminating"}
        return self._put(kind, old, new)

    def _remove(self, kind: Kind, old: Object, propagation: Propagation) -> None:
        metadata = old["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        del self._objects[kind.kind][key]
        self._index_owners(kind, key, old, None)
        if self.allocator and kind.kind == "Service":
            self.allocator.release(old)
        self._version += 1
        last = {**old, "metadata": {**metadata, "resourceVersion": str(self._version)}}
        self._announce(Event("DELETED", last, old))
        for dependant_kind, dependant in list(self._dependants.get(metadata["uid"], ())):
            self._lose_owner(dependant_kind, dependant, metadata["uid"], propagation)
        self._finish_owners(old)
        self._finish_namespace(key[0])
        self._deliver()

    def _lose_owner(self, kind: str, key: Key, uid: str, propagation: Propagation) -> None:
        """Delete a dependant whose last owner is gone; else take that owner's reference away."""
        found = self._objects[kind].get(key)
        if found is None:
            return
        left = [owner for owner in found["metadata"]["ownerReferences"] if owner["uid"] != uid]
        if not left and propagation != "Orphan":
            self.delete(kind, *key, grace=termination_grace(found), propagation=propagation)
            return
        metadata = {**found["metadata"], "ownerReferences": left}
        if not left:
            del metadata["ownerReferences"]
        self._put(BY_NAME[kind], found, {**found, "metadata": metadata})

    def _delete_after_dependants(self, kind: Kind, old: Object) -> Object:
        """Mark an object that goes when the last of those it owns is gone, and delete these."""
        metadata = old["metadata"]
        finalizers = metadata.get("finalizers") or []
        if _FOREGROUND in finalizers:
            return old
        marked = {**old, "metadata": {**metadata, "finalizers": [*finalizers, _FOREGROUND]}}
        marked["metadata"].setdefault("deletionTimestamp", self.timestamp())
        marked["metadata"].setdefault("deletionGracePeriodSeconds", 0)
        new = self._put(kind, old, marked)
        for dependant_kind, dependant in list(self._dependants.get(metadata["uid"], ())):
            self._lose_owner(dependant_kind, dependant, metadata["uid"], "Foreground")
        return new

    def _finish_owners(self, obj: Object) -> None:
        """Let the owners of an object go that waited for it as the last they own."""
        for reference in obj["metadata"].get("ownerReferences") or ():
            kind = BY_NAME.get(reference["kind"])
            if kind is None or self._dependants.get(reference["uid"]):
                continue
            namespace = obj["metadata"].get("namespace", "") if kind.namespaced else ""
            owner = self.find(kind.kind, namespace, reference["name"])
            if owner is None or owner["metadata"]["uid"] != reference["uid"]:
                continue
            finalizers = owner["metadata"].get("finalizers") or []
            if _FOREGROUND in finalizers:
                left = [finalizer for finalizer in finalizers if finalizer != _FOREGROUND]
                self._put(kind, owner, {**owner, "metadata": {**owner["metadata"], "finalizers": left}})

    def _in_namespace(self, namespace: str) -> Places:
        return [
            (kind, key) for kind, objects in self._objects.items() for key in objects if key[0] == namespace
        ]

    def _empty_namespace(self, namespace: str) -> None:
        for kind, key in self._in_namespace(namespace):
            if (found := self._objects[kind].get(key)) is not None:
                self.delete(kind, *key, grace=termination_grace(found))

    def _finish_namespace(self, namespace: str) -> None:
        """Let a namespace go that waited for the last object in it."""
        found = self.find("Namespace", "", namespace) if namespace else None
        kind = BY_NAME["Namespace"]
        if found and "deletionTimestamp" in found["metadata"] and self._may_go(kind, found["metadata"]):
            self._remove(kind, found, "Background")

    def _may_go(self, kind: Kind, metadata: Object) -> bool:
        """Whether nothing holds an object marked for deletion any longer."""
        if metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds"):
            return False
        return kind.kind != "Namespace" or not self._in_namespace(metadata["name"])

    def timestamp(self, ahead: float = 0) -> str:
        """The wall clock, ``ahead`` seconds from now, as Kubernetes writes times."""
        return time.strftime(_TIME, time.gmtime(self._now() + ahead))

    def _announce(self, event: Event) -> None:
        self._history.append(event)
        self._undelivered.append(event)

    def _deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._undelivered:
                event = self._undelivered.popleft()
                for kind, callback in list(self._subscribers.values()):
                    if kind is None or kind == event.kind:
                        callback(event)
        finally:
            self._delivering = False


def _selection(kind: str, namespace: str | None, label_selector: str, field_selector: str) -> Selected:
    labels, fields = parse_labels(label_selector), parse_fields(kind, field_selector)

    def selected(obj: Object) -> bool:
        metadata = obj["metadata"]
        return (
            (namespace is None or metadata.get("namespace", "") == namespace)
            and labels(metadata.get("labels") or {})
            and fields(obj)
        )

    return selected


def _other_uid(kind: Kind, stored: Object, uid: str) -> ApiError:
    metadata = stored["metadata"]
    why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {metadata['uid']}"
    return ApiError.conflict(kind, metadata["name"], why)


def _desired(obj: Object) -> Object:
    """What of an object counts for its generation: all but metadata, status and a pod's binding."""
    wanted = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
    if obj["kind"] == "Pod":
        wanted["spec"] = {key: value for key, value in obj["spec"].items() if key != "nodeName"}
    return wanted


def _node_of(pod: Object | None) -> str:
    """The node a pod is on, "" for none."""
    node: str = pod["spec"].get("nodeName", "") if pod else ""
    return node


def _owners(obj: Object | None) -> list[str]:
    references: list[Any] = (obj or {}).get("metadata", {}).get("ownerReferences") or []
    return [reference["uid"] for reference in references]


def _shifted(stamp: str, seconds: int) -> str:
    """A time as Kubernetes writes it, some seconds later."""
    return (datetime.strptime(stamp, _TIME) + timedelta(seconds=seconds)).strftime(_TIME)
