"""What Services mean on a node, without a word of rules: which endpoints each of their addresses leads to.

One place for all proxy modes. Sources: ``pkg/proxy/topology.go`` (CategorizeEndpoints),
``pkg/proxy/endpointslicecache.go``, ``pkg/proxy/serviceport.go`` and ``servicechangetracker.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_network
from typing import Literal, NamedTuple

from testbed.control.snapshot import Endpoint, EndpointSlice, Node, Service, ServiceKey, Snapshot
from testbed.state import Family, UdpFlows

OTHER_PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
"""Objects with either label are not kube-proxy's. Source: ``cmd/kube-proxy/app/server.go`` (Run)."""

ADDRESS_TYPES: Mapping[str, Family] = {"IPv4": "ipv4", "IPv6": "ipv6"}


class ServicePortName(NamedTuple):
    """What identifies a port of a Service for a proxier."""

    namespace: str
    service: str
    port: str
    protocol: str

    def __str__(self) -> str:
        """``namespace/service:port``, without the colon where the port has no name."""
        return f"{self.namespace}/{self.service}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Backend:
    """An endpoint as a destination. port: its own; local: it is on this node, which makes it no other one."""

    ip: str
    port: int
    local: bool = field(default=False, compare=False)
    ready: bool = True
    serving: bool = True
    terminating: bool = False

    def __str__(self) -> str:
        """``ip:port``, as it is hashed, sorted and printed; IPv6 in brackets."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def last_resort(self) -> bool:
        """Usable where there is no ready one: it ends, but still answers."""
        return self.serving and self.terminating


@dataclass(frozen=True)
class BackedPort:
    """One port of one Service on one node and in one family, and where its traffic may go.

    cluster: what it leads to from everywhere; local: what of it is on this node; both sorted as text.
    serving: ``ip:port`` of everything that answers, whatever the policies say. anywhere: whether any
    endpoint is usable at all, here or elsewhere. known: how many endpoints there are, usable or not.
    """

    name: ServicePortName
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    vips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_node_port: int = 0
    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    serving: frozenset[str] = frozenset()
    anywhere: bool = False
    known: int = 0

    @property
    def protocol(self) -> str:
        """In lower case, as tools want it."""
        return self.name.protocol.lower()

    @property
    def is_external(self) -> bool:
        """Whether it can be reached by anything but its cluster IP."""
        return bool(self.node_port or self.vips or self.external_ips)

    def entrances(self) -> Iterator[tuple[str, int]]:
        """Every (address, port) that leads to it; a node port's address is ""."""
        for address in (self.cluster_ip, *self.external_ips, *self.vips):
            yield address, self.port
        if self.node_port:
            yield "", self.node_port

    @property
    def uses_cluster(self) -> bool:
        """Whether some path leads to endpoints everywhere; an external one may always be short-circuited."""
        return not self.internal_local or self.is_external

    @property
    def uses_local(self) -> bool:
        """Whether some path leads to endpoints of this node only."""
        return self.internal_local or (self.external_local and self.is_external)

    @property
    def internal(self) -> tuple[Backend, ...]:
        """Where the cluster IP leads."""
        return self.local if self.internal_local else self.cluster

    @property
    def external(self) -> tuple[Backend, ...]:
        """Where external addresses lead traffic from outside."""
        return self.local if self.external_local else self.cluster

    @cached_property
    def reachable(self) -> tuple[Backend, ...]:
        """Every endpoint that some path from this node leads to, sorted as text."""
        used = (self.cluster if self.uses_cluster else ()) + (self.local if self.uses_local else ())
        return tuple(sorted({str(backend): backend for backend in used}.values(), key=str))


@dataclass(frozen=True, eq=False)
class BackedService:
    """What one Service means in one family on the nodes that see it alike. Equal to nothing but itself."""

    ports: tuple[BackedPort, ...]

    @cached_property
    def known(self) -> int:
        """How many endpoints its ports have, usable or not."""
        return sum(port.known for port in self.ports)

    @cached_property
    def udp(self) -> dict[tuple[str, str, int], UdpFlows]:
        """The flows of its UDP ports that somebody answers; policies and topology cut none off.

        Source: ``pkg/proxy/conntrack/cleanup.go``.
        """
        flows = (
            UdpFlows(_family(port.cluster_ip), address, number, tuple(sorted(port.serving)))
            for port in self.ports
            if port.protocol == "udp" and port.serving
            for address, number in port.entrances()
        )
        return {(each.family, each.address, each.port): each for each in flows}


@dataclass(frozen=True)
class _Seen:
    """Objects of a Service and what they mean: per node, zone and family, and each meaning once."""

    service: Service
    slices: tuple[EndpointSlice, ...]
    by_node: dict[tuple[str, str, Family], BackedService] = field(default_factory=dict)
    meanings: list[BackedService] = field(default_factory=list)

    def on(self, node: Node, family: Family) -> BackedService:
        key = node.name, node.zone, family
        if key not in self.by_node:
            ports = backed_ports(self.service, self.slices, node, family)
            same = next((known for known in self.meanings if known.ports == ports), None)
            if same is None:
                self.meanings.append(same := BackedService(ports))
            self.by_node[key] = same
        return self.by_node[key]


