"""Dataplane ``calico`` without a kernel: names, IPAM, BIRD's configuration, felix's rules, what they do."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import Generated, generated, namespace, pod

from testbed.cluster.apply import apply
from testbed.cluster.reconcile import diff
from testbed.conformance.network_policy.cases import complete
from testbed.control.ipam import AllocationError, Held
from testbed.control.policies import Port
from testbed.control.snapshot import ClusterFacts, Node, Pod, Router, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.calico import Calico, bird, felix
from testbed.dataplane.calico.blocks import BlockIpam, Pool
from testbed.dataplane.calico.felix import Felix
from testbed.dataplane.calico.names import host_end, vtep_mac
from testbed.dataplane.calico.options import Options
from testbed.dataplane.calico.rules import hashes, jump, limited, unique_id, when
from testbed.errors import InputError, TestbedError
from testbed.kernel.fake import FakeKernel
from testbed.policy.meaning import Flow, Meaning
from testbed.rules import walk
from testbed.rules.flows import Flow as Packet
from testbed.rules.flows import Host
from testbed.state import NODE, Chain, NetnsState, NodeState

GOLDEN = Path(__file__).parents[1] / "golden" / "calico"
CALICO = dataplanes.get("calico")
SEGMENT = ("172.18.0.0/24", "fd18::/64")
A = Node(
    "a",
    ("172.18.0.2", "fd18::2"),
    ("10.244.1.0/24",),
    SEGMENT,
    pooled=True,
    held=Held(("192.168.1.0/26", "fd24::/122"), own={"vxlan": "192.168.1.0", "vxlan-v6": "fd24::"}),
)
B = Node(
    "b",
    ("172.18.0.3", "fd18::3"),
    ("10.244.2.0/24",),
    SEGMENT,
    pooled=True,
    held=Held(
        ("192.168.2.0/26", "192.168.9.64/26", "fd24::40/122"),
        ("192.168.1.63",),
        {"vxlan": "192.168.2.0", "vxlan-v6": "fd24::40"},
    ),
)
C = Node(
    "c",
    ("172.19.0.4", "fd19::4"),
    ("10.244.3.0/24",),
    pooled=True,
    held=Held(("192.168.3.0/26",), own={"vxlan": "192.168.3.0"}),
)
FACTS = ClusterFacts(
    "cluster.local", ("192.168.0.0/16", "fd24::/64"), ("10.96.0.0/12",), ("172.18.0.0/24", "fd18::/64"), ()
)
POD = Pod("uid-1", "default", "web", "a", ("192.168.1.1", "fd24::1"))


def snapshot(*pods: Pod, nodes: tuple[Node, ...] = (A, B, C), **options: object) -> Snapshot:
    return Snapshot(replace(FACTS, dataplane_options=options), nodes, pods)


# --- names ----------------------------------------------------------------------------------------------


def test_a_host_end_is_named_by_sha1_of_namespace_and_pod() -> None:
    assert host_end("default", "web") == "cali68caf03a5f4"
    assert len(host_end("kube-system", "a-very-long-name-of-a-pod-0")) == 15


def test_a_tunnels_mac_begins_with_the_letter_f() -> None:
    assert vtep_mac("a", 4).startswith("66:")
    assert vtep_mac("a", 4) != vtep_mac("b", 4) != vtep_mac("b", 6)


def test_long_chain_names_are_hashed_as_felix_does() -> None:
    assert limited("cali-pri-", "kns.default") == "cali-pri-kns.default"
    shortened = limited("cali-pri-", "kns.kube-system-of-somebody")
    assert shortened.startswith("cali-pri-_")
    assert len(shortened) == 28
    assert unique_id("s", "all()").startswith("s:")


def test_rules_have_the_hashes_that_every_calico_node_shows() -> None:
    """Seen in iptables-save of real clusters: the hash depends on the chain and the rule alone."""
    assert hashes("PREROUTING", [when(do=jump("cali-PREROUTING"))]) == ["6gwbT8clXdHdC1b1"]
    assert hashes("OUTPUT", [when(do=jump("cali-OUTPUT"))]) == ["tVnHkvAo15HuiPy0"]
    assert hashes("POSTROUTING", [when(do=jump("cali-POSTROUTING"))]) == ["O3lYWMrLQYEMJtB5"]
    rules = Felix().compile(snapshot(), A).chains["ipv4", "nat", "cali-nat-outgoing"].rules
    assert rules == (
        '-m comment --comment "cali:flqWnvo8yq4ULQLa" -m set --match-set cali40masq-ipam-pools src '
        "-m set ! --match-set cali40all-ipam-pools dst -j MASQUERADE --random-fully",
    )


# --- IPAM -----------------------------------------------------------------------------------------------


def ipam(cidr: str = "192.168.0.0/16", size: int = 26, tunnel: str = "") -> BlockIpam:
    made = BlockIpam([Pool(cidr, size)], dict.fromkeys((4,), tunnel) if tunnel else {})
    for node in ("a", "b"):
        made.add_node(node, ())
    return made


def test_a_node_gets_a_block_by_its_name_and_uses_all_of_it_in_order() -> None:
    one, other = ipam(), ipam()
    got = [one.allocate("a", f"uid-{number}")[0] for number in range(64)]
    (block,) = one.held("a").ranges
    assert got == [str(ip) for ip in ip_network(block)]
    other.allocate("b", "first")
    assert other.allocate("a", "uid")[0] == got[0]
    assert ip_address(one.allocate("a", "one-more")[0]) not in ip_network(block)
    assert len(one.held("a").ranges) == 2


def test_a_freed_address_comes_last_again() -> None:
    made = ipam()
    first, second = made.allocate("a", "1")[0], made.allocate("a", "2")[0]
    made.release("a", "1")
    assert made.allocate("a", "3")[0] == str(ip_address(second) + 1)
    rest = [made.allocate("a", f"more-{number}")[0] for number in range(62)]
    assert rest[-1] == first


def test_a_tunnels_address_is_the_first_a_node_takes() -> None:
    made = ipam(tunnel="vxlan")
    (block,) = made.held("a").ranges
    assert made.held("a").own == {"vxlan": str(ip_network(block)[0])}
    assert made.allocate("a", "1")[0] == str(ip_network(block)[1])


def test_a_node_borrows_when_no_block_is_left() -> None:
    made = ipam("192.168.0.0/29", 30)
    taken = {made.allocate("a", f"a{number}")[0] for number in range(4)}
    made.allocate("b", "b0")
    list(made.changed())
    (borrowed,) = made.allocate("a", "a5")
    assert made.held("a").borrowed == (borrowed,)
    assert list(made.changed()) == ["a"]
    assert borrowed in {str(ip) for ip in ip_network(made.held("b").ranges[0])}
    assert borrowed not in taken
    made.release("a", "a5")
    assert made.held("a").borrowed == ()
    for number in range(3):
        made.allocate("b", f"b{number + 1}")
    with pytest.raises(AllocationError, match=r"pool 192\.168\.0\.0/29 is full"):
        made.allocate("a", "a6")


def test_a_tunnels_address_is_borrowed_as_a_pods() -> None:
    """One block for both."""
    made = ipam("192.168.0.0/29", 29, "ipip")
    (block,) = made.held("a").ranges
    own = made.held("b").own["ipip"]
    assert made.held("b") == Held((), (own,), {"ipip": own})
    one, other = (replace(node, held=made.held(node.name)) for node in (A, B))
    state = CALICO.compile(snapshot(nodes=(one, other), ipipMode="Always"), one).netns
    assert routes(state) == {f"{own}/32 172.18.0.3 tunl0 80 onlink"}
    made.remove_node("b")
    assert made.held("b") == Held()
    made.remove_node("a")
    made.add_node("b", ())
    assert made.held("b").ranges == (block,), "nobody uses it any more"


def test_a_node_that_comes_to_a_full_pool_gets_its_tunnels_address_when_one_is_free() -> None:
    made = ipam("192.168.0.0/30", 31, "vxlan")
    made.allocate("a", "1")
    made.allocate("a", "2")
    made.add_node("c", ())
    assert made.held("c") == Held()
    list(made.changed())
    made.release("a", "2")
    assert made.held("c").own.keys() == {"vxlan"}
    assert "c" in made.changed()
    made.add_node("d", ())
    made.remove_node("d")
    made.release("a", "1")
    assert made.held("d") == Held(), "it has left meanwhile"
    made.add_node("d", ())
    assert made.held("d").own.keys() == {"vxlan"}
    made.add_node("e", ())
    made.remove_node("d")
    assert made.held("e").own.keys() == {"vxlan"}


def test_a_node_that_left_gives_its_blocks_back_with_its_last_pod() -> None:
    made = ipam()
    made.allocate("a", "1")
    blocks = made.held("a").ranges
    made.remove_node("a")
    assert made.held("a").ranges == blocks
    made.release("a", "1")
    assert made.held("a") == Held()
    made.add_node("a", ())
    made.allocate("a", "2")
    assert made.held("a").ranges == blocks


def test_an_asked_address_is_given_once() -> None:
    made = ipam()
    assert made.allocate("a", "1", "192.168.7.7") == ("192.168.7.7",)
    with pytest.raises(AllocationError, match="already assigned"):
        made.allocate("b", "2", "192.168.7.7")
    with pytest.raises(AllocationError, match="not in a configured pool"):
        made.allocate("b", "2", "10.0.0.1")
    with pytest.raises(AllocationError, match="cannot have more than one IPv4 address"):
        made.allocate("b", "2", "192.168.7.8,192.168.7.9")
    made.adopt("b", "3", ("192.168.7.8", "fd00::1"))
    assert made.held("b").borrowed == ("192.168.7.8",)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=60))
def test_no_address_is_held_twice_and_all_are_accounted_for(steps: list[tuple[str, int, bool]]) -> None:
    made = BlockIpam([Pool("192.168.0.0/27", 30)], {4: "ipip"})
    for node in "abc":
        made.add_node(node, ())
    held: dict[str, tuple[str, str]] = {}
    for node, number, take in steps:
        owner = f"{node}{number}"
        if take and owner not in held:
            try:
                held[owner] = node, made.allocate(node, owner)[0]
            except AllocationError:
                assert len(held) + 3 == 32
        elif not take:
            made.release(node, owner)
            held.pop(owner, None)
    ips = [ip for _, ip in held.values()] + [made.held(node).own["ipip"] for node in "abc"]
    assert len(set(ips)) == len(ips)
    for node in "abc":
        mine = made.held(node)
        blocks = [ip_network(block) for block in mine.ranges]
        for owner, (where, ip) in held.items():
            if where == node:
                inside = any(ip_address(ip) in block for block in blocks)
                assert inside != (ip in mine.borrowed), owner


# --- BIRD -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "node", "options"),
    [
        ("mesh", A, {}),
        ("mesh-passive", B, {}),
        ("reflector", A, {"routeReflectors": ["a"], "timers": "fast"}),
        ("client", B, {"routeReflectors": ["a"], "asNumber": 64999}),
        ("ipip", A, {"ipipMode": "CrossSubnet"}),
    ],
)
def test_birds_configuration(
    name: str, node: Node, options: dict[str, object], pytestconfig: pytest.Config
) -> None:
    taken = snapshot(**options)
    made = bird.config(taken, node, Options.of(taken.facts))
    file = GOLDEN / f"bird-{name}.conf"
    assert made == file.read_text()


ROUTERS = (
    Router("gw", True, ("100.64.0.0/31",), (("spine", "100.64.0.0", "100.64.0.1"),)),
    Router(
        "spine",
        False,
        ("100.64.0.1/31", "100.64.0.3/31", "100.64.0.5/31"),
        (
            ("gw", "100.64.0.1", "100.64.0.0"),
            ("leaf1", "100.64.0.3", "100.64.0.2"),
            ("leaf2", "100.64.0.5", "100.64.0.4"),
        ),
    ),
    Router(
        "leaf1",
        False,
        ("172.18.0.1/24", "100.64.0.2/31"),
        (("spine", "100.64.0.2", "100.64.0.3"),),
        (("a", "172.18.0.1", "172.18.0.2"), ("b", "172.18.0.1", "172.18.0.3")),
    ),
    Router(
        "leaf2",
        False,
        ("172.19.0.1/24", "100.64.0.4/31"),
        (("spine", "100.64.0.4", "100.64.0.5"),),
        (("c", "172.19.0.1", "172.19.0.4"), ("c", "fd19::1", "fd19::4")),
    ),
)


@pytest.mark.parametrize(
    ("options", "routers", "why"),
    [
        ({"routeReflectors": ["a", "aa"]}, (), "no node is called aa; nodes are a, b, c"),
        ({"routeReflectors": ["a"], "vxlanMode": "Always"}, (), "with vxlanMode nodes run no BGP"),
        ({"routeReflectors": ["a"]}, ROUTERS, "on racks nodes speak BGP with their leaf"),
    ],
)
def test_reflectors_that_would_leave_nodes_without_a_peer_are_refused(
    options: dict[str, object], routers: tuple[Router, ...], why: str
) -> None:
    facts = replace(snapshot(**options).facts, node_names=("a", "b", "c"), routers=routers)
    with pytest.raises(InputError, match=why):
        Calico().ipam(facts)


def test_on_racks_with_tunnels_reflectors_serve_the_family_that_they_carry() -> None:
    facts = snapshot(routeReflectors=["a"], ipipMode="Always").facts
    Calico().ipam(replace(facts, node_names=("a", "b", "c"), routers=ROUTERS))


def test_on_racks_nodes_speak_with_their_leaf_and_leaves_with_spines() -> None:
    facts = replace(FACTS, pod_cidrs=FACTS.pod_cidrs[:1], routers=ROUTERS)
    taken = Snapshot(facts, (A, B, C))
    daemons = Calico().routers(taken)
    assert daemons.keys() == {"gw", "spine", "leaf1", "leaf2"}
    made = bird.config(taken, A, Options.of(facts)) + daemons["leaf1"]["bird"].files[bird.CONFIG]
    assert made == (GOLDEN / "bird-racks.conf").read_text()
    sessions = re.findall(r"local (\S+) as (\d+);\n +neighbor (\S+) as (\d+);", made)
    assert sessions == [
        ("172.18.0.2", "65001", "172.18.0.1", "65001"),
        ("100.64.0.2", "65001", "100.64.0.3", "64900"),
        ("172.18.0.1", "65001", "172.18.0.2", "65001"),
        ("172.18.0.1", "65001", "172.18.0.3", "65001"),
    ]
    assert Calico().routers(Snapshot(facts, (C,))) == daemons, "also without nodes that left"
    assert bird.config(Snapshot(facts, (C,)), C, Options.of(facts)) == bird.config(
        taken, C, Options.of(facts)
    )
    one = replace(facts, routers=(*ROUTERS[:3], replace(ROUTERS[3], nodes=())))
    assert Calico().routers(Snapshot(one, (A, B))) == {}, "one subnet: a mesh will do"
    tunnelled = replace(facts, dataplane_options={"vxlanMode": "CrossSubnet"})
    assert Calico().routers(Snapshot(tunnelled, (A, B, C))) == {}


def test_on_racks_a_family_in_a_tunnel_has_its_mesh_and_the_other_its_leaf() -> None:
    facts = replace(FACTS, routers=ROUTERS, dataplane_options={"ipipMode": "Always"})
    taken = Snapshot(facts, (A, B, C))
    made = bird.config(taken, C, Options.of(facts))
    assert re.findall(r"protocol bgp (\w+) ", made) == ["Mesh_172_18_0_2", "Mesh_172_18_0_3", "Leaf6"]
    fabric = Calico().routers(taken)["leaf2"]["bird"].files[bird.CONFIG]
    assert re.findall(r"neighbor (\S+) as", fabric) == ["fd19::4"], "it has no link of IPv6 here"
    assert "ipv4" not in fabric


def test_vxlan_runs_no_bird() -> None:
    assert CALICO.compile(snapshot(vxlanMode="Always"), A).daemons == {}
    assert CALICO.compile(snapshot(), A).daemons.keys() == {"bird"}


# --- wiring ---------------------------------------------------------------------------------------------


def routes(state: NetnsState) -> set[str]:
    return {
        " ".join(filter(None, (each.dst, each.via, each.dev, each.proto, "onlink" if each.onlink else "")))
        for each in state.routes.values()
        if ":" not in each.dst
    }


def test_through_vxlan_each_block_borrowed_address_and_tunnel_has_its_route() -> None:
    state = CALICO.compile(snapshot(POD, vxlanMode="Always"), A).netns
    assert routes(state) == {
        f"192.168.1.1/32 {host_end('default', 'web')} boot",
        "192.168.1.0/26 80",
        "192.168.2.0/26 192.168.2.0 vxlan.calico 80 onlink",
        "192.168.9.64/26 192.168.2.0 vxlan.calico 80 onlink",
        "192.168.1.63/32 192.168.2.0 vxlan.calico 80 onlink",
        "192.168.2.0/32 vxlan.calico 80",
        "192.168.3.0/26 192.168.3.0 vxlan.calico 80 onlink",
        "192.168.3.0/32 vxlan.calico 80",
    }
    assert state.routes["192.168.1.0/26"].kind == "blackhole"
    assert {entry.dst for entry in state.fdb.values()} >= {"172.18.0.3", "172.19.0.4"}
    assert state.links["vxlan.calico"].mtu == 1450
    assert state.links["vxlan-v6.calico"].mtu == state.links[host_end("default", "web")].mtu == 1430


def test_a_block_of_one_address_has_the_route_to_its_pod() -> None:
    one = replace(
        A, held=Held(("192.168.1.0/32", "192.168.1.1/32", "fd24::1/128"), own={"vxlan": "192.168.1.0"})
    )
    state = CALICO.compile(snapshot(POD, nodes=(one, B), vxlanMode="Always"), one).netns
    ends = {state.routes[dst].dev for dst in ("192.168.1.1/32", "fd24::1/128")}
    assert ends == {host_end("default", "web")}
    assert "blackhole" not in {route.kind for route in state.routes.values()}
    beside = routes(CALICO.compile(snapshot(nodes=(one, B), vxlanMode="Always"), B).netns)
    assert beside >= {"192.168.1.0/32 vxlan.calico 80", "192.168.1.1/32 192.168.1.0 vxlan.calico 80 onlink"}


def test_across_subnets_only_others_are_tunnelled_to() -> None:
    state = CALICO.compile(snapshot(vxlanMode="CrossSubnet"), A).netns
    assert routes(state) == {
        "192.168.1.0/26 80",
        "192.168.2.0/26 172.18.0.3 eth0 80",
        "192.168.9.64/26 172.18.0.3 eth0 80",
        "192.168.1.63/32 172.18.0.3 eth0 80",
        "192.168.3.0/26 192.168.3.0 vxlan.calico 80 onlink",
        "192.168.3.0/32 vxlan.calico 80",
    }


@pytest.mark.parametrize("options", [{}, {"vxlanMode": "Always"}])
def test_the_kernel_takes_it_and_each_change_of_it(options: dict[str, object]) -> None:
    kernel, now = FakeKernel(), NodeState()
    more = replace(POD, uid="uid-2", name="other", ips=("192.168.1.2", "fd24::2"))
    moved = replace(B, addresses=("172.18.0.33", "fd18::33"))
    for taken in (
        snapshot(POD, **options),
        snapshot(POD, more, **options),
        snapshot(more, nodes=(A, moved), **options),
        snapshot(nodes=(A,), **options),
        snapshot(POD, **options),
    ):
        netns = CALICO.compile(taken, A)
        wanted = NodeState(netns.netns, netns.pods)
        rules = Felix().compile(taken, A)
        wanted = NodeState(
            NetnsState(
                links=wanted.netns.links,
                addresses=wanted.netns.addresses,
                routes=wanted.netns.routes,
                neighbours=wanted.netns.neighbours,
                fdb=wanted.netns.fdb,
                sysctls=wanted.netns.sysctls,
                chains=rules.chains,
                ipsets=rules.ipsets,
            ),
            wanted.pods,
        )
        outcome = apply(kernel, diff(now, wanted), _Nobody())
        assert outcome.failed == {}
        assert kernel.read(NODE) == wanted.netns
        now = wanted


class _Nobody:
    """Pods in which nothing runs."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: ()


