"""``forwarding-off``: a node that no longer routes, as after a sysctl file that is not for nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from testbed.faults.model import Fault, States, fault, on_nodes
from testbed.faults.target import Target
from testbed.state import NetnsState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

PATH = "net/ipv4/ip_forward"


@fault("forwarding-off")
class ForwardingOff(Fault, frozen=True, kw_only=True):
    """The node forwards no IPv4 packet (ip_forward 0): its pods reach nobody elsewhere, itself it does."""

    def perturb(self, states: States, target: Target) -> States:
        """One sysctl."""

        def change(netns: NetnsState) -> NetnsState:
            return replace(netns, sysctls={**netns.sysctls, PATH: "0"})

        return on_nodes(states, (node.name for node in target.nodes), change)

    async def missing(self, hands: Hands, target: Target) -> str:
        """Sysctls are not read back by themselves."""
        on = [node.name for node in target.nodes if await self._value(hands, node.name) != "0"]
        return f"{', '.join(on)}: still forwards" if on else ""

    async def left(self, hands: Hands, target: Target) -> str:
        """As ``missing``."""
        off = [node.name for node in target.nodes if await self._value(hands, node.name) == "0"]
        return f"{', '.join(off)}: does not forward yet" if off else ""

    @staticmethod
    async def _value(hands: Hands, node: str) -> str:
        return (await hands.run(node, ["cat", f"/proc/sys/{PATH}"])).strip()
