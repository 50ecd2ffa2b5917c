"""Where nodes stand in racks: which routers of the fabric speak BGP, and under which numbers.

A rack is one autonomous system, its router reflects its nodes' routes; the routers between racks are another,
and so is the gateway (RFC 7938; projectcalico documentation, "Calico over IP fabrics", "AS per rack").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from testbed.control.snapshot import ClusterFacts, Node, Router

SPINES, GATEWAY, FIRST_RACK = 64900, 64901, 65001


@dataclass(frozen=True)
class Leaf:
    """A node's router: its address on the node's subnet, and the number of the rack."""

    router: Router
    address: str
    number: int


def speaks(facts: ClusterFacts) -> bool:
    """Whether the fabric's routers speak BGP: where machines are on more than one router's subnets."""
    return len(_leaves(facts)) > 1


def _leaves(facts: ClusterFacts) -> list[Router]:
    # Of all machines, not of those that are nodes now: nobody is renumbered when a rack's last node leaves.
    return [router for router in facts.routers if router.nodes]


def number(facts: ClusterFacts, router: Router) -> int:
    """A router's autonomous system."""
    leaves = [each.name for each in _leaves(facts)]
    if router.name in leaves:
        return FIRST_RACK + leaves.index(router.name)
    return GATEWAY if router.gateway else SPINES


def nodes_of(router: Router, version: int) -> Iterator[tuple[str, str, str]]:
    """The machines on a router's subnets: name, the router's address there, the machine's."""
    return (each for each in router.nodes if ip_address(each[1]).version == version)


def leaf_of(facts: ClusterFacts, node: Node, version: int) -> Leaf | None:
    """The router of a node's rack; None where routers speak no BGP."""
    if not speaks(facts):
        return None
    for router in facts.routers:
        for name, own, _ in nodes_of(router, version):
            if name == node.name:
                return Leaf(router, own, number(facts, router))
    return None