# --- felix ----------------------------------------------------------------------------------------------


def passes(state: NetnsState, taken: Snapshot, node: Node, flow: Flow) -> tuple[bool, str]:
    """Whether the rules of one node let a flow pass, and which decided."""
    devices = {
        f"{ip}/{32 if ':' not in ip else 128}": host_end(pod.namespace, pod.name)
        for pod in taken.pods_by_node.get(node.name, ())
        for ip in pod.ips
    }
    host = Host(frozenset(node.addresses), devices)
    device = "" if flow.source in node.addresses else host.device_to(flow.source)
    packet = Packet(flow.source, flow.destination, flow.protocol.lower(), flow.port, device=device)
    sets = {name: each.entries for name, each in state.ipsets.items()}
    (verdict,) = walk.walk(state.chains, packet, host, sets)
    return verdict.action == "pass", verdict.rule


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(world=generated())
def test_rules_do_what_policies_mean(world: Generated) -> None:
    taken, compiler, meaning = world.snapshot, Felix(), Meaning(world.snapshot)
    states = {node.name: compiler.compile(taken, node) for node in taken.nodes}
    homes = {ip: pod.node for pod in taken.pods for ip in pod.ips}
    for flow in world.flows:
        if flow.source == flow.destination:
            continue  # never leaves the pod
        passed, rule = True, ""
        for name in dict.fromkeys(homes[end] for end in (flow.source, flow.destination) if end in homes):
            if passed:
                passed, rule = passes(states[name], taken, taken.node[name], flow)
        meant = meaning.allowed(flow)
        assert passed == meant.allowed, f"{flow}: meant {meant.deciding}; walked {rule or 'pass'}"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(worlds=st.lists(generated(flows=0), min_size=2, max_size=3))
