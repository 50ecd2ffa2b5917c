"""Topology builders: who is on the graph, with which addresses, and a stranger's topology as a fabric."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from mininet.topo import LinearTopo, SingleSwitchTopo, Topo

from testbed.errors import InputError
from testbed.spec.load import load_spec, parse_spec
from testbed.topology import topologies
from testbed.topology.adapt import adapt
from testbed.topology.plan import FabricPlan, PlannedHost
from testbed.topology.planning import build, load_builder, plan, shaping

ROOT = Path(__file__).parents[2]
HEADER = "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: lab}\n"


def fabric(body: str = "", *, route_pods: bool = False) -> Topo:
    spec = parse_spec(HEADER + body, "lab.yaml")
    return build(spec, plan(spec, route_pods=route_pods))


def neighbours(topo: Topo, name: str) -> set[str]:
    return {b if a == name else a for a, b in topo.links() if name in (a, b)}


def link(topo: Topo, one: str, other: str) -> dict[str, Any]:
    (info,) = [i for a, b, i in topo.links(withInfo=True) if {a, b} == {one, other}]
    return dict(info)


@pytest.mark.parametrize("name", list(topologies))
def test_every_builder_works_without_a_plan_as_mn_runs_it(name: str) -> None:
    """And with names short enough for Mininet to name ports after."""
    topo = topologies.get(name)()
    roles = [topo.nodeInfo(host)["role"] for host in topo.hosts()]
    assert roles.count("node") == 3
    assert {"control-plane", "gateway", "external"} <= set(roles)
    ports = [f"{i[f'node{n}']}-eth{i[f'port{n}']}" for _, _, i in topo.links(withInfo=True) for n in (1, 2)]
    assert len(set(ports)) == len(ports)
    assert all(len(port) <= 15 for port in ports)


@pytest.mark.parametrize("name", list(topologies))
def test_every_builder_takes_nodes_on_the_command_line_of_mn(name: str) -> None:
    topo = topologies.get(name)(nodes=7)
    assert sum(topo.nodeInfo(host)["role"] == "node" for host in topo.hosts()) == 7


@pytest.mark.parametrize("path", sorted((ROOT / "topologies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_host_of_every_topology_has_its_addresses_and_a_default_route_it_can_use(path: Path) -> None:
    spec = load_spec(path)
    topo = build(spec, plan(spec))
    for host in topo.hosts():
        info = topo.nodeInfo(host)
        if info["role"] in ("router", "gateway"):
            continue
        own = [ip_interface(text) for text in info["ips"]]
        vias = [ip_interface(via).ip for dst, via in info["routes"] if dst == "default"]
        assert {via.version for via in vias} == {address.version for address in own}
        assert all(any(via in address.network for address in own) for via in vias)


def test_single_puts_everything_on_one_switch_and_outside_hosts_behind_the_gateway() -> None:
    topo = fabric(
        "spec:\n  external:\n  - {name: client, address: 203.0.113.1}\n"
        "  - {name: near, address: 192.168.100.99, attach: nodes}\n"
    )
    assert neighbours(topo, "s1") == {"node-1", "node-2", "node-3", "control-plane", "gateway", "near"}
    assert neighbours(topo, "outside1") == {"gateway", "client"}
    assert link(topo, "gateway", "outside1")["params1"] == {"ips": ["203.0.113.2/24"]}
    assert topo.nodeInfo("client")["routes"] == [("default", "203.0.113.2")]


def test_outside_hosts_share_a_segment_per_subnet_joined_by_either_family() -> None:
    topo = fabric(
        "spec:\n  network: {podCIDR: [10.244.0.0/16, 'fd00:10:244::/56']}\n  external:\n"
        "  - {name: one, address: [203.0.113.10, '2001:db8::1']}\n"
        "  - {name: two, address: 198.18.0.10}\n"
        "  - {name: three, address: ['198.18.0.20', '2001:db8::2']}\n"
    )
    assert neighbours(topo, "outside1") == {"gateway", "one", "two", "three"}
    assert link(topo, "gateway", "outside1")["params1"]["ips"] == [
        "198.18.0.1/24",
        "203.0.113.1/24",
        "2001:db8::3/64",
    ]


def test_racks_join_every_leaf_and_the_gateway_to_every_spine() -> None:
    topo = fabric("spec: {nodes: {count: 6}, topology: {builder: racks, params: {racks: 3, spines: 2}}}")
    assert neighbours(topo, "spine1") == neighbours(topo, "spine2") == {"leaf1", "leaf2", "leaf3", "gateway"}
    assert neighbours(topo, "rack2") == {"leaf2", "node-3", "node-4"}
    assert neighbours(topo, "core1") == {"gateway", "control-plane"}


def test_link_addresses_between_routers_are_all_different() -> None:
    topo = fabric(
        "spec: {topology: {builder: racks, params: {racks: 3, spines: 3}},"
        " network: {nodeCIDR: 192.168.0.0/22}}"
    )
    given = [
        ip
        for _, _, i in topo.links(withInfo=True)
        for n in (1, 2)
        for ip in i.get(f"params{n}", {}).get("ips", ())
    ]
    assert len(set(given)) == len(given)


def test_zones_are_a_mesh_of_routers_with_the_wan_s_own_link_options() -> None:
    topo = fabric(
        "spec:\n  nodes: {count: 4, zones: [p, q]}\n"
        "  topology: {builder: zones, link: {bandwidth: 1Gbit},"
        " params: {wan: {bandwidth: 50Mbit, delay: 5ms}}}\n"
    )
    assert neighbours(topo, "router1") == {"zone1", "router2", "gateway"}
    assert neighbours(topo, "zone2") == {"router2", "node-2", "node-4"}
    wan, lan = link(topo, "router1", "router2"), link(topo, "router1", "zone1")
    assert (wan["bw"], wan["delay"], lan["bw"], lan.get("delay")) == (50, "5ms", 1000, None)


def test_shaping_of_any_link_is_known_before_anything_is_built() -> None:
    assert shaping(fabric()) == frozenset()
    wan = "spec: {topology: {builder: zones, params: {wan: {bandwidth: 1Mbit, delay: 1ms}}}}"
    assert shaping(fabric(wan)) == {"bw", "delay"}
    one_way = Topo()
    one_way.addLink(one_way.addHost("h1"), one_way.addSwitch("s1"), params1={"loss": 1})
    assert shaping(adapt(one_way, make_plan("node-1"))) == {"loss"}


def test_cni_lab_s_outside_host_is_the_default_route() -> None:
    spec = load_spec(ROOT / "topologies" / "cni-lab.yaml")
    topo = build(spec, plan(spec))
    assert link(topo, "o", "s1")["params1"] == {"ips": ["172.18.0.254/24"]}
    assert topo.nodeInfo("a")["routes"] == topo.nodeInfo("b")["routes"] == [("default", "172.18.0.254")]


def test_gateway_of_a_flat_fabric_knows_the_pod_ranges_where_the_dataplane_asks_for_it() -> None:
    wanted = [(f"10.244.{k}.0/24", [f"192.168.100.{10 + k}"]) for k in (1, 2, 3)]
    assert fabric(route_pods=True).nodeInfo("gateway")["routes"] == wanted
    assert fabric().nodeInfo("gateway")["routes"] == []


def test_link_options_are_mininet_s() -> None:
    topo = fabric(
        "spec: {topology: {link: {bandwidth: 100Mbit, delay: 1ms, jitter: 100us, loss: 0.5%, mtu: 9000}}}"
    )
    info = link(topo, "node-1", "s1")
    assert {key: info[key] for key in ("bw", "delay", "jitter", "loss", "mtu")} == {
        "bw": 100,
        "delay": "1ms",
        "jitter": "0.1ms",
        "loss": 0.5,
        "mtu": 9000,
    }


def test_rules_for_single_links_stand_over_those_for_all() -> None:
    topo = fabric("""
