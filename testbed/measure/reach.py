"""Reachability of many flows: attempts, what is retried, and the last word on silence.

A flow is a timeout only when every attempt, each with a fresh socket (so a fresh source port and echo
identifier) and the whole timeout, went unanswered; any answer, good or bad, is final. Silence whose next
hop does not answer ARP or neighbour discovery is ``unreachable: host``: the kernel would say so itself,
but only after 3 s (three solicitations, 1 s apart).
"""

from __future__ import annotations

import dataclasses
import resource
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from testbed.measure import neighbours
from testbed.measure.exchange import Attempt
from testbed.measure.icmp import IcmpAttempt
from testbed.measure.messages import Flow, NeighbourTable, Outcome, Protocol
from testbed.measure.sockets import Namespaces, family_of
from testbed.measure.tcp import TcpExchange
from testbed.measure.udp import UdpExchange
from testbed.measure.verdicts import NO_ANSWER

_SPARE_DESCRIPTORS: Final = 512
_MOST_OPEN: Final = 8192
"""Flows open at once: more gains nothing, as each is answered within microseconds or not at all."""


def window() -> int:
    """How many sockets may be open at a time; raises this process' descriptor limit to its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(64, min(_MOST_OPEN, hard - _SPARE_DESCRIPTORS))


def reach(
    protocol: Protocol, flows: Sequence[Flow], namespaces: Namespaces, *, timeout: float, attempts: int
) -> list[Outcome]:
    """One outcome per flow, in order. Flows of one source should stand together. Raises OSError."""
    outcomes: dict[int, Outcome] = {}
    pending = list(range(len(flows)))
    for number in range(1, attempts + 1):
        answered = _attempt(protocol, [flows[index] for index in pending], namespaces, timeout)
        for index, outcome in zip(pending, answered, strict=True):
            if outcome is not None:
                outcomes[index] = msgspec.structs.replace(outcome, attempts=number)
        pending = [index for index in pending if index not in outcomes]
        if not pending:
            break
    dead = _dead_ends([flows[index] for index in pending], namespaces)
    for index in pending:
        flow = flows[index]
        lost = (flow.source, flow.ip) in dead
        outcomes[index] = (
            Outcome("unreachable", "host", attempts=attempts)
            if lost
            else Outcome("timeout", NO_ANSWER, attempts=attempts)
        )
    return [outcomes[index] for index in range(len(flows))]


def _attempt(
    protocol: Protocol, flows: Sequence[Flow], namespaces: Namespaces, timeout: float
) -> list[Outcome | None]:
    if protocol == "icmp":
        return IcmpAttempt(flows, timeout).run(namespaces)
    exchange = TcpExchange() if protocol == "tcp" else UdpExchange()
    return Attempt(exchange, flows, timeout, window()).run(namespaces)


def _dead_ends(flows: Sequence[Flow], namespaces: Namespaces) -> set[tuple[str, str]]:
    """(source, ip) of the flows whose next hop is silent."""
    targets: dict[str, set[str]] = {}
    for flow in flows:
        targets.setdefault(flow.source, set()).add(flow.ip)
    dead: set[tuple[str, str]] = set()
    for source, ips in targets.items():
        namespaces.enter(source)
        dead.update((source, ip) for ip in neighbours.unresolved(ips))
    return dead


@dataclasses.dataclass
class NeighbourWatch:
    """The neighbour tables of the families in use, before and after a request."""

    before: dict[socket.AddressFamily, NeighbourTable]

    @classmethod
    def over(cls, flows: Sequence[Flow]) -> NeighbourWatch:
        """Look at the tables of every family among the flows."""
        families = {family_of(flow.ip) for flow in flows}
        return cls({family: neighbours.table(family) for family in families})

    def result(self) -> dict[str, tuple[NeighbourTable, NeighbourTable]]:
        """Family → table before and now."""
        names = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
        return {names[family]: (before, neighbours.table(family)) for family, before in self.before.items()}
