"""``no-default-route``: a node that knows no way out, as after a configuration that forgot its gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from testbed.faults.model import Fault, fault, told
from testbed.faults.target import Aim, Target

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

FAMILIES = ("-4", "-6")
ASIDE = "31999"
"""The routing table that keeps the routes meanwhile; no rule leads there."""


@fault("no-default-route")
class NoDefaultRoute(Fault, frozen=True, kw_only=True):
    """The node's default routes are gone, of both families: it reaches its own segments and its peers' pods.

    With calico nobody answers for its pods' gateway, either: proxy ARP speaks for what is routed elsewhere.
    """

    aim: ClassVar[Aim] = "node"

    async def inject(self, hands: Hands, target: Target) -> None:
        """Put them aside."""
        for node in target.nodes:
            await _move(hands, node.name, "main", ASIDE)

    async def lift(self, hands: Hands, target: Target) -> None:
        """Put them back."""
        for node in target.nodes:
            await _move(hands, node.name, ASIDE, "main")

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The main table has none; healed, none is aside any more."""
        table = "main" if on else ASIDE
        have = [node.name for node in target.nodes if await _all(hands, node.name, table)]
        return told(have, "still has a default route" if on else "its default route is not back yet")


async def _all(hands: Hands, node: str, table: str) -> list[str]:
    return [line for family in FAMILIES for line in await _default(hands, node, family, table)]


async def _default(hands: Hands, node: str, family: str, table: str) -> list[str]:
    """The default routes of a table, as words of ``ip route``; a table that nothing is in is none."""
    argv = ["ip", family, "-oneline", "route", "show", "table", table, "default"]
    shown = await hands.run(node, argv, fails=True)
    return [line.replace("\\", " ") for line in shown.splitlines() if line.startswith("default")]


async def _move(hands: Hands, node: str, source: str, target: str) -> None:
    """Have another table hold the default routes of a table. Raises CommandFailed."""
    for family in FAMILIES:
        lines = await _default(hands, node, family, source)
        batch = "".join(f"{line}\n" for route in lines for line in _commands(route, source, target))
        if batch:
            await hands.run(node, ["ip", family, "-batch", "-"], batch)


def _commands(route: str, source: str, target: str) -> Iterator[str]:
    yield f"route replace {route} table {target}"
    yield f"route delete {route} table {source}"