spec:
  topology:
    link: {bandwidth: 100Mbit, delay: 1ms}
    links:
    - {between: [node-1, s1], direction: out, loss: 1%}
    - {between: [s1, node-2], direction: in, delay: 5ms}
    - {between: [gateway], burstLoss: {enter: 1%, leave: 50%, lossInBurst: 80%}}
""")
    common = {"bw": 100, "delay": "1ms"}

    def sides(one: str, other: str) -> tuple[Any, Any]:
        info = link(topo, one, other)
        sent = {info[f"node{n}"]: {k: v for k, v in info[f"params{n}"].items() if k != "ips"} for n in (1, 2)}
        return sent[one], sent[other]

    assert sides("node-1", "s1") == (common | {"loss": 1}, common)
    assert sides("node-2", "s1") == (common | {"delay": "5ms"}, common)
    bursts = common | {"burst_loss": (1, 50, 80, 0)}
    assert sides("gateway", "s1") == (bursts, bursts)
    assert link(topo, "node-3", "s1")["delay"] == "1ms"
    assert shaping(topo) == {"bw", "delay", "loss", "burst_loss"}


def test_a_rule_for_a_link_that_is_not_there_names_what_is() -> None:
    with pytest.raises(
        InputError, match=r"links\[0\].between: no link between node-1 and node-2; there are .*s1"
    ):
        fabric("spec: {topology: {links: [{between: [node-1, node-2], loss: 1%}]}}")


def test_flows_are_in_mininet_s_units_too() -> None:
    topo = fabric("""
spec:
  topology:
    link:
      flows:
      - {match: {protocol: tcp, port: 80, to: 10.0.0.0/8}, delay: 30ms, bandwidth: 1Mbit}
