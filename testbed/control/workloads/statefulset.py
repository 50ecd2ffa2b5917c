"""StatefulSet: pods with ordinals, names that stay and claims of their own, one revision per template.

Sources: ``pkg/controller/statefulset/{stateful_set_control,stateful_set_utils}.go``.
"""

from __future__ import annotations

from collections.abc import Sequence

from testbed.control.workloads.common import (
    POD_NAME,
    WHY,
    Object,
    Outcome,
    count_available,
    counts,
    forget_revisions,
    is_active,
    is_finished,
    is_ready,
    is_terminating,
    pod_from,
    revisions,
    unavailable_for,
)

HASH = "controller.kubernetes.io/hash"
POD_HASH = "controller-revision-hash"


def stateful_set(owner: Object, pods: Sequence[Object], known: Sequence[Object], now: float) -> Outcome:
    """One step towards the wanted ordinals at the wanted revisions. known: its ControllerRevisions."""
    return _Step(owner, pods, known, now).take()


def ordinal_of(set_name: str, pod: Object) -> int | None:
    """The ordinal of a StatefulSet's pod, None for a pod of another name."""
    prefix, _, ordinal = pod["metadata"]["name"].rpartition("-")
    return int(ordinal) if prefix == set_name and ordinal.isdigit() else None


