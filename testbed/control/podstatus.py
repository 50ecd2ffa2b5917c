"""A pod's status as a kubelet writes it: phase, conditions, container statuses. Pure.

Sources: kubernetes v1.36 ``pkg/kubelet/status/generate.go`` (conditions), ``pkg/kubelet/kubelet_pods.go``
(``getPhase``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from testbed.objects.grace import DEFAULT_GRACE, TERMINAL, is_terminal, termination_grace
from testbed.state import ContainerState
from testbed.units import parse_duration

__all__ = ["DEFAULT_GRACE", "TERMINAL", "is_terminal", "termination_grace"]  # what the store needs, too

Object = dict[str, Any]

FORCED_READINESS = "testbed/ready"
"""Annotation: "false" makes every container not ready, whatever its probes say."""

TERMINATION_DELAY = "testbed/termination-delay"
"""Annotation: how long the pod's built-in servers go on after SIGTERM (``5s``), up to the grace period."""


# --- being deleted ------------------------------------------------------------------------------------


def grace_given(pod: Object) -> float | None:
    """The seconds a pod that is being deleted has for it; None for one that is not."""
    metadata = pod["metadata"]
    if "deletionTimestamp" not in metadata:
        return None
    return float(metadata.get("deletionGracePeriodSeconds") or 0)


_SLEEP = re.compile(r"(?:/(?:usr/)?bin/)?sleep\s+(\d+(?:\.\d+)?)s?\s*;?")
"""The command people write where they want a pod to answer on until everybody knows that it goes."""


def _stop_hooks(pod: Object) -> list[tuple[str, Object]]:
    containers = pod["spec"].get("containers") or ()
    hooks = ((one["name"], (one.get("lifecycle") or {}).get("preStop") or {}) for one in containers)
    return [(name, hook) for name, hook in hooks if hook]


def _slept(hook: Object) -> float | None:
    """Seconds that a ``preStop`` hook takes, where all it does is sleep."""
    if hook.get("sleep"):
        return float(hook["sleep"].get("seconds", 0))
    command = (hook.get("exec") or {}).get("command") or []
    in_shell = len(command) == 3 and command[0].endswith("sh") and command[1] == "-c"
    match = _SLEEP.fullmatch((command[2] if in_shell else " ".join(command)).strip())
    return float(match[1]) if match else None


def skipped_stop_hooks(pod: Object) -> list[str]:
    """The containers whose ``preStop`` hook does more than sleep, which is not carried out."""
    return [name for name, hook in _stop_hooks(pod) if _slept(hook) is None]


def linger(pod: Object) -> float:
    """Seconds that built-in servers go on after SIGTERM: as annotated, and as ``preStop`` sleeps."""
    annotated = (pod["metadata"].get("annotations") or {}).get(TERMINATION_DELAY, "")
    sleeps = [_slept(hook) or 0.0 for _, hook in _stop_hooks(pod)]
    try:
        return max([parse_duration(annotated) if annotated else 0.0, *map(float, sleeps)])
    except ValueError:  # an annotation is free text; one that is no duration asks for nothing
        return max([0.0, *map(float, sleeps)])


# --- containers ---------------------------------------------------------------------------------------


def unstarted(
    kinds: Mapping[str, Collection[str]], names: Sequence[str], begun: float
) -> tuple[ContainerState, ...]:
    """These containers right after their start. kinds: container → the kinds of its probes that run."""
    return tuple(
        ContainerState(
            name,
            begun=begun,
            ready=not {"startup", "readiness"} & set(kinds.get(name, ())),
            started="startup" not in kinds.get(name, ()),
        )
        for name in names
    )


def timestamp(seconds: float) -> str:
    """A time as the API prints it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _container_status(state: ContainerState, image: str, uid: str) -> Object:
    identity = f"testbed://{uid}/{state.name}/{state.restarts}"
    return {
        "name": state.name,
        "image": image,
        "imageID": "",
        "containerID": identity,
        "ready": state.ready,
        "started": state.started,
        "restartCount": state.restarts,
        "state": _state(state, identity),
        "lastState": _state(state.last, f"testbed://{uid}/{state.name}/{state.last.restarts}")
        if state.last
        else {},
    }


def _state(state: ContainerState, identity: str) -> Object:
    if state.state == "running":
        return {"running": {"startedAt": timestamp(state.begun)}}
    texts = {key: text for key, text in (("reason", state.reason), ("message", state.message)) if text}
    if state.state == "waiting":
        return {"waiting": texts}
    return {
        "terminated": {
            "exitCode": state.exit_code,
            **texts,
            "startedAt": timestamp(state.begun),
            "finishedAt": timestamp(state.ended),
            "containerID": identity,
        }
    }


# --- phase --------------------------------------------------------------------------------------------


def phase(restart_policy: str, states: Sequence[ContainerState]) -> str:
    """``getPhase``; a container that waits to be restarted counts as stopped."""
    running = sum(state.state == "running" for state in states)
    waiting = sum(state.state == "waiting" and state.last is None for state in states)
    stopped = [
        state.last or state
        for state in states
        if state.state == "terminated" or (state.state == "waiting" and state.last)
    ]
    if waiting:
        return "Pending"
    if running or not stopped or restart_policy == "Always":
        return "Running"
    if all(state.exit_code == 0 for state in stopped):
        return "Succeeded"
    return "Failed" if restart_policy == "Never" else "Running"


# --- conditions ---------------------------------------------------------------------------------------

Verdict = tuple[str, str, str]
"""A condition's status, reason and message."""

_TRUE: Verdict = ("True", "", "")
_OVER: dict[str, Verdict] = {"Succeeded": ("False", "PodCompleted", ""), "Failed": ("False", "PodFailed", "")}


