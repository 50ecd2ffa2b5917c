"""Proxy mode ``ipvs``: what kube-proxy v1.36 gives to IPVS, ipsets and, for the rest, iptables.

Every address of a Service becomes one of the node's own, on a dummy device, so that packets for it come to
IPVS at the INPUT hook. The rules are the same few however many Services there are: they look into sets.

Source: ``pkg/proxy/ipvs/{proxier,ipset}.go``. Upstream calls the mode deprecated, for nftables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Any, NamedTuple

from testbed.control.snapshot import Node, Snapshot
from testbed.proxy import proxiers
from testbed.proxy.parameters import PARAMETERS
from testbed.proxy.services import BackedPort, Backend, Backing
from testbed.proxy.settings import LOOPBACK, MASQUERADE_MARK, Settings, node_sysctls, settings
from testbed.rules.ipvs import at, real_key, virtual_key
from testbed.spec.fields import choice, flag
from testbed.spec.params import Param
from testbed.state import (
    Address,
    Chain,
    Family,
    IpSet,
    Link,
    NetnsState,
    RealServer,
    Table,
    UdpFlows,
    VirtualServer,
)

DEVICE = "kube-ipvs0"
MARK = f"{MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}"

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")

SYSCTLS: Mapping[str, str] = {
    "net/ipv4/vs/conntrack": "1",
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
    "net/ipv4/ip_forward": "1",
}
"""Source: NewProxier. conn_reuse_mode is set by kernels before 5.9 only."""
STRICT_ARP: Mapping[str, str] = {"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}


class _Set(NamedTuple):
    name: str
    type: Any
    comment: str


LOOP_BACK = "KUBE-LOOP-BACK"
CLUSTER_IP = "KUBE-CLUSTER-IP"
EXTERNAL_IP = "KUBE-EXTERNAL-IP"
EXTERNAL_IP_LOCAL = "KUBE-EXTERNAL-IP-LOCAL"
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
LOAD_BALANCER_FW = "KUBE-LOAD-BALANCER-FW"
LOAD_BALANCER_LOCAL = "KUBE-LOAD-BALANCER-LOCAL"
LOAD_BALANCER_SOURCE_IP = "KUBE-LOAD-BALANCER-SOURCE-IP"
LOAD_BALANCER_SOURCE_CIDR = "KUBE-LOAD-BALANCER-SOURCE-CIDR"
HEALTH_CHECK_NODE_PORT = "KUBE-HEALTH-CHECK-NODE-PORT"
IPVS_IPS = "KUBE-IPVS-IPS"
NODE_PORT = {"tcp": "KUBE-NODE-PORT-TCP", "udp": "KUBE-NODE-PORT-UDP", "sctp": "KUBE-NODE-PORT-SCTP-HASH"}
NODE_PORT_LOCAL = {
    "tcp": "KUBE-NODE-PORT-LOCAL-TCP",
    "udp": "KUBE-NODE-PORT-LOCAL-UDP",
    "sctp": "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
}

_LB = "Kubernetes service load balancer ip + port"
_HASH = "with type 'hash ip:port'"
SETS = {
    each.name: each
    for each in (
        _Set(
            LOOP_BACK,
            "hash:ip,port,ip",
            "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
        ),
        _Set(CLUSTER_IP, "hash:ip,port", "Kubernetes service cluster ip + port for masquerade purpose"),
        _Set(
            EXTERNAL_IP,
            "hash:ip,port",
            "Kubernetes service external ip + port for masquerade and filter purpose",
        ),
        _Set(
            EXTERNAL_IP_LOCAL,
            "hash:ip,port",
            "Kubernetes service external ip + port with externalTrafficPolicy=local",
        ),
        _Set(LOAD_BALANCER, "hash:ip,port", "Kubernetes service lb portal"),
        _Set(LOAD_BALANCER_FW, "hash:ip,port", f"{_LB} for load balancer with sourceRange"),
        _Set(LOAD_BALANCER_LOCAL, "hash:ip,port", f"{_LB} with externalTrafficPolicy=local"),
        _Set(LOAD_BALANCER_SOURCE_IP, "hash:ip,port,ip", f"{_LB} + source IP for packet filter purpose"),
        _Set(LOAD_BALANCER_SOURCE_CIDR, "hash:ip,port,net", f"{_LB} + source cidr for packet filter purpose"),
        _Set(NODE_PORT["tcp"], "bitmap:port", "Kubernetes nodeport TCP port for masquerade purpose"),
        _Set(
            NODE_PORT_LOCAL["tcp"],
            "bitmap:port",
            "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
        ),
        _Set(NODE_PORT["udp"], "bitmap:port", "Kubernetes nodeport UDP port for masquerade purpose"),
        _Set(
            NODE_PORT_LOCAL["udp"],
            "bitmap:port",
            "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
        ),
        _Set(
            NODE_PORT["sctp"],
            "hash:ip,port",
            f"Kubernetes nodeport SCTP port for masquerade purpose {_HASH}",
        ),
        _Set(
            NODE_PORT_LOCAL["sctp"],
            "hash:ip,port",
            f"Kubernetes nodeport SCTP port with externalTrafficPolicy=local {_HASH}",
        ),
        _Set(HEALTH_CHECK_NODE_PORT, "bitmap:port", "Kubernetes health check node port"),
        _Set(IPVS_IPS, "hash:ip", "Addresses on the ipvs interface"),
    )
}

SERVICES = "KUBE-SERVICES"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
NODE_PORTS = "KUBE-NODE-PORT"
BALANCER = "KUBE-LOAD-BALANCER"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
SOURCE_RANGES = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER = "KUBE-IPVS-FILTER"
IPVS_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"


def _said(text: str) -> str:
    return f'-m comment --comment "{text}"'


_PORTALS = _said("kubernetes service portals")
_FIREWALL = f"{_said('kube-proxy firewall rules')} -j {PROXY_FIREWALL}"
_FILTER = _said("kubernetes ipvs access filter")
JUMPS: dict[tuple[Table, str], tuple[str, ...]] = {
    ("nat", "OUTPUT"): (f"{_PORTALS} -j {SERVICES}",),
    ("nat", "PREROUTING"): (f"{_PORTALS} -j {SERVICES}",),
    ("nat", "POSTROUTING"): (f"{_said('kubernetes postrouting rules')} -j {POSTROUTING}",),
    ("filter", "INPUT"): (
        f"{_FILTER} -j {IPVS_FILTER}",
        _FIREWALL,
        f"{_said('kubernetes health check rules')} -j {NODE_PORTS}",
    ),
    ("filter", "FORWARD"): (_FIREWALL, f"{_said('kubernetes forwarding rules')} -j {FORWARD}"),
    ("filter", "OUTPUT"): (f"{_FILTER} -j {IPVS_OUT_FILTER}",),
}
"""What is put in front of built-in chains; kube-proxy inserts one after the other, so the last is first."""


class Ipvs:
    """Compiles both families.

    Options beside the common ones: ``scheduler`` of IPVS; ``strictARP``: whether the node answers ARP for
    addresses of other devices, as MetalLB needs it not to.
    """

    needs: frozenset[str] = frozenset({"ipvs", "dummy", "ipset", "iptables"})
    parameters: Mapping[str, Param] = MappingProxyType(
        {**PARAMETERS, "scheduler": Param(choice(*SCHEDULERS), "rr"), "strictARP": Param(flag, False)}
    )

    def __init__(self) -> None:
        self._backing = Backing()

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The node's virtual servers, their device, the sets and the rules that look into them."""
        options = snapshot.facts.proxy_options
        chains: dict[tuple[str, str, str], Chain] = {}
        sysctls = {**SYSCTLS, **(STRICT_ARP if options.get("strictARP") else {})}
        whole: list[_Family] = []
        udp: dict[tuple[str, str, int], UdpFlows] = {}
        families: tuple[Family, ...] = ("ipv4", "ipv6")
        for family in families:
            own = settings(snapshot.facts, node, family)
            sysctls |= {
                name: value for name, value in node_sysctls(own).items() if "route_localnet" not in name
            }
            of = _Family(own, node, str(options.get("scheduler", "rr")))
            for service in self._backing.services(snapshot, node, family):
                udp |= service.udp
                for port in service.ports:
                    of.add(port)
            whole.append(of)
            chains |= {(family, chain.table, chain.name): chain for chain in of.chains()}
        return NetnsState(
            links={DEVICE: Link(DEVICE, "dummy", up=False)},
            addresses={(each.dev, each.address): each for of in whole for each in of.addresses()},
            sysctls=sysctls,
            chains=chains,
            ipsets={each.name: each for of in whole for each in of.ipsets()},
            virtual_servers={key: server for of in whole for key, server in of.virtual.items()},
            real_servers={key: server for of in whole for key, server in of.real.items()},
            udp=udp,
        )