class Backing:
    """Says what all Services mean, again and again: what is made of the same objects is the same object."""

    def __init__(self) -> None:
        self._seen: dict[ServiceKey, _Seen] = {}

    def services(self, snapshot: Snapshot, node: Node, family: Family) -> Iterator[BackedService]:
        """Every Service that a proxier on ``node`` serves in ``family``, by namespace and name."""
        if len(self._seen) > len(snapshot.services):
            self._seen = {key: self._seen[key] for key in self._seen.keys() & snapshot.services.keys()}
        for key in sorted(snapshot.services):
            service, slices = snapshot.services[key], snapshot.slices.get(key, ())
            seen = self._seen.get(key)
            if seen is None or seen.service is not service or seen.slices is not slices:
                seen = self._seen[key] = _Seen(service, slices)
            if (backed := seen.on(node, family)).ports:
                yield backed


def service_ports(snapshot: Snapshot, node: Node, family: Family) -> dict[ServiceKey, tuple[BackedPort, ...]]:
    """The ports of every Service that a proxier on ``node`` serves in ``family``, by Service."""
    return {
        key: ports
        for key, service in snapshot.services.items()
        if (ports := backed_ports(service, snapshot.slices.get(key, ()), node, family))
    }


def backed_ports(
    service: Service, slices: Iterable[EndpointSlice], node: Node, family: Family
) -> tuple[BackedPort, ...]:
    """The ports of one Service on ``node``; none where it is not the proxier's business in this family."""
    address = next((ip for ip in service.cluster_ips if _family(ip) == family), None)
    if address is None or service.headless or service.type == "ExternalName" or is_for_others(service.labels):
        return ()
    found = _backends(slices, node, family)
    return tuple(
        _categorised(
            BackedPort(
                name=ServicePortName(service.namespace, service.name, port.name, port.protocol),
                cluster_ip=address,
                port=port.port,
                node_port=port.node_port,
                external_ips=tuple(ip for ip in service.external_ips if _family(ip) == family),
                vips=tuple(ip for ip in service.vips if _family(ip) == family),
                source_ranges=_source_ranges(service, family),
                affinity_seconds=service.affinity_seconds,
                internal_local=service.internal_local,
                external_local=service.external_local,
                health_check_node_port=service.health_check_node_port if _needs_health_check(service) else 0,
            ),
            found.get((port.name, port.protocol), {}),
            node,
        )
        for port in service.ports
    )


def _categorised(port: BackedPort, found: Mapping[str, tuple[Backend, Endpoint]], node: Node) -> BackedPort:
    """The port with its endpoints sorted into the lists that its policies choose among."""
    ordered = [found[text] for text in sorted(found)]
    ready = [(backend, endpoint) for backend, endpoint in ordered if backend.ready]
    ending = [backend for backend, _ in ordered if backend.last_resort]
    mode = _mode([endpoint for _, endpoint in ready], node)
    near = [backend for backend, endpoint in ready if _is_near(endpoint, node, mode)]
    cluster = near or ending
    local = [backend for backend, _ in ready if backend.local] or [one for one in ending if one.local]
    return replace(
        port,
        cluster=tuple(cluster),
        local=tuple(local),
        serving=frozenset(text for text, (backend, _) in found.items() if backend.serving),
        anywhere=bool(ready or ending),
        known=len(found),
    )


def _mode(ready: list[Endpoint], node: Node) -> Literal["node", "zone", ""]:
    """Which hints count on this node. An endpoint without one, or none that names us, makes them all void."""
    if all(each.hint_nodes for each in ready) and any(node.name in each.hint_nodes for each in ready):
        return "node"
    if all(each.hint_zones for each in ready) and any(node.zone in each.hint_zones for each in ready):
        return "zone"
    return ""


def _is_near(endpoint: Endpoint, node: Node, mode: Literal["node", "zone", ""]) -> bool:
    if mode == "node":
        return node.name in endpoint.hint_nodes
    return mode == "" or node.zone in endpoint.hint_zones


def _backends(
    slices: Iterable[EndpointSlice], node: Node, family: Family
) -> dict[tuple[str, str], dict[str, tuple[Backend, Endpoint]]]:
    """(port name, protocol) → ``ip:port`` → the endpoint. Named twice: one that is not ending wins."""
    found: dict[tuple[str, str], dict[str, tuple[Backend, Endpoint]]] = {}
    for each in slices:
        if ADDRESS_TYPES.get(each.address_type) != family or is_for_others(each.labels):
            continue
        for port in each.ports:
            if port.number is None:
                continue
            backends = found.setdefault((port.name, port.protocol), {})
            for endpoint in (endpoint for endpoint in each.endpoints if endpoint.addresses):
                backend = Backend(
                    ip=endpoint.addresses[0],
                    port=port.number,
                    local=bool(endpoint.node) and endpoint.node == node.name,
                    ready=endpoint.ready,
                    serving=endpoint.serving,
                    terminating=endpoint.terminating,
                )
                if str(backend) not in backends or not backend.terminating:
                    backends[str(backend)] = (backend, endpoint)
    return found


def _needs_health_check(service: Service) -> bool:
    """Source: ``pkg/api/v1/service/util.go`` (NeedsHealthCheck)."""
    return service.type == "LoadBalancer" and service.external_local


def _source_ranges(service: Service, family: Family) -> tuple[str, ...]:
    """The ranges of one family, as they are printed; one that covers everything is as good as none."""
    asked = (text for text in service.source_ranges if _family(text) == family)
    ranges = tuple(ip_network(text, strict=False) for text in asked)
    return () if any(each.prefixlen == 0 for each in ranges) else tuple(map(str, ranges))


def is_for_others(labels: Mapping[str, str]) -> bool:
    """Whether an object with these labels is none of kube-proxy's."""
    return OTHER_PROXY_LABEL in labels or HEADLESS_LABEL in labels


def _family(text: str) -> Family:
    return "ipv6" if ":" in text else "ipv4"
