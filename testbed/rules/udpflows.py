"""Which tracked UDP connections have to end, so that what follows of them meets the rules as they are now.

Source: ``pkg/proxy/conntrack/cleanup.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from testbed.rules.flows import endpoint
from testbed.state import Family, UdpFlows


class Tracked(NamedTuple):
    """A UDP connection: whom it was sent to, and who answers it. key: what the kernel knows it by."""

    destination: str
    port: int
    answers: str
    answers_port: int
    key: bytes = b""


def stale(tracked: Iterable[Tracked], flows: Iterable[UdpFlows]) -> Iterator[Tracked]:
    """The connections that go to somebody who does not serve them (any more)."""
    serving = {(each.family, each.address, each.port): frozenset(each.serving) for each in flows}
    for each in tracked:
        family: Family = "ipv6" if ":" in each.destination else "ipv4"
        for address in (each.destination, ""):
            if (known := serving.get((family, address, each.port))) is not None:
                if endpoint(each.answers, each.answers_port) not in known:
                    yield each
                break