def test_a_felix_that_saw_other_clusters_makes_what_a_fresh_one_makes(worlds: list[Generated]) -> None:
    old, kernel, now = Felix(), FakeKernel(), NodeState()
    for world in worlds:
        for node in world.snapshot.nodes:
            assert old.compile(world.snapshot, node) == Felix().compile(world.snapshot, node)
        wanted = NodeState(old.compile(world.snapshot, world.snapshot.nodes[0]))
        assert apply(kernel, diff(now, wanted), _Nobody()).failed == {}
        assert kernel.read(NODE) == wanted.netns
        now = wanted


def test_policies_that_come_to_select_otherwise_are_another_group() -> None:
    """Two policies of one selector are a group, named by the selector and not by them."""

    def world(selector: dict[str, object]) -> Snapshot:
        policies = tuple(
            complete(
                {
                    "apiVersion": "networking.k8s.io/v1",
                    "kind": "NetworkPolicy",
                    "metadata": {"name": name, "namespace": "x"},
                    "spec": {"podSelector": selector, "ingress": [{}]},
                }
            )
            for name in ("one", "two")
        )
        return Generated((namespace("x", {}),), (pod("x", 0, {"app": "b"}, []),), policies).snapshot

    old = Felix()
    for selector in (
        {"matchLabels": {"app": "b"}},
        {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "side"]}]},
    ):
        taken = world(selector)
        for node in taken.nodes:
            made = old.compile(taken, node)
            assert made == Felix().compile(taken, node)
            assert "cali-gi-" in str(made.chains) or not taken.pods_by_node.get(node.name)


