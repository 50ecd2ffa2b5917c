"""Whatever happens to a cluster, in whatever order: it ends where a fresh one with the same objects starts.

Nodes are played: they make, end and forget pods when the sequence lets them. What pods of workloads were told
one by one (readiness) is not a user's object, so a sequence takes it back at its end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pretended import make_plane

from testbed.cluster.controlplane import ControlPlane
from testbed.control.workloads import is_ready
from testbed.objects.saved import saved

Object = dict[str, Any]
SEEDS, CHANGES, NODES = 200, 50, 3
READY = "testbed/ready"
LABELS = ("web", "api", "db", "edge", "other")
HISTORY = ("pod-template-generation", "topology.kubernetes.io/zone")
"""Labels that tell how and where a pod came to be."""
WORKLOADS = (("Deployment", "web"), ("Deployment", "api"), ("StatefulSet", "db"), ("DaemonSet", "edge"))


def workload(kind: str, name: str, replicas: int, **spec: Any) -> Object:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "containers": [
                {"name": "c", "image": "example/c:1", "ports": [{"name": "p", "containerPort": 80}]}
            ]
        },
    }
    size = {} if kind == "DaemonSet" else {"replicas": replicas}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **size, **spec},
    }


def lingering(made: Object) -> Object:
    """A workload whose pods go on for a while after they were told to end."""
    made["spec"]["template"]["metadata"]["annotations"] = {"testbed/termination-delay": "5s"}
    return made


def service(name: str, **spec: Any) -> Object:
    ports = [{"port": 80, "targetPort": "p"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": name}, "ports": ports, **spec},
    }


def fixed_pod() -> Object:
    """A pod that wants the same address each time, and so has to wait for the one before it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "fixed",
            "namespace": "default",
            "labels": {"app": "other"},
            "annotations": {"testbed/ip": "10.244.1.200"},
        },
        "spec": {
            "containers": [{"name": "c", "image": "example/c:1"}],
            "nodeSelector": {"kubernetes.io/hostname": "node-1"},
            "tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}],
        },
    }


def first_objects() -> list[Object]:
    return [
        workload("Deployment", "web", 3),
        lingering(workload("Deployment", "api", 2, strategy={"type": "Recreate"})),
        workload("StatefulSet", "db", 2, serviceName="db"),
        workload("DaemonSet", "edge", 0),
        service("web"),
        service("db", clusterIP="None", publishNotReadyAddresses=True),
        service("other"),
        fixed_pod(),
    ]


