"""What walkers of rules are asked and answer: where does the first packet of a connection come out?

The same question is answered three times, by what the objects mean, by walking the rules written for them,
and by traffic; the answers are comparable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal


@dataclass(frozen=True)
class Flow:
    """The first packet of a new connection, as a node sees it.

    protocol: ``tcp``, ``udp``, ``sctp`` or another name as iptables prints it; port, source_port: 0 where the
    protocol has none. device: what it comes in by, "" where the node itself made it.
    """

    source: str
    destination: str
    protocol: str = "tcp"
    port: int = 0
    source_port: int = 40000
    device: str = "eth0"

    @property
    def to(self) -> str:
        """``address:port`` that it was sent to; IPv6 in brackets."""
        return endpoint(self.destination, self.port)


@dataclass(frozen=True)
class Host:
    """The node that is walked through. addresses: its own, beside all of loopback.

    devices: range → device by which packets leave for it; where none matches, ``eth0``.
    """

    addresses: frozenset[str]
    devices: Mapping[str, str] = field(default_factory=dict)

    def is_local(self, address: str) -> bool:
        """Whether the node itself has the address: what addrtype calls LOCAL."""
        return address in self.addresses or ip_address(address).is_loopback

    def device_to(self, address: str) -> str:
        """The device by which a packet leaves for an address."""
        if self.is_local(address):
            return "lo"
        there = ip_address(address)
        return next((device for cidr, device in self.devices.items() if there in ip_network(cidr)), "eth0")


@dataclass(frozen=True)
class Verdict:
    """Where a packet comes out. destination: ``address:port`` it goes on to, "" where it goes nowhere.

    masqueraded: whether it gets an address of the node as its source. rule: what decided, for people; it is
    no part of the answer.
    """

    action: Literal["pass", "reject", "drop"]
    destination: str = ""
    masqueraded: bool = False
    rule: str = field(default="", compare=False)

    def __str__(self) -> str:
        to = f" to {self.destination}" if self.destination else ""
        return f"{self.action}{to}{', masqueraded' if self.masqueraded else ''}"


Verdicts = Mapping[Verdict, float]
"""Each verdict that a packet may get, with its chance; the chances add up to 1."""


def together(verdicts: Iterable[tuple[Verdict, float]]) -> dict[Verdict, float]:
    """Verdicts that are alike as one, with the sum of their chances."""
    chances: dict[Verdict, float] = {}
    for verdict, chance in verdicts:
        chances[verdict] = chances.get(verdict, 0.0) + chance
    return chances


def differences(expected: Verdicts, walked: Verdicts, tolerance: float = 1e-6) -> list[str]:
    """What two answers differ in, in words; nothing where they agree. tolerance: of a chance."""
    rules = {verdict: verdict.rule for verdict in walked}
    found = []
    for verdict in {**expected, **walked}:
        wanted, is_so = expected.get(verdict, 0.0), walked.get(verdict, 0.0)
        if abs(wanted - is_so) > tolerance:
            why = rules.get(verdict) or "no rule"
            found.append(f"{verdict}: expected with chance {wanted:.6f}, is {is_so:.6f} ({why})")
    return found


def endpoint(address: str, port: int) -> str:
    """``address:port``; IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