""")
    match = {"protocol": "tcp", "destination": "10.0.0.0/8", "port": 80}
    assert link(topo, "node-1", "s1")["flows"] == [{"match": match, "bw": 1, "delay": "30ms"}]


def test_tree_and_linear_are_mininet_s_with_nodes_as_hosts() -> None:
    tree = fabric("spec: {nodes: {count: 5}, topology: {builder: tree, params: {fanout: 2}}}")
    assert len([switch for switch in tree.switches() if switch.startswith("s")]) == 7
    assert neighbours(tree, "node-5") == {"s6"}
    linear = fabric("spec: {nodes: {count: 5}, topology: {builder: linear, params: {hosts: 2}}}")
    assert neighbours(linear, "s2") == {"s1", "s3", "node-2", "node-5"}  # h1s2, h2s2


# --- strangers' topologies --------------------------------------------------------------------------------


def make_plan(*names: str) -> FabricPlan:
    nodes = tuple(PlannedHost(name, "node", (f"10.9.0.{k}/24",)) for k, name in enumerate(names, 11))
    control_plane = PlannedHost("control-plane", "control-plane", ("10.9.0.10/24",))
    return FabricPlan(nodes, control_plane, PlannedHost("gateway", "gateway", ("10.9.0.1/24",)))


def test_hosts_become_nodes_in_natural_order() -> None:
    topo = adapt(SingleSwitchTopo(k=11), make_plan(*(f"node-{k}" for k in range(1, 12))))
    assert neighbours(topo, "s1") >= {"node-1", "node-10", "node-11", "control-plane", "gateway"}
    base = SingleSwitchTopo(k=11)
    assert link(topo, "node-2", "s1")["port2"] == base.port("h2", "s1")[1]
    assert topo.nodeInfo("node-2")["ips"] == ["10.9.0.12/24"]


def test_hosts_of_the_nodes_names_are_matched_by_name() -> None:
    base = Topo()
    base.addSwitch("s1")
    for name in ("b", "a", "c"):
        base.addLink(base.addHost(name, ip="10.0.0.1/8"), "s1", bw=7)
    topo = adapt(base, make_plan("c", "a"))
    assert set(topo.hosts()) == {"a", "c", "control-plane", "gateway"}
    assert (topo.nodeInfo("c")["ip"], link(topo, "c", "s1")["bw"]) == ("10.9.0.11/24", 7)


def test_ports_that_a_stranger_numbers_are_not_taken_twice() -> None:
    base = Topo()
    base.addSwitch("s1")
    base.addLink(base.addHost("h1"), "s1", port1=0, port2=2)
    topo = adapt(base, make_plan("node-1"))
    ports = [i["port2"] for a, b, i in topo.links(withInfo=True) if b == "s1"]
    assert len(set(ports)) == len(ports) == 3


def test_too_few_hosts_no_switch_and_taken_names_are_refused() -> None:
    with pytest.raises(InputError, match="2 hosts for 3 nodes"):
        adapt(LinearTopo(k=2), make_plan("a", "b", "c"))
    with pytest.raises(InputError, match="no switch"):
        adapt(Topo(), make_plan("a"))
    taken = Topo()
    taken.addLink(taken.addHost("h1"), taken.addSwitch("node-1"))
    with pytest.raises(InputError, match="node-1: the name is taken"):
        adapt(taken, make_plan("node-1"))


@pytest.mark.parametrize(
    "source",
    [
        "from mininet.topo import Topo\n\nclass Mine(Topo):\n    def build(self, k=2):\n",
        "from mininet.topo import Topo\n\ntopos = {'mine': lambda k=2: Mine(k)}\n\nclass Other(Topo): pass\n"
        "\nclass Mine(Topo):\n    def build(self, k=2):\n",
    ],
    ids=["class", "topos"],
)
def test_a_user_s_file_is_a_builder(tmp_path: Path, source: str) -> None:
    body = (
        "        s = self.addSwitch('s1')\n        for n in range(k):\n"
        "            self.addLink(self.addHost(f'h{n + 1}'), s)\n"
    )
    (tmp_path / "mine.py").write_text(source + body)
    text = HEADER + "spec: {nodes: {count: 4}, topology: {builder: mine.py, params: {k: 4}}}"
    spec = parse_spec(text, str(tmp_path / "lab.yaml"))
    topo = build(spec, plan(spec))
    assert neighbours(topo, "s1") == {"node-1", "node-2", "node-3", "node-4", "control-plane", "gateway"}


def test_a_user_s_file_may_be_a_full_builder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        (ROOT / "testbed" / "topology" / "single.py")
        .read_text()
        .replace('register("single")', 'register("mine")')
    )
    builder = load_builder(str(tmp_path / "mine.py"))
    assert set(builder.parameters or ()) == {"gateway", "gatewayName"}
