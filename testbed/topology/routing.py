"""Static routes of a routed fabric, computed from the graph alone: shortest paths, all of equal cost.

Each router gets a route to every subnet it is not on, to the pod ranges the underlay has to know, and a
default route towards the gateway; each host gets a default route. A next hop is always one step nearer to
the destination, so there are no loops. Hosts never forward.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mininet.topo import Topo

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Route = tuple[str, list[str]]

ROUTER_ROLES = ("router", "gateway")


@dataclass
class Segment:
    """One broadcast domain: who is on it, and with which addresses."""

    members: dict[str, list[Interface]] = field(default_factory=lambda: defaultdict(list))

    def networks(self) -> set[Network]:
        """The subnets in use on it."""
        return {interface.network for interfaces in self.members.values() for interface in interfaces}


class Graph:
    """The fabric as routers and segments. routers: names, in natural order."""

    def __init__(self, topo: Topo) -> None:
        roles = {name: str(topo.nodeInfo(name).get("role", "")) for name in topo.hosts()}
        self.roles = roles
        self.routers = [name for name, role in roles.items() if role in ROUTER_ROLES]
        self.segments = _segments(topo)
        self._of: dict[str, list[Segment]] = defaultdict(list)
        for segment in self.segments:
            for name in segment.members:
                self._of[name].append(segment)

    def segments_of(self, name: str) -> list[Segment]:
        """The segments that a host or router is on."""
        return self._of[name]

    def neighbours(self, router: str, version: int) -> Iterable[tuple[str, str]]:
        """(router, its address) for each router on a shared subnet of this IP version."""
        for segment in self._of[router]:
            own = {i.network for i in segment.members[router] if i.version == version}
            for name, interfaces in segment.members.items():
                if name != router and self.roles[name] in ROUTER_ROLES:
                    yield from ((name, str(i.ip)) for i in interfaces if i.network in own)

    def next_hops(self, targets: Iterable[str], version: int) -> dict[str, list[str]]:
        """Router → addresses of all next hops on shortest paths to the nearest of ``targets``."""
        distance = dict.fromkeys(targets, 0)
        queue = deque(distance)
        while queue:
            router = queue.popleft()
            for name, _ in self.neighbours(router, version):
                if name not in distance:
                    distance[name] = distance[router] + 1
                    queue.append(name)
        return {
            router: sorted(
                {via for name, via in self.neighbours(router, version) if distance[name] == steps - 1},
                key=ip_interface,
            )
            for router, steps in distance.items()
            if steps
        }

    def towards(self, host: str, version: int) -> dict[str, list[str]]:
        """Router → addresses of all next hops on shortest paths to a host, the host's own at the end."""
        for segment in self._of[host]:
            for interface in segment.members[host]:
                if interface.version == version:
                    on_it = _routers_with(self, segment, interface.network)
                    direct = {router: [str(interface.ip)] for router in on_it}
                    return self.next_hops(on_it, version) | direct
        return {}

    def owner(self, address: str) -> str:
        """The host or router that has an address. Raises KeyError."""
        for segment in self.segments:
            for name, interfaces in segment.members.items():
                if any(str(interface.ip) == address for interface in interfaces):
                    return name
        raise KeyError(address)

    def routers_on(self, segment: Segment) -> list[str]:
        """The routers of one segment."""
        return [name for name in segment.members if self.roles[name] in ROUTER_ROLES]


def routes(topo: Topo, pod_cidrs: Mapping[str, Iterable[str]] | None = None) -> dict[str, list[Route]]:
    """Router → its routes: default first, then by destination. pod_cidrs: node → its pod ranges."""
    graph = Graph(topo)
    found: dict[str, dict[str, list[str]]] = {router: {} for router in graph.routers}
    for dst, version, via in _defaults(graph):
        for router, vias in via.items():
            found[router][f"{dst}{version}"] = vias
    for segment in graph.segments:
        for network in segment.networks():
            on_it = _routers_with(graph, segment, network)
            for router, vias in graph.next_hops(on_it, network.version).items():
                found[router][str(network)] = vias
    for node, cidrs in (pod_cidrs or {}).items():
        for cidr in cidrs:
            for router, vias in graph.towards(node, ip_network(cidr).version).items():
                found[router][cidr] = vias
    return {
        router: [
            ("default" if dst.startswith("default") else dst, table[dst]) for dst in sorted(table, key=_order)
        ]
        for router, table in found.items()
    }


Beside = tuple[tuple[str, str, str], ...]
"""Who shares a subnet with a router: name, the router's address there, the other's."""


