"""``loss``: packets that a node receives are lost at random, by netfilter, on any kernel.

Not what a bad cable does, though close: the packet crosses the wire, a capture on the node's interface still
shows it, and then a rule of table raw drops it (``-m statistic --mode random``, one independent draw per
packet) before connection tracking and routing see it. Only IP is lost, never ARP. A packet that the kernel
has not cut into segments yet counts as one. Where the kernel has netem, ``impair`` loses on the wire itself.
What comes by IP in IP is drawn for once it has left the tunnel: one that is made of programs leads past table
raw (``kernel.ipip``).
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
    """Where packets of a node and of its pods come from: its addresses and its pods' ranges, by family."""
    found = [*(f"{address}/{128 if ':' in address else 32}" for address in node.addresses), *node.pod_ranges]
    return [("ipv6" if ":" in each else "ipv4", each) for each in found]


def tunnels(netns: NetnsState, family: Family) -> list[str]:
    """A node's devices of IP in IP, by which packets come in of which table raw may not see the outer one."""
    return [link.name for link in netns.links.values() if link.kind == "ipip"] if family == "ipv4" else []


@fault("loss")
class Loss(Fault, frozen=True, kw_only=True):
    """A share of the packets that nodes receive from the network is dropped at random, by a netfilter rule.

    loss: 0 to 1; source: only packets of this node and its pods, so that the loss is on one way alone.
    """

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"iptables"})
    outlives_nodes: ClassVar[bool] = True
    follows_nodes: ClassVar[bool] = True

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
        sources: dict[Family, list[str]] = {"ipv4": [], "ipv6": []}
        for family, source in froms or [("ipv4", ""), ("ipv6", "")]:
            sources[family].append(f"-s {source} " if source else "")

        def change(netns: NetnsState) -> NetnsState:
            for family, chosen in sources.items():
                inner = tunnels(netns, family)
                ways = [f"{DEVICE} ! -p 4", *inner] if inner else [DEVICE]
                if chosen:
                    rules = [f"{source}-i {way} {share}" for source in chosen for way in ways]
                    netns = with_rules(netns, family, "raw", "PREROUTING", rules)
            return netns

        return on_nodes(states, (node.name for node in target.nodes), change)
