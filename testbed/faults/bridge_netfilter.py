"""``bridge-netfilter-off``: bridged frames pass by netfilter, as where br_netfilter is not loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from testbed.errors import InputError
from testbed.faults.model import Fault, States, fault, on_nodes
from testbed.faults.target import Scene, Target
from testbed.state import NetnsState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

SYSCTLS = tuple(f"net/bridge/bridge-nf-call-{table}" for table in ("iptables", "ip6tables"))


@fault("bridge-netfilter-off")
class BridgeNetfilterOff(Fault, frozen=True, kw_only=True):
    """Frames between ports of a bridge of the node are not shown to iptables (bridge-nf-call-iptables 0).

    Policies between its own pods are not enforced, without a word; and a pod that asks a Service whose
    backend is on the same bridge never hears of it, as the answer is not translated back.
    """

    def resolve(self, target: Target, scene: Scene) -> Target:
        """Pods of Calico are ports of no bridge."""
        if scene.snapshot.facts.dataplane == "calico":
            raise InputError("with calico pods are on no bridge: all that they send is routed")
        return target

    def perturb(self, states: States, target: Target) -> States:
        """The sysctls, and what a bridge says for itself, as Weave's does."""

        def change(netns: NetnsState) -> NetnsState:
            links = {
                name: msgspec.structs.replace(link, nf_call_iptables=False)
                for name, link in netns.links.items()
            }
            sysctls = {**netns.sysctls, **dict.fromkeys(SYSCTLS, "0")}
            return msgspec.structs.replace(netns, links=links, sysctls=sysctls)

        return on_nodes(states, (node.name for node in target.nodes), change)

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Sysctls are not read back by themselves."""
        for node in target.nodes:
            shown = await hands.run(node.name, ["cat", *(f"/proc/sys/{path}" for path in SYSCTLS)])
            if on and "1" in shown:
                return f"{node.name}: bridge-nf-call is {' '.join(shown.split())}"
        return ""
