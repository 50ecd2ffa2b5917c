"""Proxy mode ``nftables``: the tables that kube-proxy v1.36 writes, as ``nft list ruleset`` prints them.

A packet for a Service finds its chain by one look into a map, however many Services there are. Each
Service's chains and elements are made by themselves and kept for as long as what it means stays the same.

Source: ``pkg/proxy/nftables/proxier.go`` and ``README.md``.
"""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from ipaddress import ip_address, ip_network, summarize_address_range
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from testbed.control.snapshot import Node, Snapshot
from testbed.proxy import proxiers
from testbed.proxy.parameters import PARAMETERS, PRIMARY, node_port_addresses
from testbed.proxy.services import BackedPort, BackedService, Backend, Backing
from testbed.proxy.settings import MASQUERADE_MARK, Settings, node_sysctls, settings
from testbed.rules.nft import fragment
from testbed.spec.params import Param
from testbed.state import Family, NetnsState, NftChain, NftElement, NftFamily, NftSet, NftTable

TABLE = "kube-proxy"
MARK = f"{MASQUERADE_MARK:#010x}"
SET_MARK = f"meta mark set meta mark | {MARK}"

CLUSTER_IPS = "cluster-ips"
NODE_PORT_IPS = "nodeport-ips"
HAIRPIN = "hairpin-connections"
SERVICE_IPS = "service-ips"
SERVICE_NODE_PORTS = "service-nodeports"
NO_ENDPOINT_SERVICES = "no-endpoint-services"
NO_ENDPOINT_NODE_PORTS = "no-endpoint-nodeports"
FIREWALL_IPS = "firewall-ips"

SERVICES = "services"
MASQUERADING = "masquerading"
ENDPOINTS_CHECK = "service-endpoints-check"
NODE_PORTS_CHECK = "nodeport-endpoints-check"
FIREWALL_CHECK = "firewall-check"
CLUSTER_IPS_CHECK = "cluster-ips-check"
REJECT = "reject-chain"

AFFINITY_SIZE = 65535
"""nft's own bound on a set that packets add to."""

NAME_LENGTH = 240
"""Of a chain or a set, without what it begins with. Source: proxier.go, chainNameBaseLengthMax."""


class _Base(NamedTuple):
    name: str
    type: Any
    hook: str
    priority: str
    jumps: tuple[str, ...]


_NEW = "ct state new jump "
BASE_CHAINS = (
    _Base("filter-prerouting-pre-dnat", "filter", "prerouting", "dstnat - 10", (_NEW + FIREWALL_CHECK,)),
    _Base("filter-output-pre-dnat", "filter", "output", "-110", (_NEW + FIREWALL_CHECK,)),
    _Base("filter-input", "filter", "input", "filter", (_NEW + NODE_PORTS_CHECK, _NEW + ENDPOINTS_CHECK)),
    _Base(
        "filter-forward", "filter", "forward", "filter", (_NEW + ENDPOINTS_CHECK, _NEW + CLUSTER_IPS_CHECK)
    ),
    _Base("filter-output", "filter", "output", "filter", (_NEW + ENDPOINTS_CHECK, _NEW + CLUSTER_IPS_CHECK)),
    _Base("nat-prerouting", "nat", "prerouting", "dstnat", (f"jump {SERVICES}",)),
    _Base("nat-output", "nat", "output", "-100", (f"jump {SERVICES}",)),
    _Base("nat-postrouting", "nat", "postrouting", "srcnat", (f"jump {MASQUERADING}",)),
)
"""Named by type and hook; nft prints ``dstnat`` as a number where it is not a usual one."""


@dataclass(frozen=True)
class _Context:
    """What the rules of a Service depend on besides the Service.

    from_node: whether its source ranges let this node's own address in.
    """

    family: Family
    local: str
    from_node: bool

    @property
    def table(self) -> tuple[NftFamily, str]:
        """Family and name of the table."""
        return ("ip6" if self.family == "ipv6" else "ip"), TABLE

    @property
    def ip(self) -> str:
        """What nft calls the header."""
        return self.table[0]

    @property
    def address(self) -> str:
        """What nft calls the type of an address."""
        return f"{self.family}_addr"


