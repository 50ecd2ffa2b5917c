"""DNS messages: what is asked is read back, and no bytes bring the reader down."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.apps.wire import dns
from testbed.measure.lookups import dns_payload, unanswered

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


@given(NAME, st.sampled_from(sorted(dns.TYPES)), st.integers(0, 65535))
def test_a_question_is_read_back(name: str, kind: str, number: int) -> None:
    message = dns.parse(dns.question(number, name, kind))
    assert (message.number, message.name, message.type, message.answer) == (number, name, kind, False)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = dns.parse(data)
    except dns.Malformed:
        return
    assert 0 <= message.number < 65536


def answer(*records: bytes, rcode: int = 0) -> bytes:
    question = dns.question(7, "web.x", "A")[12:]
    return struct.pack("!HHHHHH", 7, 0x8400 | rcode, 1, len(records), 0, 0) + question + b"".join(records)


def record(kind: str, data: bytes, ttl: int = 30) -> bytes:
    return b"\xc0\x0c" + struct.pack("!HHIH", dns.TYPES[kind], 1, ttl, len(data)) + data


def test_answers_are_read_as_dig_prints_them() -> None:
    message = dns.parse(
        answer(
            record("A", bytes((10, 0, 0, 1))),
            record("AAAA", bytes(15) + b"\1"),
            record("SRV", struct.pack("!HHH", 0, 50, 80) + b"\xc0\x0c"),
            record("TXT", b"\x051.1.0"),
            record("CNAME", b"\x01a\xc0\x0c"),
        )
    )
    assert (message.rcode, message.authoritative, message.truncated) == ("NOERROR", True, False)
    assert {one.name for one in message.answers} == {"web.x"}
    assert [(one.type, one.data) for one in message.answers] == [
        ("A", "10.0.0.1"),
        ("AAAA", "::1"),
        ("SRV", "0 50 80 web.x"),
        ("TXT", '"1.1.0"'),
        ("CNAME", "a.web.x"),
    ]


def test_refusals_have_names() -> None:
    assert dns.parse(answer(rcode=3)).rcode == "NXDOMAIN"
    assert dns.parse(answer(rcode=5)).rcode == "REFUSED"


def test_a_name_in_circles_is_malformed() -> None:
    with pytest.raises(dns.Malformed):
        dns.parse(struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\x00\x01\x00\x01")


def test_too_long_a_name_is_no_question() -> None:
    with pytest.raises(ValueError, match="too long"):
        dns.question(1, "a" * 64, "A")


def test_only_dns_over_udp_is_taken_out_of_packets() -> None:
    datagram = struct.pack("!HHHH", 40000, 53, 8 + 5, 0) + b"hello"
    ipv4 = bytes((0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0)) + bytes(8)
    ipv6 = bytes((0x60, 0, 0, 0, 0, 13, 17, 64)) + bytes(32)
    assert dns_payload(ipv4 + datagram) == dns_payload(ipv6 + datagram) == b"hello"
    assert dns_payload(ipv4 + struct.pack("!HHHH", 40000, 80, 13, 0) + b"hello") is None
    assert dns_payload(ipv4.replace(b"\x40\x11", b"\x40\x06") + datagram) is None
    assert dns_payload(b"") is None


def test_a_lookup_has_settled_when_each_question_has_its_answer() -> None:
    def message(number: int, answer: bool, kind: str = "A") -> dns.Message:
        return dns.Message(number, answer, "NOERROR", False, False, "web.", kind)

    asked = [message(1, False), message(2, False, "AAAA")]
    assert not unanswered([])
    assert unanswered(asked)
    assert unanswered([*asked, message(1, True)])
    assert not unanswered([*asked, message(2, True, "AAAA"), message(1, True)])
    assert unanswered([*asked, *asked, message(1, True), message(2, True, "AAAA")]), (
        "asked again: one is open"
    )