proxiers.register("ipvs")(Ipvs())


@dataclass
class _Family:
    """One family's part, gathered port by port. bound: addresses on the device; shut: (VIP, protocol, port)
    that the node itself may not use."""

    own: Settings
    node: Node
    scheduler: str
    virtual: dict[tuple[str, str], VirtualServer] = field(default_factory=dict)
    real: dict[tuple[str, str, str], RealServer] = field(default_factory=dict)
    entries: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SETS})
    bound: set[str] = field(default_factory=set)
    shut: list[tuple[str, str, int]] = field(default_factory=list)

    def add(self, port: BackedPort) -> None:
        """All that one port of a Service gives."""
        protocol = port.protocol
        for backend in port.local:
            self._enter(LOOP_BACK, f"{backend.ip},{protocol}:{backend.port},{backend.ip}")
        self._enter(CLUSTER_IP, f"{port.cluster_ip},{protocol}:{port.port}")
        self._serve(port, port.cluster_ip, port.port, local=port.internal_local)
        self.bound.add(port.cluster_ip)
        for ip in port.external_ips:
            name = EXTERNAL_IP_LOCAL if port.external_local else EXTERNAL_IP
            self._enter(name, f"{ip},{protocol}:{port.port}")
            self._serve_outside(port, ip)
        for ip in port.vips:
            self._balance(port, ip)
            self._serve_outside(port, ip)
        if port.node_port:
            self._node_port(port)
        if port.health_check_node_port:
            self._enter(HEALTH_CHECK_NODE_PORT, str(port.health_check_node_port))

    def _enter(self, name: str, entry: str) -> None:
        self.entries[name].add(entry)

    def _balance(self, port: BackedPort, ip: str) -> None:
        entry = f"{ip},{port.protocol}:{port.port}"
        self._enter(LOAD_BALANCER, entry)
        if port.external_local:
            self._enter(LOAD_BALANCER_LOCAL, entry)
        if not port.source_ranges:
            return
        self._enter(LOAD_BALANCER_FW, entry)
        for cidr in port.source_ranges:
            whole = ip_network(cidr)
            source = str(whole[0]) if whole.num_addresses == 1 else cidr
            self._enter(LOAD_BALANCER_SOURCE_CIDR, f"{entry},{source}")
        if self._lets_in(port.source_ranges):
            self._enter(LOAD_BALANCER_SOURCE_IP, f"{entry},{ip}")
        else:
            self.shut.append((ip, port.protocol, port.port))

    def _lets_in(self, ranges: Iterable[str]) -> bool:
        return any(ip_address(ip) in ip_network(cidr) for cidr in ranges for ip in self._own())

    def _own(self) -> list[str]:
        return [ip for ip in self.node.addresses if (":" in ip) == (self.own.family == "ipv6")]

    def _node_port(self, port: BackedPort) -> None:
        addresses = list(self.own.node_port_ips(self.node)) if self.own.node_port_addresses else self._own()
        addresses = [ip for ip in addresses if not ip_address(ip).is_loopback]
        for name in (NODE_PORT, *((NODE_PORT_LOCAL,) if port.external_local else ())):
            for ip in addresses:
                by_port = SETS[name[port.protocol]].type == "bitmap:port"
                entry = str(port.node_port) if by_port else f"{ip},{port.protocol}:{port.node_port}"
                self._enter(name[port.protocol], entry)
        for ip in addresses:
            self._serve(port, ip, port.node_port, local=port.external_local)

    def _serve_outside(self, port: BackedPort, ip: str) -> None:
        self._serve(port, ip, port.port, local=port.external_local)
        if ip not in self._own():
            self.bound.add(ip)

    def _serve(self, port: BackedPort, ip: str, number: int, *, local: bool) -> None:
        """Without local endpoints a policy Local is no bar here, unlike in the other modes."""
        backends: tuple[Backend, ...] = (port.local or port.cluster) if local else port.cluster
        protocol: Any = port.name.protocol
        flags = ("mh-port",) if self.scheduler == "mh" else ()
        server = VirtualServer(protocol, ip, number, self.scheduler, port.affinity_seconds, flags)
        self.virtual[virtual_key(server)] = server
        for backend in backends:
            one = RealServer(protocol, at(ip, number), backend.ip, backend.port)
            self.real[real_key(one)] = one

    # --- what it comes to

    def addresses(self) -> Iterator[Address]:
        """On the dummy device, each alone."""
        for ip in sorted(self.bound):
            yield Address(DEVICE, str(ip_network(ip)), broadcast=False)

    def ipsets(self) -> Iterator[IpSet]:
        """All sets, filled or not."""
        self.entries[IPVS_IPS] = set(self.bound)
        family: Any = "inet6" if self.own.family == "ipv6" else "inet"
        for each in SETS.values():
            yield IpSet(self._named(each.name), each.type, family, frozenset(self.entries[each.name]))

    def _named(self, name: str) -> str:
        """Names of the two families differ; the kernel takes 31 characters."""
        return name.replace("KUBE-", "KUBE-6-", 1)[:31] if self.own.family == "ipv6" else name

    def _in(self, name: str, directions: str, *, said: bool = True) -> str:
        comment = f"{_said(SETS[name].comment)} " if said else ""
        return f"{comment}-m set --match-set {self._named(name)} {directions}"

    def chains(self) -> Iterator[Chain]:
        """Most rules that look into an empty set are left out, as upstream does."""
        family = self.own.family
        for (table, name), rules in JUMPS.items():
            yield Chain(family, table, name, rules, inserted=len(rules))
        for name, written in (
            (SERVICES, self._services()),
            (POSTROUTING, self._postrouting()),
            (MARK_MASQ, (f"-j MARK --set-xmark {MARK}",)),
            (NODE_PORTS, self._node_ports()),
            (BALANCER, self._balancer()),
        ):
            yield Chain(family, "nat", name, tuple(written))
        for name, written in (
            (FORWARD, self._forward()),
            (NODE_PORTS, (f"{self._in(HEALTH_CHECK_NODE_PORT, 'dst')} -j ACCEPT",)),
            (PROXY_FIREWALL, self._if(LOAD_BALANCER_FW, "dst,dst", SOURCE_RANGES)),
            (SOURCE_RANGES, self._source_ranges()),
            (IPVS_FILTER, self._filter()),
            (IPVS_OUT_FILTER, self._out_filter()),
        ):
            yield Chain(family, "filter", name, tuple(written))

    def _if(self, name: str, directions: str, target: str, before: str = "") -> Iterator[str]:
        if self.entries[name]:
            yield f"{before}{self._in(name, directions)} -j {target}"

    def _services(self) -> Iterator[str]:
        yield f"-s {LOOPBACK[self.own.family]} -j RETURN"
        yield from self._if(LOAD_BALANCER, "dst,dst", BALANCER)
        if self.own.masquerade_all:
            yield from self._if(CLUSTER_IP, "dst,dst", MARK_MASQ)
        elif self.own.local:
            yield from self._if(CLUSTER_IP, "dst,dst", MARK_MASQ, f"! -s {self.own.local} ")
        else:  # the device has all these addresses, so the node takes one as its own
            yield from self._if(CLUSTER_IP, "src,dst", MARK_MASQ)
        yield from self._if(EXTERNAL_IP, "dst,dst", MARK_MASQ)
        for name in (EXTERNAL_IP, EXTERNAL_IP_LOCAL):
            if self.entries[name]:
                looked = self._in(name, "dst,dst")
                yield f"{looked} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT"
                yield f"{looked} -m addrtype --dst-type LOCAL -j ACCEPT"
        yield f"-m addrtype --dst-type LOCAL -j {NODE_PORTS}"
        for name in (CLUSTER_IP, LOAD_BALANCER):
            if self.entries[name]:
                yield f"{self._in(name, 'dst,dst', said=False)} -j ACCEPT"

    def _postrouting(self) -> Iterator[str]:
        yield from self._if(LOOP_BACK, "dst,dst,src", "MASQUERADE")
        yield f"-m mark ! --mark {MARK} -j RETURN"
        yield f"-j MARK --set-xmark {MASQUERADE_MARK:#x}/0x0"
        yield f"{_said('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully"

    def _node_ports(self) -> Iterator[str]:
        for protocol in ("tcp", "udp", "sctp"):
            directions = "dst,dst" if protocol == "sctp" else "dst"
            yield from self._if(NODE_PORT_LOCAL[protocol], directions, "RETURN", f"-p {protocol} ")
            yield from self._if(NODE_PORT[protocol], directions, MARK_MASQ, f"-p {protocol} ")

    def _balancer(self) -> Iterator[str]:
        yield from self._if(LOAD_BALANCER_LOCAL, "dst,dst", "RETURN")
        yield f"-j {MARK_MASQ}"

    def _forward(self) -> Iterator[str]:
        yield f"{_said('kubernetes forwarding rules')} -m mark --mark {MARK} -j ACCEPT"
        related = "-m conntrack --ctstate RELATED,ESTABLISHED"
        yield f"{_said('kubernetes forwarding conntrack rule')} {related} -j ACCEPT"

    def _source_ranges(self) -> Iterator[str]:
        yield from self._if(LOAD_BALANCER_SOURCE_CIDR, "dst,dst,src", "RETURN")
        yield from self._if(LOAD_BALANCER_SOURCE_IP, "dst,dst,src", "RETURN")
        yield "-j DROP"

    def _filter(self) -> Iterator[str]:
        """Ports of the node must not be reached by the addresses of Services (kubernetes issue 72236)."""
        for name in (LOAD_BALANCER, CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL):
            yield f"{self._in(name, 'dst,dst', said=False)} -j RETURN"
        yield f"{self._in(HEALTH_CHECK_NODE_PORT, 'dst', said=False)} -j RETURN"
        answer = "icmp6-port-unreachable" if self.own.family == "ipv6" else "icmp-port-unreachable"
        new = "-m conntrack --ctstate NEW "
        yield f"{new}{self._in(IPVS_IPS, 'dst', said=False)} -j REJECT --reject-with {answer}"

    def _out_filter(self) -> Iterator[str]:
        numbers = {"tcp": 6, "udp": 17, "sctp": 132}
        for ip, protocol, port in self.shut:
            server = f"-m ipvs --vaddr {ip} --vproto {numbers[protocol]} --vport {port}"
            yield f"-s {ip_network(ip)} {server} -j DROP"
