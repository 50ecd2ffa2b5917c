"""What of kube-proxy's configuration a spec may set, and what kube-proxy sets on a node whatever its mode.

Defaults: ``pkg/proxy/apis/config/v1alpha1/defaults.go``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from testbed.control.snapshot import ClusterFacts, Node
from testbed.state import Family

MASQUERADE_MARK = 1 << 14
"""masqueradeBit 14: the mark of packets that get the node's address as their source."""

LOOPBACK: Mapping[Family, str] = {"ipv4": "127.0.0.0/8", "ipv6": "::1/128"}

CONNTRACK_SYSCTLS: Mapping[str, str] = {
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "3600",
}
"""tcpEstablishedTimeout and tcpCloseWaitTimeout. Source: ``cmd/kube-proxy/app/server_linux.go``.

nf_conntrack_max, which it sets too, belongs to the whole machine.
"""


@dataclass(frozen=True)
class Settings:
    """One kube-proxy's. local: the range of what counts as a pod's own traffic, "" where none is known.

    node_port_addresses: ranges of the node's addresses that node ports answer on, none: all of them.
    """

    family: Family
    local: str
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    node_port_addresses: tuple[str, ...] = ()

    @property
    def loopback(self) -> bool:
        """Whether node ports answer on 127.0.0.0/8 too."""
        return (
            self.family == "ipv4"
            and self.localhost_node_ports
            and (not self.node_port_addresses or self._covers("127.0.0.1"))
        )

    def node_port_ips(self, node: Node) -> Iterator[str]:
        """The addresses of ``node`` that node ports answer on, where there is a choice of them."""
        own = [ip for ip in node.addresses if (":" in ip) == (self.family == "ipv6")]
        for ip in (*own, *(("127.0.0.1",) if self.loopback else ())):
            if self._covers(ip):
                yield ip

    def _covers(self, ip: str) -> bool:
        return any(ip_address(ip) in ip_network(cidr) for cidr in self.node_port_addresses)


def settings(
    facts: ClusterFacts, node: Node, family: Family, *, node_port_addresses: tuple[str, ...] = ()
) -> Settings:
    """The settings of a family on a node; detectLocalMode is ClusterCIDR, which is the spec's podCIDR.

    node_port_addresses: the mode's own default, ranges or ``primary`` for the node's addresses.
    """
    options = facts.proxy_options
    own = family == "ipv6"
    asked: list[str] = []
    for text in options.get("nodePortAddresses") or node_port_addresses:
        asked += [_host(ip) for ip in node.addresses] if text == "primary" else [text]
    return Settings(
        family=family,
        local=next((str(ip_network(cidr)) for cidr in facts.pod_cidrs if (":" in cidr) == own), ""),
        masquerade_all=bool(options.get("masqueradeAll", False)),
        localhost_node_ports=bool(options.get("localhostNodePorts", True)),
        node_port_addresses=tuple(cidr for cidr in asked if (":" in cidr) == own),
    )


def _host(ip: str) -> str:
    return str(ip_network(ip))


def node_sysctls(of: Settings) -> dict[str, str]:
    """What kube-proxy sets before its first rule; route_localnet lets 127.0.0.1 be translated."""
    sysctls = dict(CONNTRACK_SYSCTLS)
    if of.loopback:
        sysctls["net/ipv4/conf/all/route_localnet"] = "1"
    return sysctls
