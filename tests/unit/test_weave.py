"""Weave's ring, names and rules, and what a node is compiled to; property tests of the ring and the rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import FACTS as WORLD_FACTS
from policy_worlds import Generated, generated

from testbed.cluster.apply import apply
from testbed.cluster.reconcile import diff
from testbed.control.ipam import AllocationError, Held
from testbed.control.snapshot import ClusterFacts, Container, ContainerPort, Node, Pod, Snapshot
from testbed.dataplane import dataplanes, needs_of
from testbed.dataplane.portmap import chain_name, compile_ports
from testbed.dataplane.weave.names import SYMBOLS, peer_name, short
from testbed.dataplane.weave.npc import EGRESS, MAIN, Npc
from testbed.dataplane.weave.ring import EXPOSED, Ring
from testbed.errors import InputError
from testbed.kernel.fake import FakeKernel
from testbed.policy.meaning import Meaning
from testbed.rules import walk
from testbed.rules.flows import Flow as Packet
from testbed.rules.flows import Host
from testbed.spec.load import load_spec
from testbed.state import NODE, Address, Daemon, Listener, NetnsState, NodeState, PodState

WHOLE = "10.32.0.0/12"
WEAVE = dataplanes.get("weave")
FACTS = ClusterFacts(
    "cluster.local", (WHOLE,), ("10.96.0.0/16",), ("172.18.0.0/16",), (), node_names=("a", "b")
)
NODES = (
    Node("a", ("172.18.0.2",), (), pooled=True, held=Held(("10.32.0.0/13",), own={EXPOSED: "10.32.0.1"})),
    Node("b", ("172.18.0.3",), (), pooled=True, held=Held(("10.40.0.0/13",), own={EXPOSED: "10.40.0.0"})),
)


class Nobody:
    """Pods in which nothing runs."""

    def open(self, pod: PodState) -> None: ...

    def start(self, pod: PodState) -> tuple[str, ...]:
        return ()

    def update(self, pod: PodState) -> tuple[str, ...]:
        return ()

    def stop(self, uid: str) -> None: ...

    def serve_node(self, listeners: tuple[Listener, ...]) -> None: ...

    def run_daemons(self, daemons: Mapping[str, Daemon]) -> None: ...


def pod(name: str, node: str, ip: str) -> Pod:
    return Pod(f"uid-{name}", "default", name, node, (ip,))


def ring(*peers: str, cidr: str = WHOLE, consensus: int = 0) -> Ring:
    made = Ring(cidr, peers, consensus)
    for peer in peers:
        made.add_node(peer)
    return made


# --- the ring -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peers", "ranges"),
    [
        (1, ["10.32.0.0/12"]),
        (2, ["10.32.0.0/13", "10.40.0.0/13"]),
        (3, ["10.32.0.0/13", "10.40.0.0/14", "10.44.0.0/14"]),
        (4, ["10.32.0.0/14", "10.36.0.0/14", "10.40.0.0/14", "10.44.0.0/14"]),
    ],
)
def test_range_is_halved_over_the_peers(peers: int, ranges: list[str]) -> None:
    names = tuple(f"n{k}" for k in range(peers))
    made = ring(*names)
    assert [made.held(name).ranges for name in names] == [(each,) for each in ranges]


def test_bridge_has_a_peers_first_address_and_pods_the_next_ones() -> None:
    made = ring("a", "b")
    assert (made.held("a").own, made.held("b").own) == ({EXPOSED: "10.32.0.1"}, {EXPOSED: "10.40.0.0"})
    assert [made.allocate("a", "p"), made.allocate("a", "q"), made.allocate("b", "r")] == [
        ("10.32.0.2",),
        ("10.32.0.3",),
        ("10.40.0.1",),
    ]


def test_freed_address_is_the_next_one_given() -> None:
    made = ring("a")
    first = made.allocate("a", "p")
    made.allocate("a", "q")
    made.release("a", "p")
    assert made.allocate("a", "r") == first


def test_nobody_gets_an_address_before_more_than_half_agree() -> None:
    made = Ring(WHOLE, ("a", "b", "c"))
    made.add_node("a")
    with pytest.raises(AllocationError, match="no quorum: of 2 peers that have to agree 1 are there"):
        made.allocate("a", "p")
    assert made.held("a") == Held()
    made.add_node("b")
    assert made.held("a").ranges == ("10.32.0.0/13",)
    assert set(made.changed()) == {"a", "b"}


def test_consensus_of_more_peers_than_there_are_is_never_reached() -> None:
    with pytest.raises(AllocationError, match="no quorum"):
        ring("a", "b", consensus=5).allocate("a", "p")


def test_peer_that_comes_later_is_given_half_of_what_another_has_free() -> None:
    made = ring("a", "b")
    made.changed()
    made.add_node("c")
    assert made.held("c").ranges != ()
    assert ip_address(made.held("c").own[EXPOSED]) in ip_network(made.held("c").ranges[0])
    assert {"c"} < set(made.changed()) <= {"a", "b", "c"}


def test_full_peer_is_given_addresses_until_the_whole_range_is_full() -> None:
    made = ring("a", "b", cidr="10.32.0.0/28")
    given_out = {made.allocate("a", f"p{k}")[0] for k in range(12)}
    assert len(given_out) == 12
    with pytest.raises(AllocationError, match=r"10\.32\.0\.0/28 is full"):
        made.allocate("a", "one-more")


def test_removed_peers_range_is_anothers_and_its_pods_keep_their_addresses() -> None:
    made = ring("a", "b")
    (taken,) = made.allocate("b", "p")
    made.remove_node("b")
    assert made.held("a").ranges == (WHOLE,)
    with pytest.raises(AllocationError, match="already owned by p"):
        made.allocate("a", "q", taken)
    made.release("b", "p")
    assert made.allocate("a", "q", taken) == (taken,)


def test_kept_peer_that_left_owns_what_it_did_until_it_is_removed() -> None:
    made = ring("a", "b", cidr="10.32.0.0/28")
    made.keep("b")
    made.remove_node("b")
    for k in range(6):
        made.allocate("a", f"p{k}")
    with pytest.raises(
        AllocationError, match=r"waiting for IP range grant from peers: b 7 IPs - unreachable!"
    ):
        made.allocate("a", "q")
    made.forget("b")
    assert made.held("a").ranges == ("10.32.0.0/28",)
    assert made.allocate("a", "q") == ("10.32.0.8",)
    made.forget("b")
    assert made.held("a").ranges == ("10.32.0.0/28",)


def test_kept_peer_that_comes_back_finds_its_own() -> None:
    made = ring("a", "b")
    before = made.held("b").ranges
    made.keep("b")
    made.remove_node("b")
    made.remove_node("a")
    made.add_node("c")
    made.add_node("b")
    made.forget("b")
    assert made.held("b").ranges == before
    assert made.held("c").ranges == ("10.32.0.0/13",)


def test_range_that_overlaps_the_site_is_refused(tmp_path: Path) -> None:
    """As the launcher does (``weaveutil netcheck``): stock addresses, and nodes in the midst of them."""
    spec = {"nodes": {"count": 2}, "network": {"dataplane": {"name": "weave"}, "nodeCIDR": "10.40.7.0/24"}}
    path = tmp_path / "site.yaml"
    path.write_text(json.dumps({"apiVersion": "testbed/v1", "kind": "Cluster", "spec": spec}))
    with pytest.raises(InputError, match="overlaps") as refused:
        load_spec(path)
    assert "10.40.7.0/24" in str(refused.value)
    assert WHOLE in str(refused.value)


def test_peer_that_comes_when_all_have_left_owns_the_whole_range() -> None:
    made = ring("a", "b")
    made.remove_node("a")
    made.remove_node("b")
    made.add_node("c")
    assert made.held("c").ranges == ("10.32.0.0/12",)
    assert made.allocate("c", "pod") == ("10.32.0.2",)


def test_peer_that_finds_the_range_full_has_nothing_and_its_bridge_what_is_free_first() -> None:
    made = ring("a", "b", cidr="10.32.0.0/29")
    assert made.held("b").own == {EXPOSED: "10.32.0.4"}
    made.remove_node("b")
    for k in range(5):
        made.allocate("a", f"p{k}")
    made.add_node("b")
    assert made.held("b") == Held()
    made.release("a", "p0")
    with pytest.raises(AllocationError, match="is full"):  # the bridge has the only one
        made.allocate("b", "q")
    made.release("a", "p1")
    assert made.allocate("b", "q") == ("10.32.0.3",)
    assert made.held("b").own == {EXPOSED: "10.32.0.2"}


def test_asked_address_has_to_be_the_peers_own() -> None:
    made = ring("a", "b")
    assert made.allocate("a", "p", "10.33.0.7") == ("10.33.0.7",)
    with pytest.raises(AllocationError, match="owned by other peer b"):
        made.allocate("a", "q", "10.41.0.7")
    with pytest.raises(AllocationError, match="cannot have more than one IPv4 address"):
        made.allocate("a", "r", "10.32.0.3,10.32.0.4")
    with pytest.raises(
        AllocationError, match=r"^unable to allocate IP address: fd00::1 is not an address of"
    ):
        made.allocate("a", "r", "fd00::1")
    with pytest.raises(AllocationError, match="not an address of"):
        made.allocate("a", "q", "192.168.1.1")


STEPS = st.lists(
    st.tuples(st.sampled_from(("join", "leave", "pod", "end")), st.integers(0, 5), st.integers(0, 7)),
    max_size=60,
)


@given(steps=STEPS)
def test_ring_is_always_whole_and_no_address_is_given_twice(steps: list[tuple[str, int, int]]) -> None:
    made, peers = ring("n0", "n1", cidr="10.32.0.0/26"), {"n0", "n1"}
    pods: dict[tuple[str, str], str] = {}
    for what, peer, number in steps:
        name, owner = f"n{peer}", f"p{number}"
        if what == "join":
            peers.add(name)
            made.add_node(name)
        elif what == "leave" and len(peers) > 1 and name in peers:
            peers.remove(name)
            made.remove_node(name)
        elif what == "pod" and name in peers and (name, owner) not in pods:
            try:
                (pods[name, owner],) = made.allocate(name, owner)
            except AllocationError:
                pass
            else:
                held = map(ip_network, made.held(name).ranges)
                assert any(ip_address(pods[name, owner]) in each for each in held)
        elif what == "end":
            pods.pop((name, owner), None)
            made.release(name, owner)
        exposed = [made.held(each).own[EXPOSED] for each in peers if made.held(each).own]
        assert len({*pods.values(), *exposed}) == len(pods) + len(exposed)
        ranges = [ip_network(cidr) for each in peers for cidr in made.held(each).ranges]
        assert sum(each.num_addresses for each in ranges) == 64
        assert len({int(each.network_address) for each in ranges}) == len(ranges)


# --- names ------------------------------------------------------------------------------------------------


def test_short_name_is_the_sha1_in_base_85_from_its_least_digit() -> None:
    name = short("ingress-default-allow:default")
    assert name == "weave-;rGqyMIl1HN^cfDki~Z$3]6!N"
    assert len(SYMBOLS) == 85
    digits = [SYMBOLS.index(symbol) for symbol in name.removeprefix("weave-")]
    number = sum(digit * 85**place for place, digit in enumerate(digits))
    assert number < 1 << 160


@given(text=st.text())
def test_short_name_fits_an_ipset(text: str) -> None:
    assert len(short(text)) <= 31
    assert not set(short(text)) & set("\"'\\, ")


def test_peer_name_is_a_mac_of_one_device() -> None:
    assert int(peer_name("a").split(":")[0], 16) & 3 == 2
    assert peer_name("a") != peer_name("b")


# --- the rules --------------------------------------------------------------------------------------------

PODS_V4 = ("10.244.0.0/16",)


def passes(state: NetnsState, snapshot: Snapshot, source: str, flow: Packet) -> bool:
    """Whether the rules, which are the same on every node, let a packet of a bridge's port pass."""
    pods = {ip for each in snapshot.pods for ip in each.ips}
    host = Host(frozenset(), dict.fromkeys(PODS_V4, "weave"))
    sets = {name: each.entries for name, each in state.ipsets.items()}
    packet = replace(flow, device="weave" if source in pods else "eth0")
    (verdict,) = walk.walk(state.chains, packet, host, sets)
    return verdict.action == "pass"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(world=generated())
