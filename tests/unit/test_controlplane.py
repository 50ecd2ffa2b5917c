from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed.cluster.clock import ManualClock
from testbed.cluster.controlplane import RETRY_SECONDS, ControlPlane
from testbed.cluster.messages import Connection
from testbed.control.snapshot import ClusterFacts
from testbed.dataplane import dataplanes
from testbed.faults.target import Target
from testbed.faults.weave import WeaveStalePeer
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Store
from testbed.proxy import proxiers

FACTS = ClusterFacts(
    cluster_domain="cluster.local",
    pod_cidrs=("10.244.0.0/16",),
    service_cidrs=("10.96.0.0/12",),
    node_cidrs=("192.168.100.0/24",),
    dns_addresses=("10.96.0.10",),
)


def node(number: int, prefix: int = 24) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{number}", "labels": {}},
        "spec": {"podCIDRs": [f"10.244.{number}.0/{prefix}"]},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.100.{10 + number}"}]},
    }


def workload(kind: str, name: str, replicas: int, **spec: Any) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template,
            **spec,
        },
    }


def make_plane(*objects: dict[str, Any], nodes: int = 3, prefix: int = 24) -> ControlPlane:
    store = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    for number in range(1, nodes + 1):
        store.create(node(number, prefix), trusted=True)
    for obj in objects:
        store.create(obj)
    return ControlPlane(store, FACTS, dataplanes.get("bridge"), proxiers.get("none"), {}, ManualClock())


def drive(plane: ControlPlane) -> None:
    """Decide, and pretend that every node makes what it should, until nothing changes."""
    plane.step()
    while made := plane.not_running():
        plane.pods_made(made)
        plane.step()


def addresses(plane: ControlPlane) -> dict[str, str]:
    return {
        pod["metadata"]["name"]: pod.get("status", {}).get("podIP", "") for pod in plane.store.list("Pod")
    }


def test_a_deployment_is_spread_and_every_pod_has_its_own_address_of_its_nodes_range():
    plane = make_plane(workload("Deployment", "web", 7))
    drive(plane)
    pods = plane.store.list("Pod")
    per_node = sorted(len(plane.snapshot().pods_by_node[f"node-{n}"]) for n in (1, 2, 3))
    assert per_node == [2, 2, 3]
    assert len({pod["status"]["podIP"] for pod in pods}) == 7
    for pod in pods:
        number = pod["spec"]["nodeName"].removeprefix("node-")
        assert pod["status"]["podIP"].startswith(f"10.244.{number}.")
        assert pod["status"]["phase"] == "Running"
    assert plane.store.get("Deployment", "default", "web")["status"]["readyReplicas"] == 7


def test_a_pod_has_no_address_in_its_status_before_its_node_made_it():
    plane = make_plane(workload("Deployment", "web", 1))
    plane.step()
    (pod,) = plane.store.list("Pod")
    assert pod["spec"]["nodeName"]
    assert pod["status"]["phase"] == "Pending"
    assert "podIP" not in pod["status"]
    assert len(plane.desired(pod["spec"]["nodeName"]).pods) == 1


def test_scaling_down_frees_addresses_only_when_the_node_has_removed_the_pods():
    plane = make_plane(workload("Deployment", "web", 2), nodes=1, prefix=30)
    drive(plane)
    waiting = plane.waiting_pods()
    assert len(waiting) == 1
    assert "no IP addresses available in range set: 10.244.1.1-10.244.1.2" in next(iter(waiting.values()))
    (running,) = [name for name, address in addresses(plane).items() if address]
    plane.store.delete("Pod", "default", running)
    plane.step()
    assert [address for address in addresses(plane).values() if address] == []
    plane.pods_removed("node-1", [])
    drive(plane)
    assert [address for address in addresses(plane).values() if address] == ["10.244.1.2"]


def test_an_exhausted_node_is_an_event_and_a_pending_pod():
    plane = make_plane(workload("Deployment", "web", 2), nodes=1, prefix=30)
    drive(plane)
    (event,) = plane.store.list("Event", field_selector="type=Warning")
    assert event["reason"] == "FailedCreatePodSandBox"
    pending = [pod for pod in plane.store.list("Pod") if pod["status"]["phase"] == "Pending"]
    assert event["involvedObject"]["name"] in {pod["metadata"]["name"] for pod in pending}


