"""Runs the pure workload controllers over the store: which owners are due, and what they asked for done.

Event-driven: a change of an owner, or of what counts of the things it owns, makes that owner due; ``run``
works until none is. Owners take up objects without a controller that their selector matches, and let go
those that it no longer does (``pkg/controller/controller_ref_manager.go``).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from testbed.cluster.clock import Clock
from testbed.cluster.events import Recorder
from testbed.control.podstatus import termination_grace
from testbed.control.workloads import common
from testbed.control.workloads.common import POD_NAME, WHY, Outcome, controller_of
from testbed.control.workloads.daemonset import daemon_set
from testbed.control.workloads.deployment import deployment
from testbed.control.workloads.job import TRACKING, job, untracked
from testbed.control.workloads.replicaset import replica_set
from testbed.control.workloads.statefulset import ordinal_of, stateful_set
from testbed.objects.status import ApiError
from testbed.objects.store import Event, Store

log = logging.getLogger(__name__)

Object = dict[str, Any]
Key = tuple[str, str, str]  # kind, namespace, name

OWNERS: dict[str, tuple[str, ...]] = {
    "Pod": ("ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job"),
    "ReplicaSet": ("Deployment",),
    "ControllerRevision": ("StatefulSet", "DaemonSet"),
}
"""What is owned, and the kinds that own it."""

COMPONENTS = {
    "Deployment": "deployment-controller",
    "ReplicaSet": "replicaset-controller",
    "ReplicationController": "replication-controller",
    "StatefulSet": "statefulset-controller",
    "DaemonSet": "daemonset-controller",
    "Job": "job-controller",
}
"""Who says what happened to an owner."""

RETRY_SECONDS = 5.0
"""How long after a refused creation it is tried again."""


class Workloads:
    """Deployments, ReplicaSets, ReplicationControllers, StatefulSets, DaemonSets and Jobs of one store."""

    def __init__(self, store: Store, clock: Clock, recorder: Recorder) -> None:
        self._store, self._clock, self._recorder = store, clock, recorder
        self._due: dict[Key, None] = {}
        self._claiming: set[Key] = set()  # owners that may have something to take up or let go
        self._abandoned: dict[str, Object] = {}  # uid → pod that no Job will count any more
        self._owned: defaultdict[str, dict[str, Object]] = defaultdict(dict)  # owner's uid → by uid
        self._loose: defaultdict[str, dict[str, Object]] = defaultdict(dict)  # namespace → by uid
        self._timers: dict[Key, Callable[[], None]] = {}
        self._refused: dict[str, str] = {}  # owner's uid → why its last pod was not created
        self._reconcile: dict[str, Callable[[Object], Outcome]] = {
            "Deployment": lambda owner: deployment(owner, self._of(owner, "ReplicaSet"), clock.now()),
            "ReplicaSet": self._replica_set,
            "ReplicationController": self._replica_set,
            "StatefulSet": lambda owner: stateful_set(
                owner, self._of(owner, "Pod"), self._of(owner, "ControllerRevision"), clock.now()
            ),
            "DaemonSet": lambda owner: daemon_set(
                owner,
                self._of(owner, "Pod"),
                store.list("Node"),
                self._of(owner, "ControllerRevision"),
                clock.now(),
            ),
            "Job": lambda owner: job(owner, self._of(owner, "Pod"), clock.now()),
        }

    @property
    def due(self) -> bool:
        """Whether any owner waits to be looked at."""
        return bool(self._due or self._abandoned)

    # --- what happens in the store ------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        obj, old = event.object, event.old
        kind = obj["kind"]
        if kind == "Node":
            if old is None or event.type == "DELETED" or _place(old) != _place(obj):
                for owner in self._store.list("DaemonSet"):
                    self._due[_key(owner)] = None
            return
        if kind in self._reconcile:
            self._observe_owner(event)
        if kind in OWNERS:
            self._observe_owned(event)

    def _observe_owner(self, event: Event) -> None:
        obj, old, key = event.object, event.old, _key(event.object)
        if event.type == "DELETED":
            self._due.pop(key, None)
            self._refused.pop(obj["metadata"]["uid"], None)
            if cancel := self._timers.pop(key, None):
                cancel()
        elif old is None or _asked(old) != _asked(obj):
            self._due[key] = None
            self._claiming.add(key)

    def _observe_owned(self, event: Event) -> None:
        obj, old = event.object, event.old
        uid, namespace = obj["metadata"]["uid"], obj["metadata"]["namespace"]
        reference = controller_of(obj)
        if event.type == "DELETED":
            self._loose[namespace].pop(uid, None)
            self._abandoned.pop(uid, None)
            if reference is not None:
                self._lose(reference, uid, namespace)
            return
        before = controller_of(old) if old is not None else None
        moved = old is None or (before or {}).get("uid") != (reference or {}).get("uid")
        if moved and before is not None:
            self._lose(before, uid, namespace)
        relabelled = moved or old is None or old["metadata"].get("labels") != obj["metadata"].get("labels")
        if reference is None:
            self._loose[namespace][uid] = obj
            if relabelled:
                self._offer(obj)
        elif reference["kind"] in OWNERS[obj["kind"]]:
            self._loose[namespace].pop(uid, None)
            self._owned[reference["uid"]][uid] = obj
            key = reference["kind"], namespace, reference["name"]
            if relabelled:
                self._claiming.add(key)
            if relabelled or old is None or _counts(old) != _counts(obj):
                self._due[key] = None
        if TRACKING in (obj["metadata"].get("finalizers") or ()) and not self._tracked(reference, namespace):
            self._abandoned[uid] = obj

    def _lose(self, reference: Object, uid: str, namespace: str) -> None:
        owned = self._owned[reference["uid"]]
        owned.pop(uid, None)
        if not owned:
            del self._owned[reference["uid"]]
        self._due[reference["kind"], namespace, reference["name"]] = None

    def _offer(self, obj: Object) -> None:
        """Whoever would own an object that has no controller looks at it."""
        for kind in OWNERS[obj["kind"]]:
            for owner in self._store.list(kind, obj["metadata"]["namespace"]):
                if common.selects(owner, obj):
                    self._claiming.add(_key(owner))
                    self._due[_key(owner)] = None

    def _tracked(self, reference: Object | None, namespace: str) -> bool:
        """Whether a Job will count the pod that has this controller."""
        if reference is None or reference["kind"] != "Job":
            return False
        owner = self._store.find("Job", namespace, reference["name"])
        return (
            owner is not None
            and owner["metadata"]["uid"] == reference["uid"]
            and not common.is_terminating(owner)
        )

    # --- what is due --------------------------------------------------------------------------------

    def run(self) -> None:
        """Reconcile every owner that is due, including those that become due by it."""
        while self._due or self._abandoned:
            if self._abandoned:
                self._let_go(self._abandoned.pop(next(iter(self._abandoned))))
                continue
            key = next(iter(self._due))
            del self._due[key]
            if key[0] not in self._reconcile:
                continue
            owner = self._store.find(*key)
            if owner is None or common.is_terminating(owner):
                continue
            try:
                if key in self._claiming:
                    self._claiming.discard(key)
                    self._claim(owner)
                self._carry_out(key, owner, self._reconcile[key[0]](owner))
            except Exception:
                # As upstream's work queues: what one owner does to us must not stop the others.
                log.exception("%s %s/%s: cannot be reconciled", *key)

    def _let_go(self, seen: Object) -> None:
        """Take its Job's finalizer off a pod that no Job will count, if it still has it."""
        pod = self._store.find(*_key(seen))
        if pod is None or pod["metadata"]["uid"] != seen["metadata"]["uid"]:
            return
        if (free := untracked(pod)) is not None:
            self._store.update(free, trusted=True)

    def _claim(self, owner: Object) -> None:
        for obj in list(self._owned.get(owner["metadata"]["uid"], {}).values()):
            if not common.is_terminating(obj) and not common.selects(owner, obj):
                self._store.update(common.released(owner, obj), trusted=True)
        for obj in list(self._loose[owner["metadata"]["namespace"]].values()):
            if (
                owner["kind"] in OWNERS[obj["kind"]]
                and not common.is_terminating(obj)
                and common.selects(owner, obj)
                and (obj["kind"] != "Pod" or _fits_name(owner, obj))
            ):
                self._store.update(common.adopted(owner, obj), trusted=True)

    def _carry_out(self, key: Key, owner: Object, outcome: Outcome) -> None:
        for happened in outcome.events:
            self._say(owner, *happened)
        for obj in outcome.update:
            self._store.update(obj, trusted=True)
        refused = self._create(owner, outcome)
        for obj in outcome.delete:
            self._delete(obj)
            if obj["kind"] == "Pod":
                text = outcome.deleted.replace(POD_NAME, obj["metadata"]["name"])
                self._say(owner, "Normal", "SuccessfulDelete", text)
        if refused:
            self._refused[owner["metadata"]["uid"]] = refused
            outcome.look_again(RETRY_SECONDS)
        current = self._store.find(*key)
        if outcome.status is not None and current is not None:
            self._store.update_status({**current, "status": outcome.status})
        if cancel := self._timers.pop(key, None):
            cancel()
        if outcome.later is not None:
            self._timers[key] = self._clock.later(outcome.later, lambda: self._due.update({key: None}))

    def _create(self, owner: Object, outcome: Outcome) -> str:
        """Create what the outcome asks for; why the first refused one was, "" if none was."""
        for obj in outcome.create:
            try:
                made = self._store.create(obj, trusted=True)
            except ApiError as error:
                if error.reason == "AlreadyExists" and obj["kind"] == "PersistentVolumeClaim":
                    continue
                if error.reason == "AlreadyExists" and obj["kind"] in ("ReplicaSet", "ControllerRevision"):
                    self._collide(outcome)
                    continue
                text = outcome.refused.replace(POD_NAME, obj["metadata"].get("name", ""))
                self._say(owner, "Warning", "FailedCreate", text.replace(WHY, error.message))
                return error.message
            if made["kind"] == "Pod":
                text = outcome.created.replace(POD_NAME, made["metadata"]["name"])
                self._say(owner, "Normal", "SuccessfulCreate", text)
        return ""

    def _collide(self, outcome: Outcome) -> None:
        """The name of a template's hash is taken by another template: the next hash is another one."""
        if outcome.status is not None:
            outcome.status["collisionCount"] = outcome.status.get("collisionCount", 0) + 1
        outcome.look_again(0)

    def _delete(self, obj: Object) -> None:
        grace = termination_grace(obj) if obj["kind"] == "Pod" else 0
        self._store.delete(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"], grace=grace)

    def _say(self, owner: Object, kind: Any, reason: str, message: str) -> None:
        self._recorder.record(owner, kind, reason, message, COMPONENTS[owner["kind"]])

    def _of(self, owner: Object, kind: str) -> list[Object]:
        owned = self._owned.get(owner["metadata"]["uid"], {})
        return [obj for obj in owned.values() if obj["kind"] == kind]

    def _replica_set(self, owner: Object) -> Outcome:
        refused = self._refused.pop(owner["metadata"]["uid"], "")
        return replica_set(owner, self._of(owner, "Pod"), self._clock.now(), refused)


def _key(obj: Object) -> Key:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _place(node: Object) -> tuple[Any, ...]:
    """What of a node matters to where daemons run."""
    return node["metadata"].get("labels"), node.get("spec")


def _asked(owner: Object) -> tuple[Any, ...]:
    """What of an owner others write."""
    metadata = owner["metadata"]
    return tuple(
        metadata.get(field) for field in ("generation", "labels", "annotations", "deletionTimestamp")
    )


def _counts(obj: Object) -> tuple[Any, ...]:
    """What of an owned object matters to its owner."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    if obj["kind"] == "Pod":
        return (
            status.get("phase"), common.is_ready(obj), metadata.get("deletionTimestamp"),
            metadata.get("finalizers"),
        )  # fmt: skip
    return metadata.get("generation"), metadata.get("annotations"), metadata.get("deletionTimestamp"), status


def _fits_name(owner: Object, pod: Object) -> bool:
    """A StatefulSet takes up only pods that have one of its names."""
    return owner["kind"] != "StatefulSet" or ordinal_of(owner["metadata"]["name"], pod) is not None
