from __future__ import annotations

from typing import Any

import pytest
from pretended import drive, make_plane

from testbed.cluster.clock import ManualClock
from testbed.cluster.controlplane import ControlPlane
from testbed.control import nodelifecycle
from testbed.control.nodelifecycle import NOT_READY, UNREACHABLE, conditions, eviction_time, taints

NOW = 1_000_000_000.0
LATER = "2001-09-09T01:47:40Z"


def node(status: str = "", *found: dict[str, Any]) -> dict[str, Any]:
    listed = [{"type": "Ready", "status": status}] if status else []
    return {"metadata": {"name": "n"}, "spec": {"taints": list(found)}, "status": {"conditions": listed}}


def pod(*tolerations: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"tolerations": list(tolerations)}}


def test_a_silent_node_is_unknown_in_all_that_its_kubelet_says():
    known = conditions([], True, NOW, NOW)
    assert {c["type"]: c["status"] for c in known}["Ready"] == "True"
    unknown = conditions([*known, {"type": "Own", "status": "True"}], False, NOW, NOW + 60)
    assert {c["status"] for c in unknown if c["type"] != "Own"} == {"Unknown"}
    assert {c["lastTransitionTime"] for c in unknown if c["type"] != "Own"} == {LATER}
    assert unknown[-1] == {"type": "Own", "status": "True"}