class Nftables:
    """Compiles both tables, which kube-proxy writes in a cluster of one family too."""

    needs: frozenset[str] = frozenset({"nf_tables"})
    parameters: Mapping[str, Param] = MappingProxyType(
        {**PARAMETERS, "nodePortAddresses": Param(node_port_addresses, (PRIMARY,))}
    )

    def __init__(self) -> None:
        self._backing = Backing()
        self._fragments: WeakKeyDictionary[BackedService, dict[_Context, NetnsState]] = WeakKeyDictionary()

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The node's tables, and the sysctls that go with them."""
        families: tuple[Family, ...] = ("ipv4", "ipv6")
        whole = NetnsState(sysctls={}, nft_tables={}, nft_chains={}, nft_sets={}, nft_elements={}, udp={})
        for family in families:
            own = node_settings(snapshot, node, family)
            whole.sysctls.update(node_sysctls(own))
            _put(whole, _fixed(own, node, snapshot.service_cidrs))
            for service in self._backing.services(snapshot, node, family):
                _put(whole, self._fragment(service, own, node))
                whole.udp.update(service.udp)
        return whole

    def _fragment(self, service: BackedService, own: Settings, node: Node) -> NetnsState:
        from_node = any(_lets_in(port, node) for port in service.ports)
        context = _Context(own.family, own.local, from_node)
        kept = self._fragments.setdefault(service, {})
        if context not in kept:
            kept[context] = _service(service, context)
        return kept[context]


proxiers.register("nftables")(Nftables())


def node_settings(snapshot: Snapshot, node: Node, family: Family) -> Settings:
    """Node ports answer on the node's own addresses by default, and never on 127.0.0.1."""
    own = settings(snapshot.facts, node, family, node_port_addresses=(PRIMARY,))
    everywhere = any(ip_network(cidr).prefixlen == 0 for cidr in own.node_port_addresses)
    addresses = () if everywhere else own.node_port_addresses
    return replace(own, localhost_node_ports=False, node_port_addresses=addresses)


def _put(whole: NetnsState, part: NetnsState) -> None:
    whole.nft_tables.update(part.nft_tables)
    whole.nft_chains.update(part.nft_chains)
    whole.nft_sets.update(part.nft_sets)
    whole.nft_elements.update(part.nft_elements)


# --- what is there without any Service ----------------------------------------------------------------


def _fixed(own: Settings, node: Node, service_cidrs: Iterable[str]) -> NetnsState:
    context = _Context(own.family, own.local, from_node=False)
    chains = [
        *_base_chains(context),
        *(NftChain(*context.table, name, rules) for name, rules in _fixed_rules(context, own).items()),
        NftChain(*context.table, CLUSTER_IPS_CHECK, tuple(_cluster_ips_check(context, service_cidrs))),
        NftChain(
            *context.table,
            REJECT,
            ("reject",),
            comment=f"helper for @{NO_ENDPOINT_SERVICES} / @{NO_ENDPOINT_NODE_PORTS}",
        ),
    ]
    elements = [NftElement(*context.table, NODE_PORT_IPS, ip) for ip in own.node_port_ips(node)]
    return fragment(
        [NftTable(*context.table, "rules for kube-proxy")],
        chains,
        _fixed_sets(context, own),
        elements if own.node_port_addresses else (),
    )


def _base_chains(context: _Context) -> Iterator[NftChain]:
    for base in BASE_CHAINS:
        yield NftChain(*context.table, base.name, base.jumps, base.type, base.hook, base.priority)


def _fixed_rules(context: _Context, own: Settings) -> Mapping[str, tuple[str, ...]]:
    ip = context.ip
    where, what = f"{ip} daddr . meta l4proto . th dport", "meta l4proto . th dport"
    if own.node_port_addresses:
        check = to_node = f"{ip} daddr @{NODE_PORT_IPS}"
    else:
        check = f"{ip} daddr != {'127.0.0.0/8' if ip == 'ip' else '::1'}"
        to_node = f"fib daddr type local {check}"
    outside = _masquerade_cluster_ips(context, own)
    hairpin = f"{ip} saddr . {where} @{HAIRPIN}"
    return {
        SERVICES: (
            *outside,
            f"{where} vmap @{SERVICE_IPS}",
            f"{to_node} {what} vmap @{SERVICE_NODE_PORTS}",
        ),
        MASQUERADING: (
            # The bit is cleared, so that a packet that passes a second time is left alone.
            f"meta mark & {MARK} != 0x00000000 meta mark set meta mark ^ {MARK} masquerade fully-random",
            f"ct status dnat {hairpin} masquerade fully-random",
        ),
        ENDPOINTS_CHECK: (f"{where} vmap @{NO_ENDPOINT_SERVICES}",),
        NODE_PORTS_CHECK: (f"{check} {what} vmap @{NO_ENDPOINT_NODE_PORTS}",),
        FIREWALL_CHECK: (f"{where} vmap @{FIREWALL_IPS}",),
    }


def _masquerade_cluster_ips(context: _Context, own: Settings) -> Iterator[str]:
    to_service = f"{context.ip} daddr @{CLUSTER_IPS}"
    if own.masquerade_all:
        yield f'{to_service} {SET_MARK} comment "masquerade all clusterIP traffic"'
    elif own.local:
        outside = f"{context.ip} saddr != {own.local}"
        yield f'{to_service} {outside} {SET_MARK} comment "masquerade clusterIP traffic from outside cluster"'


