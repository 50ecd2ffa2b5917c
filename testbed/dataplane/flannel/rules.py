"""flannel's iptables rules. Source: flannel v0.28 ``pkg/trafficmngr/iptables/iptables.go``."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from testbed.control.snapshot import ClusterFacts, Node
from testbed.state import Chain, Family

MASQUERADED = "0x4000/0x4000"
"""kube-proxy's mark: it translates these itself."""

COMMENT = "flanneld"
"""What the comments of all its rules begin with."""

POSTROUTING, FORWARD = "FLANNEL-POSTRTG", "FLANNEL-FWD"

RESYNC_SECONDS = 5.0
"""flanneld's --iptables-resync."""


def chains(facts: ClusterFacts, node: Node) -> Iterator[Chain]:
    """``trafficmngr/iptables``: masqRules and forwardRules. One chain each, so that a resync is one look."""
    own = {network.version: network for network in map(ip_network, node.pod_cidrs)}
    for cluster in map(ip_network, facts.pod_cidrs):
        family: Family = "ipv4" if cluster.version == 4 else "ipv6"
        multicast = "224.0.0.0/4" if cluster.version == 4 else "ff00::/8"
        masq = f'-m comment --comment "{COMMENT} masq"'
        forward = f'-m comment --comment "{COMMENT} forward"'
        mine = own.get(cluster.version)
        if mine is None:
            continue
        yield Chain(family, "nat", "POSTROUTING", (f"{masq} -j {POSTROUTING}",))
        yield Chain(
            family,
            "nat",
            POSTROUTING,
            (
                f"-m mark --mark {MASQUERADED} {masq} -j RETURN",
                f"-s {mine} -d {cluster} {masq} -j RETURN",
                f"-s {cluster} -d {mine} {masq} -j RETURN",
                f"! -s {cluster} -d {mine} {masq} -j RETURN",
                f"-s {cluster} ! -d {multicast} {masq} -j MASQUERADE --random-fully",
                f"! -s {cluster} -d {cluster} {masq} -j MASQUERADE --random-fully",
            ),
        )
        yield Chain(family, "filter", "FORWARD", (f"{forward} -j {FORWARD}",))
        yield Chain(
            family,
            "filter",
            FORWARD,
            (f"-s {cluster} {forward} -j ACCEPT", f"-d {cluster} {forward} -j ACCEPT"),
        )
