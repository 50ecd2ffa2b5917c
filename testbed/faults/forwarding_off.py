"""``forwarding-off``: a node that no longer routes, as after a sysctl file that is not for nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from testbed.faults.model import Fault, States, fault, on_nodes, told
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

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Sysctls are not read back by themselves."""
        shown = {node.name: await hands.run(node.name, ["cat", f"/proc/sys/{PATH}"]) for node in target.nodes}
        wrong = [name for name, value in shown.items() if (value.strip() == "0") != on]
        return told(wrong, "still forwards" if on else "does not forward yet")
