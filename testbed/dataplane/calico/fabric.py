"""Where nodes stand in racks: which routers of the fabric speak BGP, and under which numbers.

A rack is one autonomous system, its router reflects its nodes' routes; the routers between racks are another,
and so is the gateway (RFC 7938; projectcalico documentation, "Calico over IP fabrics", "AS per rack").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from testbed.control.snapshot import Node, Router, Snapshot
from testbed.dataplane.calico.names import address

SPINES, GATEWAY, FIRST_RACK = 64900, 64901, 65001


@dataclass(frozen=True)
class Leaf:
    """A node's router: its address on the node's subnet, and the number of the rack."""

    router: Router
    address: str
    number: int


def speaks(snapshot: Snapshot) -> bool:
    """Whether the fabric's routers speak BGP: where nodes are on more than one router's subnets."""
    return len(snapshot.facts.routers) > 1 and len(_leaves(snapshot)) > 1


def _leaves(snapshot: Snapshot) -> list[Router]:
    return [
        router
        for router in snapshot.facts.routers
        if any(True for version in (4, 6) for _ in nodes_of(snapshot, router, version))
    ]


def number(snapshot: Snapshot, router: Router) -> int:
    """A router's autonomous system."""
    leaves = [each.name for each in _leaves(snapshot)]
    if router.name in leaves:
        return FIRST_RACK + leaves.index(router.name)
    return GATEWAY if router.gateway else SPINES


def nodes_of(snapshot: Snapshot, router: Router, version: int) -> Iterator[tuple[str, str, str]]:
    """The nodes on a router's subnets: name, the router's address there, the node's."""
    for node in snapshot.nodes:
        there = address(node, version)
        if there is None:
            continue
        for own in map(ip_interface, router.addresses):
            if own.version == version and ip_address(there) in own.network:
                yield node.name, str(own.ip), there


def leaf_of(snapshot: Snapshot, node: Node, version: int) -> Leaf | None:
    """The router of a node's rack; None where routers speak no BGP."""
    if not speaks(snapshot):
        return None
    for router in snapshot.facts.routers:
        for name, own, _ in nodes_of(snapshot, router, version):
            if name == node.name:
                return Leaf(router, own, number(snapshot, router))
    return None
