"""``mtu-black-hole``: a link that loses long packets without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from testbed.faults.model import Ends, EndState, Fault, fault
from testbed.faults.target import Aim, Target

if TYPE_CHECKING:
    from testbed.faults.hands import Hands


@fault("mtu-black-hole")
class MtuBlackHole(Fault, frozen=True, kw_only=True):
    """The far end of the link takes no packet above ``mtu`` bytes and says nothing to anybody.

    Nodes go on believing in their own MTU: nobody is there to answer with "fragmentation needed". It is the
    port's MTU that is lowered, so that the kernel drops longer frames in both directions. Meanwhile hosts cut
    what they send into segments themselves, as any wire would have it (gso_max_segs 1).
    """

    aim: ClassVar[Aim] = "link"

    mtu: Annotated[int, msgspec.Meta(ge=576, le=65_535)] = 1400

    def perturb_ends(self, ends: Ends, target: Target) -> Ends:
        """Of several the smallest."""
        far = [link.ends[1] for link in target.links]
        before = {end: ends.get(end, EndState()) for end in far}
        return {
            **ends,
            **{
                end: msgspec.structs.replace(each, mtu=min(each.mtu or self.mtu, self.mtu))
                for end, each in before.items()
            },
        }

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The far ends have the MTU that is asked for, by any fault, or else that of the near ones."""
        for link in target.links:
            near, far = [await hands.device(end) for end in link.ends]
            wanted = hands.ends.get(link.ends[1], EndState()).mtu or near["mtu"]
            if far["mtu"] != wanted:
                return f"{' '.join(link.ends[1])}: mtu {far['mtu']}, not {wanted}"
            if on and (segments := near.get("gso_max_segs")) != 1:
                return f"{' '.join(link.ends[0])}: gso_max_segs {segments}"
        return ""