def cluster_wide(kind: str, name: str, priority: int, action: str, subject: dict[str, object]) -> object:
    version, tier = ("v1alpha2", {"tier": "Admin"}) if kind == "ClusterNetworkPolicy" else ("v1alpha1", {})
    whose = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "nobody"}}}
    peer = {"namespaces": {}} if action == "Deny" else {"pods": whose}
    return complete(
        {
            "apiVersion": f"policy.networking.k8s.io/{version}",
            "kind": kind,
            "metadata": {"name": name},
            "spec": {
                **tier,
                "priority": priority,
                "subject": subject,
                "ingress": [{"action": action, "from": [peer]}],
            },
        }
    )


def test_policies_of_two_kinds_that_share_their_names_are_two_groups() -> None:
    """Both are of tier kube-admin, and what the second group denies is denied."""
    web: dict[str, object] = {
        "pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}
    }
    policies = (
        cluster_wide("AdminNetworkPolicy", "one", 1, "Allow", web),
        cluster_wide("AdminNetworkPolicy", "two", 2, "Allow", web),
        cluster_wide("AdminNetworkPolicy", "between", 3, "Allow", {"namespaces": {}}),
        cluster_wide("ClusterNetworkPolicy", "one", 4, "Deny", web),
        cluster_wide("ClusterNetworkPolicy", "two", 5, "Deny", web),
    )
    pods = pod("x", 0, {"app": "web"}, []), pod("x", 1, {"app": "client"}, [])
    taken = Generated((namespace("x", {}),), pods, policies).snapshot
    web_pod, client = sorted(taken.pods, key=lambda each: each.labels["app"], reverse=True)
    node = taken.node[web_pod.node]
    made = Felix().compile(taken, node)
    groups = {name for family, _, name in made.chains if family == "ipv4" and name.startswith("cali-gi-")}
    assert len(groups) == 2
    flow = Flow(client.ips[0], web_pod.ips[0], "TCP", 80)
    passed, rule = passes(made, taken, node, flow)
    assert not passed, rule


