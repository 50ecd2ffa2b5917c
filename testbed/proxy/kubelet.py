"""The kubelet's own part of a node's rules, there before any proxier's and in every mode.

Source: ``pkg/kubelet/kubelet_network_linux.go``.
"""

from __future__ import annotations

from collections.abc import Iterator

from testbed.state import Chain, Family, NetnsState, Table

FIREWALL = "KUBE-FIREWALL"
FIREWALL_RULE = (
    '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)
"""Against packets from outside for 127.0.0.1, which route_localnet would let in (CVE-2020-8558)."""

CANARY_TABLES: tuple[Table, ...] = ("mangle", "nat", "filter")


def kubelet_rules() -> NetnsState:
    """Canaries, the hint which backend is used, and the guard of 127.0.0.0/8."""
    chains = (*_common("ipv4"), *_common("ipv6"), *_firewall())
    return NetnsState(chains={(chain.family, chain.table, chain.name): chain for chain in chains})


def _common(family: Family) -> Iterator[Chain]:
    yield Chain(family, "mangle", "KUBE-IPTABLES-HINT")
    for table in CANARY_TABLES:
        yield Chain(family, table, "KUBE-KUBELET-CANARY")


def _firewall() -> Iterator[Chain]:
    yield Chain("ipv4", "filter", FIREWALL, (FIREWALL_RULE,))
    for built_in in ("INPUT", "OUTPUT"):
        yield Chain("ipv4", "filter", built_in, (f"-j {FIREWALL}",), inserted=1)
