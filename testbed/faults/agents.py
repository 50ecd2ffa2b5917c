"""Programs on nodes that stop working while their rules stay: ``proxier-frozen``, ``policy-frozen``; and
``rules-flushed``, rules that are gone while whoever made them believes that they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from testbed.faults.model import Fault, States, fault, on_nodes, told
from testbed.faults.node import flush
from testbed.faults.target import Target
from testbed.state import NetnsState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

RULES = (
    *("chains", "ipsets", "virtual_servers", "real_servers"),
    *("nft_tables", "nft_chains", "nft_sets", "nft_elements"),
)


class _Frozen(Fault, frozen=True, kw_only=True):
    """Rules of one kind stay as they are."""

    part: ClassVar[Literal["services", "policy"]]

    async def inject(self, hands: Hands, target: Target) -> None:
        """Nobody makes them anew."""
        for node in target.nodes:
            hands.plane.held[node.name] = hands.plane.held.get(node.name, frozenset()) | {self.part}

    async def lift(self, hands: Hands, target: Target) -> None:
        """They are made of what is true now."""
        for node in target.nodes:
            hands.plane.held[node.name] = hands.plane.held.get(node.name, frozenset()) - {self.part}
            if (worker := hands.plane.workers.get(node.name)) is not None:  # else it has left
                hands.plane.proxying.changed(node.name)
                worker.touch()

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """What was under way has come to its end: from now on rules are old ones; healed, new ones."""
        plane = hands.plane
        busy = [node.name for node in target.nodes if not hands.idle(node.name)]
        behind = [
            node.name
            for node in target.nodes
            if plane.proxying.behind(node.name) and "services" not in plane.held.get(node.name, ())
        ]
        return told(busy + behind, "not at rest")


@fault("proxier-frozen")
class ProxierFrozen(_Frozen, frozen=True, kw_only=True):
    """kube-proxy hangs: service rules of the node stay as they are, whatever becomes of the endpoints."""

    part = "services"


@fault("policy-frozen")
class PolicyFrozen(_Frozen, frozen=True, kw_only=True):
    """The policy agent hangs: policy rules of the node stay as they are, for pods that come, too."""

    part = "policy"


@fault("rules-flushed")
class RulesFlushed(Fault, frozen=True, kw_only=True):
    """Every rule of the node is gone (iptables, nftables, ipset, IPVS), as when somebody flushed them.

    kept: they stay away until healed. Without, rules are flushed once and behind everybody's back: it is over
    at once, and up to kube-proxy to notice (it looks every syncPeriod; IPVS and ipset stay).
    """

    kept: bool = True

    def over(self) -> bool:
        """Whether others make it whole."""
        return not self.kept

    def perturb(self, states: States, target: Target) -> States:
        """Without any rule."""
        if not self.kept:
            return states
        none: dict[str, dict[object, object]] = {part: {} for part in RULES}

        def change(netns: NetnsState) -> NetnsState:
            return msgspec.structs.replace(netns, **none)

        return on_nodes(states, (node.name for node in target.nodes), change)

    async def inject(self, hands: Hands, target: Target) -> None:
        """Flush, with the tools of an administrator."""
        if not self.kept:
            for node in target.nodes:
                await flush(hands, node.name)