def tcp(*numbers: int) -> list[dict[str, object]]:
    return [{"port": number} for number in numbers]


def to_pods(rule: dict[str, object]) -> list[str]:
    """The rules that felix writes for one of a policy's, for IPv4, without their comments."""
    policy = complete(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "some", "namespace": "x"},
            "spec": {"podSelector": {}, "ingress": [rule]},
        }
    )
    taken = Generated((namespace("x", {}),), (pod("x", 0, {}, []),), (policy,)).snapshot
    (home,) = (node for node in taken.nodes if taken.pods_by_node.get(node.name))
    chains = Felix().compile(taken, home).chains
    rules = chains["ipv4", "filter", "cali-pi-knp/x/some"].rules
    return [re.sub(r'-m comment --comment "[^"]*" ', "", rule) for rule in rules]


ACCEPTED = ["-m mark --mark 0x10000/0x10000 -j RETURN"]
SET_ACCEPT, SET_SCRATCH = (f"-j MARK --set-xmark {mark}/{mark}" for mark in ("0x10000", "0x80000"))


def test_ports_of_one_protocol_are_one_rule_and_those_that_touch_a_range() -> None:
    ports = [*tcp(443, 80, 8081, 8080), {"port": 53, "protocol": "UDP"}, {"port": 8090, "endPort": 8099}]
    assert to_pods({"ports": ports}) == [
        f"-p tcp -m multiport --dports 80,443,8080:8081,8090:8099 {SET_ACCEPT}",
        *ACCEPTED,
        f"-p udp -m multiport --dports 53 {SET_ACCEPT}",
    ]
    assert to_pods({"ports": [*ports, {"protocol": "TCP"}]})[0] == f"-p tcp {SET_ACCEPT}"


