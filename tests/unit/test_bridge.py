"""The kubenet / bridge row of the comparison of dataplanes, §1 and §2: addressing and control."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.cluster.apply import apply
from testbed.cluster.compile import compile_node
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.plugins import host_end_name
from testbed.kernel.fake import FakeKernel
from testbed.proxy import proxiers
from testbed.state import NODE, Address, Link, NetnsState, NodeState, PodState, Route

BRIDGE = dataplanes.get("bridge")


def make_node(k: int, **more: Any) -> Node:
    given = {
        "addresses": (f"172.18.0.{k + 1}",),
        "pod_cidrs": (f"10.244.{k}.0/24",),
        "networks": ("172.18.0.0/16",),
    }
    return Node(f"node-{k}", **{**given, **more})


def make_pod(name: str, k: int, *ips: str, **more: Any) -> Pod:
    return Pod(f"uid-{name}", "default", name, f"node-{k}", ips, **more)


def make_snapshot(*pods: Pod, nodes: tuple[Node, ...] = (), **facts: Any) -> Snapshot:
    given = {
        "cluster_domain": "cluster.local",
        "pod_cidrs": ("10.244.0.0/16",),
        "service_cidrs": ("10.96.0.0/16",),
        "node_cidrs": ("172.18.0.0/16",),
        "dns_addresses": (),
    }
    return Snapshot(ClusterFacts(**{**given, **facts}), nodes or (make_node(1), make_node(2)), pods)


def compiled(snapshot: Snapshot, k: int = 1) -> NodeState:
    return BRIDGE.compile(snapshot, snapshot.node[f"node-{k}"])


A1, A2, B1 = make_pod("a1", 1, "10.244.1.2"), make_pod("a2", 1, "10.244.1.3"), make_pod("b1", 2, "10.244.2.2")


def rules(state: NodeState, family: str = "ipv4") -> tuple[str, ...]:
    return state.netns.chains[family, "nat", "POSTROUTING"].rules


def test_pod_has_a_24_of_its_node_one_default_route_by_the_bridge_and_the_links_mtu():
    netns = compiled(make_snapshot(A1)).pods["uid-a1"].netns
    assert netns.links["eth0"] == Link("eth0", "veth", mtu=1500, peer=host_end_name("uid-a1"))
    assert list(netns.addresses.values()) == [Address("eth0", "10.244.1.2/24")]
    assert netns.routes == {"default": Route("default", via="10.244.1.1", dev="eth0")}
    assert netns.links["lo"].up


def test_bridge_has_the_gateway_address_a_pinned_mac_and_hairpin_on_its_ports():
    netns = compiled(make_snapshot(A1, A2)).netns
    assert netns.links["cni0"] == Link("cni0", "bridge", mtu=1500, mac="0a:58:0a:f4:01:01")
    assert list(netns.addresses) == [("cni0", "10.244.1.1/24")]
    ports = [link for link in netns.links.values() if link.kind == "peer"]
    assert [(port.master, port.hairpin, port.up, port.mtu) for port in ports] == [
        ("cni0", True, True, 1500)
    ] * 2


def test_host_end_is_veth_and_eight_hex_digits_the_same_for_the_same_pod():
    name = host_end_name("uid-a1")
    assert name == host_end_name("uid-a1") != host_end_name("uid-a2")
    assert name.startswith("veth")
    assert len(bytes.fromhex(name.removeprefix("veth"))) == 4


def test_there_is_no_bridge_before_the_first_pod():
    netns = compiled(make_snapshot(B1)).netns
    assert netns.links == {}
    assert netns.addresses == {}
    assert list(netns.routes) == ["10.244.2.0/24"]


def test_mtu_is_that_of_the_links_between_nodes():
    state = compiled(make_snapshot(A1, link_mtu=9000))
    inside = state.pods["uid-a1"].netns.links["eth0"]
    assert {link.mtu for link in [*state.netns.links.values(), inside]} == {9000}


def test_other_nodes_pods_are_routed_to_the_node_where_it_is_on_the_segment():
    assert compiled(make_snapshot()).netns.routes == {
        "10.244.2.0/24": Route("10.244.2.0/24", via="172.18.0.3", dev="eth0")
    }


def test_nodes_behind_a_router_have_no_route_the_underlay_knows_it():
    far = make_node(3, addresses=("172.19.0.4",), networks=("172.19.0.0/16",))
    snapshot = make_snapshot(nodes=(make_node(1), make_node(2), far), node_cidrs=("172.16.0.0/12",))
    assert list(compiled(snapshot, 1).netns.routes) == ["10.244.2.0/24"]
    assert compiled(snapshot, 3).netns.routes == {}
    assert BRIDGE.underlay_routes


def test_one_rule_masquerades_what_leaves_10_8():
    assert rules(compiled(make_snapshot())) == (
        '! -d 10.0.0.0/8 -m comment --comment "kubenet: SNAT for outbound traffic from cluster" '
        "-m addrtype ! --dst-type LOCAL -j MASQUERADE",
    )


@pytest.mark.parametrize(
    ("pod_cidr", "options", "inside"),
    [
        ("192.168.0.0/16", {}, "192.168.0.0/16"),
        ("10.32.0.0/12", {}, "10.0.0.0/8"),
        ("10.244.0.0/16", {"nonMasqueradeCIDR": "172.16.0.0/12"}, "172.16.0.0/12"),
        ("fd24::/48", {}, "fd24::/48"),
        ("fd24::/48", {"nonMasqueradeCIDR": "fd00::/8"}, "fd00::/8"),
        ("fd24::/48", {"nonMasqueradeCIDR": "10.0.0.0/8"}, "fd24::/48"),
    ],
)
def test_pods_keep_their_address_within(pod_cidr: str, options: dict[str, str], inside: str):
    state = compiled(make_snapshot(pod_cidrs=(pod_cidr,), dataplane_options=options))
    (chain,) = state.netns.chains.values()
    assert chain.rules[0].startswith(f"! -d {inside} ")


def test_nobody_masquerades_where_everything_is_inside():
    state = compiled(make_snapshot(dataplane_options={"nonMasqueradeCIDR": "0.0.0.0/0"}))
    assert state.netns.chains == {}


def test_node_forwards_and_shows_bridged_frames_to_iptables():
    assert compiled(make_snapshot(A1)).netns.sysctls == {
        "net/ipv4/ip_forward": "1",
        "net/bridge/bridge-nf-call-iptables": "1",
    }


def test_host_network_pod_is_not_wired():
    pod = make_pod("host", 1, "172.18.0.2", host_network=True)
    snapshot = make_snapshot(pod)
    assert compiled(snapshot).pods == {}
    whole = compile_node(snapshot, snapshot.nodes[0], BRIDGE, proxiers.get("none")).pods["uid-host"]
    assert whole.host_network
    assert whole.netns == NetnsState()


DUAL = {
    "nodes": tuple(
        make_node(
            k,
            addresses=(f"172.18.0.{k + 1}", f"fd18::{k + 1}"),
            pod_cidrs=(f"10.244.{k}.0/24", f"fd24:0:0:{k}::/64"),
            networks=("172.18.0.0/16", "fd18::/64"),
        )
        for k in (1, 2)
    ),
    "pod_cidrs": ("10.244.0.0/16", "fd24::/48"),
}


def test_dual_stack_pod_has_an_address_and_a_default_route_of_each_family():
    pod = make_pod("a1", 1, "10.244.1.2", "fd24:0:0:1::2")
    state = compiled(make_snapshot(pod, **DUAL))
    inside = state.pods["uid-a1"].netns
    assert list(inside.addresses) == [("eth0", "10.244.1.2/24"), ("eth0", "fd24:0:0:1::2/64")]
    assert inside.routes["default6"] == Route("default6", via="fd24:0:0:1::1", dev="eth0")
    assert ("cni0", "fd24:0:0:1::1/64") in state.netns.addresses
    assert state.netns.routes["fd24:0:0:2::/64"].via == "fd18::3"
    assert state.netns.sysctls["net/ipv6/conf/all/forwarding"] == "1"
    assert rules(state, "ipv6")[0].startswith("! -d fd24::/48 ")


def test_ipv6_only_node_has_nothing_of_ipv4():
    nodes = tuple(
        make_node(
            k, addresses=(f"fd18::{k + 1}",), pod_cidrs=(f"fd24:0:0:{k}::/64",), networks=("fd18::/64",)
        )
        for k in (1, 2)
    )
    pod = make_pod("a1", 1, "fd24:0:0:1::2")
    state = compiled(make_snapshot(pod, nodes=nodes, pod_cidrs=("fd24::/48",)))
    assert list(state.netns.addresses) == [("cni0", "fd24:0:0:1::1/64")]
    assert list(state.netns.routes) == ["fd24:0:0:2::/64"]
    assert list(state.pods["uid-a1"].netns.routes) == ["default6"]
    assert {chain.family for chain in state.netns.chains.values()} == {"ipv6"}
    assert "net/ipv4/ip_forward" not in state.netns.sysctls


def test_ipv6_addresses_are_not_probed_for_duplicates_which_hairpin_would_echo():
    state = compiled(make_snapshot(make_pod("a1", 1, "10.244.1.2", "fd24:0:0:1::2"), **DUAL))
    assert state.netns.sysctls["net/ipv6/conf/cni0/accept_dad"] == "0"
    assert state.netns.sysctls["net/ipv6/conf/cni0/accept_ra"] == "0"
    assert state.pods["uid-a1"].netns.sysctls["net/ipv6/conf/eth0/accept_dad"] == "0"


class Nobody:
    def open(self, pod: PodState) -> None: ...

    def start(self, pod: PodState) -> None: ...

    def update(self, pod: PodState) -> None: ...

    def stop(self, uid: str) -> None: ...


@pytest.mark.parametrize("options", [{}, DUAL])
def test_kernel_accepts_every_step_from_nothing_to_pods_and_back(options: dict[str, Any]):
    ips = {"a1": ("10.244.1.2", "fd24:0:0:1::2"), "a2": ("10.244.1.3", "fd24:0:0:1::3")}
    families = 2 if options else 1
    a1, a2 = (make_pod(name, 1, *addresses[:families]) for name, addresses in ips.items())
    kernel, before = FakeKernel(), NodeState()
    uplink = [Address("eth0", "172.18.0.2/16"), Address("eth0", "fd18::2/64")]
    kernel.change(NODE, NetnsState(addresses={(one.dev, one.address): one for one in uplink}), NetnsState())
    for pods in ((), (a1,), (a1, a2), (a2,), ()):
        after = compiled(make_snapshot(*pods, **options))
        assert apply(kernel, diff(before, after), Nobody()).failed == {}
        assert kernel.read(NODE).links == after.netns.links
        assert set(kernel.pods) == {pod.uid for pod in pods}
        before = after