class Played:
    """A control plane and the nodes it believes in; ``kernel``: node → what is on it, uid → addresses."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.store = plane, plane.store
        self.names = [node["metadata"]["name"] for node in self.store.list("Node")]
        self.kernel: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in self.names}

    def settle(self) -> None:
        """Let everybody work until nothing changes."""
        version = ""
        while version != self.store.resource_version:
            version = self.store.resource_version
            self.step()
            self.end_pods()
            for name in self.names:
                self.work(name)
            self.step()

    def step(self) -> None:
        """The plane decides; what it says must hold at any time."""
        self.plane.step()
        self.check()

    def work(self, node: str) -> None:
        """A node makes the pods it should have and removes the others."""
        pods = self.plane.snapshot().pods_by_node.get(node, ())
        self.kernel[node] = {pod.uid: pod.ips for pod in pods}
        waiting = set(self.plane.not_running())
        self.plane.pods_made([uid for uid in self.kernel[node] if uid in waiting])
        self.plane.pods_removed(node, list(self.kernel[node]))
        self.check()

    def end_pods(self) -> None:
        """Pods that were told to end have ended."""
        for pod in self.store.list("Pod"):
            if "deletionTimestamp" in pod["metadata"]:
                self.plane.pod_ended(pod["metadata"]["uid"])

    def check(self) -> None:
        """No address is used twice, in status or kernel; no endpoint points to a pod that is gone."""
        used = Counter(ip for pods in self.kernel.values() for ips in pods.values() for ip in ips)
        assert max(used.values(), default=1) == 1, used
        pods = self.store.list("Pod")
        told = Counter(ip["ip"] for pod in pods for ip in pod.get("status", {}).get("podIPs", ()))
        assert max(told.values(), default=1) == 1, told

    def check_endpoints(self) -> None:
        """Every endpoint is of a pod that is there and has that address; the plane has just decided."""
        pods = {pod["metadata"]["uid"]: pod for pod in self.store.list("Pod")}
        for one in self.store.list("EndpointSlice"):
            for endpoint in one.get("endpoints") or ():
                pod = pods.get(endpoint["targetRef"]["uid"])
                assert pod is not None, f"{one['metadata']['name']} points to {endpoint['targetRef']['name']}"
                assert set(endpoint["addresses"]) <= {ip["ip"] for ip in pod["status"]["podIPs"]}


# --- changes ----------------------------------------------------------------------------------------------

Draw = random.Random
Change = Callable[[Played, Draw], None]


def patch(played: Played, kind: str, name: str, change: Object) -> None:
    namespace = "" if kind == "Node" else "default"
    played.store.patch_merge(kind, namespace, name, change)


def any_pod(played: Played, draw: Draw) -> str:
    pods = [pod for pod in played.store.list("Pod") if "deletionTimestamp" not in pod["metadata"]]
    return str(draw.choice(pods)["metadata"]["name"]) if pods else ""


def scale(played: Played, draw: Draw) -> None:
    kind, name = draw.choice(WORKLOADS[:3])
    patch(played, kind, name, {"spec": {"replicas": draw.randrange(5)}})


def relabel(played: Played, draw: Draw) -> None:
    name = any_pod(played, draw)
    if name and not name.startswith("db-"):  # a StatefulSet waits for ever for a name that is taken
        patch(played, "Pod", name, {"metadata": {"labels": {"app": "other"}}})


def readiness(played: Played, draw: Draw) -> None:
    if name := any_pod(played, draw):
        patch(played, "Pod", name, {"metadata": {"annotations": {READY: draw.choice(("false", None))}}})


def delete_pod(played: Played, draw: Draw) -> None:
    if name := any_pod(played, draw):
        played.store.delete("Pod", "default", name, grace=draw.choice((0, 30)))


def replace_pod(played: Played, draw: Draw) -> None:
    if played.store.find("Pod", "default", "fixed") is None:
        played.store.create(fixed_pod())
    else:
        played.store.delete("Pod", "default", "fixed")


def roll(played: Played, draw: Draw) -> None:
    kind, name = draw.choice(WORKLOADS)
    annotations = {"version": draw.choice("123")}
    patch(played, kind, name, {"spec": {"template": {"metadata": {"annotations": annotations}}}})


def cordon(played: Played, draw: Draw) -> None:
    patch(played, "Node", "node-1", {"spec": {"unschedulable": draw.choice((True, None))}})


def reselect(played: Played, draw: Draw) -> None:
    name = draw.choice(("web", "db", "other"))
    patch(played, "Service", name, {"spec": {"selector": {"app": draw.choice(LABELS)}}})


CHANGE: tuple[Change, ...] = (
    scale,
    relabel,
    readiness,
    delete_pod,
    replace_pod,
    replace_pod,
    roll,
    cordon,
    reselect,
)


# --- what it comes to -------------------------------------------------------------------------------------


def outcome(plane: ControlPlane) -> Object:
    """What does not depend on names, addresses and history: pods per owner, and who is in which slice."""
    store = plane.store
    sets = {one["metadata"]["uid"]: one for one in store.list("ReplicaSet")}
    kinds: dict[str, str] = {}
    for pod in store.list("Pod"):
        metadata = pod["metadata"]
        owner = next(iter(metadata.get("ownerReferences") or ()), None)
        if owner and owner["kind"] == "ReplicaSet":
            (owner,) = sets[owner["uid"]]["metadata"]["ownerReferences"]
        whose = f"{owner['kind']}/{owner['name']}" if owner else metadata["name"]
        labels = {key: value for key, value in metadata["labels"].items() if key not in HISTORY}
        annotations = metadata.get("annotations") or {}
        kinds[metadata["uid"]] = f"{whose} {sorted(labels.items())} {annotations} {is_ready(pod)}"
    members: Counter[str] = Counter()
    for one in store.list("EndpointSlice"):
        name, ports = one["metadata"]["labels"]["kubernetes.io/service-name"], one.get("ports") or []
        for endpoint in one.get("endpoints") or ():
            members[f"{name} {ports} {endpoint['conditions']} {kinds[endpoint['targetRef']['uid']]}"] += 1
    return {"pods": Counter(kinds.values()), "endpoints": members}


def cordoned(played: Played) -> bool:
    return bool(played.store.get("Node", "", "node-1")["spec"].get("unschedulable"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_sequence_of_changes_ends_where_a_fresh_start_does(seed: int) -> None:
    draw = Draw(seed)
    played = Played(make_plane(first_objects(), nodes=NODES, seed=seed))
    played.settle()
    for _ in range(CHANGES):
        draw.choice(CHANGE)(played, draw)
        match draw.randrange(4):
            case 0:
                played.settle()
            case 1:
                played.work(draw.choice(played.names))
            case 2:
                played.step()
                played.check_endpoints()
    for pod in played.store.list("Pod"):
        if pod["metadata"].get("ownerReferences"):
            patch(played, "Pod", pod["metadata"]["name"], {"metadata": {"annotations": {READY: None}}})
    played.settle()
    played.check_endpoints()
    fresh = Played(make_plane(saved(played.store.everything()), nodes=NODES, seed=seed + 1))
    if cordoned(played):
        patch(fresh, "Node", "node-1", {"spec": {"unschedulable": True}})
    fresh.settle()
    assert outcome(played.plane) == outcome(fresh.plane)