def test_each_peer_has_a_rule_for_each_protocol_the_protocols_first() -> None:
    peers = [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "192.168.0.0/16"}}]
    made = to_pods({"ports": [{"port": 53, "protocol": "UDP"}, *tcp(53)], "from": peers})
    assert [rule.split()[1:4:2] for rule in made[::2]] == [
        ["10.0.0.0/8", "tcp"],
        ["192.168.0.0/16", "tcp"],
        ["10.0.0.0/8", "udp"],
        ["192.168.0.0/16", "udp"],
    ]


def test_more_than_fifteen_ports_are_several_rules_that_set_a_mark() -> None:
    assert to_pods({"ports": tcp(*range(1, 31, 2))}) == [
        f"-p tcp -m multiport --dports {','.join(map(str, range(1, 31, 2)))} {SET_ACCEPT}",
    ]
    assert to_pods({"ports": tcp(*range(1, 33, 2))}) == [
        "-j MARK --set-xmark 0x0/0x180000",
        f"-p tcp -m multiport --dports {','.join(map(str, range(1, 31, 2)))} {SET_SCRATCH}",
        f"-p tcp -m multiport --dports 31 {SET_SCRATCH}",
        f"-p tcp -m mark --mark 0x80000/0x80000 {SET_ACCEPT}",
    ]
    (first, *_) = felix.by_protocol(tuple(Port("TCP", n, n + 1) for n in range(1, 25, 3)))
    assert first.numbers == ("1:2,4:5,7:8,10:11,13:14,16:17,19:20", "22:23")


