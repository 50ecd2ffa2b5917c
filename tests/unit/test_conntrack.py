"""What is read of the connections that the kernel tracks."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from testbed.kernel import conntrack

ESTABLISHED, TIME_WAIT, CLOSE = 3, 7, 8
"""``linux/netfilter/nf_conntrack_tcp.h``."""


def attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(body), kind) + body + b"\0" * (-len(body) % 4)


def tuple_of(source: str, target: str, protocol: int, ports: tuple[int, int]) -> bytes:
    first = 1 if ip_address(source).version == 4 else 3
    ends = [attribute(first + k, ip_address(ip).packed) for k, ip in enumerate((source, target))]
    numbers = [attribute(2 + k, struct.pack("!H", port)) for k, port in enumerate(ports)]
    return attribute(1, b"".join(ends)) + attribute(2, attribute(1, bytes([protocol])) + b"".join(numbers))


def tracked(monkeypatch: pytest.MonkeyPatch, *entries: dict[int, bytes]) -> list[tuple[str, str, int, bytes]]:
    monkeypatch.setattr(conntrack, "_tracked", lambda sock, family: iter(entries))
    return [
        (each.source, each.destination, each.port, each.key[:1]) for each in conntrack.connections(0x40000)
    ]


@pytest.mark.parametrize(("state", "listed"), [(ESTABLISHED, 1), (TIME_WAIT, 0), (CLOSE, 0)])
def test_a_connection_that_is_over_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, state: int, listed: int
) -> None:
    there = tuple_of("10.0.0.1", "10.0.0.2", 6, (40000, 80))
    back = tuple_of("10.0.0.2", "10.0.0.1", 6, (80, 40000))
    tcp = attribute(1, attribute(1, bytes([state])))
    assert len(tracked(monkeypatch, {1: there, 2: back, 4: tcp})) == listed


def test_both_families_are_told_apart_in_one_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2"))
    entries = [
        {1: tuple_of(one, other, 17, (4000, 53)), 2: tuple_of(other, one, 17, (53, 4000))}
        for one, other in pairs
    ]
    assert tracked(monkeypatch, *entries) == [
        ("10.0.0.1", "10.0.0.2", 53, b"\x02"),
        ("fd00::1", "fd00::2", 53, b"\x0a"),
    ]
