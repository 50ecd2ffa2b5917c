"""``impair``: a link that delays, loses, doubles, reorders, damages or slows down packets, by netem and htb.

The words are those of a link in a cluster spec (``spec.topology.link``). Both directions, or only what leaves
(``out``) or reaches (``in``) the node that the link is named by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from testbed.errors import InputError
from testbed.fabric.links import Shaping, seconds
from testbed.faults.model import Ends, EndState, Fault, fault
from testbed.faults.target import Aim, Link, Scene, Target
from testbed.spec.links import link as link_options

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

Share = str | float
CLOSE = 1e-4
"""How far from what was asked for the kernel's own figure may be: it counts time in ticks of 64 ns."""


@fault("impair")
class Impair(Fault, frozen=True, kw_only=True):
    """A link delays, loses, duplicates, reorders, corrupts or slows down packets, as netem and htb do it.

    delay, jitter: ``10ms``; distribution: of the jitter; loss, duplicate, corrupt, reorder: ``1%`` or 0.01;
    bandwidth: ``10Mbit``; direction: seen from the node the link is named by.
    """

    aim: ClassVar[Aim] = "link"

    delay: str = ""
    jitter: str = ""
    distribution: str = ""
    loss: Share = ""
    duplicate: Share = ""
    corrupt: Share = ""
    reorder: Share = ""
    bandwidth: str = ""
    direction: Literal["both", "in", "out"] = "both"

    @property
    def shaping(self) -> dict[str, Any]:
        """Mininet's keyword arguments. Raises InputError."""
        names = (
            *("delay", "jitter", "distribution", "loss"),
            *("duplicate", "corrupt", "reorder", "bandwidth"),
        )
        said = {name: value for name in names if (value := getattr(self, name)) != ""}
        try:
            return link_options(said)
        except ValueError as error:
            raise InputError(f"impair: {error}") from error

    def requires(self) -> frozenset[str]:
        """netem for all but the bandwidth."""
        return frozenset({"netem" if Shaping.of(self.shaping).needs_netem else "htb"})

    def resolve(self, target: Target, scene: Scene) -> Target:
        """Nothing at all is no fault."""
        if not self.shaping:
            raise InputError("impair: says nothing: give delay, loss, bandwidth or the like")
        return target

    def perturb_ends(self, ends: Ends, target: Target) -> Ends:
        """What leaves either end."""
        shaped = {
            end: msgspec.structs.replace(
                before := ends.get(end, EndState()), shaping={**before.shaping, **self.shaping}
            )
            for link in target.links
            for end in self._ends(link)
        }
        return {**ends, **shaped}

    def _ends(self, link: Link) -> tuple[tuple[str, str], ...]:
        return {"both": link.ends, "out": link.ends[:1], "in": link.ends[1:]}[self.direction]

    async def inject(self, hands: Hands, target: Target) -> None:
        """Note how the links are shaped by themselves."""
        ends = [end for link in target.links for end in self._ends(link)]
        hands.before[target.fault] = {end: await _kinds(hands, end) for end in ends}

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The qdiscs, as tc shows them. Healed, each end has those it had, unless another fault is at it."""
        for end, before in hands.before.get(target.fault, {}).items():
            if on:
                if problem := unlike(Shaping.of(self.shaping), await hands.qdiscs(end)):
                    return f"{' '.join(end)}: {problem}"
            elif (found := await _kinds(hands, end)) != before and not hands.ends.get(
                end, EndState()
            ).shaping:
                return f"{' '.join(end)}: has {', '.join(found)} instead of {', '.join(before)}"
        return ""


async def _kinds(hands: Hands, end: tuple[str, str]) -> list[str]:
    return [each["kind"] for each in await hands.qdiscs(end)]


def unlike(shaping: Shaping, shown: list[dict[str, Any]]) -> str:
    """What of a shaping ``tc -json qdisc show`` does not show; "": nothing."""
    found = {each["kind"]: each.get("options") or {} for each in shown}
    if shaping.bw is not None and "htb" not in found:
        return "no htb"
    if not shaping.needs_netem:
        return ""
    if "netem" not in found:
        return "no netem"
    netem = found["netem"]
    wanted = {
        "delay": seconds(shaping.delay) if shaping.delay else None,
        "loss-random": shaping.loss and shaping.loss / 100,
        "duplicate": shaping.duplicate and shaping.duplicate / 100,
        "corrupt": shaping.corrupt and shaping.corrupt / 100,
        "reorder": shaping.reorder and shaping.reorder / 100,
    }
    for name, value in wanted.items():
        inner = netem.get(name) or {}
        seen = inner.get(name.partition("-")[0]) if isinstance(inner, dict) else None
        if value is not None and (seen is None or abs(seen - value) > CLOSE):
            return f"{name} is {seen}, not {value}"
    return ""
