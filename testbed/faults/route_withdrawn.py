"""``route-withdrawn``: a node no longer knows the way to some pods."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec

from testbed.control.snapshot import Node
from testbed.errors import InputError
from testbed.faults.model import Fault, States, fault, on_nodes
from testbed.faults.target import Scene, Target, other_nodes
from testbed.state import NetnsState, Route


@fault("route-withdrawn")
class RouteWithdrawn(Fault, frozen=True, kw_only=True):
    """The node's routes to the pods of other nodes are gone, as if nobody announced them any more.

    to: a node, to which or to whose pods they lead, or a range (all routes within it); without, all. What a
    routing daemon learns is not among them: ``bgp-withdrawn``.
    """

    to: str = ""

    def resolve(self, target: Target, scene: Scene) -> Target:
        """Whose routes these are."""
        if "/" in self.to:
            try:
                return msgspec.structs.replace(target, addresses=(str(ip_network(self.to)),))
            except ValueError as error:
                raise InputError(f"to: {error}") from error
        peers = (scene.node(self.to),) if self.to else other_nodes(scene, target)
        return msgspec.structs.replace(target, peers=peers)

    def perturb(self, states: States, target: Target) -> States:
        """Without them."""

        def change(netns: NetnsState) -> NetnsState:
            kept = {dst: route for dst, route in netns.routes.items() if not _gone(route, target)}
            return msgspec.structs.replace(netns, routes=kept)

        return on_nodes(states, (node.name for node in target.nodes), change)


def _gone(route: Route, target: Target) -> bool:
    if route.dst in ("default", "default6"):
        return False
    return any(_within(route.dst, cidr) for cidr in target.addresses) or any(
        _leads_to(route, peer) for peer in target.peers
    )


def _leads_to(route: Route, peer: Node) -> bool:
    """Whether it is to the peer or its pods. Of a pool the next hop alone says so: in a range that the peer
    holds others may have borrowed addresses."""
    if route.via in (*peer.addresses, *peer.held.own.values()):
        return True
    return not peer.pooled and any(_within(route.dst, cidr) for cidr in peer.pod_cidrs)


def _within(dst: str, cidr: str) -> bool:
    inner, outer = ip_network(dst), ip_network(cidr)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
