"""Static routes computed from the graph: everything reachable, all equal paths used, no loops."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mininet.topo import Topo

from testbed.spec.load import parse_spec
from testbed.topology.planning import build, plan

HEADER = "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: lab}\n"


class Walker:
    """Forwards a packet over a graph by the routes written on it, as Linux routers would."""

    def __init__(self, topo: Topo) -> None:
        self.topo = topo
        self.addresses: dict[str, list[Any]] = {name: [] for name in topo.hosts()}
        for name in topo.hosts():
            self.addresses[name] += map(ip_interface, topo.nodeInfo(name).get("ips") or ())
        for _, _, info in topo.links(withInfo=True):
            for side in ("1", "2"):
                given = (info.get(f"params{side}") or {}).get("ips", ())
                self.addresses.get(info[f"node{side}"], []).extend(map(ip_interface, given))
        self.owner = {i.ip: name for name, interfaces in self.addresses.items() for i in interfaces}
        self.tables = {name: self._table(name) for name in topo.hosts()}

    def _table(self, name: str) -> list[tuple[Any, list[Any]]]:
        table: list[tuple[Any, list[Any]]] = [(i.network, []) for i in self.addresses[name]]
        for dst, vias in self.topo.nodeInfo(name).get("routes") or ():
            gateways = [ip_address(via) for via in ([vias] if isinstance(vias, str) else vias)]
            if dst == "default":
                dst = "::/0" if gateways[0].version == 6 else "0.0.0.0/0"
            table.append((ip_network(dst), gateways))
        return sorted(table, key=lambda entry: -entry[0].prefixlen)

    def next_hops(self, name: str, target: Any) -> list[str]:
        """The names of all next hops; every gateway has to be on a subnet of the router's own."""
        for network, gateways in self.tables[name]:
            if target.version == network.version and target in network:
                on_link = [i.network for i in self.addresses[name]]
                assert all(any(g in net for net in on_link if net.version == g.version) for g in gateways)
                return [self.owner[gateway] for gateway in gateways] or [self.owner[target]]
        raise AssertionError(f"{name} has no route to {target}")

    def paths(self, source: str, target: Any, limit: int = 8) -> list[list[str]]:
        """Every path that equal-cost routing may take, ends included. A loop runs into ``limit``."""
        if target in [i.ip for i in self.addresses[source]]:
            return [[source]]
        assert limit, f"a loop on the way to {target}"
        found = [self.paths(hop, target, limit - 1) for hop in self.next_hops(source, target)]
        return [[source, *path] for paths in found for path in paths]


def fabric(body: str, *, route_pods: bool = False) -> Topo:
    spec = parse_spec(HEADER + body, "lab.yaml")
    return build(spec, plan(spec, route_pods=route_pods))


def racks(nodes: int, count: int, spines: int, families: str = "") -> Topo:
    return fabric(
        f"spec:\n  nodes: {{count: {nodes}}}\n  network: {{nodeCIDR: 192.168.0.0/20}}\n"
        f"  topology: {{builder: racks, params: {{racks: {count}, spines: {spines}}}}}\n"
        "  external: [{name: client, address: 203.0.113.10}]\n",
        route_pods=True,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 5))
def test_leaf_spine_reaches_every_address_over_all_spines_without_loops(
    nodes: int, count: int, spines: int
) -> None:
    walker = Walker(racks(nodes, count, spines))
    targets = [interface.ip for interfaces in walker.addresses.values() for interface in interfaces]
    hosts = [name for name in walker.addresses if name.startswith(("node", "client", "control"))]
    for source in hosts:
        for target in targets:
            paths = walker.paths(source, target)
            assert len({tuple(path) for path in paths}) == len(paths)
    rack = {name: walker.topo.nodeInfo(name)["zone"] for name in hosts if name.startswith("node")}
    for source in rack:
        for target in rack:
            if rack[source] != rack[target]:
                assert len(walker.paths(source, walker.addresses[target][0].ip)) == spines


def test_paths_between_racks_take_each_spine_once() -> None:
    walker = Walker(racks(2, 2, 2))
    assert walker.paths("node-1", walker.addresses["node-2"][0].ip) == [
        ["node-1", "leaf1", "spine1", "leaf2", "node-2"],
        ["node-1", "leaf1", "spine2", "leaf2", "node-2"],
    ]


def test_pod_ranges_are_routed_like_their_nodes_and_at_last_to_them() -> None:
    topo = racks(2, 2, 2)
    routes = {name: dict(topo.nodeInfo(name)["routes"]) for name in ("leaf1", "leaf2", "gateway", "spine1")}
    node_2 = topo.nodeInfo("node-2")["ips"][0].split("/")[0]
    subnet = str(ip_interface(topo.nodeInfo("node-2")["ips"][0]).network)
    assert routes["leaf2"]["10.244.2.0/24"] == [node_2]
    for router in ("leaf1", "gateway", "spine1"):
        assert routes[router]["10.244.2.0/24"] == routes[router][subnet]
    assert len(routes["leaf1"]["10.244.2.0/24"]) == 2


@pytest.mark.parametrize(("builder", "zones"), [("zones", "zones: [p, q, r]"), ("racks", "zones: [p]")])
def test_both_families_are_routed(builder: str, zones: str) -> None:
    topo = fabric(
        f"spec:\n  nodes: {{count: 4, {zones}}}\n  topology: {{builder: {builder}}}\n"
        "  network: {podCIDR: [10.244.0.0/16, 'fd00:10:244::/56']}\n"
        "  external: [{name: client, address: [203.0.113.10, '2001:db8:1::10']}]\n",
        route_pods=True,
    )
    walker = Walker(topo)
    hosts = [name for name in walker.addresses if topo.nodeInfo(name)["role"] in ("node", "external")]
    for source in hosts:
        for target in hosts:
            assert [i.version for i in walker.addresses[target]] == [4, 6]
            assert all(walker.paths(source, interface.ip) for interface in walker.addresses[target])


def test_zones_route_over_the_direct_link_only() -> None:
    walker = Walker(fabric("spec: {nodes: {count: 3, zones: [p, q, r]}, topology: {builder: zones}}"))
    assert walker.paths("node-1", walker.addresses["node-3"][0].ip) == [
        ["node-1", "router1", "router3", "node-3"]
    ]


def test_routers_know_the_way_out() -> None:
    walker = Walker(racks(2, 2, 2))
    somewhere = walker.next_hops("leaf1", ip_address("8.8.8.8"))
    assert somewhere == ["spine1", "spine2"]
    assert walker.next_hops("spine1", ip_address("8.8.8.8")) == ["gateway"]