def test_rules_do_what_policies_mean(world: Generated) -> None:
    """But for what weave-npc never looks at: a node's own packets and those to it, and a pod that reaches
    itself."""
    snapshot = world.snapshot
    meaning, npc = Meaning(snapshot), Npc()
    states = {node.name: npc.compile(snapshot, node) for node in snapshot.nodes}
    own = {ip for node in snapshot.nodes for ip in node.addresses}
    for flow in world.flows:
        if ":" in flow.source or {flow.source, flow.destination} & own or flow.source == flow.destination:
            continue
        packet = Packet(flow.source, flow.destination, flow.protocol.lower(), flow.port)
        for state in states.values():
            meant = meaning.allowed(flow)
            assert passes(state, snapshot, flow.source, packet) == meant.allowed, (flow, str(meant.deciding))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(worlds=st.lists(generated(flows=0), min_size=2, max_size=3))
def test_kernel_takes_each_step_and_a_compiler_forgets_nothing(worlds: list[Generated]) -> None:
    kernel, now, old = FakeKernel(), NodeState(), Npc()
    for world in worlds:
        node = world.snapshot.nodes[0]
        rules = old.compile(world.snapshot, node)
        assert rules == Npc().compile(world.snapshot, node)
        outcome = apply(kernel, diff(now, NodeState(rules)), Nobody())
        assert outcome.failed == {}
        assert kernel.read(NODE) == rules
        now = NodeState(rules)