def routers(topo: Topo) -> tuple[tuple[str, bool, tuple[str, ...], Beside, Beside], ...]:
    """Of each router its name, whether it is the gateway, its addresses, the routers and nodes beside it."""
    graph = Graph(topo)
    found = []
    for name in graph.routers:
        own = [each for segment in graph.segments_of(name) for each in segment.members[name]]
        neighbours = tuple(
            (other, str(next(i.ip for i in own if ip_address(via) in i.network)), via)
            for version in (4, 6)
            for other, via in graph.neighbours(name, version)
        )
        nodes = tuple(
            (other, str(mine.ip), str(theirs.ip))
            for segment in graph.segments_of(name)
            for other, interfaces in segment.members.items()
            if graph.roles[other] == "node"
            for theirs in interfaces
            for mine in segment.members[name]
            if theirs.network == mine.network
        )
        found.append((name, graph.roles[name] == "gateway", tuple(map(str, own)), neighbours, nodes))
    return tuple(found)


def host_defaults(topo: Topo) -> dict[str, list[tuple[str, str]]]:
    """Host → its default routes, one per family, via the router of its segment nearest to the gateway."""
    graph = Graph(topo)
    found: dict[str, list[tuple[str, str]]] = {}
    for version in (4, 6):
        distance = _steps_to_gateway(graph, version)
        for host in (name for name in graph.roles if name not in graph.routers):
            choices = [
                (distance.get(router, len(distance)), interface.ip)
                for segment in graph.segments_of(host)
                for router in graph.routers_on(segment)
                for interface in segment.members[router]
                if interface.network in {i.network for i in segment.members[host]}
                and interface.version == version
            ]
            if choices:
                found.setdefault(host, []).append(("default", str(min(choices)[1])))
    return found


def install(topo: Topo, pod_cidrs: Mapping[str, Iterable[str]] | None = None) -> None:
    """Write everybody's routes into the ``routes`` parameter on the graph; those given there are kept."""
    computed: dict[str, Any] = {**routes(topo, pod_cidrs), **host_defaults(topo)}
    for name, table in computed.items():
        info = topo.nodeInfo(name)
        info["routes"] = info.get("routes") or table


def _defaults(graph: Graph) -> Iterable[tuple[str, int, dict[str, list[str]]]]:
    gateways = [name for name in graph.routers if graph.roles[name] == "gateway"]
    for version in (4, 6):
        yield "default", version, graph.next_hops(gateways, version)


def _steps_to_gateway(graph: Graph, version: int) -> dict[str, int]:
    steps = {name: 0 for name in graph.routers if graph.roles[name] == "gateway"}
    queue = deque(steps)
    while queue:
        router = queue.popleft()
        for name, _ in graph.neighbours(router, version):
            if name not in steps:
                steps[name] = steps[router] + 1
                queue.append(name)
    return steps


def _routers_with(graph: Graph, segment: Segment, network: Network) -> list[str]:
    return [
        router
        for router in graph.routers_on(segment)
        if any(interface.network == network for interface in segment.members[router])
    ]


def _order(dst: str) -> tuple[int, int, int, int]:
    if dst.startswith("default"):
        return (0, int(dst.removeprefix("default")), 0, 0)
    network = ip_network(dst)
    return (1, network.version, int(network.network_address), network.prefixlen)


def _segments(topo: Topo) -> list[Segment]:
    """Broadcast domains: switches joined by links are one, a link between two others is one of its own."""
    parent: dict[tuple[str, int], tuple[str, int]] = {}

    def find(vertex: tuple[str, int]) -> tuple[str, int]:
        parent.setdefault(vertex, vertex)
        while parent[vertex] != vertex:
            parent[vertex] = parent[parent[vertex]]
            vertex = parent[vertex]
        return vertex

    ends: list[tuple[tuple[str, int], str, list[Interface]]] = []
    for _, _, info in topo.links(withInfo=True):
        vertices = []
        for side in ("1", "2"):
            name, port = info[f"node{side}"], info[f"port{side}"]
            vertex = (name, -1) if topo.isSwitch(name) else (name, port)
            vertices.append(vertex)
            if not topo.isSwitch(name):
                ends.append((vertex, name, _interfaces(topo, name, port, info.get(f"params{side}") or {})))
        parent[find(vertices[0])] = find(vertices[1])

    domains: dict[tuple[str, int], Segment] = defaultdict(Segment)
    for vertex, name, interfaces in ends:
        domains[find(vertex)].members[name] += interfaces
    return list(domains.values())


def _interfaces(topo: Topo, name: str, port: int, params: Mapping[str, Any]) -> list[Interface]:
    texts = list(params.get("ips") or ())
    if port == min(topo.ports[name]):
        texts = list(topo.nodeInfo(name).get("ips") or ()) + texts
    return [ip_interface(text) for text in texts]