def containers_ready(pod_phase: str, states: Sequence[ContainerState]) -> Verdict:
    """``GenerateContainersReadyCondition``."""
    if pod_phase in _OVER:
        return _OVER[pod_phase]
    unready = [state.name for state in states if not state.ready]
    if unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        return "False", "ContainersNotReady", message
    return _TRUE


def pod_ready(containers: Verdict, gates: Sequence[Object], conditions: Sequence[Object]) -> Verdict:
    """``GeneratePodReadyCondition``: as ContainersReady, and every readiness gate True."""
    if containers[0] != "True":
        return containers
    found = {condition["type"]: condition.get("status", "") for condition in conditions}
    problems = []
    for gate in gates:
        kind = gate["conditionType"]
        if kind not in found:
            problems.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif found[kind] != "True":
            problems.append(f'the status of pod readiness gate "{kind}" is not "True", but {found[kind]}')
    return ("False", "ReadinessGatesNotReady", ", ".join(problems)) if problems else _TRUE


def condition(old: Sequence[Object], kind: str, verdict: Verdict, now: str) -> Object:
    """A condition; its lastTransitionTime moves only when its status changes."""
    status, reason, message = verdict
    before = next((entry for entry in old if entry["type"] == kind), None)
    since = before["lastTransitionTime"] if before and before.get("status") == status else now
    new = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": since}
    return new | {key: text for key, text in (("reason", reason), ("message", message)) if text}


OWNED = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
"""The conditions a kubelet writes, in its order; those of others stay as they are."""


def status(
    pod: Object,
    states: Sequence[ContainerState],
    ips: Sequence[str],
    host_ips: Sequence[str],
    now: float,
) -> Object:
    """The whole status of a pod that its node has made. ips, host_ips: one per family; now: since 1970."""
    old: Object = pod.get("status") or {}
    if (pod["metadata"].get("annotations") or {}).get(FORCED_READINESS) == "false":
        states = [replace(state, ready=False) for state in states]
    at, spec = timestamp(now), pod["spec"]
    what = phase(spec.get("restartPolicy", "Always"), states)
    ended = what in TERMINAL
    containers = containers_ready(what, states)
    before: Sequence[Object] = old.get("conditions") or ()
    verdicts: tuple[Verdict, ...] = (
        ("False", "", "") if ended else _TRUE,
        ("True", "PodCompleted", "") if what == "Succeeded" else _TRUE,
        pod_ready(containers, spec.get("readinessGates") or (), before),
        containers,
        _TRUE,
    )
    images = {entry["name"]: entry.get("image", "") for entry in spec.get("containers") or ()}
    uid = pod["metadata"]["uid"]
    initial = _init_statuses(spec.get("initContainers") or (), uid, now)
    known: Sequence[Object] = old.get("initContainerStatuses") or ()
    if known and not any("waiting" in entry["state"] for entry in known):
        initial = list(known)
    return {
        **{key: value for key, value in old.items() if key not in ("reason", "message")},
        "phase": what,
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": address} for address in host_ips],
        "podIP": ips[0],
        "podIPs": [{"ip": address} for address in ips],
        "startTime": old.get("startTime") or at,
        "conditions": [
            *(condition(before, kind, verdict, at) for kind, verdict in zip(OWNED, verdicts, strict=True)),
            *(entry for entry in before if entry["type"] not in OWNED),
        ],
        **({"initContainerStatuses": initial} if initial else {}),
        "containerStatuses": [_container_status(state, images.get(state.name, ""), uid) for state in states],
    }


def creating(pod: Object, host_ips: Sequence[str], now: float) -> Object:
    """The status of a pod that its node has taken up and not made yet: its containers wait.

    host_ips: one per family; now: since 1970. Source: ``pkg/kubelet/kubelet_pods.go``
    (convertToAPIContainerStatuses: ContainerCreating, PodInitializing), ``status/generate.go``.
    """
    old: Object = pod.get("status") or {}
    at, spec = timestamp(now), pod["spec"]
    before: Sequence[Object] = old.get("conditions") or ()
    names = [entry["name"] for entry in spec.get("containers") or ()]
    initial = [entry["name"] for entry in spec.get("initContainers") or ()]
    unready = ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(names)}]")
    uninitialized = f"containers with incomplete status: [{' '.join(initial)}]"
    verdicts: tuple[Verdict, ...] = (
        ("False", "", ""),
        ("False", "ContainersNotInitialized", uninitialized) if initial else _TRUE,
        unready,
        unready,
        _TRUE,
    )
    return {
        **old,
        "phase": "Pending",
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": address} for address in host_ips],
        "startTime": old.get("startTime") or at,
        "conditions": [
            *(condition(before, kind, verdict, at) for kind, verdict in zip(OWNED, verdicts, strict=True)),
            *(entry for entry in before if entry["type"] not in OWNED),
        ],
        **({"initContainerStatuses": _waiting(spec["initContainers"], "PodInitializing")} if initial else {}),
        "containerStatuses": _waiting(
            spec.get("containers") or (), "PodInitializing" if initial else "ContainerCreating"
        ),
    }


def _waiting(containers: Sequence[Object], reason: str) -> list[Object]:
    return [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "",
            "ready": False,
            "started": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": reason}},
            "lastState": {},
        }
        for container in containers
    ]


def _init_statuses(containers: Sequence[Object], uid: str, now: float) -> list[Object]:
    """Init containers run nothing here: they have ended well, and sidecars among them go on running."""
    statuses = []
    for container in containers:
        sidecar = container.get("restartPolicy") == "Always"
        state = ContainerState(
            container["name"],
            state="running" if sidecar else "terminated",
            started=sidecar,
            begun=now,
            ended=now,
            reason="" if sidecar else "Completed",
        )
        statuses.append(_container_status(state, container.get("image", ""), uid))
    return statuses
