"""What a backend of flannel is: how packets come from one node's subnet to another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_network
from typing import Any, Protocol

from testbed.control.snapshot import Node, Snapshot
from testbed.dataplane.plugins import Network, on_segment
from testbed.policy import meaning
from testbed.spec.params import Param
from testbed.state import Address, Daemon, NetnsState


@dataclass(frozen=True)
class Site:
    """A node of a cluster, as its flanneld sees it. options: read; underlay: its MTU in bytes."""

    snapshot: Snapshot
    node: Node
    options: Mapping[str, Any]
    underlay: int

    @cached_property
    def ranges(self) -> tuple[Network, ...]:
        """The node's own subnets."""
        return tuple(map(ip_network, self.node.pod_cidrs))

    def public(self, version: int) -> str | None:
        """The node's address on the underlay."""
        return address(self.node, version)

    def own(self, version: int) -> Network | None:
        """The node's subnet of a family."""
        return next((network for network in self.ranges if network.version == version), None)

    def cluster(self, version: int) -> Network | None:
        """The cluster's range of a family."""
        ranges = map(ip_network, self.snapshot.facts.pod_cidrs)
        return next((network for network in ranges if network.version == version), None)

    def peers(self) -> Iterator[tuple[Node, Network, str]]:
        """The subnets of the other nodes, and their nodes' addresses."""
        for peer in self.snapshot.nodes:
            for network in map(meaning.network, peer.pod_cidrs) if peer.name != self.node.name else ():
                if (public := address(peer, network.version)) is not None:
                    yield peer, network, public

    def direct(self, public: str) -> bool:
        """Whether there is no router on the way to a node's address."""
        return on_segment(self.snapshot, self.node, public)


@dataclass(frozen=True)
class Made:
    """What a backend has on a node. files: beside the subnet file, by path."""

    netns: NetnsState = field(default_factory=NetnsState)
    daemons: Mapping[str, Daemon] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """needs: capabilities beside those of all; parameters: its own options; carries_ipv6: or IPv4 alone;
    kept_routes: devices on which flanneld puts back a route that is gone; those of others stay away until the
    peer's subnet is announced again."""

    needs: frozenset[str]
    parameters: Mapping[str, Param]
    carries_ipv6: bool
    kept_routes: tuple[str, ...]

    def overhead(self, site: Site) -> int:
        """Bytes by which pods' packets must be smaller than those of the underlay."""
        ...

    def compile(self, site: Site) -> Made:
        """Its devices on a node, and what leads to the peers."""
        ...


def address(node: Node, version: int) -> str | None:
    """A node's first address of a family."""
    return next((text for text in node.addresses if meaning.address(text).version == version), None)


def device_address(device: str, network: Network) -> Address:
    """The first address of a node's subnet, the source of the node's own packets to pods elsewhere.

    It has full length, so that nothing is on the device's link by itself.
    """
    return Address(device, f"{network.network_address}/{network.max_prefixlen}", broadcast=False)


def derived_mac(what: str, node: str) -> str:
    """A locally administered MAC, the same for the same node always."""
    digest = hashlib.sha256(f"{what} {node}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (digest[0] & 0xFC | 0x02, *digest[1:6]))
