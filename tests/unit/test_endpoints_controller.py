"""The endpoint controllers over a store: what makes a service due, and how often it is written."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from testbed.cluster.clock import ManualClock
from testbed.cluster.controllers.endpoints import Endpoints
from testbed.cluster.events import Recorder
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Event, Store

Object = dict[str, Any]
SERVICE = {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}


class World:
    """A store with one node, and what the controller writes into it."""

    def __init__(self) -> None:
        clock = ManualClock(1_800_000_000)
        self.store = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1, now=clock.now)
        self.controller = Endpoints(self.store, Recorder(self.store, clock))
        self.store.subscribe(self.controller.observe)
        self.written: list[Event] = []
        self.store.subscribe(self._note)
        for name in ("default", "other"):
            self.create("Namespace", name, namespace="")
        self.node("node-1", "a")

    def _note(self, event: Event) -> None:
        if event.kind in ("EndpointSlice", "Endpoints"):
            self.written.append(event)

    def create(self, kind: str, name: str, *, namespace: str = "default", **rest: Any) -> Object:
        labels = rest.pop("labels", {})
        version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
        metadata = {"name": name, "labels": labels, **({"namespace": namespace} if namespace else {})}
        return self.store.create(
            {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}, trusted=True
        )

    def node(self, name: str, zone: str, cpu: str = "2") -> None:
        self.create(
            "Node",
            name,
            namespace="",
            labels={"topology.kubernetes.io/zone": zone},
            status={"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]},
        )

    def service(self, name: str = "web", **spec: Any) -> Object:
        annotations = spec.pop("annotations", {})
        spec = {**SERVICE, "selector": {"app": "web"}, **spec}
        metadata = {"name": name, "namespace": spec.pop("namespace", "default"), "annotations": annotations}
        return self.store.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})

    def pod(
        self, name: str, number: int = 1, app: str = "web", node: str = "node-1", **kwargs: Any
    ) -> Object:
        return self.create(
            "Pod",
            name,
            labels={"app": app},
            spec={"nodeName": node, "containers": []},
            status={
                "phase": "Running",
                "podIPs": [{"ip": f"10.244.1.{number}"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
            **kwargs,
        )

    def endpoints(self, service: str = "web", namespace: str = "default") -> dict[str, str]:
        """Pod → zone of each endpoint of a service."""
        self.controller.run()
        return {
            endpoint["targetRef"]["name"]: endpoint.get("zone", "")
            for one in self.store.list(
                "EndpointSlice", namespace, label_selector=f"kubernetes.io/service-name={service}"
            )
            for endpoint in one["endpoints"] or ()
        }


@pytest.fixture
def world() -> World:
    return World()


def test_pods_before_and_after_the_service_are_found_in_its_namespace_alone(world: World):
    world.pod("before", 1)
    world.service()
    world.pod("after", 2)
    world.pod("stranger", 3, app="db")
    world.pod("abroad", 4, namespace="other")
    assert world.endpoints() == {"before": "a", "after": "a"}


def test_labels_decide_at_any_time(world: World):
    world.service()
    world.service("db", selector={"app": "db"})
    pod = world.pod("p")
    assert (world.endpoints("web"), world.endpoints("db")) == ({"p": "a"}, {})
    world.store.update({**pod, "metadata": {**pod["metadata"], "labels": {"app": "db"}}}, trusted=True)
    assert (world.endpoints("web"), world.endpoints("db")) == ({}, {"p": "a"})
    db = world.store.get("Service", "default", "db")
    world.store.update({**db, "spec": {**db["spec"], "selector": {"app": "web"}}})
    assert world.endpoints("db") == {}
    world.store.delete("Pod", "default", "p")
    assert world.endpoints("web") == {}


def test_five_hundred_pods_at_once_are_written_once(world: World):
    world.service()
    world.controller.run()
    world.written.clear()
    for number in range(500):
        world.pod(f"p{number}", number % 250 + 1)
    world.controller.run()
    names = [event.object["metadata"]["name"] for event in world.written]
    assert len(names) == len(set(names)) == 6, "five slices and the Endpoints object"
    world.written.clear()
    pod = world.store.get("Pod", "default", "p7")
    world.store.update_status(
        {**pod, "status": {**pod["status"], "conditions": [{"type": "Ready", "status": "False"}]}}
    )
    world.controller.run()
    assert len(world.written) == 2, "its slice and the Endpoints object"


def test_changes_that_mean_nothing_to_endpoints_make_nothing_due(world: World):
    world.service()
    pod = world.pod("p")
    world.pod("stranger", 2, app="db")
    world.controller.run()
    world.store.update({**pod, "metadata": {**pod["metadata"], "annotations": {"a": "b"}}}, trusted=True)
    node = world.store.get("Node", "", "node-1")
    world.store.update_status({**node, "status": {**node["status"], "addresses": []}})
    service = world.store.get("Service", "default", "web")
    world.store.update_status({**service, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}})
    assert not world.controller.due


def test_slices_that_somebody_else_changed_or_deleted_are_put_right(world: World):
    world.service()
    world.pod("p")
    world.controller.run()
    (mine,) = world.store.list("EndpointSlice")
    world.store.update({**mine, "endpoints": []}, trusted=True)
    assert world.endpoints() == {"p": "a"}
    world.store.delete("EndpointSlice", "default", mine["metadata"]["name"])
    assert world.endpoints() == {"p": "a"}
    world.store.delete("Endpoints", "default", "web")
    world.controller.run()
    assert world.store.find("Endpoints", "default", "web") is not None


def test_slices_made_by_hand_are_left_alone(world: World):
    by_hand = world.create(
        "EndpointSlice",
        "mine",
        labels={"kubernetes.io/service-name": "web"},
        addressType="IPv4",
        endpoints=[{"addresses": ["192.0.2.1"], "conditions": {}}],
    )
    world.service()
    world.controller.run()
    assert world.store.get("EndpointSlice", "default", "mine") == by_hand


def test_a_service_that_goes_takes_slices_and_endpoints_along(world: World):
    world.service()
    world.pod("p")
    world.controller.run()
    world.store.delete("Service", "default", "web")
    world.controller.run()
    assert world.store.list("EndpointSlice") == world.store.list("Endpoints") == []
    world.pod("q", 2)
    assert not world.controller.due


def test_external_names_and_services_without_selectors_get_none(world: World):
    world.service("ext", type="ExternalName", externalName="example.com")
    world.service("bare", selector={})
    world.pod("p")
    world.controller.run()
    assert world.store.list("EndpointSlice") == world.store.list("Endpoints") == []


def test_a_node_that_comes_moves_or_goes_changes_its_pods_endpoints(world: World):
    world.service()
    world.pod("p", node="node-2")
    assert world.endpoints() == {}
    world.node("node-2", "b")
    assert world.endpoints() == {"p": "b"}
    node = world.store.get("Node", "", "node-2")
    labels = {"topology.kubernetes.io/zone": "c"}
    world.store.update({**node, "metadata": {**node["metadata"], "labels": labels}}, trusted=True)
    assert world.endpoints() == {"p": "c"}
    world.store.delete("Node", "", "node-2")
    assert world.endpoints() == {}


def test_hints_by_zone_cpu_follow_the_nodes_and_say_so(world: World):
    world.service(annotations={"service.kubernetes.io/topology-mode": "Auto"})
    world.node("node-2", "b")
    for number in range(1, 5):
        world.pod(f"p{number}", number, node=f"node-{number % 2 + 1}")
    world.controller.run()
    (one,) = world.store.list("EndpointSlice")
    assert all(endpoint["hints"] for endpoint in one["endpoints"])
    node = world.store.get("Node", "", "node-2")
    world.store.update_status(
        {**node, "status": {**node["status"], "conditions": [{"type": "Ready", "status": "Unknown"}]}}
    )
    world.controller.run()
    (one,) = world.store.list("EndpointSlice")
    assert not any("hints" in endpoint for endpoint in one["endpoints"])
    events = [event for event in world.store.list("Event") if event["involvedObject"]["name"] == "web"]
    assert {"TopologyAwareHintsEnabled", "TopologyAwareHintsDisabled"} <= {e["reason"] for e in events}


def test_endpoints_without_a_selector_are_mirrored_until_there_is_one(world: World):
    world.service("db", selector={})
    subset = {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432, "protocol": "TCP"}]}
    made = world.create("Endpoints", "db", subsets=[subset])
    world.controller.run()
    (mirrored,) = world.store.list("EndpointSlice")
    assert mirrored["endpoints"] == [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}]
    world.store.update({**made, "subsets": [{**subset, "addresses": [{"ip": "192.0.2.2"}]}]}, trusted=True)
    world.controller.run()
    (changed,) = world.store.list("EndpointSlice")
    assert changed["endpoints"][0]["addresses"] == ["192.0.2.2"]
    assert changed["metadata"]["name"] == mirrored["metadata"]["name"]
    service = world.store.get("Service", "default", "db")
    world.store.update({**service, "spec": {**service["spec"], "selector": {"app": "web"}}})
    world.controller.run()
    (own,) = world.store.list("EndpointSlice")
    assert own["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == (
        "endpointslice-controller.k8s.io"
    )
    assert "subsets" not in world.store.get("Endpoints", "default", "db")


def test_endpoints_of_no_service_are_not_mirrored(world: World):
    world.create("Endpoints", "early", subsets=[{"addresses": [{"ip": "192.0.2.1"}]}])
    world.controller.run()
    assert world.store.list("EndpointSlice") == []
    world.service("early", selector={})
    world.controller.run()
    assert len(world.store.list("EndpointSlice")) == 1, "they waited for their service"
    world.store.delete("Service", "default", "early")
    world.controller.run()
    assert world.store.list("EndpointSlice") == world.store.list("Endpoints") == []


def test_a_namespace_that_goes_gets_nothing_new(world: World):
    world.service(namespace="other")
    world.controller.run()
    world.create("Pod", "p", namespace="other", spec={"containers": []})
    world.store.delete("Namespace", "", "other")
    world.controller.run()
    assert world.store.list("EndpointSlice", "other") == world.store.list("Endpoints", "other") == []