def _cluster_ips_check(context: _Context, service_cidrs: Iterable[str]) -> Iterator[str]:
    to = f"{context.ip} daddr"
    yield f'{to} @{CLUSTER_IPS} reject comment "Reject traffic to invalid ports of ClusterIPs"'
    cidrs = [cidr for cidr in service_cidrs if (":" in cidr) == (context.ip == "ip6")]
    if cidrs:
        yield f'{to} {_ranges(cidrs)} drop comment "Drop traffic to unallocated ClusterIPs"'


def _fixed_sets(context: _Context, own: Settings) -> Iterator[NftSet]:
    address, port = context.address, "inet_proto . inet_service"

    def made(name: str, keys: str, comment: str, value: str = "verdict") -> NftSet:
        return NftSet(*context.table, name, keys, value, comment=comment)

    yield made(HAIRPIN, f"{address} . {address} . {port}", "service hairpin connections", "")
    yield made(CLUSTER_IPS, address, "Active ClusterIPs", "")
    if own.node_port_addresses:
        yield made(NODE_PORT_IPS, address, "IPs that accept NodePort traffic", "")
    yield made(
        NO_ENDPOINT_SERVICES,
        f"{address} . {port}",
        "vmap to drop or reject packets to services with no endpoints",
    )
    yield made(
        NO_ENDPOINT_NODE_PORTS, port, "vmap to drop or reject packets to service nodeports with no endpoints"
    )
    yield made(
        FIREWALL_IPS, f"{address} . {port}", "destinations that are subject to LoadBalancerSourceRanges"
    )
    yield made(SERVICE_IPS, f"{address} . {port}", "ClusterIP, ExternalIP and LoadBalancer IP traffic")
    yield made(SERVICE_NODE_PORTS, port, "NodePort traffic")


def _ranges(cidrs: Iterable[str]) -> str:
    """These, as nft prints a set of them: those that touch as one, and one alone without braces."""
    spans: list[tuple[int, int]] = []
    networks = [ip_network(cidr) for cidr in cidrs]
    for first, last in sorted((int(each[0]), int(each[-1])) for each in networks):
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], max(last, spans[-1][1])
        else:
            spans.append((first, last))
    address = type(networks[0].network_address)
    texts = [_span(address(first), address(last)) for first, last in spans]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _span(first: Any, last: Any) -> str:
    if first == last:
        return str(first)
    whole = list(summarize_address_range(first, last))
    return str(whole[0]) if len(whole) == 1 else f"{first}-{last}"


# --- one Service --------------------------------------------------------------------------------------


def _service(service: BackedService, context: _Context) -> NetnsState:
    ports = [_Port(port, context) for port in service.ports]
    return fragment(
        chains=[
            NftChain(*context.table, name, tuple(rules)) for port in ports for name, rules in port.chains()
        ],
        sets=[each for port in ports for each in port.sets()],
        elements=[each for port in ports for each in port.elements()],
    )


def _lets_in(port: BackedPort, node: Node) -> bool:
    """Whether the node's own address may use the port's load balancer, which then has some ranges."""
    ranges = [ip_network(cidr) for cidr in port.source_ranges]
    own = list(map(ip_address, node.addresses))
    return any(address in cidr for cidr in ranges for address in own if address.version == cidr.version)


def hashed(name: str) -> str:
    """The name behind a hash of itself, cut to what nft takes."""
    text = f"{b32encode(sha256(name.encode()).digest()).decode()[:8]}-{name}"
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 3]}..."


