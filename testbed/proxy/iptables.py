"""Proxy mode ``iptables``: the chains and rules that kube-proxy v1.36 writes, as iptables-save prints them.

Each Service's chains and its rules in the shared chains are made by themselves and kept for as long as what
the Service means stays the same. Packet counters (nfacct) are left out, as on a kernel without them.

Source: ``pkg/proxy/iptables/proxier.go``.
"""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from weakref import WeakKeyDictionary

from testbed.control.snapshot import Node, Snapshot
from testbed.proxy import proxiers
from testbed.proxy.kubelet import CANARY_TABLES, FIREWALL, FIREWALL_RULE
from testbed.proxy.parameters import PARAMETERS, SYNC_PERIOD
from testbed.proxy.services import BackedPort, BackedService, Backend, Backing
from testbed.proxy.settings import LOOPBACK, MASQUERADE_MARK, Settings, node_sysctls, settings
from testbed.spec.fields import choice, flag
from testbed.spec.params import Param
from testbed.state import Chain, Family, NetnsState, Table
from testbed.units import parse_duration

MARK = f"{MASQUERADE_MARK:#x}"
LARGE_CLUSTER_ENDPOINTS = 1000
"""With more endpoints than this, the rules of endpoints go without comments."""

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
FORWARD = "KUBE-FORWARD"
MARK_MASQ = "KUBE-MARK-MASQ"
POSTROUTING = "KUBE-POSTROUTING"
CANARY = "KUBE-PROXY-CANARY"

SharedKey = tuple[Table, str]

SHARED: tuple[SharedKey, ...] = (
    ("filter", SERVICES),
    ("filter", EXTERNAL_SERVICES),
    ("filter", NODE_PORTS),
    ("filter", PROXY_FIREWALL),
    ("nat", SERVICES),
    ("nat", NODE_PORTS),
)
"""The chains that hold rules of all Services."""

REJECT = {
    "ipv4": "REJECT --reject-with icmp-port-unreachable",
    "ipv6": "REJECT --reject-with icmp6-port-unreachable",
}
WHOLE_ADDRESS = {"ipv4": "255.255.255.255", "ipv6": ":".join(["ffff"] * 8)}


def comment(text: str) -> str:
    """The match that does nothing but say what a rule is for; never empty, never with quotes in it."""
    return f'-m comment --comment "{text}"'


_NEW = "-m conntrack --ctstate NEW "
_PORTALS = comment("kubernetes service portals")
_EXTERNAL = _NEW + comment("kubernetes externally-visible service portals")
_FIREWALL = _NEW + comment("kubernetes load balancer firewall")

JUMPS: dict[SharedKey, tuple[str, ...]] = {
    ("filter", "INPUT"): (
        f"-j {FIREWALL}",
        f"{_FIREWALL} -j {PROXY_FIREWALL}",
        f"{comment('kubernetes health check service ports')} -j {NODE_PORTS}",
        f"{_EXTERNAL} -j {EXTERNAL_SERVICES}",
    ),
    ("filter", "FORWARD"): (
        f"{_FIREWALL} -j {PROXY_FIREWALL}",
        f"{comment('kubernetes forwarding rules')} -j {FORWARD}",
        f"{_NEW}{_PORTALS} -j {SERVICES}",
        f"{_EXTERNAL} -j {EXTERNAL_SERVICES}",
    ),
    ("filter", "OUTPUT"): (
        f"-j {FIREWALL}",
        f"{_FIREWALL} -j {PROXY_FIREWALL}",
        f"{_NEW}{_PORTALS} -j {SERVICES}",
    ),
    ("nat", "PREROUTING"): (f"{_PORTALS} -j {SERVICES}",),
    ("nat", "OUTPUT"): (f"{_PORTALS} -j {SERVICES}",),
    ("nat", "POSTROUTING"): (f"{comment('kubernetes postrouting rules')} -j {POSTROUTING}",),
}
"""What is put in front of built-in chains; kube-proxy inserts one after the other, so the last is first."""

