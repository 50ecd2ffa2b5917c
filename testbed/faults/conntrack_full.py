"""``conntrack-full``: a node's connection table is full, and new connections are dropped.

The limit, nf_conntrack_max, is one for the whole host and no namespace can lower it; what is counted against
it are the entries of each network namespace by itself. So the table of the node is filled for real, up to the
host's limit, at a bounded rate, with entries that nobody's packets belong to. Nothing of the host is changed,
and no other cluster's table is full; what they share is the kernel's memory (about 320 bytes an entry), which
is looked at before, and the hash table, whose chains get longer by one at most where it has its default size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from testbed.errors import Lack, MissingCapability
from testbed.faults.model import Fault, fault
from testbed.faults.programs import argv
from testbed.faults.target import Target

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

MARK = 0x7E570000
"""Of the entries that are ours."""
ENTRY_BYTES = 384
"""struct nf_conn with its extensions, rounded up (``/proc/slabinfo``: nf_conntrack, 256, and nf_ct_ext)."""
SPARE = 4
"""How many times what is filled has to be available."""
LIMIT, COUNT = "/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_count"
OTHERS = 1_000
"""Connections that may have come meanwhile."""
CLOSE = 64
"""Entries by which a full table may be short for a moment, as others' expire."""


@fault("conntrack-full")
class ConntrackFull(Fault, frozen=True, kw_only=True):
    """The node's connection table is filled for real: packets of new connections are dropped, old ones go on.

    share: of the limit (nf_conntrack_max, the host's); rate: entries a second.
    """

    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    rate: Annotated[int, msgspec.Meta(ge=100, le=200_000)] = 50_000

    def takes(self) -> float:
        """At the rate asked for, and as long again: the limit is 262,144 on a machine of some size."""
        return 2 * 262_144 / self.rate + 30

    async def inject(self, hands: Hands, target: Target) -> None:
        """Fill, and keep full."""
        hands.before[target.fault] = {
            node.name: await _number(hands, node.name, COUNT) for node in target.nodes
        }
        for node in target.nodes:
            wanted = await self._wanted(hands, node.name)
            _check_memory(wanted * len(target.nodes))
            words = argv("fill_conntrack", str(MARK), str(wanted), str(self.rate))
            hands.keep(_key(target, node.name), await hands.start(node.name, words))

    async def lift(self, hands: Hands, target: Target) -> None:
        """Remove what is ours and nothing else."""
        for node in target.nodes:
            await hands.stopped(_key(target, node.name))
            await hands.run(node.name, argv("fill_conntrack", str(MARK)))

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The kernel's own count. Healed, none of ours: once more if the program that was killed had one
        batch under way."""
        counts = hands.before.get(target.fault, {})
        for node, before in ((each.name, counts[each.name]) for each in target.nodes if each.name in counts):
            wanted, held = await self._wanted(hands, node), await _number(hands, node, COUNT)
            if on and held < wanted - CLOSE:
                return f"{node}: {held:,} of {wanted:,} connections"
            if not on and held > before + (wanted - before) / 2 + OTHERS:
                await hands.run(node, argv("fill_conntrack", str(MARK)))
                return f"{node}: its connection table still holds {held:,}"
        return ""

    async def _wanted(self, hands: Hands, node: str) -> int:
        return int(self.share * await _number(hands, node, LIMIT))


def _key(target: Target, node: str) -> str:
    """One for each node, which may leave before the others."""
    return f"{target.fault} {node}"


async def _number(hands: Hands, node: str, path: str) -> int:
    return int(await hands.run(node, ["cat", path]))


def _check_memory(entries: int) -> None:
    """Raises MissingCapability where the kernel's memory would get short for everybody."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if (need := entries * ENTRY_BYTES * SPARE) > available:
        why = f"{entries:,} connections take {entries * ENTRY_BYTES >> 20} MB of the kernel's memory"
        fix = f"have {need >> 20} MB available, or lower net.netfilter.nf_conntrack_max on the host"
        raise MissingCapability([Lack("memory", why, fix)])
