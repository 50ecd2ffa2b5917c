"""Job: pods until enough of them have succeeded.

The built-in application server, which stands in for images, never ends: the pods of a Job run until they are
deleted, unless commands are allowed and theirs ends. Not acted on: podFailurePolicy, successPolicy,
backoffLimitPerIndex, and the restarts that upstream counts for restartPolicy OnFailure.

Sources: ``pkg/controller/job/{job_controller,indexed_job_utils,backoff_utils}.go``,
``pkg/controller/ttlafterfinished``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from testbed.control.workloads.common import (
    Happened,
    Object,
    Outcome,
    counts,
    is_active,
    is_finished,
    is_ready,
    is_terminating,
    pod_from,
    seconds_of,
    timestamp,
    whole,
    with_condition,
    without_condition,
)

TRACKING = "batch.kubernetes.io/job-tracking"
"""The finalizer that keeps a pod until its end is counted in its Job's status."""
INDEX = "batch.kubernetes.io/job-completion-index"

_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 10, 600


def job(owner: Object, pods: Sequence[Object], now: float) -> Outcome:
    """Count the pods that ended, then create or delete what is missing or too many. pods: the Job's."""
    return _Step(owner, pods, now).take()


def untracked(pod: Object) -> Object | None:
    """The pod without the finalizer of its Job; None if it has none."""
    finalizers = pod["metadata"].get("finalizers") or []
    if TRACKING not in finalizers:
        return None
    metadata = {key: value for key, value in pod["metadata"].items() if key != "finalizers"}
    if left := [entry for entry in finalizers if entry != TRACKING]:
        metadata["finalizers"] = left
    return {**pod, "metadata": metadata}


