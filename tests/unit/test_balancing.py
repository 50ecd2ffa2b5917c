"""Routes that spread traffic from the gateway over hosts: every host gets the same share, and none loops."""

from __future__ import annotations

from fractions import Fraction

import pytest

from testbed.spec.load import parse_spec
from testbed.topology.balancing import spread
from testbed.topology.planning import build, plan
from testbed.topology.routing import Graph


def graph_of(text: str) -> Graph:
    spec = parse_spec(f"apiVersion: testbed/v1\nkind: Cluster\nmetadata: {{name: lab}}\nspec: {text}\n")
    return Graph(build(spec, plan(spec)))


def shares(graph: Graph, routes: dict[str, tuple[str, ...]]) -> dict[str, Fraction]:
    """Where one unit of traffic at the gateway ends, following the routes."""
    ends: dict[str, Fraction] = {}

    def follow(router: str, share: Fraction, path: tuple[str, ...]) -> None:
        hops = [(via.split()[0], int(via.split()[2]) if " " in via else 1) for via in routes[router]]
        total = sum(weight for _, weight in hops)
        for via, weight in hops:
            owner = graph.owner(via)
            assert owner not in path, f"a loop: {path} {owner}"
            part = share * Fraction(weight, total)
            if owner in graph.routers:
                follow(owner, part, (*path, owner))
            else:
                ends[owner] = ends.get(owner, Fraction(0)) + part

    follow("gateway", Fraction(1), ("gateway",))
    return ends


@pytest.mark.parametrize(
    "text",
    [
        "{nodes: {count: 3}}",
        "{nodes: {count: 5}, topology: {builder: racks, params: {racks: 2, spines: 2}}}",
        "{nodes: {count: 7}, topology: {builder: racks, params: {racks: 3, spines: 3}}}",
        "{nodes: {count: 4, zones: [a, b, c]}, topology: {builder: zones}}",
    ],
)
@pytest.mark.parametrize("chosen", [slice(None), slice(1), slice(None, None, 2)])
def test_every_host_gets_the_same_share(text: str, chosen: slice) -> None:
    graph = graph_of(text)
    nodes = sorted(name for name, role in graph.roles.items() if role == "node")[chosen]
    assert shares(graph, spread(graph, nodes, 4)) == dict.fromkeys(nodes, Fraction(1, len(nodes)))


def test_on_one_segment_the_gateway_alone_has_a_route_without_weights() -> None:
    graph = graph_of("{nodes: {count: 2}}")
    assert spread(graph, ["node-1", "node-2"], 4) == {"gateway": ("192.168.100.11", "192.168.100.12")}


def test_without_hosts_there_are_no_routes() -> None:
    assert spread(graph_of("{nodes: {count: 2}}"), [], 4) == {}
