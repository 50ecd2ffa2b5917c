"""``udp-race``: two packets of one new UDP flow meet connection tracking at the same moment.

The race behind DNS lookups that took 5 seconds: both packets find no entry, each makes its own, perhaps to
another endpoint of the Service, and the one that comes second to enter it fails (``insert_failed``) and is
lost. Kernels of today settle most of these (``clash_resolve``): the second packet goes on beside the first's
entry. It needs two CPUs. Nothing is broken: packets are sent so that the race happens, and the kernel counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from testbed.errors import InputError
from testbed.faults.model import Fault, fault
from testbed.faults.programs import argv
from testbed.faults.target import Aim, Scene, Target

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

COUNTERS = ("insert_failed", "clash_resolve")
DNS_PORT = 53


def counted(statistics: str) -> dict[str, int]:
    """What ``conntrack -S`` counts of the race, of all CPUs."""
    return {name: sum(map(int, re.findall(rf"\b{name}=(\d+)", statistics))) for name in COUNTERS}


@fault("udp-race")
class UdpRace(Fault, frozen=True, kw_only=True):
    """The pod sends pairs of DNS questions to cluster DNS so that both race through connection tracking.

    rate: at most so many pairs a second.
    """

    aim: ClassVar[Aim] = "pod"
    needs: ClassVar[frozenset[str]] = frozenset({"conntrack"})

    rate: Annotated[int, msgspec.Meta(ge=1, le=5_000)] = 1_000

    def resolve(self, target: Target, scene: Scene) -> Target:
        """Where cluster DNS is."""
        addresses = scene.snapshot.facts.dns_addresses
        if not addresses:
            raise InputError("udp-race: this cluster has no DNS to ask")
        return msgspec.structs.replace(target, addresses=addresses[:1])

    async def inject(self, hands: Hands, target: Target) -> None:
        """Note the counters, and begin."""
        key, domain = target.fault, hands.plane.facts.cluster_domain
        nodes = sorted({pod.node for pod in target.pods})
        hands.before[key] = {node: await _counted(hands, node) for node in nodes}
        for pod in target.pods:
            words = argv(
                "race_udp",
                target.addresses[0],
                str(DNS_PORT),
                str(self.rate),
                f"kubernetes.default.svc.{domain}",
            )
            hands.keep(key, await hands.start_in(pod, words))

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """One of the counters has grown on each node: a race was run and lost or settled."""
        for node, before in hands.before.get(target.fault, {}).items():
            if on and await _counted(hands, node) == before:
                return f"{node}: no race was seen yet, {before}"
        return ""

    async def lift(self, hands: Hands, target: Target) -> None:
        """No more."""
        await hands.stopped(target.fault)


async def _counted(hands: Hands, node: str) -> dict[str, int]:
    return counted(await hands.run(node, ["conntrack", "-S"]))
