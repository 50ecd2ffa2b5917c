"""``link-down`` and ``link-flap``: a cable that is out, for good or again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from testbed.faults.model import Ends, EndState, Fault, fault, told
from testbed.faults.target import Aim, Target

if TYPE_CHECKING:
    from testbed.faults.hands import Hands


@fault("link-down")
class LinkDown(Fault, frozen=True, kw_only=True):
    """The cable is out: nothing passes, and both ends see no carrier but keep their addresses and routes.

    A node whose cable it is does not reach the API server either: it becomes NotReady in time.
    """

    aim: ClassVar[Aim] = "link"

    def perturb_ends(self, ends: Ends, target: Target) -> Ends:
        """One end down takes the carrier from the other, too."""
        return {**ends, **{link.ends[0]: _cut(ends, link.ends[0]) for link in target.links}}

    async def conclude(self, hands: Hands, target: Target) -> None:
        """What a node says to the API server goes another way here than its cable."""
        for name in _nodes(target):
            hands.cut_off(name, target.fault)

    async def lift(self, hands: Hands, target: Target) -> None:
        """It is heard again."""
        for name in _nodes(target):
            hands.reconnect(name, target.fault)

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Both ends of each link. Healed, unless another fault has its cable out."""
        out = {end for end, state in hands.ends.items() if not (on or state.up)}
        links = [link for link in target.links if not out & {*link.ends}]
        wrong = [link.name for link in links if await hands.down(link) != on]
        return told(wrong, "still up" if on else "still down")


Seconds = Annotated[float, msgspec.Meta(ge=0.05, le=3600)]


@fault("link-flap")
class LinkFlap(LinkDown, frozen=True, kw_only=True):
    """The cable goes out and in again and again, beginning with out. down, up: seconds of each.

    The API server does not notice: its heartbeats are late at most.
    """

    down: Seconds = 1.0
    up: Seconds = 1.0

    def perturb_ends(self, ends: Ends, target: Target) -> Ends:
        """No lasting state: see ``inject``."""
        return ends

    async def inject(self, hands: Hands, target: Target) -> None:
        """Begin."""
        hands.keep(target.fault, asyncio.create_task(self._flap(hands, target)))

    async def conclude(self, hands: Hands, target: Target) -> None:
        """Nothing more."""

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Whether it was seen to be out: the first time lasts for as long as that takes."""
        problem = await super().amiss(hands, target, on)
        if on and not problem:
            hands.seen(target.fault).set()
        return problem

    async def lift(self, hands: Hands, target: Target) -> None:
        """Leave the cable in."""
        await hands.stopped(target.fault)
        await self._set(hands, target, up=True)

    async def _flap(self, hands: Hands, target: Target) -> None:
        seen = hands.seen(target.fault)
        while True:
            await self._set(hands, target, up=False)
            await seen.wait()
            await asyncio.sleep(self.down)
            await self._set(hands, target, up=True)
            await asyncio.sleep(self.up)

    @staticmethod
    async def _set(hands: Hands, target: Target, *, up: bool) -> None:
        for link in target.links:
            state = hands.ends.get(link.ends[0], EndState())
            await hands.change_end(link.ends[0], msgspec.structs.replace(state, up=up and state.up))


def _nodes(target: Target) -> list[str]:
    """The nodes, or whatever hosts, whose cables these are."""
    return [name for link in target.links for name, _ in link.ends]


def _cut(ends: Ends, end: tuple[str, str]) -> EndState:
    return msgspec.structs.replace(ends.get(end, EndState()), up=False)