def test_named_ports_beside_numbers_and_exceptions_share_the_mark() -> None:
    made = to_pods(
        {
            "ports": [*tcp(80), {"port": "web"}],
            "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
        }
    )
    assert made[0] == "-j MARK --set-xmark 0x0/0x180000"
    assert made[1] == "-p tcp -m multiport --dports 80 -j MARK --set-xmark 0x80000/0x80000"
    assert re.fullmatch(
        r"-m set --match-set cali40n:\S+ dst,dst -j MARK --set-xmark 0x80000/0x80000", made[2]
    )
    assert made[3:] == [
        "-s 10.1.0.0/16 -j MARK --set-xmark 0x0/0x80000",
        f"-s 10.0.0.0/8 -p tcp -m mark --mark 0x80000/0x80000 {SET_ACCEPT}",
    ]


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 5)), min_size=1, max_size=40))
def test_ports_are_the_same_however_they_are_put_together(ranges: list[tuple[int, int]]) -> None:
    (made,) = felix.by_protocol(tuple(Port("TCP", first, first + more) for first, more in ranges))
    found = []
    for portion in made.numbers:
        ends = [[int(end) for end in each.split(":")] for each in portion.split(",")]
        assert sum(map(len, ends)) <= 15
        found += [number for each in ends for number in range(each[0], each[-1] + 1)]
    assert len(found) == len(set(found))
    assert set(found) == {number for first, more in ranges for number in range(first, first + more + 1)}


