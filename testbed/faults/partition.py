"""``partition``: the network falls into two parts that no longer hear each other.

The nodes named are one part, all others the other; the control plane and the outside hosts' router stay
reachable for everyone's packets unless said otherwise, but the API server is in the other part: nothing that
the nodes say reaches it, nor the other way round, so that they become NotReady after the node monitor's
grace period. Packets are dropped where they arrive, in table raw: by the address of the node that sent
them or of a pod there, as one sees it below all overlays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import msgspec

from testbed.control.snapshot import Node
from testbed.errors import InputError
from testbed.faults.loss import DEVICE, addresses, tunnels
from testbed.faults.model import Fault, States, fault, on_nodes, with_rules
from testbed.faults.target import Aim, Scene, Target, other_nodes
from testbed.state import Family, NetnsState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands


def dropping(netns: NetnsState, sources: Iterable[tuple[Family, str]]) -> NetnsState:
    """The netns dropping all that comes from the network with these source addresses."""
    chosen: dict[Family, list[str]] = {"ipv4": [], "ipv6": []}
    for family, source in sources:
        chosen[family].append(source)
    for family, listed in chosen.items():
        ways = [DEVICE, *tunnels(netns, family)]
        if rules := [f"-s {source} -i {way} -j DROP" for source in listed for way in ways]:
            netns = with_rules(netns, family, "raw", "PREROUTING", rules)
    return netns


@fault("partition")
class Partition(Fault, frozen=True, kw_only=True):
    """The named nodes and all others no longer hear each other.

    api: the API server is with the others, so that the nodes named become NotReady in time; false: everybody
    reaches it.
    """

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"iptables"})
    outlives_nodes: ClassVar[bool] = True
    follows_nodes: ClassVar[bool] = True

    api: bool = True

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The other side."""
        peers = other_nodes(scene, target)
        if not peers:
            raise InputError("partition: names all nodes; those left out are the other part")
        return msgspec.structs.replace(target, peers=peers, addresses=scene.control_plane if self.api else ())

    def perturb(self, states: States, target: Target) -> States:
        """Each side drops what comes from the other."""
        control: list[tuple[Family, str]] = [
            ("ipv6", f"{each}/128") if ":" in each else ("ipv4", f"{each}/32") for each in target.addresses
        ]
        theirs = [*_sources(target.peers), *control]
        ours = _sources(target.nodes)
        states = on_nodes(states, _names(target.nodes), lambda netns: dropping(netns, theirs))
        return on_nodes(states, _names(target.peers), lambda netns: dropping(netns, ours))

    async def conclude(self, hands: Hands, target: Target) -> None:
        """Cut the nodes off from the API server, now that they have what they were to get."""
        if self.api:
            for name in _names(target.nodes):
                hands.cut_off(name, target.fault)

    async def lift(self, hands: Hands, target: Target) -> None:
        """Let them hear it again."""
        for name in _names(target.nodes):
            hands.reconnect(name, target.fault)


def _names(nodes: Iterable[Node]) -> list[str]:
    return [node.name for node in nodes]


def _sources(nodes: Iterable[Node]) -> list[tuple[Family, str]]:
    return [each for node in nodes for each in addresses(node)]