def test_a_node_whose_runtime_has_no_network_is_not_ready_while_it_lives():
    known = conditions([], True, NOW, NOW)
    ill = {c["type"]: c for c in conditions(known, True, NOW, NOW + 60, "no network")}
    ready = ill.pop("Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "KubeletNotReady", "no network")
    assert ready["lastTransitionTime"] == LATER
    assert {c["status"] for c in ill.values()} == {"False"}
    silent = conditions(known, False, NOW, NOW + 60, "no network")
    assert {c["message"] for c in silent} == {nodelifecycle.STOPPED}


@pytest.mark.parametrize(("status", "key"), [("Unknown", UNREACHABLE), ("False", NOT_READY)])
def test_a_node_that_is_not_ready_is_tainted_and_keeps_the_time_of_its_taints(status: str, key: str):
    first = taints(node(status), NOW)
    assert [(taint["key"], taint["effect"]) for taint in first] == [(key, "NoSchedule"), (key, "NoExecute")]
    assert taints(node(status, *first), NOW + 60) == first


def test_a_node_that_is_ready_again_loses_these_taints_and_no_other():
    own = {"key": "own", "effect": "NoSchedule"}
    assert taints(node("True", own, *taints(node("Unknown"), NOW)), NOW) == [own]


def test_who_tolerates_a_taint_stays_as_long_as_it_says():
    (taint,) = (t for t in taints(node("Unknown"), NOW) if t["effect"] == "NoExecute")
    exists = {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}
    assert eviction_time(pod(), [taint], NOW + 5) == NOW + 5
    assert eviction_time(pod(exists), [taint], NOW + 5) is None
    assert eviction_time(pod({**exists, "tolerationSeconds": 300}), [taint], NOW + 5) == NOW + 300
    least = {**exists, "tolerationSeconds": 20}
    assert eviction_time(pod({**exists, "tolerationSeconds": 300}, least), [taint], NOW) == NOW + 20
    assert eviction_time(pod({**exists, "tolerationSeconds": 300}), [], NOW) is None


# --- the controller -----------------------------------------------------------------------------------


def pause(plane: ControlPlane, seconds: float, *alive: str) -> None:
    """Let time pass in which these nodes go on saying that they live."""
    clock = plane.clock
    assert isinstance(clock, ManualClock)
    for _ in range(int(seconds)):
        clock.advance(1)
        for name in alive:
            plane.heard(name)
        drive(plane)


def workload(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


def alive_plane(*objects: dict[str, Any]) -> ControlPlane:
    plane = make_plane(objects, nodes=2)
    for name in ("node-1", "node-2"):
        plane.heard(name)
    drive(plane)
    return plane


def nodes_of(plane: ControlPlane) -> list[str]:
    return sorted(
        pod["spec"]["nodeName"]
        for pod in plane.store.list("Pod")
        if "deletionTimestamp" not in pod["metadata"]
    )


def ready_of(plane: ControlPlane, name: str) -> str:
    return nodelifecycle.ready(plane.store.get("Node", "", name))


def test_a_node_that_falls_silent_is_unknown_after_its_grace_and_its_pods_are_not_ready():
    plane = alive_plane(workload("DaemonSet", "d"))
    assert ready_of(plane, "node-1") == "True"
    pause(plane, 49, "node-2")
    assert ready_of(plane, "node-1") == "True"
    pause(plane, 7, "node-2")
    assert (ready_of(plane, "node-1"), ready_of(plane, "node-2")) == ("Unknown", "True")
    readiness = {
        pod["spec"]["nodeName"]: entry["status"]
        for pod in plane.store.list("Pod")
        for entry in pod["status"]["conditions"]
        if entry["type"] == "Ready"
    }
    assert readiness == {"node-1": "False", "node-2": "True"}


def test_a_node_that_speaks_again_is_ready_without_taints_and_so_are_its_pods():
    plane = alive_plane(workload("DaemonSet", "d"))
    pause(plane, 60, "node-2")
    assert plane.store.get("Node", "", "node-1")["spec"]["taints"]
    pause(plane, 1, "node-1", "node-2")
    assert ready_of(plane, "node-1") == "True"
    assert "taints" not in plane.store.get("Node", "", "node-1")["spec"]
    assert all(
        entry["status"] == "True"
        for pod in plane.store.list("Pod")
        for entry in pod["status"]["conditions"]
        if entry["type"] == "Ready"
    )


def test_a_node_without_a_network_takes_no_pods_keeps_those_it_has_and_may_fall_silent():
    plane = alive_plane(workload("Deployment", "web", replicas=2))

    def events() -> list[tuple[str, str]]:
        return [
            (event["reason"], event["source"]["component"])
            for event in plane.store.list("Event")
            if event["involvedObject"]["name"] == "node-1"
        ]

    plane.network_status("node-1", "no network")
    drive(plane)
    assert ready_of(plane, "node-1") == "False"
    assert events()[-1] == ("NodeNotReady", "kubelet")
    taints_there = plane.store.get("Node", "", "node-1")["spec"]["taints"]
    assert {(taint["key"], taint["effect"]) for taint in taints_there} == {
        (NOT_READY, "NoSchedule"),
        (NOT_READY, "NoExecute"),
    }
    assert all(
        entry["status"] == "True"
        for pod in plane.store.list("Pod")
        for entry in pod["status"]["conditions"]
        if entry["type"] == "Ready"
    )
    web = plane.store.get("Deployment", "default", "web")
    plane.store.update({**web, "spec": {**web["spec"], "replicas": 4}})
    drive(plane)
    assert nodes_of(plane) == ["node-1", "node-2", "node-2", "node-2"]
    pause(plane, 60, "node-2")
    assert ready_of(plane, "node-1") == "Unknown"
    pause(plane, 1, "node-1", "node-2")
    assert ready_of(plane, "node-1") == "False"
    plane.network_status("node-1", "")
    drive(plane)
    assert ready_of(plane, "node-1") == "True"
    assert events()[-1] == ("NodeReady", "kubelet")
    assert "taints" not in plane.store.get("Node", "", "node-1")["spec"]


def test_what_a_node_that_has_left_says_late_of_its_network_is_not_held_against_it_when_it_joins():
    plane = alive_plane()
    node = plane.store.get("Node", "", "node-1")
    plane.store.delete("Node", "", "node-1")
    plane.network_status("node-1", "no network")
    plane.store.create({**node, "metadata": {"name": "node-1"}}, trusted=True)
    pause(plane, 1, "node-1", "node-2")
    assert ready_of(plane, "node-1") == "True"


def test_pods_leave_a_silent_node_when_their_time_is_over_and_are_replaced():
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "containers": [{"name": "c", "image": "nginx"}],
            "tolerations": [
                {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 100}
            ],
        },
    }
    plane = alive_plane(workload("Deployment", "web", replicas=2, template=template))
    assert nodes_of(plane) == ["node-1", "node-2"]
    pause(plane, 56, "node-2")
    assert ready_of(plane, "node-1") == "Unknown"
    pause(plane, 90, "node-2")
    assert nodes_of(plane) == ["node-1", "node-2"]
    pause(plane, 20, "node-2")
    assert nodes_of(plane) == ["node-2", "node-2"]
    assert "TaintManagerEviction" in {event["reason"] for event in plane.store.list("Event")}


def test_a_no_execute_taint_of_a_users_own_evicts_at_once_who_does_not_tolerate_it():
    plane = alive_plane(workload("Deployment", "web", replicas=2))
    held = plane.store.get("Node", "", "node-1")
    spec = {**held["spec"], "taints": [{"key": "maintenance", "effect": "NoExecute"}]}
    plane.store.update({**held, "spec": spec}, trusted=True)
    drive(plane)
    assert nodes_of(plane) == ["node-2", "node-2"]
