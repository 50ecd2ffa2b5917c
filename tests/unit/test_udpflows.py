"""Which UDP connections end when Services change: those to endpoints that serve no more, and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.proxy import proxiers
from testbed.rules.udpflows import Tracked, stale
from testbed.state import NetnsState, NodeState, UdpFlows

FLOWS = (
    UdpFlows("ipv4", "10.96.0.10", 53, ("10.244.1.2:53", "10.244.2.2:53")),
    UdpFlows("ipv4", "", 30053, ("10.244.1.2:53",)),
    UdpFlows("ipv6", "fd00:10:96::a", 53, ("[fd00:10:244:1::2]:53",)),
)


@pytest.mark.parametrize(
    ("tracked", "ends"),
    [
        (Tracked("10.96.0.10", 53, "10.244.1.2", 53), False),
        (Tracked("10.96.0.10", 53, "10.244.1.9", 53), True),
        (Tracked("10.96.0.10", 53, "10.244.1.2", 5353), True),  # the target port changed
        (Tracked("10.96.0.10", 53, "10.96.0.10", 53), True),  # from before there was a rule
        (Tracked("10.96.0.10", 54, "10.244.1.9", 54), False),  # another port
        (Tracked("192.168.100.11", 30053, "10.244.1.2", 53), False),
        (Tracked("192.168.100.12", 30053, "10.244.2.2", 53), True),  # a node port, on any address
        (Tracked("fd00:10:96::a", 53, "fd00:10:244:1::2", 53), False),
        (Tracked("fd00:10:96::a", 53, "fd00:10:244:1::9", 53), True),
        (Tracked("fd00::1", 30053, "fd00::1", 30053), False),  # a node port of the other family
    ],
)
def test_a_connection_ends_where_its_endpoint_serves_it_no_more(tracked: Tracked, ends: bool) -> None:
    assert list(stale([tracked], FLOWS)) == ([tracked] if ends else [])


NODE = Node("node-1", ("192.168.100.11",), ("10.244.1.0/24",))
DNS = Service(
    "default",
    "dns",
    type="LoadBalancer",
    cluster_ips=("10.96.0.10",),
    ports=(
        ServicePort(53, "dns", "UDP", node_port=30053),
        ServicePort(53, "dns-tcp", "TCP", node_port=30054),
    ),
    external_ips=("198.51.100.1",),
    vips=("198.51.101.1",),
    internal_local=True,
)


def snapshot(*endpoints: Endpoint) -> Snapshot:
    ports = (EndpointPort(53, "dns", "UDP"), EndpointPort(53, "dns-tcp", "TCP"))
    one = EndpointSlice("default", "dns-a", "dns", "IPv4", ports, endpoints)
    facts = ClusterFacts("cluster.local", ("10.244.0.0/16",), (), (), ())
    key = ("default", "dns")
    return Snapshot(facts, (NODE,), services={key: DNS}, slices={key: (one,)})


HERE, FAR = Endpoint(("10.244.1.2",), node="node-1"), Endpoint(("10.244.2.2",), node="node-2")
ENDING = replace(FAR, ready=False, terminating=True)
GONE = replace(FAR, ready=False, serving=False, terminating=True)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_flows_are_those_of_udp_ports_to_all_that_serves_whatever_the_policies_say(mode: str) -> None:
    flows = proxiers.get(mode).compile(snapshot(HERE, ENDING), NODE).udp
    serving = ("10.244.1.2:53", "10.244.2.2:53")
    addresses = (("10.96.0.10", 53), ("198.51.100.1", 53), ("198.51.101.1", 53), ("", 30053))
    assert flows == {("ipv4", ip, port): UdpFlows("ipv4", ip, port, serving) for ip, port in addresses}


def test_what_nobody_serves_is_left_alone_and_only_what_changed_is_looked_at() -> None:
    proxier = proxiers.get("iptables")
    states = [
        NodeState(NetnsState(udp=proxier.compile(each, NODE).udp))
        for each in (snapshot(HERE, FAR), snapshot(HERE, GONE), snapshot(GONE))
    ]
    assert states[2].netns.udp == {}
    (change,) = diff(states[0], states[1])
    assert isinstance(change, ChangeNetns)
    assert {flows.serving for flows in change.add.udp.values()} == {("10.244.1.2:53",)}
    assert change.remove == NetnsState()
    (change,) = diff(states[1], states[2])
    assert isinstance(change, ChangeNetns)
    assert (change.add, change.remove.udp.keys()) == (NetnsState(), states[1].netns.udp.keys())
    assert diff(states[1], states[1]) == ()