FORWARD_RULES = (
    "-m conntrack --ctstate INVALID -j DROP",
    f"{comment('kubernetes forwarding rules')} -m mark --mark {MARK}/{MARK} -j ACCEPT",
    f"{comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)
POSTROUTING_RULES = (
    f"-m mark ! --mark {MARK}/{MARK} -j RETURN",
    # Here the bit is surely set, so this clears it: a packet that passes a second time is left alone.
    f"-j MARK --set-xmark {MARK}/0x0",
    f"{comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully",
)
MARK_MASQ_RULES = (f"-j MARK --set-xmark {MARK}/{MARK}",)


@dataclass(frozen=True)
class _Fragment:
    """What one Service gives: chains of its own, and rules in the shared ones."""

    chains: dict[tuple[str, str, str], Chain] = field(default_factory=dict)
    shared: dict[SharedKey, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Context:
    """What the rules of a Service depend on besides the Service.

    from_node: whether its source ranges let this node's own address in.
    """

    family: Family
    local: str
    masquerade_all: bool
    large: bool
    from_node: bool


class Iptables:
    """Compiles kube-proxy's rules for both families, as it writes them in a cluster of one family too.

    Options beside the common ones: ``backend`` of iptables on the nodes, nft or legacy;
    ``localhostNodePorts``: whether node ports answer on 127.0.0.1; ``syncPeriod``: seconds within which rules
    that somebody flushed are noticed and made again.
    """

    needs: frozenset[str] = frozenset({"iptables", "ip6tables"})
    parameters: Mapping[str, Param] = MappingProxyType(
        {
            **PARAMETERS,
            "backend": Param(choice("nft", "legacy"), "nft"),
            "localhostNodePorts": Param(flag, True),
            "syncPeriod": Param(parse_duration, SYNC_PERIOD),
        }
    )

    def __init__(self) -> None:
        self._backing = Backing()
        self._fragments: WeakKeyDictionary[BackedService, dict[_Context, _Fragment]] = WeakKeyDictionary()

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The node's service rules, and the sysctls that go with them."""
        whole = NetnsState(sysctls={}, chains={}, udp={})
        families: tuple[Family, ...] = ("ipv4", "ipv6")
        for family in families:
            own = settings(snapshot.facts, node, family)
            services = list(self._backing.services(snapshot, node, family))
            whole.sysctls.update(node_sysctls(own))
            whole.chains.update(self._chains(services, own, node))
            for service in services:
                whole.udp.update(service.udp)
        return whole

    def _chains(
        self, services: list[BackedService], own: Settings, node: Node
    ) -> dict[tuple[str, str, str], Chain]:
        large = sum(service.known for service in services) > LARGE_CLUSTER_ENDPOINTS
        shared: dict[SharedKey, list[str]] = {key: [] for key in SHARED}
        chains: dict[tuple[str, str, str], Chain] = {}
        contexts = [
            _Context(own.family, own.local, own.masquerade_all, large, from_node)
            for from_node in (False, True)
        ]
        for service in services:
            context = contexts[any(_lets_in(port, node) for port in service.ports)]
            fragment = self._fragment(service, context)
            chains |= fragment.chains
            for key, rules in fragment.shared.items():
                shared[key] += rules
        shared["nat", SERVICES] += _node_port_jumps(own, node)
        fixed = (*_fixed(own), *(Chain(own.family, *key, tuple(rules)) for key, rules in shared.items()))
        return {(chain.family, chain.table, chain.name): chain for chain in fixed} | chains

    def _fragment(self, service: BackedService, context: _Context) -> _Fragment:
        kept = self._fragments.get(service)
        if kept is None:
            kept = self._fragments[service] = {}
        fragment = kept.get(context)
        if fragment is None:
            fragment = kept[context] = _service(service, context)
        return fragment


proxiers.register("iptables")(Iptables())


# --- what is there without any Service ----------------------------------------------------------------


def _fixed(own: Settings) -> Iterator[Chain]:
    family = own.family
    for table in CANARY_TABLES:
        yield Chain(family, table, CANARY)
    guard = (FIREWALL_RULE,) if family == "ipv4" and own.localhost_node_ports else ()
    yield Chain(family, "filter", FIREWALL, guard)
    yield Chain(family, "filter", FORWARD, FORWARD_RULES)
    yield Chain(family, "nat", MARK_MASQ, MARK_MASQ_RULES)
    yield Chain(family, "nat", POSTROUTING, POSTROUTING_RULES)
    for (table, name), rules in JUMPS.items():
        yield Chain(family, table, name, rules, inserted=len(rules))


def _node_port_jumps(own: Settings, node: Node) -> Iterator[str]:
    """The last rules of the nat table's KUBE-SERVICES."""
    said = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    if own.node_port_addresses:
        for ip in own.node_port_ips(node):
            yield f"-d {_host(ip)} {said} -j {NODE_PORTS}"
        return
    no_loopback = own.family == "ipv6" or not own.localhost_node_ports
    but = f"! -d {LOOPBACK[own.family]} " if no_loopback else ""
    yield f"{but}{said} -m addrtype --dst-type LOCAL -j {NODE_PORTS}"


# --- one Service --------------------------------------------------------------------------------------


def _hash(text: str) -> str:
    """The first 16 characters in base32, which 10 bytes are."""
    return b32encode(sha256(text.encode()).digest()[:10]).decode()


def _host(ip: str) -> str:
    """An address as it is printed where a range may stand."""
    return str(ip_network(ip)) if ":" in ip else f"{ip}/32"


def _service(service: BackedService, context: _Context) -> _Fragment:
    fragment = _Fragment()
    for backed in service.ports:
        port = _Port(backed, context)
        for table, chain, rule in port.shared_rules():
            fragment.shared[table, chain] = (*fragment.shared.get((table, chain), ()), rule)
        for name, rules in port.own_chains():
            fragment.chains[context.family, "nat", name] = Chain(context.family, "nat", name, tuple(rules))
    return fragment


def _lets_in(port: BackedPort, node: Node) -> bool:
    """Whether the node's own address may use the port's load balancer, which then has some ranges."""
    if not port.source_ranges:
        return False
    ranges = [ip_network(cidr) for cidr in port.source_ranges]
    address = next((ip for ip in node.addresses if ip_address(ip).version == ranges[0].version), None)
    return address is not None and any(ip_address(address) in cidr for cidr in ranges)


@dataclass(frozen=True)
class _Port:
    """The rules of one port of a Service. S in comments: its ``namespace/service:port``."""

    backed: BackedPort
    context: _Context

    @cached_property
    def _name(self) -> str:
        return str(self.backed.name)

    @cached_property
    def _hash(self) -> str:
        return _hash(self._name + self.backed.protocol)

    @property
    def _cluster_chain(self) -> str:
        return f"KUBE-SVC-{self._hash}"

    @property
    def _local_chain(self) -> str:
        return f"KUBE-SVL-{self._hash}"

    @property
    def _external_chain(self) -> str:
        return f"KUBE-EXT-{self._hash}"

    @property
    def _firewall_chain(self) -> str:
        return f"KUBE-FW-{self._hash}"

    @property
    def _internal_chain(self) -> str:
        return self._local_chain if self.backed.internal_local else self._cluster_chain

    @property
    def _has_external_chain(self) -> bool:
        return self.backed.anywhere and self.backed.is_external

    @property
    def _has_firewall(self) -> bool:
        return bool(self.backed.anywhere and self.backed.vips and self.backed.source_ranges)

    def _to(self, port: int, why: str, ip: str = "", but_from: str = "", extra: str = "") -> str:
        """Matches of what goes to a port, in the order in which they are printed."""
        protocol = self.backed.protocol
        source = f"! -s {but_from} " if but_from else ""
        destination = f"-d {_host(ip)} " if ip else ""
        return f"{source}{destination}-p {protocol} {comment(why)} {extra}-m {protocol} --dport {port}"

    @cached_property
    def _ends(self) -> dict[Backend, str]:
        """The chain of each endpoint."""
        start = self._name + self.backed.protocol
        return {backend: f"KUBE-SEP-{_hash(start + str(backend))}" for backend in self.backed.reachable}

    # --- rules in shared chains

    def shared_rules(self) -> Iterator[tuple[Table, str, str]]:
        """(table, chain, rule), in the order of each chain."""
        port = self.backed
        if port.internal:
            yield "nat", SERVICES, f"{self._to_cluster_ip()} -j {self._internal_chain}"
        else:
            yield "filter", SERVICES, self._refused(port.port, port.cluster_ip)
        for ip in port.external_ips:
            yield from self._external_address(ip, "external IP", self._external_chain)
        balanced = self._firewall_chain if self._has_firewall else self._external_chain
        for ip in port.vips:
            yield from self._external_address(ip, "loadbalancer IP", balanced)
            if self._has_firewall:
                why = f"{self._name} traffic not accepted by {self._firewall_chain}"
                yield "filter", PROXY_FIREWALL, f"{self._to(port.port, why, ip)} -j DROP"
        if port.node_port:
            if port.anywhere:
                yield "nat", NODE_PORTS, f"{self._to(port.node_port, self._name)} -j {self._external_chain}"
            if not port.external:
                local = "-m addrtype --dst-type LOCAL "
                yield "filter", EXTERNAL_SERVICES, self._refused(port.node_port, extra=local)
        if port.health_check_node_port:
            why = comment(f"{self._name} health check node port")
            accept = f"-p tcp {why} -m tcp --dport {port.health_check_node_port} -j ACCEPT"
            yield "filter", NODE_PORTS, accept

    def _to_cluster_ip(self, but_from: str = "") -> str:
        return self._to(self.backed.port, f"{self._name} cluster IP", self.backed.cluster_ip, but_from)

    def _external_address(self, ip: str, what: str, chain: str) -> Iterator[tuple[Table, str, str]]:
        port = self.backed
        if port.anywhere:
            yield "nat", SERVICES, f"{self._to(port.port, f'{self._name} {what}', ip)} -j {chain}"
        if not port.external:
            yield "filter", EXTERNAL_SERVICES, self._refused(port.port, ip)

    def _refused(self, port: int, ip: str = "", extra: str = "") -> str:
        """No endpoint at all: refused. None of those that the policy allows: dropped."""
        if self.backed.anywhere:
            return f"{self._to(port, f'{self._name} has no local endpoints', ip, extra=extra)} -j DROP"
        target = REJECT[self.context.family]
        return f"{self._to(port, f'{self._name} has no endpoints', ip, extra=extra)} -j {target}"

    # --- chains of its own

    def own_chains(self) -> Iterator[tuple[str, Iterable[str]]]:
        """(name, rules) of every chain, in the order in which kube-proxy declares them."""
        port = self.backed
        if self._has_external_chain:
            yield self._external_chain, self._external_rules()
        if self._has_firewall:
            yield self._firewall_chain, self._firewall_rules()
        if port.uses_cluster and port.cluster:
            yield self._cluster_chain, self._balancing(self._cluster_chain, port.cluster)
        if port.uses_local and port.local:
            yield self._local_chain, self._balancing(self._local_chain, port.local)
        for backend in port.reachable:
            yield self._ends[backend], self._endpoint_rules(backend)

    def _external_rules(self) -> Iterator[str]:
        port, to = self.backed, f"{self._name} external destinations"
        if not port.external_local:
            yield f"{comment(f'masquerade traffic for {to}')} -j {MARK_MASQ}"
            yield f"-j {self._cluster_chain}"
            return
        if self.context.local:
            yield f"-s {self.context.local} {comment(f'pod traffic for {to}')} -j {self._cluster_chain}"
        local = "-m addrtype --src-type LOCAL"
        yield f"{comment(f'masquerade LOCAL traffic for {to}')} {local} -j {MARK_MASQ}"
        yield f"{comment(f'route LOCAL traffic for {to}')} {local} -j {self._cluster_chain}"
        if port.external:
            yield f"-j {self._local_chain}"

    def _firewall_rules(self) -> Iterator[str]:
        said = comment(f"{self._name} loadbalancer IP")
        for cidr in self.backed.source_ranges:
            yield f"-s {cidr} {said} -j {self._external_chain}"
        if self.context.from_node:
            # The node's own traffic has the VIP as its source where the VIP is one of its addresses.
            for vip in self.backed.vips:
                yield f"-s {_host(vip)} {said} -j {self._external_chain}"
        yield comment(f"other traffic to {self._name} will be dropped by {PROXY_FIREWALL}")

    def _balancing(self, chain: str, backends: tuple[Backend, ...]) -> Iterator[str]:
        if self.backed.internal and chain == self._internal_chain:
            if self.context.masquerade_all:
                yield f"{self._to_cluster_ip()} -j {MARK_MASQ}"
            elif self.context.local:
                yield f"{self._to_cluster_ip(but_from=self.context.local)} -j {MARK_MASQ}"
        ends = [(self._ends[backend], self._arrow(backend)) for backend in backends]
        if self.backed.affinity_seconds:
            for name, said in ends:
                check = f"--rcheck --seconds {self.backed.affinity_seconds} --reap"
                yield f"{said}-m recent {check} {self._recent(name)} -j {name}"
        for index, (name, said) in enumerate(ends):
            left = len(ends) - index
            choice = f"-m statistic --mode random --probability {probability(left)} " if left > 1 else ""
            yield f"{said}{choice}-j {name}"

    def _endpoint_rules(self, backend: Backend) -> Iterator[str]:
        name, protocol = self._ends[backend], self.backed.protocol
        said = self._unless_large(self._name)
        yield f"-s {_host(backend.ip)} {said}-j {MARK_MASQ}"
        remember = f"-m recent --set {self._recent(name)} " if self.backed.affinity_seconds else ""
        yield f"-p {protocol} {said}{remember}-m {protocol} -j DNAT --to-destination {backend}"

    def _arrow(self, backend: Backend) -> str:
        return self._unless_large(f"{self._name} -> {backend}")

    def _unless_large(self, text: str) -> str:
        return "" if self.context.large else f"{comment(text)} "

    def _recent(self, name: str) -> str:
        return f"--name {name} --mask {WHOLE_ADDRESS[self.context.family]} --rsource"


def probability(left: int) -> str:
    """One of ``left`` as kube-proxy writes it (``%0.10f``) and the kernel, counting in 2^-31, keeps it."""
    return f"{round(float(f'{1 / left:.10f}') * 2**31) / 2**31:.11f}"
