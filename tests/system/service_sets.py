"""For tests: generated sets of Services with endpoints of every kind, and the flows worth asking about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product

from hypothesis import strategies as st

from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServiceKey,
    ServicePort,
    Snapshot,
)
from testbed.proxy.services import BackedPort
from testbed.rules.flows import Flow, Host

NODES = tuple(
    Node(
        f"node-{n}",
        (f"192.168.100.{10 + n}", f"fd00:192:168:100::{n}"),
        (f"10.244.{n}.0/24", f"fd00:10:244:{n}::/64"),
        zone=f"zone-{'ab'[n % 2]}",
    )
    for n in (1, 2, 3)
)
FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16", "fd00:10:244::/48"), (), (), ())
OUTSIDE = {"IPv4": "203.0.113.10", "IPv6": "2001:db8::10"}
RANGES = (
    "203.0.113.0/24",
    "198.18.0.0/15",
    "192.168.100.0/24",
    "2001:db8::/32",
    "0.0.0.0/0",
    "10.244.2.0/24",
)
NAMES = st.sampled_from(["", "http", "dns"])


def _address(family: str, v4: str, v6: str) -> str:
    return v4 if family == "IPv4" else v6


@st.composite
def endpoints(draw: st.DrawFn, family: str) -> Endpoint:
    node, host = draw(st.integers(0, 3)), draw(st.integers(2, 6))
    ready = draw(st.booleans())
    hints = draw(st.sampled_from([(), ("zone-a",), ("zone-b",), ("zone-a", "zone-b")]))
    return Endpoint(
        addresses=(_address(family, f"10.244.{node}.{host}", f"fd00:10:244:{node + 1}::{host}"),),
        ready=ready,
        serving=ready or draw(st.booleans()),
        terminating=not ready and draw(st.booleans()),
        node=f"node-{node}" if node else "",
        hint_zones=hints,
        hint_nodes=draw(st.sampled_from([(), (), (f"node-{node}",)])),
    )


@st.composite
def services(draw: st.DrawFn, number: int) -> tuple[Service, tuple[EndpointSlice, ...]]:
    """One Service, whose addresses are those of no other number, and its slices."""
    name = f"svc-{number}"
    families = draw(st.sampled_from([("IPv4",), ("IPv6",), ("IPv4", "IPv6")]))
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    protocols = draw(st.lists(st.sampled_from(["TCP", "UDP", "SCTP"]), min_size=1, max_size=2))
    ports = tuple(
        ServicePort(
            80 + index,
            name=f"p{index}" if len(protocols) > 1 else draw(NAMES),
            protocol=protocol,
            node_port=30000 + 10 * number + index if kind != "ClusterIP" else 0,
        )
        for index, protocol in enumerate(protocols)
    )
    outside = [_address(family, f"198.51.100.{number}", f"2001:db8:1::{number}") for family in families]
    balanced = [_address(family, f"198.51.101.{number}", f"2001:db8:2::{number}") for family in families]
    service = Service(
        namespace=draw(st.sampled_from(["default", "shop"])),
        name=name,
        type=kind,
        cluster_ips=tuple(_address(f, f"10.96.0.{number}", f"fd00:10:96::{number}") for f in families),
        families=families,
        ports=ports,
        external_ips=tuple(outside) if draw(st.booleans()) else (),
        vips=tuple(balanced) if kind == "LoadBalancer" and draw(st.booleans()) else (),
        source_ranges=tuple(draw(st.lists(st.sampled_from(RANGES), max_size=2))),
        affinity_seconds=draw(st.sampled_from([0, 0, 10800])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        health_check_node_port=32000 + number,
        headless=draw(st.integers(0, 9)) == 0,
    )
    return service, tuple(slice_ for family in families for slice_ in draw(slices(service, family)))


@st.composite
def slices(draw: st.DrawFn, service: Service, family: str) -> list[EndpointSlice]:
    ports = tuple(
        EndpointPort(8080 + index, port.name, port.protocol) for index, port in enumerate(service.ports)
    )
    return [
        EndpointSlice(
            service.namespace,
            f"{service.name}-{family}-{index}",
            service.name,
            family,
            ports,
            tuple(draw(st.lists(endpoints(family), max_size=4))),
        )
        for index in range(draw(st.integers(0, 2)))
    ]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    made = [draw(services(number)) for number in range(1, 1 + draw(st.integers(0, 4)))]
    by_key: dict[ServiceKey, Service] = {(s.namespace, s.name): s for s, _ in made}
    options = {
        "masqueradeAll": draw(st.booleans()),
        "localhostNodePorts": draw(st.booleans()),
        "nodePortAddresses": draw(
            st.sampled_from([[], [], ["192.168.100.0/24"], ["127.0.0.0/8"], ["primary"]])
        ),
    }
    cidrs = draw(st.sampled_from([FACTS.pod_cidrs, FACTS.pod_cidrs[:1], ()]))
    return Snapshot(
        replace(FACTS, pod_cidrs=cidrs, proxy_options=options),
        NODES,
        services=by_key,
        slices={(s.namespace, s.name): found for s, found in made if found},
    )


def host_of(node: Node, more: Iterable[str] = ()) -> Host:
    """more: addresses that it has beside its own."""
    return Host(frozenset((*node.addresses, *more)), {"10.244.1.0/24": "cni0", "fd00:10:244:1::/64": "cni0"})


def flows(ports: tuple[BackedPort, ...], node: Node, host: Host, six: bool) -> Iterator[Flow]:
    """From pods here and elsewhere, each endpoint, the node and outside; to every address of every port."""
    family = "IPv6" if six else "IPv4"
    own = next(ip for ip in node.addresses if (":" in ip) == six)
    here, far = (
        _address(family, f"10.244.{n}.99", f"fd00:10:244:{n}::99")
        for n in (node.name[-1], "2" if node.name[-1] == "1" else "1")
    )
    for port in ports:
        loopback = _address(family, "127.0.0.1", "::1")
        sources = {(here, "cni0"), (far, "eth0"), (own, ""), (OUTSIDE[family], "eth0"), (loopback, "")}
        sources |= {(each.ip, "cni0") for each in port.cluster + port.local}
        sources |= {(vip, "") for vip in port.vips if host.is_local(vip)}
        addresses = {port.cluster_ip, *port.external_ips, *port.vips, own, loopback}
        numbers = {port.port, port.node_port or port.port, 4711}
        for (source, device), address, number in product(sorted(sources), sorted(addresses), sorted(numbers)):
            if (source == loopback) != (address == loopback):
                continue  # nobody sends such packets, and the kernel takes none from outside
            yield Flow(source, address, port.protocol, number, device=device)