def test_connections_are_cut_off_only_where_there_are_policies_that_may() -> None:
    snapshot = Generated.example().snapshot
    node = snapshot.nodes[0]

    def first(changed: Snapshot, chain: str) -> str:
        return Npc().compile(changed, node).chains["ipv4", "filter", chain].rules[0]

    for chain in (MAIN, EGRESS):
        assert "--reject-with tcp-reset" in first(snapshot, chain)
        assert "RELATED,ESTABLISHED" in first(replace(snapshot, policies=()), chain)
        kept = replace(snapshot, facts=replace(WORLD_FACTS, policy_on_change="keep"))
        assert "RELATED,ESTABLISHED" in first(kept, chain)


# --- a node -----------------------------------------------------------------------------------------------


def compiled(*pods: Pod, nodes: tuple[Node, ...] = NODES, **options: object) -> NodeState:
    facts = replace(FACTS, dataplane_options=options)
    return WEAVE.compile(Snapshot(facts, nodes, pods), nodes[0])


A1, A2 = pod("a1", "a", "10.32.0.2"), pod("a2", "a", "10.32.0.3")


@pytest.mark.parametrize("mode", ["fastdp", "sleeve"])
def test_kernel_accepts_every_step_from_nothing_to_pods_another_mode_and_back(mode: str) -> None:
    kernel, before = FakeKernel(), NodeState()
    uplink = {("eth0", "172.18.0.2/16"): Address("eth0", "172.18.0.2/16")}
    kernel.change(NODE, NetnsState(addresses=uplink), NetnsState())
    other = "sleeve" if mode == "fastdp" else "fastdp"
    alone = (replace(NODES[0], held=Held((WHOLE,), own=NODES[0].held.own)),)
    for after in (
        compiled(mode=mode),
        compiled(A1, mode=mode),
        compiled(A1, A2, mode=mode),
        compiled(A1, A2, mode=other),
        compiled(A2, mode=mode, nodes=alone),
        compiled(mode=mode),
        NodeState(),
    ):
        assert apply(kernel, diff(before, after), Nobody()).failed == {}
        assert kernel.read(NODE).links == after.netns.links
        assert kernel.read(NODE).fdb == after.netns.fdb
        before = after


