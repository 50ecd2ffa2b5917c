"""``loss``: packets that a node receives are lost at random, by netfilter, on any kernel.

Not what a bad cable does, though close: the packet crosses the wire, a capture on the node's interface still
shows it, and then a rule of table raw drops it (``-m statistic --mode random``, one independent draw per
packet) before connection tracking and routing see it. Only IP is lost, never ARP. A packet that the kernel
has not cut into segments yet counts as one. Where the kernel has netem, ``impair`` loses on the wire itself.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from testbed.control.snapshot import Node
from testbed.errors import InputError
from testbed.faults.model import Fault, States, fault, on_nodes, with_rules
from testbed.faults.target import Aim, Scene, Target
from testbed.state import Family, NetnsState

DEVICE = "eth0"
"""Every node's way to the others."""
STEPS = 1 << 31
"""The kernel draws one of these (``xt_statistic``: ``nth.probability`` of 31 bits)."""


def probability(share: float) -> str:
    """A share as the kernel keeps it and ``iptables-save`` prints it."""
    return f"{round(share * STEPS) / STEPS:.11f}"


def addresses(node: Node) -> list[tuple[Family, str]]:
    """Where packets of a node and of its pods come from: its own addresses and its pod ranges, by family."""
    found = [*(f"{address}/{128 if ':' in address else 32}" for address in node.addresses), *node.pod_cidrs]
    return [("ipv6" if ":" in each else "ipv4", each) for each in found]


@fault("loss")
class Loss(Fault, frozen=True, kw_only=True):
    """A share of the packets that nodes receive from the network is dropped at random, by a netfilter rule.

    loss: 0 to 1; source: only packets of this node and its pods, so that the loss is on one way alone.
    """

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"iptables"})
    outlives_nodes: ClassVar[bool] = True

    loss: Annotated[float, msgspec.Meta(gt=0, le=1)]
    source: str = ""

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The source by its name."""
        if self.source in {node.name for node in target.nodes}:
            raise InputError(f"source: {self.source} is the node that receives")
        peers = (scene.node(self.source),) if self.source else ()
        return msgspec.structs.replace(target, peers=peers)

    def perturb(self, states: States, target: Target) -> States:
        """Rules in front of all others."""
        share = f"-m statistic --mode random --probability {probability(self.loss)} -j DROP"
        froms = [each for peer in target.peers for each in addresses(peer)]
        rules: dict[Family, list[str]] = {"ipv4": [], "ipv6": []}
        for family, source in froms or [("ipv4", ""), ("ipv6", "")]:
            chosen = f"-s {source} " if source else ""
            rules[family].append(f"{chosen}-i {DEVICE} {share}")

        def change(netns: NetnsState) -> NetnsState:
            for family, listed in rules.items():
                if listed:
                    netns = with_rules(netns, family, "raw", "PREROUTING", listed)
            return netns

        return on_nodes(states, (node.name for node in target.nodes), change)