class _Step:
    """One call's working state."""

    def __init__(self, owner: Object, pods: Sequence[Object], now: float) -> None:
        self.owner, self.now, self.out = owner, now, Outcome()
        self.spec, self.status = owner["spec"], owner.get("status") or {}
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.active = [pod for pod in pods if is_active(pod)]
        self.pods = pods
        self.conditions: list[Object] = list(self.status.get("conditions") or ())
        self.succeeded: int = self.status.get("succeeded", 0)
        self.failed: int = self.status.get("failed", 0)
        self.indexes = _indexes(self.status.get("completedIndexes", ""), self.spec.get("completions") or 0)
        self.started: str = self.status.get("startTime", "")
        self.completed: str = self.status.get("completionTime", "")

    def take(self) -> Outcome:
        self._count_ended()
        if self._over:
            self._expire()
        elif self.spec.get("suspend"):
            self._suspend()
        else:
            self._resume()
            self._judge()
            if not self._over:
                self._size()
        if self._over:
            self.out.delete += self.active
        self._write_status()
        return self.out

    @property
    def _over(self) -> bool:
        return any(entry["type"] in ("Complete", "Failed") for entry in self.conditions)

    def _count_ended(self) -> None:
        """Pods that ended, or are deleted before they did, count once: when they lose their finalizer."""
        for pod in self.pods:
            if is_active(pod) or (left := untracked(pod)) is None:
                continue
            self.out.update.append(left)
            if pod.get("status", {}).get("phase") != "Succeeded":
                self.failed += 1
            elif not self.indexed:
                self.succeeded += 1
            elif (index := _index(pod)) is not None:
                self.indexes.add(index)
        if self.indexed:
            self.succeeded = len(self.indexes)

    def _resume(self) -> None:
        if any(entry["type"] == "Suspended" and entry["status"] == "True" for entry in self.conditions):
            self._condition("Suspended", "False", "JobResumed", "Job resumed")
            self._say("Normal", "Resumed", "Job resumed")
            self.started = ""
        self.started = self.started or timestamp(self.now)

    def _suspend(self) -> None:
        self.out.delete += self.active
        if not any(entry["type"] == "Suspended" and entry["status"] == "True" for entry in self.conditions):
            self._condition("Suspended", "True", "JobSuspended", "Job suspended")
            self._say("Normal", "Suspended", "Job suspended")
        self.started = ""

    def _judge(self) -> None:
        """Whether the Job is complete or has failed."""
        completions, deadline = self.spec.get("completions"), self.spec.get("activeDeadlineSeconds")
        left = None if deadline is None else seconds_of(self.started) + deadline - self.now
        if self.failed > self.spec.get("backoffLimit", 6):
            self._fail("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif left is not None and left <= 0:
            self._fail("DeadlineExceeded", "Job was active longer than specified deadline")
        elif (
            self.succeeded >= completions
            if completions is not None
            else self.succeeded and not self.active  # any success ends a work queue
        ):
            text = "CompletionsReached", "Reached expected number of succeeded pods"
            self._condition("SuccessCriteriaMet", "True", *text)
            self._condition("Complete", "True", *text)
            self.completed = timestamp(self.now)
            self._say("Normal", "Completed", "Job completed")
        elif left is not None:
            self.out.look_again(left)

    def _fail(self, reason: str, message: str) -> None:
        self._condition("FailureTarget", "True", reason, message)
        self._condition("Failed", "True", reason, message)
        self._say("Warning", reason, message)

    def _size(self) -> None:
        parallelism, completions = self.spec.get("parallelism", 1), self.spec.get("completions")
        if completions is None:
            wanted = len(self.active) if self.succeeded else parallelism
        else:
            wanted = min(parallelism, completions - self.succeeded)
        surplus = len(self.active) - wanted
        if surplus > 0:
            self.out.delete += sorted(self.active, key=is_ready)[:surplus]
        elif surplus < 0 and not self._backing_off():
            missing = -surplus
            if self.indexed:
                taken = self.indexes | {index for pod in self.active if (index := _index(pod)) is not None}
                free = (index for index in range(completions or 0) if index not in taken)
                self.out.create = [self._pod(index) for index, _ in zip(free, range(missing), strict=False)]
            else:
                self.out.create = [self._pod(None)] * missing

    def _backing_off(self) -> bool:
        """After failures new pods wait, twice as long each time."""
        failures = [pod for pod in self.pods if pod.get("status", {}).get("phase") == "Failed"]
        if not failures or not self.failed:
            return False
        delay = min(_BACKOFF_SECONDS * 2 ** min(self.failed - 1, 10), _MAX_BACKOFF_SECONDS)
        left: float = max(map(_ended, failures)) + delay - self.now
        if left > 0:
            self.out.look_again(left)
        return left > 0

    def _expire(self) -> None:
        lifetime = self.spec.get("ttlSecondsAfterFinished")
        if lifetime is None:
            return
        over = next(entry for entry in self.conditions if entry["type"] in ("Complete", "Failed"))
        left = seconds_of(over["lastTransitionTime"]) + lifetime - self.now
        if left > 0:
            self.out.look_again(left)
        else:
            self.out.delete.append(self.owner)

    def _pod(self, index: int | None) -> Object:
        name = self.owner["metadata"]["name"]
        pod = pod_from(self.spec["template"], self.owner)
        metadata = pod["metadata"]
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), TRACKING]
        if index is not None:
            metadata["generateName"] = f"{name}-{index}-"
            metadata["labels"] = {**metadata["labels"], INDEX: str(index)}
            metadata["annotations"] = {**(metadata.get("annotations") or {}), INDEX: str(index)}
            pod["spec"] = {**pod["spec"], "hostname": f"{name}-{index}"}
            for field in ("initContainers", "containers"):
                if field in pod["spec"]:
                    pod["spec"][field] = [_with_index(container) for container in pod["spec"][field]]
        return pod

    # --- status -------------------------------------------------------------------------------------

    def _condition(self, kind: str, status: str, reason: str, message: str) -> None:
        now = timestamp(self.now)
        new = {"type": kind, "status": status, "reason": reason, "message": message}
        new |= {"lastProbeTime": now, "lastTransitionTime": now}
        if status == "False":
            self.conditions = without_condition(self.conditions, kind)
        self.conditions = with_condition(self.conditions, new)

    def _say(self, kind: str, reason: str, message: str) -> None:
        self.out.events.append(Happened("Warning" if kind == "Warning" else "Normal", reason, message))

    def _write_status(self) -> None:
        active = [] if self._over or self.spec.get("suspend") else self.active
        self.out.status = {
            **counts(active=len(active), succeeded=self.succeeded, failed=self.failed),
            "ready": sum(map(is_ready, active)),
            "terminating": sum(is_terminating(pod) and not is_finished(pod) for pod in self.pods),
            "uncountedTerminatedPods": {},
            **({"completedIndexes": _intervals(self.indexes)} if self.indexes else {}),
            **({"startTime": self.started} if self.started else {}),
            **({"completionTime": self.completed} if self.completed else {}),
            **({"conditions": self.conditions} if self.conditions else {}),
        }


def _index(pod: Object) -> int | None:
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    index = whole(text, -1)
    return index if index >= 0 else None


def _with_index(container: Object) -> Object:
    """A container that finds its index in the variable JOB_COMPLETION_INDEX."""
    env = container.get("env") or []
    if any(entry["name"] == "JOB_COMPLETION_INDEX" for entry in env):
        return container
    source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}}
    return {**container, "env": [*env, {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}]}


def _ended(pod: Object) -> float:
    """When a finished pod's last container ended, or the pod was made where that is not known."""
    ends = [
        entry["state"]["terminated"]["finishedAt"]
        for entry in pod.get("status", {}).get("containerStatuses") or ()
        if (entry.get("state") or {}).get("terminated", {}).get("finishedAt")
    ]
    return seconds_of(max(ends, default=pod["metadata"]["creationTimestamp"]))


def _indexes(text: str, completions: int) -> set[int]:
    """``0-2,5`` → {0, 1, 2, 5}; without what is no index of the Job, as anybody may write a status."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        start = whole(first, completions)
        found |= set(range(max(0, start), min(whole(last or first, -1) + 1, completions)))
    return found


def _intervals(indexes: Iterable[int]) -> str:
    """{0, 1, 2, 5} → ``0-2,5``."""
    runs: list[tuple[int, int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1] = runs[-1][0], index
        else:
            runs.append((index, index))
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