def test_a_pod_that_fits_nowhere_waits_with_the_schedulers_reason_and_goes_when_a_node_fits():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "picky", "namespace": "default"},
        "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "nginx"}]},
    }
    plane = make_plane(pod)
    drive(plane)
    stored = plane.store.get("Pod", "default", "picky")
    (condition,) = [entry for entry in stored["status"]["conditions"] if entry["type"] == "PodScheduled"]
    assert condition["reason"] == "Unschedulable"
    assert condition["message"].startswith("0/3 nodes are available: 3 node(s) didn't match")
    labelled = plane.store.get("Node", "", "node-2")
    plane.store.update(
        {**labelled, "metadata": {**labelled["metadata"], "labels": {"disk": "ssd"}}}, trusted=True
    )
    drive(plane)
    assert plane.store.get("Pod", "default", "picky")["spec"]["nodeName"] == "node-2"


def test_a_stateful_set_comes_up_in_order_to_its_full_size():
    plane = make_plane(workload("StatefulSet", "db", 3, serviceName="db"))
    drive(plane)
    assert sorted(addresses(plane)) == ["db-0", "db-1", "db-2"]
    assert plane.store.get("StatefulSet", "default", "db")["status"]["readyReplicas"] == 3


def test_deleting_a_deployment_takes_its_pods_along_once_their_nodes_have_removed_them():
    plane = make_plane(workload("Deployment", "web", 3))
    drive(plane)
    plane.store.delete("Deployment", "default", "web")
    plane.step()
    assert all("deletionTimestamp" in pod["metadata"] for pod in plane.store.list("Pod"))
    assert all(plane.desired(f"node-{number}").pods == {} for number in (1, 2, 3))
    for number in (1, 2, 3):
        plane.pods_removed(f"node-{number}", [])
    plane.step()
    assert plane.store.list("Pod") == []


@pytest.mark.parametrize("asked", ["10.244.1.77", "10.244.1.1"])
def test_an_asked_for_address_is_given_or_refused(asked: str):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "annotations": {"testbed/ip": asked}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "nginx"}]},
    }
    plane = make_plane(pod)
    drive(plane)
    if asked.endswith(".77"):
        assert addresses(plane) == {"p": asked}
    else:
        assert "gateway" in plane.waiting_pods()["default/p"]


def test_the_order_of_changes_does_not_matter_to_the_compiled_state():
    squashed = make_plane(workload("Deployment", "web", 4))
    drive(squashed)
    stepped = make_plane()
    drive(stepped)
    stepped.store.create(workload("Deployment", "web", 1))
    drive(stepped)
    web = stepped.store.get("Deployment", "default", "web")
    stepped.store.update({**web, "spec": {**web["spec"], "replicas": 4}})
    drive(stepped)
    for number in (1, 2, 3):
        one, other = (plane.desired(f"node-{number}") for plane in (squashed, stepped))
        assert one.netns.routes == other.netns.routes
        assert len(one.pods) == len(other.pods)


def pod(name: str, metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "nginx"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **(metadata or {})},
        "spec": {"containers": containers, **spec},
    }


