"""From a cluster spec to a fabric plan, and from a plan to a graph.

``plan`` and ``default_plan`` are pure; ``build`` makes a ``Topo``, which is data too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError, Problem
from testbed.spec.addressing import (
    CONTROL_PLANE,
    Request,
    Wanted,
    assign,
    outside_network,
    with_prefix,
)
from testbed.spec.links import SHAPING, link_options
from testbed.spec.model import ClusterSpec, ExternalSpec, IPNetwork, LinkRule
from testbed.spec.params import read
from testbed.topology import Builder, topologies
from testbed.topology.plan import FabricPlan, PlannedHost

if TYPE_CHECKING:
    from mininet.topo import Topo

DEFAULT_NODE_CIDR = "192.168.100.0/24"


def load_builder(name: str) -> type[Builder]:
    """The builder of a name, or of a ``.py`` file with a Topo. Raises InputError."""
    if name.endswith(".py"):
        from testbed.topology.adapt import load_file

        return load_file(name)
    return topologies.get(name)


def plan(spec: ClusterSpec, *, route_pods: bool = False) -> FabricPlan:
    """What the fabric of a cluster consists of.

    route_pods: whether the fabric's routers must know the pod ranges (the dataplane's
    ``underlay_routes``).
    """
    core = tuple(ip_interface(text).network for text in spec.topology.gateway)
    return FabricPlan(
        nodes=tuple(
            PlannedHost(node.name, "node", with_prefix(node.addresses, node.subnets), node.zone)
            for node in spec.nodes
        ),
        control_plane=PlannedHost(
            CONTROL_PLANE, "control-plane", with_prefix(spec.control_plane.addresses, core)
        ),
        gateway=PlannedHost(spec.topology.gateway_name, "gateway", spec.topology.gateway),
        external=tuple(_external(host, core) for host in spec.external),
        node_cidrs=tuple(map(str, spec.network.node_cidrs)),
        link=link_options(spec.topology.link),
        pod_cidrs={node.name: tuple(map(str, node.pod_cidrs)) for node in spec.nodes} if route_pods else {},
        zones=spec.zones,
    )


def build(spec: ClusterSpec, fabric_plan: FabricPlan) -> Topo:
    """The graph of a cluster's fabric, every address and route on it."""
    builder = load_builder(spec.topology.builder)
    topo: Topo = builder(plan=fabric_plan, **spec.topology.params)
    for number, rule in enumerate(spec.topology.links):
        if not _apply(rule, topo):
            known = ", ".join(topo.nodes())
            message = f"no link between {' and '.join(rule.between)}; there are {known}"
            raise InputError([Problem(message, spec.source, path=f"spec.topology.links[{number}].between")])
    return topo


def _apply(rule: LinkRule, topo: Topo) -> int:
    """Give the links that a rule means its values, over what they have; how many those are."""
    options, count = link_options(rule.link), 0
    for one, other, info in topo.links(withInfo=True):
        if rule.between not in ((one, other), (other, one), (one,), (other,)):
            continue
        count += 1
        # What stands beside the sides would win over them.
        common = {key: info.pop(key) for key in (*SHAPING, "mtu") if key in info}
        first = 1 if info["node1"] == rule.between[0] else 2
        for side, sends in ((first, "out"), (3 - first, "in")):
            own = options if rule.direction in ("both", sends) else {}
            info[f"params{side}"] = common | info.get(f"params{side}", {}) | own
    return count


def shaping(topo: Topo) -> frozenset[str]:
    """Which of SHAPING any link of the graph has, whoever put it there."""
    links = [info for _, _, info in topo.links(withInfo=True)]
    sides = [info.get(side) or {} for info in links for side in ("params1", "params2")]
    return frozenset(kind for options in (*links, *sides) for kind in SHAPING if options.get(kind))


def default_plan(builder: type[Builder], params: Mapping[str, Any], nodes: int = 3) -> FabricPlan:
    """A plan for a builder that is run by ``mn`` alone: some nodes, a control plane, a client outside.

    Mininet names ports after their host, and 15 characters have to do: hence ``cp``.
    """
    names = tuple(Wanted(f"node-{number}") for number in range(1, nodes + 1))
    request = Request((ip_network(DEFAULT_NODE_CIDR),), names, (), params)
    cut = builder.cut(request)
    assigned = assign(cut, names)
    client = PlannedHost("client", "external", ("203.0.113.10/24",), attach="gateway")
    return FabricPlan(
        nodes=tuple(
            PlannedHost(node.name, "node", with_prefix(addresses, segment.subnets), zone)
            for node, addresses, segment, zone in zip(
                names, assigned.nodes, cut.nodes, cut.zones, strict=True
            )
        ),
        control_plane=PlannedHost(
            "cp", "control-plane", with_prefix(assigned.control_plane, cut.core.subnets)
        ),
        gateway=PlannedHost(cut.gateway_name, "gateway", cut.core.interfaces()),
        external=(client,),
        zones=cut.all_zones(),
        node_cidrs=(DEFAULT_NODE_CIDR,),
    )


def planned(
    builder: type[Builder], given: FabricPlan | None, params: Mapping[str, Any]
) -> tuple[FabricPlan, dict[str, Any]]:
    """The plan to lay out and the builder's parameters, parsed. ``nodes`` counts only without a plan."""
    own = {key: value for key, value in params.items() if key != "nodes"}
    values = read(builder.parameters, own)
    return given or default_plan(builder, own, int(params.get("nodes", 3))), values


def request_of(fabric_plan: FabricPlan, params: Mapping[str, Any]) -> Request:
    """The request that led to a plan: cutting it again gives the builder its segments."""
    nodes = tuple(
        Wanted(node.name, node.zone, tuple(ip_interface(text).ip for text in node.addresses))
        for node in fabric_plan.nodes
    )
    cidrs: Sequence[IPNetwork] = tuple(map(ip_network, fabric_plan.node_cidrs))
    return Request(tuple(cidrs), nodes, fabric_plan.zones, params)


def _external(host: ExternalSpec, core: Sequence[IPNetwork]) -> PlannedHost:
    subnets = core if host.attach == "nodes" else [outside_network(address) for address in host.addresses]
    return PlannedHost(host.name, "external", with_prefix(host.addresses, subnets), attach=host.attach)