def test_chains_of_one_name_that_differ_are_refused() -> None:
    one = Chain("ipv4", "filter", "cali-gi-x", ("-j DROP",))
    same = Chain("ipv4", "filter", "cali-gi-x", ("-j DROP",))
    assert felix.merged([one, same]) == {("ipv4", "filter", "cali-gi-x"): one}
    with pytest.raises(TestbedError, match="two chains of ipv4 table filter are called cali-gi-x"):
        felix.merged([one, Chain("ipv4", "filter", "cali-gi-x", ("-j ACCEPT",))])


def test_vxlan_is_taken_from_the_other_nodes_and_ipip_from_all() -> None:
    by_vxlan = Felix().compile(snapshot(vxlanMode="Always"), A).ipsets
    assert by_vxlan["cali40all-vxlan-net"].entries == {"172.18.0.3", "172.19.0.4"}
    assert by_vxlan["cali60all-vxlan-net"].entries == {"fd18::3", "fd19::4"}
    by_ipip = Felix().compile(snapshot(ipipMode="Always"), A).ipsets
    assert by_ipip["cali40all-hosts-net"].entries == {"172.18.0.2", "172.18.0.3", "172.19.0.4"}


def test_pods_are_dispatched_by_a_tree_of_prefixes() -> None:
    pods = [replace(POD, uid=f"u{number}", name=f"p{number}") for number in range(40)]
    chains = Felix().compile(snapshot(*pods), A).chains
    root = chains["ipv4", "filter", "cali-from-wl-dispatch"].rules
    assert len(root) <= 17
    assert '"Unknown interface" -j DROP' in root[-1]
    children = [
        name for family, _, name in chains if family == "ipv4" and name.startswith("cali-from-wl-dispatch-")
    ]
    assert children
    assert all(rule.split()[1].endswith("+") for rule in root if "-g cali-from-wl-dispatch-" in rule)
    ends = [r for name in children for r in chains["ipv4", "filter", name].rules if "-g cali-fw-" in r]
    assert len(ends) + sum("-g cali-fw-" in rule for rule in root) == 40