@dataclass(frozen=True)
class _Port:
    """The chains, sets and elements of one port of a Service."""

    backed: BackedPort
    context: _Context

    @cached_property
    def _base(self) -> str:
        name = self.backed.name
        return f"{name.namespace}/{name.service}/{self.backed.protocol}/{name.port}"

    @cached_property
    def _hashed(self) -> str:
        return hashed(self._base)

    @property
    def _cluster_chain(self) -> str:
        return f"service-{self._hashed}"

    @property
    def _local_chain(self) -> str:
        return f"local-{self._hashed}"

    @property
    def _external_chain(self) -> str:
        return f"external-{self._hashed}"

    @property
    def _firewall_chain(self) -> str:
        return f"firewall-{self._hashed}"

    def _endpoint(self, backend: Backend) -> str:
        """How the names of an endpoint's chain and set end."""
        return hashed(f"{self._base}__{backend.ip.replace(':', '.')}/{backend.port}")

    @property
    def _has_firewall(self) -> bool:
        return bool(self.backed.vips and self.backed.source_ranges)

    # --- elements

    def elements(self) -> Iterator[NftElement]:
        """Where the port's addresses lead."""
        port = self.backed
        yield self._element(CLUSTER_IPS, port.cluster_ip)
        internal = self._local_chain if port.internal_local else self._cluster_chain
        if port.internal:
            yield self._element(SERVICE_IPS, self._at(port.cluster_ip), f"goto {internal}")
        else:
            yield self._unserved(NO_ENDPOINT_SERVICES, self._at(port.cluster_ip))
        for ip in (*port.external_ips, *port.vips):
            yield from self._outside(SERVICE_IPS, NO_ENDPOINT_SERVICES, self._at(ip))
        if self._has_firewall:
            for ip in port.vips:
                yield self._element(FIREWALL_IPS, self._at(ip), f"goto {self._firewall_chain}")
        if port.node_port:
            yield from self._outside(
                SERVICE_NODE_PORTS, NO_ENDPOINT_NODE_PORTS, f"{port.protocol} . {port.node_port}"
            )
        for backend in port.local:  # only such a packet comes back to where it was translated
            if port.uses_local or backend in port.cluster:
                key = f"{backend.ip} . {backend.ip} . {port.protocol} . {backend.port}"
                yield self._element(HAIRPIN, key)

    def _outside(self, served: str, unserved: str, key: str) -> Iterator[NftElement]:
        """Local traffic may have somewhere to go where traffic from outside has not."""
        if self.backed.anywhere:
            yield self._element(served, key, f"goto {self._external_chain}")
        if not self.backed.external:
            yield self._unserved(unserved, key)

    def _unserved(self, name: str, key: str) -> NftElement:
        verdict = "drop" if self.backed.anywhere else f"goto {REJECT}"
        return self._element(name, key, verdict, str(self.backed.name))

    def _element(self, name: str, key: str, value: str = "", comment: str = "") -> NftElement:
        return NftElement(*self.context.table, name, key, value, comment)

    def _at(self, ip: str) -> str:
        return f"{ip} . {self.backed.protocol} . {self.backed.port}"

    # --- sets and chains

    def sets(self) -> Iterator[NftSet]:
        """Who went to which endpoint, where a client is to keep the same."""
        if not self.backed.affinity_seconds:
            return
        for backend in self.backed.reachable:
            yield NftSet(
                *self.context.table,
                f"affinity-{self._endpoint(backend)}",
                self.context.address,
                flags=("dynamic", "timeout"),
                timeout=self.backed.affinity_seconds,
                size=AFFINITY_SIZE,
            )

    def chains(self) -> Iterator[tuple[str, Iterable[str]]]:
        """(name, rules) of every chain, what leads to endpoints last."""
        port = self.backed
        if port.anywhere and port.is_external:
            yield self._external_chain, self._external_rules()
        if self._has_firewall:
            vips = port.vips if self.context.from_node else ()
            yield (
                self._firewall_chain,
                (f"{self.context.ip} saddr != {_ranges((*port.source_ranges, *vips))} drop",),
            )
        if port.uses_cluster and port.cluster:
            yield self._cluster_chain, self._balancing(port.cluster)
        if port.uses_local and port.local:
            yield self._local_chain, self._balancing(port.local)
        if port.affinity_seconds:
            for backend in port.reachable:
                yield f"endpoint-{self._endpoint(backend)}", self._endpoint_rules(backend)

    def _external_rules(self) -> Iterator[str]:
        port = self.backed
        if not port.external_local:
            yield f'{SET_MARK} comment "masquerade"'
            yield f"goto {self._cluster_chain}"
            return
        from_node = "fib saddr type local"
        if self.context.local:
            pods = f"{self.context.ip} saddr {self.context.local}"
            yield f'{pods} goto {self._cluster_chain} comment "short-circuit pod traffic"'
        yield f'{from_node} {SET_MARK} comment "masquerade local traffic"'
        yield f'{from_node} goto {self._cluster_chain} comment "short-circuit local traffic"'
        if port.external:
            yield f"goto {self._local_chain}"

    def _balancing(self, backends: tuple[Backend, ...]) -> Iterator[str]:
        """One rule that picks; with affinity, before it, one per endpoint for those who know theirs."""
        if not self.backed.affinity_seconds:
            choices = ", ".join(f"{n} : {each.ip} . {each.port}" for n, each in enumerate(backends))
            pick = f"numgen random mod {len(backends)} map {{ {choices} }}"
            yield f"meta l4proto {self.backed.protocol} dnat {self.context.ip} to {pick}"
            return
        names = [self._endpoint(backend) for backend in backends]
        for name in names:
            yield f"{self.context.ip} saddr @affinity-{name} goto endpoint-{name}"
        choices = ", ".join(f"{n} : goto endpoint-{name}" for n, name in enumerate(names))
        yield f"numgen random mod {len(names)} vmap {{ {choices} }}"

    def _endpoint_rules(self, backend: Backend) -> Iterator[str]:
        yield f"update @affinity-{self._endpoint(backend)} {{ {self.context.ip} saddr }}"
        yield f"meta l4proto {self.backed.protocol} dnat to {backend}"
