"""Who answers for an address: ``duplicate-ip`` and ``stale-neighbour``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from testbed.control.snapshot import Node, Pod
from testbed.errors import InputError
from testbed.faults.loss import DEVICE
from testbed.faults.model import Fault, States, fault, on_nodes
from testbed.faults.programs import argv
from testbed.faults.target import Scene, Target
from testbed.state import Address, Neighbour, NetnsState, NodeState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

NOBODY = "02:00:00:00:de:ad"
"""A unicast, locally administered MAC that no device of a cluster has."""
Mac = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]


def _ipv4(addresses: tuple[str, ...], name: str) -> str:
    for each in addresses:
        if ":" not in each:
            return each
    raise InputError(f"{name} has no IPv4 address")


@fault("duplicate-ip")
class DuplicateIp(Fault, frozen=True, kw_only=True):
    """The node takes an IPv4 address that another node has, too, and says so by gratuitous ARP.

    of: the node whose address it is. Everybody on the segment believes whom they heard last.
    """

    of: str

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The owner and the address."""
        owner = scene.node(self.of)
        if owner in target.nodes:
            raise InputError(f"of: {self.of} has that address anyhow")
        address = _ipv4(owner.addresses, owner.name)
        return msgspec.structs.replace(target, peers=(owner,), addresses=(address,))

    def perturb(self, states: States, target: Target) -> States:
        """The address beside the node's own."""
        address = f"{target.addresses[0]}/32"

        def change(netns: NetnsState) -> NetnsState:
            taken = Address(DEVICE, address, broadcast=False)
            return msgspec.structs.replace(netns, addresses={**netns.addresses, (DEVICE, address): taken})

        return on_nodes(states, (node.name for node in target.nodes), change)

    async def conclude(self, hands: Hands, target: Target) -> None:
        """Announce it, as the node that came last."""
        for node in target.nodes:
            await hands.run(node.name, argv("announce", DEVICE, target.addresses[0]))

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Nothing; healed, the owner announces that the address is its own, as its administrator would."""
        for owner in () if on else target.peers:
            await hands.run(owner.name, argv("announce", DEVICE, target.addresses[0]))
        return ""


@fault("stale-neighbour")
class StaleNeighbour(Fault, frozen=True, kw_only=True):
    """The node has a wrong MAC in its neighbour table, for good: what it sends there reaches nobody.

    of: a node, or a pod (``namespace/name``) on this node; mac: the wrong one.
    """

    of: str
    mac: Mac = NOBODY

    def resolve(self, target: Target, scene: Scene) -> Target:
        """Whose address it is."""
        found: Node | Pod
        if self.of in scene.snapshot.node:
            found = scene.node(self.of)
            addresses = found.addresses
        else:
            found = scene.pod(self.of)
            addresses = found.ips
            if any(node.name != found.node for node in target.nodes):
                raise InputError(f"of: pod {self.of} is on {found.node}; others know no MAC of it")
        return msgspec.structs.replace(target, addresses=(_ipv4(addresses, self.of),))

    def perturb(self, states: States, target: Target) -> States:
        """A permanent entry in place of what ARP finds out."""
        changed = dict(states)
        for node in target.nodes:
            if (state := changed.get(node.name)) is not None:
                entry = Neighbour(_device(state, target.addresses[0]), target.addresses[0], self.mac)
                entries = {**state.netns.neighbours, (entry.dev, entry.dst): entry}
                netns = msgspec.structs.replace(state.netns, neighbours=entries)
                changed[node.name] = msgspec.structs.replace(state, netns=netns)
        return changed


def _device(state: NodeState, address: str) -> str:
    """What a node reaches an address by: its pod's host end or the bridge that is a port of, else eth0."""
    for pod in state.pods.values():
        if address in pod.ips and not pod.host_network:
            for link in pod.netns.links.values():
                if link.peer is not None and link.peer in state.netns.links:
                    return state.netns.links[link.peer].master or link.peer
    return DEVICE
