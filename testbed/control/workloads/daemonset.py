"""DaemonSet: a pod on every node that its selector, affinity and tolerations allow.

A rolling update deletes old pods, at most maxUnavailable at a time, or with a maxSurge makes as many new
ones beside old ones that serve and deletes these when their successors do.
Sources: ``pkg/controller/daemon/{daemon_controller,update}.go``, ``util/daemonset_util.go``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from testbed.control.scheduler_nodes import matches, tolerates
from testbed.control.workloads.common import (
    Happened,
    Object,
    Outcome,
    count_available,
    counts,
    forget_revisions,
    is_finished,
    is_ready,
    is_terminating,
    pod_from,
    revisions,
    share,
    unavailable_for,
)

HASH = "controller-revision-hash"
GENERATION = "deprecated.daemonset.template.generation"

DAEMON_TOLERATIONS: tuple[Object, ...] = tuple(
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": effect}
    for key, effect in (
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    )
)
"""``pkg/controller/daemon/util.AddOrUpdateDaemonPodTolerations``."""


def daemon_set(
    owner: Object, pods: Sequence[Object], nodes: Sequence[Object], known: Sequence[Object], now: float
) -> Outcome:
    """Pods for nodes that lack one, off those that are too many or old. known: its ControllerRevisions."""
    out = Outcome()
    spec = owner["spec"]
    annotations = owner["metadata"].get("annotations") or {}
    update, old = revisions(owner, known, HASH, annotations, out)
    digest = update["metadata"]["labels"][HASH]
    rolling = _rolling(spec)
    surges = share(rolling.get("maxSurge", 0), 1, up=True) > 0
    tolerations = _tolerations(spec["template"]["spec"])
    on_node: defaultdict[str, list[Object]] = defaultdict(list)
    for pod in sorted(pods, key=_oldest_bound):
        on_node[node_of(pod)].append(pod)
    eligible: list[str] = []
    misplaced = 0
    names = set()
    for node in nodes:
        name = node["metadata"]["name"]
        names.add(name)
        run, stay = _place(spec["template"]["spec"], tolerations, node)
        if run:
            eligible.append(name)
        elif name in on_node:
            misplaced += 1
        if run or stay:
            here = on_node.get(name, [])
            if surges:
                here = _without_surplus(here, digest, spec.get("minReadySeconds", 0), now, out)
            if _keep_one(here, name, out, 2 if surges else 1) and run:
                out.create.append(_pod(owner, name, tolerations, digest, annotations))
        else:
            out.delete += [pod for pod in on_node.get(name, ()) if not is_terminating(pod)]
    for name in on_node.keys() - names:
        out.delete += [pod for pod in on_node[name] if not is_terminating(pod)]
    first = {name: on_node[name][0] for name in eligible if name in on_node}
    if surges:
        allowed = share(rolling.get("maxSurge", 0), len(eligible), up=True)
        served = {name: on_node[name] for name in eligible if name in on_node}
        for name in _surge(spec, served, digest, allowed, now, out):
            out.create.append(_pod(owner, name, tolerations, digest, annotations))
    elif (spec.get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate":
        out.delete += _outdated(spec, first, digest, len(eligible), now, out)
    live = {f"{owner['metadata']['name']}-{_hash(pod)}" for pod in pods}
    forget_revisions(owner, old, live, out)
    out.status = _status(owner, first, len(eligible), misplaced, digest, now, out)
    return out


def _status(
    owner: Object,
    first: dict[str, Object],
    wanted: int,
    misplaced: int,
    digest: str,
    now: float,
    out: Outcome,
) -> Object:
    serving = list(first.values())
    ready = [pod for pod in serving if is_ready(pod)]
    available = count_available(ready, owner["spec"].get("minReadySeconds", 0), now, out)
    collisions = (owner.get("status") or {}).get("collisionCount")
    return {
        "currentNumberScheduled": len(serving),
        "desiredNumberScheduled": wanted,
        "numberMisscheduled": misplaced,
        "numberReady": len(ready),
        **counts(
            numberAvailable=available,
            numberUnavailable=wanted - available,
            updatedNumberScheduled=sum(_hash(pod) == digest for pod in serving),
        ),
        **({} if collisions is None else {"collisionCount": collisions}),
        "observedGeneration": owner["metadata"].get("generation", 1),
    }


def _rolling(spec: Object) -> Object:
    """The parameters of a rolling update; none for another strategy."""
    strategy = spec.get("updateStrategy") or {}
    rolls = strategy.get("type", "RollingUpdate") == "RollingUpdate"
    return (strategy.get("rollingUpdate") or {}) if rolls else {}


def _without_surplus(
    pods: list[Object], digest: str, min_ready: int, now: float, out: Outcome
) -> list[Object]:
    """Delete what is more than one old and one new pod, and the old one that is not needed any more.

    Both stay only while the old one is ready and the new one not yet available. Returns the others.
    """
    running = [pod for pod in pods if not is_terminating(pod) and not is_finished(pod)]
    new = [pod for pod in running if _hash(pod) == digest]
    old = [pod for pod in running if _hash(pod) != digest]
    gone = new[1:] + old[1:]
    if new and old and (not is_ready(old[0]) or not unavailable_for(new[0], min_ready, now)):
        gone.append(old[0])
    out.delete += gone
    return [pod for pod in pods if not any(pod is each for each in gone)]


def _surge(
    spec: Object, served: dict[str, list[Object]], digest: str, allowed: int, now: float, out: Outcome
) -> list[str]:
    """The nodes that get a new pod beside their old one: where that one does not serve, and up to ``allowed``
    others at a time."""
    min_ready = spec.get("minReadySeconds", 0)
    leaving = {id(pod) for pod in out.delete}
    urgent: list[str] = []
    candidates: list[str] = []
    for name, pods in served.items():
        live = [pod for pod in pods if not is_terminating(pod) and id(pod) not in leaving]
        new = [pod for pod in live if _hash(pod) == digest]
        old = [pod for pod in live if _hash(pod) != digest]
        if not old:
            continue
        if new:
            allowed -= not count_available(new[:1], min_ready, now, out)
        elif unavailable_for(old[0], min_ready, now):
            urgent.append(name)
        else:
            candidates.append(name)
    return urgent + candidates[: max(0, allowed)]


def _keep_one(pods: list[Object], node: str, out: Outcome, most: int = 1) -> bool:
    """Delete what has finished or is more than ``most`` on a node; whether the node lacks a pod."""
    kept = 0
    for pod in pods:
        if is_terminating(pod):
            kept += 1  # its successor waits until it is gone
        elif is_finished(pod):
            phase, name = pod["status"]["phase"], pod["metadata"]["name"]
            text = f"Found {phase.lower()} daemon pod {pod['metadata']['namespace']}/{name} on node {node}"
            ending = "will try to kill it" if phase == "Failed" else "will try to delete it"
            out.events.append(
                Happened(
                    "Warning" if phase == "Failed" else "Normal", f"{phase}DaemonPod", f"{text}, {ending}"
                )
            )
            out.delete.append(pod)
            kept += 1
        elif kept >= most:
            out.delete.append(pod)
        else:
            kept += 1
    return not kept


def _outdated(
    spec: Object, first: dict[str, Object], digest: str, wanted: int, now: float, out: Outcome
) -> list[Object]:
    """The pods of an old template that may go now: those that do not serve, and as many as may be missing."""
    allowed = share(_rolling(spec).get("maxUnavailable", 1), wanted, up=True)
    min_ready = spec.get("minReadySeconds", 0)
    serving = {
        name
        for name, pod in first.items()
        if not is_terminating(pod) and not unavailable_for(pod, min_ready, now)
    }
    missing = wanted - len(serving)
    gone: list[Object] = []
    leaving = {pod["metadata"]["uid"] for pod in out.delete if "uid" in pod["metadata"]}
    for name, pod in first.items():
        if _hash(pod) == digest or is_terminating(pod) or pod["metadata"]["uid"] in leaving:
            continue
        if name not in serving:
            gone.append(pod)
        elif missing < allowed:
            gone.append(pod)
            missing += 1
    return gone


def _hash(pod: Object) -> str:
    digest: str = (pod["metadata"].get("labels") or {}).get(HASH, "")
    return digest


def _oldest_bound(pod: Object) -> tuple[bool, bool, str]:
    """Order in which the pods of a node are kept."""
    return (
        is_terminating(pod) or is_finished(pod),
        not pod["spec"].get("nodeName"),
        pod["metadata"].get("creationTimestamp", ""),
    )


def _tolerations(spec: Object) -> list[Object]:
    tolerations = [*(spec.get("tolerations") or ()), *DAEMON_TOLERATIONS]
    if spec.get("hostNetwork"):
        tolerations.append(
            {"key": "node.kubernetes.io/network-unavailable", "operator": "Exists", "effect": "NoSchedule"}
        )
    return tolerations


def _place(spec: Object, tolerations: Sequence[Object], node: Object) -> tuple[bool, bool]:
    """Whether a node should get a pod, and whether one that is there may stay."""
    name = node["metadata"]["name"]
    if spec.get("nodeName") not in (None, "", name):
        return False, False
    if not matches(spec, name, node["metadata"].get("labels") or {}):
        return False, False
    effects = {
        taint["effect"]
        for taint in node.get("spec", {}).get("taints") or ()
        if not any(tolerates(toleration, taint) for toleration in tolerations)
    }
    return not effects & {"NoSchedule", "NoExecute"}, "NoExecute" not in effects


def node_of(pod: Object) -> str:
    """The node a daemon pod is meant for: bound, or named by its affinity; "" for neither."""
    if name := pod["spec"].get("nodeName"):
        return str(name)
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for wanted in term.get("matchFields") or ():
            if wanted.get("key") == "metadata.name" and wanted.get("values"):
                return str(wanted["values"][0])
    return ""


def _pod(owner: Object, node: str, tolerations: list[Object], digest: str, annotations: Object) -> Object:
    labels = {HASH: digest, "pod-template-generation": annotations.get(GENERATION, "1")}
    pod = pod_from(owner["spec"]["template"], owner, labels=labels)
    field_match = {"key": "metadata.name", "operator": "In", "values": [node]}
    affinity = dict(pod["spec"].get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [{"matchFields": [field_match]}]
    }
    affinity["nodeAffinity"] = node_affinity
    pod["spec"] = {**pod["spec"], "affinity": affinity, "tolerations": tolerations}
    return pod
