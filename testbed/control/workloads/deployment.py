"""Deployment: one ReplicaSet per template, rolled from the old ones to the present one.

Sources: ``pkg/controller/deployment/{sync,rolling,recreate,progress}.go``, ``util/deployment_util.go``.
As upstream, each call takes one step; the changes it makes to ReplicaSets cause the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.control.workloads.common import (
    Happened,
    Object,
    Outcome,
    condition_of,
    counts,
    is_terminating,
    owner_reference,
    seconds_of,
    share,
    template_hash,
    timestamp,
    whole,
    with_condition,
    without_condition,
)

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    *(REVISION, REVISION_HISTORY, DESIRED, MAXIMUM),
}
_NO_DEADLINE = 2**31 - 1


def deployment(owner: Object, replica_sets: Sequence[Object], now: float) -> Outcome:
    """One step of a rollout, a scaling or nothing. replica_sets: the owner's."""
    return _Step(owner, replica_sets, now).take()


class _Step:
    """One call's working state: sets by name as they shall be, and the conditions as they become."""

    def __init__(self, owner: Object, replica_sets: Sequence[Object], now: float) -> None:
        self.owner, self.now, self.out = owner, now, Outcome()
        self.spec, self.status = owner["spec"], owner.get("status") or {}
        self.replicas: int = self.spec.get("replicas", 1)
        self.conditions: list[Object] = list(self.status.get("conditions") or ())
        self.known = {rs["metadata"]["name"]: rs for rs in replica_sets}
        self.sets = dict(sorted(self.known.items(), key=lambda item: _age(item[1])))
        self.rolling = self.spec.get("strategy", {}).get("type", "RollingUpdate") == "RollingUpdate"
        self.surge, self.unavailable = self._fenceposts()
        self.new_name = next((name for name, rs in self.sets.items() if self._is_new(rs)), "")

    # --- what is there ------------------------------------------------------------------------------

    def _fenceposts(self) -> tuple[int, int]:
        """maxSurge rounded up, maxUnavailable rounded down; one must be more than none."""
        if not self.rolling:
            return 0, 0
        given = self.spec.get("strategy", {}).get("rollingUpdate") or {}
        surge = share(given.get("maxSurge", "25%"), self.replicas, up=True)
        unavailable = share(given.get("maxUnavailable", "25%"), self.replicas, up=False)
        return surge, min(self.replicas, unavailable or (0 if surge else 1))

    def _is_new(self, rs: Object) -> bool:
        template = rs["spec"]["template"]
        metadata = dict(template.get("metadata") or {})
        labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH}
        ours = self.spec["template"]
        given = ours.get("metadata") or {}
        return (
            template["spec"] == ours["spec"]
            and labels == (given.get("labels") or {})
            and (metadata.get("annotations") or {}) == (given.get("annotations") or {})
        )

    @property
    def new(self) -> Object | None:
        return self.sets.get(self.new_name)

    @property
    def old(self) -> list[Object]:
        """The sets of other templates, oldest first."""
        return [rs for name, rs in self.sets.items() if name != self.new_name]

    @property
    def total(self) -> int:
        return sum(map(_size, self.sets.values()))

    @property
    def available(self) -> int:
        return sum(_counted(rs, "availableReplicas") for rs in self.sets.values())

    # --- the step -----------------------------------------------------------------------------------

    def take(self) -> Outcome:
        self._say_if_paused()
        paused, resized = bool(self.spec.get("paused")), self._resized()
        self._find_or_make_new(make=not paused and not resized and self.rolling)
        if paused or resized:
            self._scale()
            if paused:
                self._forget_old()
            self._write_status(rollout=False)
        else:
            if not (self._roll() if self.rolling else self._recreate()):
                self._forget_old()
            self._write_status(rollout=True)
        self.out.update += [
            rs for name, rs in self.sets.items() if name in self.known and rs is not self.known[name]
        ]
        self.out.create = [rs for name, rs in self.sets.items() if name not in self.known]
        return self.out

    def _resized(self) -> bool:
        """Whether replicas changed since a set with pods was last looked at."""
        wanted = str(self.replicas)
        return any(_size(rs) and _annotations(rs).get(DESIRED, wanted) != wanted for rs in self.sets.values())

    @property
    def _next_revision(self) -> int:
        return 1 + max((_revision(rs) for rs in self.old), default=0)

    def _find_or_make_new(self, *, make: bool) -> None:
        revision, rs = self._next_revision, self.new
        if rs is not None:
            annotations = {**_annotations(rs), **self._copied()}
            if (before := _revision(rs)) < revision:
                annotations[REVISION] = str(revision)
                if before:
                    history = annotations.get(REVISION_HISTORY)
                    annotations[REVISION_HISTORY] = f"{history},{before}" if history else str(before)
            spec = rs["spec"]
            min_ready = self.spec.get("minReadySeconds", 0)
            if annotations != _annotations(rs) or spec.get("minReadySeconds", 0) != min_ready:
                spec = {key: value for key, value in spec.items() if key != "minReadySeconds"}
                spec |= counts(minReadySeconds=min_ready)
                metadata = {**rs["metadata"], "annotations": annotations}
                self.sets[self.new_name] = rs = {**rs, "metadata": metadata, "spec": spec}
            if self._deadline and self._progress is None:
                self._progressing("True", "FoundNewReplicaSet", f'Found new replica set "{self.new_name}"')
            self._number_owner(annotations[REVISION])
        elif make:
            self._make_new(revision)

    def _make_new(self, revision: int) -> None:
        template = self.spec["template"]
        digest = template_hash(template, self.status.get("collisionCount", 0))
        metadata = template.get("metadata") or {}
        labels = {**(metadata.get("labels") or {}), HASH: digest}
        selector = dict(self.spec["selector"])
        selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH: digest}
        name = f"{self.owner['metadata']['name']}-{digest}"
        size = max(0, min(self.replicas, self.replicas + self.surge - self.total))
        self.new_name = name
        self.sets[name] = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": self.owner["metadata"]["namespace"],
                "labels": labels,
                "annotations": {**self._copied(), REVISION: str(revision), **self._sizes()},
                "ownerReferences": [owner_reference(self.owner)],
            },
            "spec": {
                "replicas": size,
                **counts(minReadySeconds=self.spec.get("minReadySeconds", 0)),
                "selector": selector,
                "template": {**template, "metadata": {**metadata, "labels": labels}},
            },
        }
        if size:
            self._say("ScalingReplicaSet", f"Scaled up replica set {name} from 0 to {size}")
        if self._deadline:
            self._progressing("True", "NewReplicaSetCreated", f'Created new replica set "{name}"')
        self._number_owner(str(revision))

    def _copied(self) -> dict[str, str]:
        return {key: value for key, value in _annotations(self.owner).items() if key not in _NOT_COPIED}

    def _sizes(self) -> dict[str, str]:
        return {DESIRED: str(self.replicas), MAXIMUM: str(self.replicas + self.surge)}

    def _number_owner(self, revision: str) -> None:
        if _annotations(self.owner).get(REVISION) != revision:
            annotations = {**_annotations(self.owner), REVISION: revision}
            metadata = {**self.owner["metadata"], "annotations": annotations}
            self.out.update.append({**self.owner, "metadata": metadata})

    def _roll(self) -> bool:
        """Grow the new set as far as maxSurge allows, else shrink old ones as far as maxUnavailable does."""
        new = self.new
        assert new is not None  # noqa: S101 - made before
        if _size(new) > self.replicas:
            return self._resize(new, self.replicas)
        if _size(new) < self.replicas:
            room = max(0, self.replicas + self.surge - self.total)
            if room:
                return self._resize(new, min(self.replicas, _size(new) + room))
        return self._shrink_old(new)

    def _shrink_old(self, new: Object) -> bool:
        keep = self.replicas - self.unavailable
        surplus = self.total - keep - (_size(new) - _counted(new, "availableReplicas"))
        if surplus <= 0 or not any(map(_size, self.old)):
            return False
        scaled = False
        for rs in self.old:  # those that do not work first: they hold nothing up
            idle = min(surplus, _size(rs) - _counted(rs, "availableReplicas"))
            if idle > 0:
                scaled |= self._resize(rs, _size(rs) - idle)
                surplus -= idle
        spare = self.available - keep
        for rs in self.old:
            if spare <= 0:
                break
            gone = min(_size(rs), spare)
            scaled |= self._resize(rs, _size(rs) - gone)
            spare -= gone
        return scaled

    def _recreate(self) -> bool:
        """First no old pod, not even one that is still ending; then all new ones."""
        if any(map(_size, self.old)):
            for rs in self.old:
                self._resize(rs, 0)
            return True
        if any(_counted(rs, "replicas") + _counted(rs, "terminatingReplicas") for rs in self.old):
            return True
        if self.new is None:
            self._make_new(self._next_revision)
            return True
        return self._resize(self.new, self.replicas)

    def _scale(self) -> None:
        """replicas changed, or the rollout is paused: every set keeps its share."""
        active = [rs for rs in self.sets.values() if _size(rs)]
        if len(active) <= 1:
            latest = active[0] if active else self.new or (self.old[-1] if self.old else None)
            if latest is not None:
                self._resize(latest, self.replicas)
        elif self.new is not None and self._saturated(self.new):
            for rs in self.old:
                self._resize(rs, 0)
        elif self.rolling:
            self._scale_in_proportion(active)

    def _saturated(self, rs: Object) -> bool:
        wanted = self.replicas
        sizes = (_size(rs), whole(_annotations(rs).get(DESIRED, ""), -1), _counted(rs, "availableReplicas"))
        return sizes == (wanted, wanted, wanted)

    def _scale_in_proportion(self, active: list[Object]) -> None:
        allowed = self.replicas + self.surge if self.replicas else 0
        to_add = allowed - sum(map(_size, active))
        # The largest first; of equal ones the newest when growing, the oldest when shrinking.
        if to_add > 0:
            active = active[::-1]
        active.sort(key=_size, reverse=True)
        sizes: dict[str, int] = {}
        added = 0
        for rs in active:
            part = self._fraction(rs)
            left = to_add - added
            part = min(part, left) if to_add > 0 else max(part, left) if to_add < 0 else 0
            sizes[rs["metadata"]["name"]] = _size(rs) + part
            added += part
        if active and to_add:
            largest = active[0]["metadata"]["name"]
            sizes[largest] = max(0, sizes[largest] + to_add - added)
        for rs in active:
            self._resize(rs, sizes[rs["metadata"]["name"]])

    def _fraction(self, rs: Object) -> int:
        """By how much a set grows to keep its part of the whole."""
        if not self.replicas:
            return -_size(rs)
        before = whole(_annotations(rs).get(MAXIMUM, "")) or self.status.get("replicas", 0)
        if not before:
            return 0
        return int(_size(rs) * (self.replicas + self.surge) / before + 0.5) - _size(rs)

    def _resize(self, rs: Object, size: int) -> bool:
        """Give a set a size, and the annotations that remember of what it is a part."""
        name, before = rs["metadata"]["name"], _size(rs)
        annotations = {**_annotations(rs), **self._sizes()}
        if size == before and annotations == _annotations(rs):
            return False
        self.sets[name] = {
            **rs,
            "metadata": {**rs["metadata"], "annotations": annotations},
            "spec": {**rs["spec"], "replicas": size},
        }
        if size == before:
            return False
        direction = "up" if size > before else "down"
        self._say("ScalingReplicaSet", f"Scaled {direction} replica set {name} from {before} to {size}")
        return True

    def _forget_old(self) -> None:
        """Delete the empty sets of old revisions beyond revisionHistoryLimit."""
        old = sorted((rs for rs in self.old if not is_terminating(rs)), key=_revision)
        surplus = len(old) - self.spec.get("revisionHistoryLimit", 10)
        for rs in old[: max(0, surplus)]:
            seen = rs.get("status", {}).get("observedGeneration", 0) >= rs["metadata"].get("generation", 1)
            if seen and not _size(rs) and not _counted(rs, "replicas"):
                self.out.delete.append(rs)

    # --- status -------------------------------------------------------------------------------------

    @property
    def _deadline(self) -> int:
        """progressDeadlineSeconds, 0 for none."""
        deadline: int = self.spec.get("progressDeadlineSeconds") or 0
        return 0 if deadline == _NO_DEADLINE else deadline

    @property
    def _progress(self) -> Object | None:
        return next((entry for entry in self.conditions if entry["type"] == "Progressing"), None)

    def _say(self, reason: str, message: str) -> None:
        self.out.events.append(Happened("Normal", reason, message))

    def _condition(self, kind: str, status: str, reason: str, message: str) -> Object:
        now = timestamp(self.now)
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastUpdateTime": now,
            "lastTransitionTime": now,
        }

    def _progressing(self, status: str, reason: str, message: str) -> None:
        new = self._condition("Progressing", status, reason, message)
        self.conditions = with_condition(self.conditions, new)

    def _say_if_paused(self) -> None:
        current = self._progress or {}
        if not self._deadline or current.get("reason") == "ProgressDeadlineExceeded":
            return
        was, paused = current.get("reason") == "DeploymentPaused", bool(self.spec.get("paused"))
        if paused and not was:
            self._progressing("Unknown", "DeploymentPaused", "Deployment is paused")
        elif was and not paused:
            self._progressing("Unknown", "DeploymentResumed", "Deployment is resumed")

    def _write_status(self, *, rollout: bool) -> None:
        sets = list(self.sets.values())
        terminating = [rs.get("status", {}).get("terminatingReplicas") for rs in sets]
        status: Object = {
            "observedGeneration": self.owner["metadata"].get("generation", 1),
            **counts(
                replicas=sum(_counted(rs, "replicas") for rs in sets),
                updatedReplicas=_counted(self.new, "replicas") if self.new else 0,
                readyReplicas=sum(_counted(rs, "readyReplicas") for rs in sets),
                availableReplicas=self.available,
                unavailableReplicas=max(0, self.total - self.available),
            ),
        }
        if None not in terminating:
            status["terminatingReplicas"] = sum(terminating)
        if "collisionCount" in self.status:
            status["collisionCount"] = self.status["collisionCount"]
        if self.available >= self.replicas - self.unavailable:
            text = "MinimumReplicasAvailable", "Deployment has minimum availability."
            self.conditions = with_condition(self.conditions, self._condition("Available", "True", *text))
        else:
            text = "MinimumReplicasUnavailable", "Deployment does not have minimum availability."
            self.conditions = with_condition(self.conditions, self._condition("Available", "False", *text))
        if rollout:
            self._estimate_progress(status)
            self._report_failures()
        if self.conditions:
            status["conditions"] = self.conditions
        self.out.status = status

    def _estimate_progress(self, status: Object) -> None:
        if not self._deadline:
            self.conditions = without_condition(self.conditions, "Progressing")
            return
        before = self._progress
        if (
            before is not None
            and before.get("reason") == "NewReplicaSetAvailable"
            and status.get("replicas", 0) == status.get("updatedReplicas", 0)
        ):
            return
        name = self.new_name
        subject = f'ReplicaSet "{name}"' if name else f'Deployment "{self.owner["metadata"]["name"]}"'
        if self._complete(status):
            self._progressing("True", "NewReplicaSetAvailable", f"{subject} has successfully progressed.")
        elif self._progressed(status):
            new = self._condition("Progressing", "True", "ReplicaSetUpdated", f"{subject} is progressing.")
            if before is not None and before["status"] == "True":
                new["lastTransitionTime"] = before["lastTransitionTime"]
            self.conditions = [*without_condition(self.conditions, "Progressing"), new]
        elif before is not None and before.get("reason") != "ProgressDeadlineExceeded":
            left = seconds_of(before["lastUpdateTime"]) + self._deadline - self.now
            if left < 0:
                text = f"{subject} has timed out progressing."
                self._progressing("False", "ProgressDeadlineExceeded", text)
        current = self._progress
        if (
            current is not None
            and not self._complete(status)
            and current.get("reason") != "ProgressDeadlineExceeded"
        ):
            left = seconds_of(current["lastUpdateTime"]) + self._deadline - self.now
            self.out.look_again(max(0.0, left) + 1)  # as upstream, past the full second

    def _complete(self, status: Object) -> bool:
        wanted = self.replicas
        return all(
            status.get(field, 0) == wanted for field in ("updatedReplicas", "replicas", "availableReplicas")
        )

    def _progressed(self, status: Object) -> bool:
        def of(counted: Object, field: str) -> int:
            number: int = counted.get(field, 0)
            return number

        def remaining(counted: Object) -> int:
            return of(counted, "replicas") - of(counted, "updatedReplicas")

        more = ("updatedReplicas", "readyReplicas", "availableReplicas")
        return remaining(status) < remaining(self.status) or any(
            of(status, field) > of(self.status, field) for field in more
        )

    def _report_failures(self) -> None:
        ordered = [*([self.new] if self.new else []), *self.old]
        failures = filter(None, (condition_of(rs, "ReplicaFailure") for rs in ordered))
        failure = next(failures, None)
        if failure is None:
            self.conditions = without_condition(self.conditions, "ReplicaFailure")
        else:
            new = {**failure, "lastUpdateTime": failure["lastTransitionTime"]}
            self.conditions = with_condition(self.conditions, new)


def _annotations(obj: Object) -> dict[str, Any]:
    return obj["metadata"].get("annotations") or {}


def _age(rs: Object) -> tuple[str, int, str]:
    metadata = rs["metadata"]
    return metadata.get("creationTimestamp", ""), _revision(rs), metadata["name"]


def _revision(rs: Object) -> int:
    return whole(_annotations(rs).get(REVISION, ""))


def _size(rs: Object) -> int:
    size: int = rs["spec"].get("replicas", 1)
    return size


def _counted(rs: Object, field: str) -> int:
    number: int = (rs.get("status") or {}).get(field, 0)
    return number
