"""Faults of Calico without a kernel: perturbed states are what would be compiled of what nodes believe."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from testbed.control.ipam import Held
from testbed.control.snapshot import ClusterFacts, Node, Pod, Router, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.calico.bird import CONFIG, NAME
from testbed.dataplane.calico.felix import Felix
from testbed.errors import InputError
from testbed.faults import faults
from testbed.faults.hands import Hands
from testbed.faults.model import Fault, States
from testbed.faults.service import Faults, Request, _Active
from testbed.faults.target import Scene, Target, Wanted, choose
from testbed.objects.store import Event
from testbed.state import NetnsState, NodeState, Vxlan

WRONG = "172.17.0.1"
FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.0.0/16",), ())
OWN = {1: "10.244.1.0", 2: "10.244.2.0", 3: "10.244.3.0"}
NODES = tuple(
    Node(
        f"node-{k}",
        (f"192.168.100.{k}", f"fd00::{k}"),
        (),
        ("192.168.100.0/24",),
        pooled=True,
        held=Held(
            (f"10.244.{k}.0/26",), ("10.244.2.9",) if k == 1 else (), {"vxlan": OWN[k], "ipip": OWN[k]}
        ),
    )
    for k in (1, 2, 3)
)
PODS = (Pod("uid-1", "default", "web", "node-1", ("10.244.1.1",)),)
MODES: list[dict[str, Any]] = [
    {},
    {"routeReflectors": ["node-1"]},
    {"vxlanMode": "Always"},
    {"vxlanMode": "CrossSubnet"},
    {"ipipMode": "Always"},
    {"ipipMode": "CrossSubnet"},
]


def snapshot(options: dict[str, Any], nodes: tuple[Node, ...] = NODES) -> Snapshot:
    return Snapshot(replace(FACTS, dataplane_options=options), nodes, PODS)


def compiled(seen: Snapshot) -> States:
    found = {}
    for node in seen.nodes:
        state = dataplanes.get("calico").compile(seen, node)
        felix = Felix().compile(seen, node)
        netns = msgspec.structs.replace(state.netns, chains=felix.chains, ipsets=felix.ipsets)
        found[node.name] = msgspec.structs.replace(state, netns=netns)
    return found


def aimed(seen: Snapshot, kind: str, *names: str, **options: Any) -> tuple[Fault, Target]:
    fault = msgspec.convert(options, faults.get(kind))
    scene = Scene(seen, PODS, [(node.name, "eth0", "s1", f"s1-{node.name}") for node in seen.nodes])
    return fault, fault.resolve(choose(fault.aim, Wanted(names), scene, "0"), scene)


def perturbed(options: dict[str, Any], kind: str, *names: str, **more: Any) -> States:
    seen = snapshot(options)
    fault, target = aimed(seen, kind, *names, **more)
    return fault.perturb(compiled(seen), target)


def config(state: NodeState) -> str:
    return state.daemons[NAME].files[CONFIG] if NAME in state.daemons else ""


def bound(netns: NetnsState) -> Vxlan | None:
    link = netns.links.get("vxlan.calico")
    return link.vxlan if link else None


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("address", [WRONG, "192.168.99.1"])
def test_a_wrong_address_is_believed_by_all_as_if_it_were_the_nodes(
    options: dict[str, Any], address: str
) -> None:
    states = perturbed(options, "wrong-autodetection", "node-2", address=f"{address}/24")
    believed = tuple(
        replace(
            node,
            addresses=(address, node.addresses[1]),
            networks=(str(ip_network(f"{address}/24", strict=False)),),
        )
        if node.name == "node-2"
        else node
        for node in NODES
    )
    wanted = compiled(snapshot(options, believed))
    for name, state in states.items():
        assert config(state) == config(wanted[name])
        assert state.netns.ipsets == wanted[name].netns.ipsets
        assert state.netns.fdb == wanted[name].netns.fdb
        assert state.netns.routes == wanted[name].netns.routes
    assert "docker0" in states["node-2"].netns.links
    assert "docker0" not in states["node-1"].netns.links
    vxlan = bound(states["node-2"].netns)
    assert vxlan is None or (vxlan.dev, vxlan.local) == ("docker0", address)


@pytest.mark.parametrize(
    ("names", "options", "why"),
    [
        (("node-2",), {"address": "192.168.100.1/24"}, "a node's own"),
        (("node-2",), {"address": "docker"}, "address: "),
        (("node-1", "node-2"), {}, "one at a time"),
    ],
)
def test_a_wrong_address_that_means_nothing_is_refused(
    names: tuple[str, ...], options: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        perturbed({}, "wrong-autodetection", *names, **options)


def test_two_nodes_of_one_name_are_compiled_as_one_that_is_where_the_later_is() -> None:
    states = perturbed({}, "same-host-name", "node-3", of="node-2")
    one, two, three = NODES
    believed = replace(three, name="node-2", held=two.held)
    wanted = compiled(snapshot({}, (one, believed)))
    assert config(states["node-1"]) == config(wanted["node-1"])
    assert config(states["node-3"]) == config(wanted["node-2"])
    assert config(states["node-2"]) == config(wanted["node-2"])


@pytest.mark.parametrize("gone", ["node-2", "node-3"])
def test_a_shared_name_is_shared_no_more_when_either_node_leaves(gone: str) -> None:
    begun: list[Any] = []
    runtime: Any = SimpleNamespace(plane=SimpleNamespace(perturb=None, workers={}), background=begun.append)
    service, seen = Faults(runtime, Hands(runtime)), snapshot({})
    fault, target = aimed(seen, "same-host-name", "node-3", of="node-2")
    service._active["fault-1"] = _Active("fault-1", Request("same-host-name"), fault, target)
    state = compiled(seen)["node-1"]
    assert service.perturb("node-1", state) != state
    service.node_changed(Event("DELETED", {"kind": "Node", "metadata": {"name": "node-1"}}))
    assert begun == []
    service.node_changed(Event("DELETED", {"kind": "Node", "metadata": {"name": gone}}))
    assert [work.cr_code.co_name for work in begun] == ["_heal_after"]
    begun[0].close()
    assert service.perturb("node-1", state) is state


def test_without_bridge_netfilter_is_nothing_where_pods_are_on_no_bridge() -> None:
    seen = snapshot({})
    with pytest.raises(InputError, match="with calico pods are on no bridge"):
        aimed(replace(seen, facts=replace(seen.facts, dataplane="calico")), "bridge-netfilter-off", "node-1")


def test_a_shared_name_is_about_bgp() -> None:
    with pytest.raises(InputError, match="only where BGP alone"):
        perturbed({"ipipMode": "Always"}, "same-host-name", "node-3", of="node-2")
    subnets = {"leaf1": NODES[:2], "leaf2": NODES[2:]}
    routers = tuple(
        Router(name, False, (), (), tuple((node.name, "", node.addresses[0]) for node in nodes))
        for name, nodes in subnets.items()
    )
    seen = snapshot({})
    with pytest.raises(InputError, match="only where BGP alone"):
        aimed(
            replace(seen, facts=replace(seen.facts, routers=routers)), "same-host-name", "node-3", of="node-2"
        )
    only_v6 = tuple(replace(node, held=Held((f"fd24::{k}:0/122",))) for k, node in enumerate(NODES, 1))
    with pytest.raises(InputError, match="node-2 has no IPv4 block"):
        aimed(snapshot({}, only_v6), "same-host-name", "node-3", of="node-2")


@pytest.mark.parametrize("options", MODES, ids=str)
def test_an_overlapping_pool_is_one_more_pool(options: dict[str, Any]) -> None:
    states = perturbed(options, "pool-overlap", "node-1")
    sets = states["node-1"].netns.ipsets
    for name in ("cali40all-ipam-pools", "cali40masq-ipam-pools"):
        assert sets[name].entries == {"10.244.0.0/16", "192.168.0.0/16"}
    true = compiled(snapshot(options))
    assert states["node-2"] == true["node-2"]
    before, after = config(true["node-1"]).splitlines(), config(states["node-1"]).splitlines()
    added = [line for line in after if line not in before]
    told = "  if ( net ~ 192.168.0.0/16 ) then accept;"
    left = "  if ( source = RTS_BGP && net ~ 192.168.0.0/16 ) then reject;"
    if "vxlanMode" in options:
        assert added == []
    else:
        assert added == ([told, left] if "ipipMode" in options else [told])
        assert len(after) == len(before) + len(added)


def test_without_nat_outgoing_nothing_is_masqueraded_from_an_overlapping_pool_either() -> None:
    sets = perturbed({"natOutgoing": False}, "pool-overlap", "node-1")["node-1"].netns.ipsets
    assert sets["cali40masq-ipam-pools"].entries == frozenset()


def test_an_overlapping_pool_has_to_cover_the_node() -> None:
    with pytest.raises(InputError, match=r"does not cover 192\.168\.100\.1"):
        perturbed({}, "pool-overlap", "node-1", pool="10.0.0.0/8")
    with pytest.raises(InputError, match="has host bits set"):
        perturbed({}, "pool-overlap", "node-1", pool="192.168.1.0/16")


@pytest.mark.parametrize("mode", ["vxlanMode", "ipipMode"])
def test_a_missing_borrowed_route_is_that_one_alone(mode: str) -> None:
    options = {mode: "Always"}
    true, states = compiled(snapshot(options)), perturbed(options, "missing-borrowed-route", "node-1")
    for name in ("node-2", "node-3"):
        gone = true[name].netns.routes.keys() - states[name].netns.routes.keys()
        assert gone == {"10.244.2.9/32"}
    assert states["node-1"].netns == true["node-1"].netns


def test_a_borrowed_address_is_kept_back_before_pools_are_asked() -> None:
    lines = config(perturbed({}, "missing-borrowed-route", "node-1")["node-1"]).splitlines()
    rejected = lines.index("  if ( net = 10.244.2.9/32 ) then reject;")
    assert rejected < lines.index("  if ( net ~ 10.244.0.0/16 ) then accept;")
    assert lines.count(lines[rejected]) == 1


def test_without_anything_borrowed_there_is_no_such_fault() -> None:
    with pytest.raises(InputError, match="node-3: has no IPv4 address of another node's block"):
        perturbed({}, "missing-borrowed-route", "node-3")


def test_ip_in_ip_is_filtered_at_the_far_end_of_the_nodes_cable() -> None:
    _, target = aimed(snapshot({"ipipMode": "Always"}), "ipip-filtered", "node-2")
    assert [link.ends[1] for link in target.links] == [("s1", "s1-node-2")]
    aimed(snapshot({"backend": "ipip"}), "ipip-filtered", "node-2")
    with pytest.raises(InputError, match="nothing goes in IP in IP"):
        aimed(snapshot({}), "ipip-filtered", "node-2")
    with pytest.raises(InputError, match="nothing goes in IP in IP"):
        aimed(snapshot({"ipipMode": "Always", "vxlanMode": "Always"}), "ipip-filtered", "node-2")


# --- loss, partition --------------------------------------------------------------------------------------


def test_what_comes_by_ip_in_ip_is_lost_once_and_behind_the_tunnel() -> None:
    def rules(kind: str, **options: Any) -> list[str]:
        netns = perturbed({"ipipMode": "Always"}, kind, "node-3", **options)["node-3"].netns
        return [rule for rule in netns.chains["ipv4", "raw", "PREROUTING"].rules if rule.endswith("DROP")]

    share = "-m statistic --mode random --probability 0.50000000000 -j DROP"
    assert rules("loss", loss=0.5) == [f"-i eth0 ! -p 4 {share}", f"-i tunl0 {share}"]
    sources = ("192.168.100.1/32", "10.244.1.0/26", "10.244.2.9/32")
    assert rules("loss", loss=0.5, source="node-1") == [
        f"-s {source} -i {way} {share}" for source in sources for way in ("eth0 ! -p 4", "tunl0")
    ]
    assert rules("partition")[:6] == [
        f"-s {source} -i {way} -j DROP" for source in sources for way in ("eth0", "tunl0")
    ]


# --- route-withdrawn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"vxlanMode": "Always"}, {"vxlanMode": "CrossSubnet"}], ids=str)
def test_routes_to_a_nodes_pods_are_those_by_its_tunnel_or_address_and_no_others(
    options: dict[str, Any],
) -> None:
    before = compiled(snapshot(options))
    for k, to, gone in (
        (1, "node-2", {"10.244.2.0/26"}),
        (2, "node-1", {"10.244.1.0/26", "10.244.2.9/32"}),
        (3, "node-2", {"10.244.2.0/26"}),
        (3, "node-1", {"10.244.1.0/26", "10.244.2.9/32"}),
        (3, "", {"10.244.1.0/26", "10.244.2.0/26", "10.244.2.9/32"}),
    ):
        name = f"node-{k}"
        after = perturbed(options, "route-withdrawn", name, to=to)
        routes = {node: set(state.netns.routes) for node, state in after.items()}
        assert routes == {
            node: set(state.netns.routes) - (gone if node == name else set())
            for node, state in before.items()
        }
        assert gone <= set(before[name].netns.routes)