def test_a_pod_that_claims_an_owner_which_did_not_make_it_stops_nobody() -> None:
    daemon_set = workload("DaemonSet", "agent", 1)
    del daemon_set["spec"]["replicas"]
    plane = make_plane(daemon_set, workload("Deployment", "web", 1))
    drive(plane)
    for kind, name in (("DaemonSet", "agent"), ("Deployment", "web")):
        uid = plane.store.get(kind, "default", name)["metadata"]["uid"]
        owner = {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": True}
        plane.store.create(pod(f"claims-{name}", {"ownerReferences": [owner]}, nodeSelector={"no": "where"}))
    plane.store.create(workload("Deployment", "later", 2))
    drive(plane)
    given = addresses(plane)
    assert [name for name, address in given.items() if not address] == ["claims-agent", "claims-web"]
    assert sum(name.startswith("later-") for name in given) == 2
    assert sum(name.startswith("agent-") for name in given) == 3


@pytest.mark.parametrize("operator", ["Gt", "Lt"])
@pytest.mark.parametrize("values", [["abc"], [], ["--5"]])
def test_a_node_selector_without_a_number_fits_no_node(operator: str, values: list[str]) -> None:
    plane = make_plane()
    expression = {"key": "kubernetes.io/hostname", "operator": operator, "values": values}
    term = {"matchExpressions": [expression]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    plane.store.create(pod("odd", affinity={"nodeAffinity": required}), trusted=True)
    plane.store.create(pod("fine"))
    drive(plane)
    assert addresses(plane) == {"odd": "", "fine": "10.244.1.2"}


def test_a_failure_of_ours_over_one_pod_is_told_there_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from testbed.control import scheduler, view

    place, typed = scheduler.Scheduler.place, view.typed_pod

    def broken_place(chooser: Any, one: dict[str, Any]) -> str:
        return place(chooser, one) if one["metadata"]["name"] != "unplaced" else str(1 // 0)

    def broken_view(one: dict[str, Any], ips: tuple[str, ...]) -> Any:
        return typed(one, ips) if one["metadata"]["name"] != "unseen" else 1 // 0

    monkeypatch.setattr(scheduler.Scheduler, "place", broken_place)
    monkeypatch.setattr(view, "typed_pod", broken_view)
    plane = make_plane(pod("unplaced"), pod("unseen"), pod("fine"), nodes=1)
    drive(plane)
    plane.step()
    assert addresses(plane) == {"fine": "10.244.1.3", "unplaced": "", "unseen": ""}
    why = {
        event["involvedObject"]["name"]: event["reason"]
        for event in plane.store.list("Event")
        if event["type"] == "Warning"
    }
    assert why == {"unplaced": "FailedScheduling", "unseen": "FailedCreatePodSandBox"}
    plane.store.delete("Pod", "default", "unseen")
    drive(plane)


def test_a_status_that_cannot_be_written_stops_no_other_pod_and_is_told() -> None:
    plane = make_plane(pod("one"), pod("two"), nodes=2)
    drive(plane)
    where = {name: plane.store.get("Pod", "default", name)["spec"]["nodeName"] for name in ("one", "two")}
    broken = plane.store.get("Node", "", where["one"])
    plane.store.update_status({**broken, "status": {**broken["status"], "addresses": []}})
    for name in ("one", "two"):
        plane.store.patch_merge(
            "Pod", "default", name, {"metadata": {"annotations": {"testbed/ready": "false"}}}
        )
    drive(plane)
    ready = {
        name: next(
            entry["status"]
            for entry in plane.store.get("Pod", "default", name)["status"]["conditions"]
            if entry["type"] == "Ready"
        )
        for name in where
    }
    assert ready == {"one": "True", "two": "False"}
    (event,) = [event for event in plane.store.list("Event") if event["type"] == "Warning"]
    assert event["involvedObject"]["name"] == "one"


def test_an_address_in_a_waiting_pods_status_that_is_none_is_not_taken() -> None:
    plane = make_plane(pod("liar", nodeSelector={"disk": "ssd"}), pod("web"), nodes=1)
    drive(plane)
    patch = {"status": {"podIPs": [{"ip": "nowhere"}]}}
    plane.store.patch_merge("Pod", "default", "liar", patch, subresource="status")
    plane.store.patch_merge("Node", "", "node-1", {"metadata": {"labels": {"disk": "ssd"}}})
    drive(plane)
    assert addresses(plane) == {"liar": "10.244.1.3", "web": "10.244.1.2"}
    assert len(plane.desired("node-1").pods) == 2


def test_the_loop_goes_on_after_a_failure_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = make_plane(pod("fine"))
    step = plane.step
    steps = iter([lambda: 1 // 0, step])

    async def story() -> None:
        monkeypatch.setattr(plane, "step", lambda: next(steps, step)())
        loop = asyncio.create_task(plane.run())
        async with asyncio.timeout(5):
            while not plane.not_running():
                assert isinstance(plane.clock, ManualClock)
                plane.clock.advance(RETRY_SECONDS)
                await asyncio.sleep(0)
        loop.cancel()

    asyncio.run(story())
    assert len(plane.not_running()) == 1


def test_what_was_cut_off_goes_on_when_the_last_policy_goes() -> None:
    """Its mark would outlive the rules, and stop it again when the next policy brings them back."""
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }
    plane = make_plane(workload("Deployment", "web", 1), nodes=1)
    drive(plane)
    (ip,) = addresses(plane).values()
    connection = Connection("203.0.113.9", ip, "TCP", 80, False, b"")
    plane.desired("node-1")
    assert plane.judge("node-1") is None
    plane.store.create(deny)
    plane.desired("node-1")
    assert (denied := plane.judge("node-1")) is not None
    assert not denied(connection)
    assert plane.judge("node-1") is not None, "asked again until it was done"
    plane.judged("node-1")
    assert plane.judge("node-1") is None
    plane.store.delete("NetworkPolicy", "default", "deny")
    plane.desired("node-1")
    assert (allowed := plane.judge("node-1")) is not None
    assert allowed(connection)
    plane.judged("node-1")
    assert plane.judge("node-1") is None


def test_a_node_that_left_while_its_connections_were_listed_is_judged_no_more() -> None:
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"podSelector": {}},
    }
    plane = make_plane(deny, pod("one", nodeName="node-1"), pod("two", nodeName="node-2"), nodes=2)
    drive(plane)
    for name in ("node-1", "node-2"):
        plane.desired(name)
        assert plane.judge(name) is not None
    plane.store.delete("Node", "", "node-2")
    for name in ("node-1", "node-2"):
        plane.judged(name)
    plane.store.create(node(2), trusted=True)
    plane.desired("node-2")
    assert plane.judge("node-2") is not None, "what joins by its name was never judged"
    assert plane.judge("node-1") is None


@pytest.mark.parametrize(("dataplane", "pooled"), [("bridge", False), ("calico", True), ("weave", True)])
def test_a_nodes_pods_are_in_its_pod_cidr_unless_the_dataplane_has_a_pool(
    dataplane: str, pooled: bool
) -> None:
    store = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    for number in (1, 2):
        store.create(node(number), trusted=True)
    facts = replace(FACTS, dataplane=dataplane, node_names=("node-1", "node-2"))
    plane = ControlPlane(store, facts, dataplanes.get(dataplane), proxiers.get("none"), {}, ManualClock())
    plane.store.create(pod("web", nodeName="node-2"))
    drive(plane)
    (address,) = (ip_address(each) for each in addresses(plane).values())
    seen = plane.snapshot().node
    assert seen["node-2"].pooled == pooled
    assert any(address in ip_network(cidr) for cidr in seen["node-2"].pod_ranges)
    assert not any(address in ip_network(cidr) for cidr in seen["node-1"].pod_ranges)
    assert (seen["node-2"].pod_ranges == ("10.244.2.0/24",)) != pooled


def test_a_pod_that_cannot_be_made_yet_says_the_address_that_its_node_got_meanwhile() -> None:
    other, over = pod("other", nodeName="node-2"), pod("over", nodeName="node-1")
    plane = make_plane(pod("a", nodeName="node-1"), pod("b", nodeName="node-1"), other, over, prefix=30)
    over = plane.store.get("Pod", "default", "over")
    ended = {"phase": "Failed", "hostIP": "192.168.100.11", "containerStatuses": [{"name": "c"}]}
    plane.store.update_status({**over, "status": ended})
    drive(plane)
    (waiting,) = (name for name, address in addresses(plane).items() if not address and name in "ab")
    plane.readdress("node-1", [{"type": "InternalIP", "address": "192.168.100.77"}])
    drive(plane)
    status = {each["metadata"]["name"]: each["status"] for each in plane.store.list("Pod")}
    assert status[waiting]["hostIPs"] == [{"ip": "192.168.100.77"}]
    assert status[waiting]["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert {name: each["hostIP"] for name, each in status.items()} == {
        **dict.fromkeys("ab", "192.168.100.77"),
        "other": "192.168.100.12",
        "over": "192.168.100.11",
    }
    assert status["over"] == ended


def test_what_a_stale_peer_owned_is_anothers_once_it_is_removed_though_no_pod_waits() -> None:
    store = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)
    for number in (1, 2):
        store.create(node(number), trusted=True)
    names, cidrs = ("node-1", "node-2"), ("10.32.0.0/28",)
    facts = replace(FACTS, dataplane="weave", pod_cidrs=cidrs, node_names=names)
    plane = ControlPlane(store, facts, dataplanes.get("weave"), proxiers.get("none"), {}, ManualClock())
    fault, target = WeaveStalePeer(), Target(nodes=plane.snapshot().nodes[1:])
    hands = cast(Any, SimpleNamespace(plane=plane, ring=plane.ipam))
    asyncio.run(fault.inject(hands, target))
    store.delete("Node", "", "node-2")
    plane.step()
    assert plane.snapshot().nodes[0].held.ranges == ("10.32.0.0/29",)
    asyncio.run(fault.lift(hands, target))
    assert plane.snapshot().nodes[0].held.ranges == ("10.32.0.0/28",)
    assert not plane.settled
