"""Addresses of load balancers: who gets which, when they are free again, and what is said about it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from testbed.cluster.clock import ManualClock
from testbed.cluster.controllers.loadbalancers import LoadBalancers
from testbed.cluster.events import Recorder
from testbed.control import view
from testbed.control.loadbalancers import FINALIZER, balanced
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Store

Object = dict[str, Any]


class Cloud:
    """A store and the controller that gives its Services load balancers."""

    def __init__(self, *cidrs: str) -> None:
        self.store = Store(
            ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112"))), seed=1
        )
        self.store.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True
        )
        recorder = Recorder(self.store, ManualClock(1_800_000_000.0))
        self.controller = LoadBalancers(self.store, recorder, cidrs or ("198.51.100.0/30",))
        self.store.subscribe(self.controller.observe)

    def create(self, name: str, **spec: Any) -> None:
        made = {"type": "LoadBalancer", "ports": [{"port": 80}], **spec}
        self.store.create(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": "default"},
                "spec": made,
            }
        )
        self.controller.run()

    def change(self, name: str, **spec: Any) -> None:
        now = self.store.get("Service", "default", name)
        self.store.update({**now, "spec": {**now["spec"], **spec}})
        self.controller.run()

    def delete(self, name: str) -> None:
        self.store.delete("Service", "default", name)
        self.controller.run()

    def ingress(self, name: str) -> list[Object]:
        service = self.store.get("Service", "default", name)
        found: list[Object] = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        return found

    def addresses(self, name: str) -> list[str]:
        return [entry["ip"] for entry in self.ingress(name)]

    def said(self, name: str) -> list[tuple[str, str]]:
        events = self.store.list("Event", field_selector=f"involvedObject.name={name}")
        return [(event["reason"], event["message"]) for event in events]


def test_the_first_free_address_is_given_as_a_vip_and_told():
    cloud = Cloud()
    cloud.create("web")
    assert cloud.ingress("web") == [{"ip": "198.51.100.1", "ipMode": "VIP"}]
    assert [reason for reason, _ in cloud.said("web")] == ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]
    assert cloud.store.get("Service", "default", "web")["metadata"]["finalizers"] == [FINALIZER]
    cloud.create("api")
    assert cloud.addresses("api") == ["198.51.100.2"]


def test_an_asked_for_address_is_given_and_one_that_cannot_be_is_told_once():
    cloud = Cloud()
    cloud.create("web", loadBalancerIP="198.51.100.2")
    assert cloud.addresses("web") == ["198.51.100.2"]
    cloud.create("api", loadBalancerIP="198.51.100.2")
    cloud.create("far", loadBalancerIP="203.0.113.1")
    assert cloud.addresses("api") == cloud.addresses("far") == []
    assert cloud.said("api") == [
        (
            "SyncLoadBalancerFailed",
            "Error syncing load balancer: failed to ensure load balancer: loadBalancerIP 198.51.100.2 is "
            "another Service's",
        )
    ]
    assert "is not in loadBalancerCIDR 198.51.100.0/30" in cloud.said("far")[0][1]


def test_a_deleted_services_address_goes_to_one_that_waits():
    cloud = Cloud()
    for name in ("one", "two", "three"):
        cloud.create(name)
    assert cloud.addresses("three") == []
    assert "no address of loadBalancerCIDR 198.51.100.0/30 is free" in cloud.said("three")[0][1]
    cloud.delete("one")
    assert cloud.store.find("Service", "default", "one") is None
    assert cloud.addresses("three") == ["198.51.100.1"]


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_another_type_frees_the_address_and_says_so(kind: str):
    cloud = Cloud()
    cloud.create("web")
    cloud.change("web", type=kind)
    service = cloud.store.get("Service", "default", "web")
    assert service["status"]["loadBalancer"] == {}
    assert "finalizers" not in service["metadata"] or FINALIZER not in service["metadata"]["finalizers"]
    assert [reason for reason, _ in cloud.said("web")][2:] == ["DeletingLoadBalancer", "DeletedLoadBalancer"]
    cloud.create("next")
    assert cloud.addresses("next") == ["198.51.100.1"]


def test_a_service_of_a_class_is_left_to_others():
    cloud = Cloud()
    cloud.create("web", loadBalancerClass="example.com/own")
    assert (cloud.addresses("web"), cloud.said("web")) == ([], [])


def test_both_families_get_one_address_each():
    cloud = Cloud("198.51.100.0/30", "2001:db8::/126")
    cloud.create("web", ipFamilyPolicy="RequireDualStack")
    assert cloud.addresses("web") == ["198.51.100.1", "2001:db8::1"]


def test_an_address_that_somebody_else_gave_stays():
    cloud = Cloud()
    recorded = {"loadBalancer": {"ingress": [{"ip": "203.0.113.30"}]}}
    metadata = {"name": "web", "namespace": "default"}
    spec = {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "TCP"}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": recorded}
    cloud.store.create(service, trusted=True)
    cloud.controller.run()
    assert cloud.addresses("web") == ["203.0.113.30"]


def test_nodes_that_are_not_ready_excluded_or_about_to_go_get_no_traffic():
    def node(name: str, ready: str = "True", labels: Object | None = None, taint: str = "") -> Object:
        return {
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}] if taint else []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }

    nodes = [
        node("a"),
        node("b", ready="Unknown"),
        node("c", labels={view.NOT_BALANCED: ""}),
        node("d", taint=view.TO_BE_DELETED),
        node("e", taint="something"),
    ]
    assert [one.name for one in balanced(map(view.typed_node, nodes))] == ["a", "e"]


def test_what_is_no_address_cannot_be_asked_for_and_stops_nobody() -> None:
    cloud = Cloud()
    cloud.create("odd", loadBalancerIP="one of those")
    assert cloud.addresses("odd") == []
    assert "loadBalancerIP one of those is no address" in cloud.said("odd")[0][1]
    cloud.create("web")
    assert cloud.addresses("web") == ["198.51.100.1"]