class _Step:
    """One call's working state. pods: by ordinal."""

    def __init__(self, owner: Object, pods: Sequence[Object], known: Sequence[Object], now: float) -> None:
        self.owner, self.now, self.out = owner, now, Outcome()
        self.spec, self.name = owner["spec"], owner["metadata"]["name"]
        self.out.created = f"create Pod {POD_NAME} in StatefulSet {self.name} successful"
        self.out.deleted = f"delete Pod {POD_NAME} in StatefulSet {self.name} successful"
        self.out.refused = f"create Pod {POD_NAME} in StatefulSet {self.name} failed error: {WHY}"
        self.start: int = (self.spec.get("ordinals") or {}).get("start", 0)
        self.wanted = range(self.start, self.start + self.spec.get("replicas", 1))
        self.in_order = self.spec.get("podManagementPolicy") != "Parallel"
        self.pods = {ordinal: pod for pod in pods if (ordinal := ordinal_of(self.name, pod)) is not None}
        annotations = owner["metadata"].get("annotations") or {}
        self.update, self.old = revisions(owner, known, HASH, annotations, self.out)
        current = (owner.get("status") or {}).get("currentRevision")
        every = [*self.old, self.update]
        self.current = next((entry for entry in every if entry["metadata"]["name"] == current), self.update)

    def take(self) -> Outcome:
        strategy = self.spec.get("updateStrategy") or {}
        if self._fill() and self._shrink() and strategy.get("type") != "OnDelete":
            self._roll((strategy.get("rollingUpdate") or {}).get("partition", 0))
        live = [_revision(pod) for pod in self.pods.values()]
        live += [self.update["metadata"]["name"], self.current["metadata"]["name"]]
        forget_revisions(self.owner, self.old, live, self.out)
        self._write_status()
        return self.out

    def _available(self, pod: Object) -> bool:
        missing = unavailable_for(pod, self.spec.get("minReadySeconds", 0), self.now)
        return not missing and not is_terminating(pod)

    def _fill(self) -> bool:
        """Create what is missing and replace what has finished; False while a step has to be waited for."""
        for ordinal in self.wanted:
            pod = self.pods.get(ordinal)
            if pod is None:
                self._create(ordinal)
            elif is_finished(pod) and not is_terminating(pod):
                self.out.delete.append(pod)
            if self.in_order and (pod is None or is_finished(pod) or not self._available(pod)):
                return False
        return True

    def _shrink(self) -> bool:
        """Delete the ordinals that are too many, from the highest; False while one has to be waited for."""
        surplus = sorted((ordinal for ordinal in self.pods if ordinal not in self.wanted), reverse=True)
        for ordinal in surplus:
            pod = self.pods[ordinal]
            first_unhealthy = not any(
                not self._available(self.pods[below]) for below in surplus if below < ordinal
            )
            if self.in_order and (is_terminating(pod) or not (self._available(pod) or first_unhealthy)):
                return False
            if not is_terminating(pod):
                self.out.delete.append(pod)
                if self.in_order:
                    return False
        return True

    def _roll(self, partition: int) -> None:
        """Delete the highest ordinal of another revision, once those above it are available again."""
        for ordinal in reversed(self.wanted):
            pod = self.pods.get(ordinal)
            if ordinal - self.start < partition or pod is None:
                return
            if _revision(pod) != self.update["metadata"]["name"] and not is_terminating(pod):
                self.out.delete.append(pod)
                return
            if not self._available(pod):
                return

    # --- pods ---------------------------------------------------------------------------------------

    def _create(self, ordinal: int) -> None:
        strategy = self.spec.get("updateStrategy") or {}
        partition = (strategy.get("rollingUpdate") or {}).get("partition", 0)
        rolling = strategy.get("type", "RollingUpdate") == "RollingUpdate"
        keep = rolling and ordinal - self.start < partition
        revision = self.current if keep else self.update
        template = {
            key: value for key, value in revision["data"]["spec"]["template"].items() if key != "$patch"
        }
        name = f"{self.name}-{ordinal}"
        labels = {
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(ordinal),
            POD_HASH: revision["metadata"]["name"],
        }
        pod = pod_from(template, self.owner, name=name, labels=labels)
        pod["spec"] = {**pod["spec"], "hostname": name}
        if service := self.spec.get("serviceName"):
            pod["spec"]["subdomain"] = service
        claims = self.spec.get("volumeClaimTemplates") or []
        if claims:
            own = {claim["metadata"]["name"]: f"{claim['metadata']['name']}-{name}" for claim in claims}
            others = [volume for volume in pod["spec"].get("volumes") or () if volume["name"] not in own]
            pod["spec"]["volumes"] = [
                *(
                    {"name": volume, "persistentVolumeClaim": {"claimName": claim}}
                    for volume, claim in own.items()
                ),
                *others,
            ]
            self.out.create += [self._claim(claim, own[claim["metadata"]["name"]]) for claim in claims]
        self.out.create.append(pod)

    def _claim(self, template: Object, name: str) -> Object:
        metadata = dict(template["metadata"])
        selected = (self.spec.get("selector") or {}).get("matchLabels") or {}
        metadata |= {"name": name, "namespace": self.owner["metadata"]["namespace"]}
        if selected:
            metadata["labels"] = {**(metadata.get("labels") or {}), **selected}
        return {**template, "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}

    # --- status -------------------------------------------------------------------------------------

    def _write_status(self) -> None:
        pods = list(self.pods.values())
        ready = [pod for pod in pods if is_ready(pod)]
        available = count_available(ready, self.spec.get("minReadySeconds", 0), self.now, self.out)
        active = [pod for pod in pods if is_active(pod)]
        update, current = self.update["metadata"]["name"], self.current["metadata"]["name"]
        updated = sum(_revision(pod) == update for pod in active)
        kept = sum(_revision(pod) == current for pod in active)
        wanted = self.spec.get("replicas", 1)
        rolling = (self.spec.get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
        if rolling and updated == len(ready) == len(pods) == wanted:
            current, kept = update, updated  # the update is complete
        self.out.status = {
            "observedGeneration": self.owner["metadata"].get("generation", 1),
            "replicas": len(pods),
            **counts(readyReplicas=len(ready), currentReplicas=kept, updatedReplicas=updated),
            "availableReplicas": available,
            "currentRevision": current,
            "updateRevision": update,
            "collisionCount": (self.owner.get("status") or {}).get("collisionCount", 0),
        }


def _revision(pod: Object) -> str:
    name: str = (pod["metadata"].get("labels") or {}).get(POD_HASH, "")
    return name
