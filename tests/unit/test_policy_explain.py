"""Questions about policies: who is meant by an address, and what a change would open or close."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.conformance.network_policy.cases import complete
from testbed.control.policies import Policies
from testbed.control.snapshot import (
    ClusterFacts,
    Container,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Pod,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.errors import InputError
from testbed.policy.explain import asked, changes, undeclared
from testbed.policy.meaning import Flow, Meaning

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
NODES = tuple(Node(f"node-{k}", (f"192.168.100.1{k}",), (f"10.244.{k}.0/24",)) for k in (1, 2))
WEB = (Container("c", "nginx", ports=(ContainerPort(8080, "web"),)),)
A = Pod("ua", "default", "a", "node-1", ("10.244.1.2",), {"app": "a"}, containers=WEB)
B = Pod("ub", "default", "b", "node-2", ("10.244.2.2",), {"app": "b"}, containers=WEB)
SERVICE = Service(
    "default",
    "s",
    "NodePort",
    cluster_ips=("10.96.0.9",),
    ports=(ServicePort(80, "http", node_port=30080),),
    vips=("198.51.100.7",),
)
SLICE = EndpointSlice(
    "default", "s-1", "s", "IPv4", (EndpointPort(8080, "http"),), (Endpoint(B.ips, node="node-2"),)
)


def policy(name: str = "p", **spec: Any) -> dict[str, Any]:
    return complete(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"podSelector": {}, **spec},
        }
    )


def snapshot(*policies: dict[str, Any], pods: tuple[Pod, ...] = (A, B)) -> Snapshot:
    kept = Policies()
    kept.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    for each in policies:
        kept.put(each)
    return Snapshot(
        FACTS,
        NODES,
        pods,
        services={("default", "s"): SERVICE},
        slices={("default", "s"): (SLICE,)},
        policies=kept.policies,
        namespaces=kept.namespaces,
    )


@pytest.mark.parametrize(
    ("target", "port"), [("10.96.0.9", 80), ("198.51.100.7", 80), ("192.168.100.11", 30080)]
)
def test_an_address_of_a_service_stands_for_it(target: str, port: int) -> None:
    (found,) = asked(snapshot(), "a", target, "tcp", port)
    assert (found.flow, found.by, found.target.name) == (
        Flow("10.244.1.2", "10.244.2.2", "TCP", 8080),
        "default/s:80",
        "default/b",
    )


def test_another_nodes_port_is_an_address_outside() -> None:
    (found,) = asked(snapshot(), "a", "192.168.100.12", "tcp", 30080)
    assert (found.flow.destination, found.flow.port, found.by) == ("192.168.100.12", 30080, "")


def test_a_services_address_has_its_ports_only() -> None:
    with pytest.raises(InputError, match="service default/s has no TCP port 81"):
        asked(snapshot(), "a", "10.96.0.9", "tcp", 81)


def opened(before: Snapshot, after: Snapshot, hosts: dict[str, str] | None = None) -> set[str]:
    found = changes(before, after, hosts or {})
    return {f"{each.source.name} > {each.target.name}" for each, _, new in found if new.allowed}


def test_a_change_about_ranges_is_seen_at_the_addresses_that_it_names() -> None:
    closed = snapshot(policy(ingress=[]))
    ranges = {"cidr": "203.0.113.0/28", "except": ["203.0.113.0/30", "203.0.113.10/32"]}
    after = snapshot(policy(ingress=[]), policy("q", ingress=[{"from": [{"ipBlock": ranges}]}]))
    assert opened(closed, after) == {
        "203.0.113.4 in 203.0.113.0/28 > default/a",
        "203.0.113.4 in 203.0.113.0/28 > default/b",
    }
    assert "client > default/a" in opened(closed, after, {"203.0.113.9": "client"})
    assert opened(closed, after, {"203.0.113.10": "client"}) == opened(closed, after)


def test_a_changed_exception_is_seen() -> None:
    def world(*excepts: str) -> Snapshot:
        block = {"cidr": "203.0.113.0/24", "except": list(excepts)}
        return snapshot(policy(ingress=[{"from": [{"ipBlock": block}]}]))

    before, after = world("203.0.113.64/26"), world("203.0.113.128/26")
    assert "203.0.113.65 in 203.0.113.64/26 > default/a" in opened(before, after)


def test_nodes_are_asked_too() -> None:
    closed = snapshot(policy(ingress=[]))
    block = {"cidr": "192.168.100.12/32"}
    after = snapshot(policy(ingress=[{"from": [{"ipBlock": block}]}]))
    assert opened(closed, after) == {"node node-2 > default/a"}  # it reached its own pod before


def test_who_declares_no_port_is_named() -> None:
    bare = replace(A, uid="uc", name="c", containers=())
    assert undeclared((A, bare, B)) == ["default/c"]
    assert undeclared((A, bare), ["UDP"]) == ["default/a", "default/c"]


def test_a_sidecars_named_port_counts() -> None:
    side = replace(B, containers=(), sidecars=WEB)
    meaning = Meaning(snapshot(policy(ingress=[{"ports": [{"port": "web"}]}]), pods=(A, side)))
    assert meaning.allowed(Flow(A.ips[0], B.ips[0], "TCP", 8080)).allowed
    assert not meaning.allowed(Flow(A.ips[0], B.ips[0], "TCP", 8081)).allowed


def test_a_node_reaches_its_pod_from_its_loopback_too() -> None:
    meaning = Meaning(snapshot(policy(ingress=[])))
    assert meaning.allowed_on("node-1", Flow("127.0.0.1", A.ips[0], "TCP", 8080))
    assert not meaning.allowed_on("node-1", Flow(B.ips[0], A.ips[0], "TCP", 8080))


@pytest.mark.parametrize("spared", [True, False])
def test_where_a_dataplane_spares_the_own_node_egress_to_it_is_not_judged(spared: bool) -> None:
    taken = snapshot(policy(egress=[], policyTypes=["Egress"]))
    taken = replace(taken, facts=replace(FACTS, spares_own_node=spared))
    assert Meaning(taken).allowed(Flow(A.ips[0], "192.168.100.11", "TCP", 22)).allowed is spared
    assert not Meaning(taken).allowed(Flow(A.ips[0], "192.168.100.12", "TCP", 22)).allowed
