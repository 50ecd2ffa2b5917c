"""Which records the cluster's zone has, out of a Snapshot. Pure, and without a word of dnsmasq.

Sources: kubernetes/dns docs/specification.md (1.1.0); coredns plugin/kubernetes (kubernetes.go, reverse.go,
object/endpoint.go) and plugin/backend_lookup.go for what the specification leaves open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address

from testbed.control.snapshot import EndpointSlice, Service, ServiceKey, Snapshot

SCHEMA_VERSION = "1.1.0"
MAX_LABEL = 63
"""Bytes (RFC 1035). Kubernetes allows longer ones in an externalName, and port names that are as long without
the underscore: such names can neither be asked nor answered, and dnsmasq does not start with them."""
FULL_WEIGHT = 100
"""What the weights of the answers to one SRV question add up to, rounded down (backend_lookup.go)."""


@dataclass(frozen=True, order=True)
class Srv:
    """One SRV record; its priority is always 0."""

    name: str
    target: str
    port: int
    weight: int


@dataclass(frozen=True)
class ServiceRecords:
    """The records of one Service, names without trailing dots.

    endpoints: (address, name) of every endpoint; addresses: those of the Service's own name, which are its
    ClusterIPs or, headless, its endpoints'. alias: what its name is a CNAME of, "" for none.
    """

    name: str
    endpoints: tuple[tuple[str, str], ...] = ()
    addresses: tuple[str, ...] = ()
    headless: bool = False
    srv: tuple[Srv, ...] = ()
    alias: str = ""


@dataclass(frozen=True)
class Records:
    """Every record of the cluster's zone. pod_ranges: IPv6 ranges that pods of each namespace are named in.

    ``a-b-c-d.N.pod.Z`` is an address for any IPv4 address in any namespace: CoreDNS with ``pods insecure``.
    """

    zone: str
    namespaces: tuple[str, ...] = ()
    pod_ranges: tuple[str, ...] = ()
    services: dict[ServiceKey, ServiceRecords] = field(default_factory=dict)

    @cached_property
    def pointers(self) -> dict[str, tuple[str, ...]]:
        """Addresses with names of several Services → what their PTR questions are answered by: the Service
        whose ClusterIP it is and nothing else, or every endpoint's name (reverse.go)."""
        names: dict[str, dict[str, None]] = {}
        for service in self.services.values():
            for address, name in service.endpoints:
                names.setdefault(address, {})[name] = None
        owners = {
            address: (service.name,)
            for service in self.services.values()
            if not service.headless
            for address in service.addresses
            if address in names
        }
        several = {address: tuple(found) for address, found in names.items() if len(found) > 1}
        return dict(sorted((several | owners).items()))


def records(snapshot: Snapshot, before: tuple[Snapshot, Records] | None = None) -> Records:
    """All records of a cluster.

    before: an earlier snapshot and its records; what is the same object in both is not worked out again.
    """
    zone = snapshot.facts.cluster_domain
    known = before[1].services if before and before[1].zone == zone else {}
    services: dict[ServiceKey, ServiceRecords] = {}
    for key, service in sorted(snapshot.services.items()):
        slices = snapshot.slices.get(key, ())
        if key in known and before and _same(before[0], key, service, slices):
            services[key] = known[key]
        else:
            services[key] = service_records(zone, service, slices)
    return Records(
        zone=zone,
        namespaces=tuple(sorted(snapshot.namespaces)),
        pod_ranges=tuple(cidr for node in snapshot.nodes for cidr in node.pod_cidrs if ":" in cidr),
        services=services,
    )


def _same(before: Snapshot, key: ServiceKey, service: Service, slices: tuple[EndpointSlice, ...]) -> bool:
    old = before.slices.get(key, ())
    return (
        before.services.get(key) is service
        and len(old) == len(slices)
        and all(one is other for one, other in zip(old, slices, strict=True))
    )


def service_records(zone: str, service: Service, slices: tuple[EndpointSlice, ...]) -> ServiceRecords:
    """The records of one Service and its EndpointSlices."""
    name = f"{service.name}.{service.namespace}.svc.{zone}"
    if service.type == "ExternalName":
        return ServiceRecords(name, alias=_alias(service.external_name))
    places = list(_places(name, slices))
    endpoints = tuple(dict.fromkeys((address, endpoint) for _, endpoint, address in places))
    if service.headless:
        own = tuple(dict.fromkeys(address for address, _ in endpoints))
        return ServiceRecords(name, endpoints, own, True, tuple(_srv(name, _endpoint_ports(places))))
    srv = tuple(_srv(name, _cluster_ports(name, service)))
    return ServiceRecords(name, endpoints, service.cluster_ips, False, srv)


def _alias(target: str) -> str:
    """The name an ExternalName points to; "" for an address or what is no name, which make no record."""
    target = target.rstrip(".").lower()
    try:
        ip_address(target)
    except ValueError:
        return target if _is_name(target) else ""
    return ""


def _is_name(name: str) -> bool:
    return all(len(label) <= MAX_LABEL for label in name.split("."))


Place = tuple[EndpointSlice, str, str]
"""Where an endpoint has an address: its slice, its name, the address."""


def _places(service: str, slices: tuple[EndpointSlice, ...]) -> Iterator[Place]:
    """Every ready endpoint's address; terminating ones are not ready."""
    for each in sorted(slices, key=lambda one: one.name):
        if each.address_type not in ("IPv4", "IPv6"):
            continue
        for endpoint in each.endpoints:
            for address in endpoint.addresses if endpoint.ready else ():
                yield each, f"{endpoint.hostname or _dashed(address)}.{service}", address


def _dashed(address: str) -> str:
    return address.replace(".", "-").replace(":", "-")


Port = tuple[str, str, int, str]
"""Name ("" for none), protocol in lower case, number, and the target of an SRV record."""


def _endpoint_ports(places: list[Place]) -> list[Port]:
    return [
        (port.name, port.protocol.lower(), port.number, name)
        for each, name, _ in places
        for port in each.ports
        if port.number is not None
    ]


def _cluster_ports(name: str, service: Service) -> list[Port]:
    """A port per address of the Service: CoreDNS counts both families for the weight."""
    return [
        (port.name, port.protocol.lower(), port.port, name)
        for _ in service.cluster_ips
        for port in service.ports
    ]


def _srv(service: str, ports: list[Port]) -> Iterator[Srv]:
    """``_port._proto.S`` for named ports, and all ports under the Service's own name."""
    questions: dict[str, Counter[tuple[str, int]]] = {}
    for port, protocol, number, target in ports:
        questions.setdefault(service, Counter())[target, number] += 1
        if port and _is_name(asked := f"_{port}._{protocol}.{service}"):
            questions.setdefault(asked, Counter())[target, number] += 1
    for name, answers in questions.items():
        weight = max(1, FULL_WEIGHT // sum(answers.values()))
        for target, number in answers:
            yield Srv(name, target, number, weight)