def test_frames_are_flooded_to_every_other_node() -> None:
    more = Node("c", ("172.18.0.4",), ())
    fdb = compiled(nodes=(*NODES, more)).netns.fdb.values()
    entries = {entry.dst for entry in fdb if entry.mac == "00:00:00:00:00:00"}
    assert entries == {"172.18.0.3", "172.18.0.4"}


def test_pod_hears_multicast_of_its_own_range_only() -> None:
    (made,) = compiled(A1).pods.values()
    assert made.netns.chains["ipv4", "filter", "INPUT"].rules == (
        "-s 10.32.0.0/12 -d 224.0.0.0/4 -j ACCEPT",
        "-d 224.0.0.0/4 -j DROP",
    )


def test_two_families_are_refused() -> None:
    facts = replace(FACTS, pod_cidrs=(WHOLE, "fd00::/48"))
    with pytest.raises(InputError, match="dataplane weave has one range, of IPv4"):
        WEAVE.ipam(facts)


def test_host_port_is_marked_from_the_whole_range() -> None:
    """The plugin portmap takes the network of the pod's address, which here is everybody's."""
    port = ContainerPort(80, host_port=8080)
    web = replace(A1, containers=(Container("c", "x", ports=(port,)),))
    rules = compile_ports(compiled(web), NODES[0], [web]).chains["ipv4", "nat", chain_name(web)].rules
    assert rules[0] == "-s 10.32.0.0/12 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"


def test_only_the_kernels_own_datapath_needs_vxlan_of_the_kernel() -> None:
    weave = dataplanes.get("weave")
    assert "vxlan" in needs_of(weave, {})
    assert "vxlan" not in needs_of(weave, {"mode": "sleeve"})
    by_ovs = needs_of(weave, {"datapath": "ovs"})
    assert ("vxlan" in by_ovs, "openvswitch-switch" in by_ovs) == (False, True)
