"""``route-withdrawn``: a node no longer knows the way to some pods."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec

from testbed.errors import InputError
from testbed.faults.model import Fault, States, fault, on_nodes
from testbed.faults.target import Scene, Target, other_nodes
from testbed.state import NetnsState, Route


@fault("route-withdrawn")
class RouteWithdrawn(Fault, frozen=True, kw_only=True):
    """The node's routes to the pods of other nodes are gone, as if nobody announced them any more.

    to: a node, whose pod ranges and address they lead to, or a range (all routes within it); without, all.
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
    ranges = [*target.addresses, *(cidr for peer in target.peers for cidr in peer.pod_cidrs)]
    return any(_within(route.dst, cidr) for cidr in ranges) or any(
        route.via in peer.addresses for peer in target.peers
    )


def _within(dst: str, cidr: str) -> bool:
    inner, outer = ip_network(dst), ip_network(cidr)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
