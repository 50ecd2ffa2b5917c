"""Zones of DNS hosts outside: what may be written, and what dnsmasq reads of it."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.dns.upstream import resolv_conf, upstream_config
from testbed.spec.zone import circles, zone_records


def test_addresses_may_be_written_alone_or_in_lists() -> None:
    assert [(one.type, one.value) for one in zone_records("A.example.com.", "192.0.2.1")] == [
        ("A", "192.0.2.1")
    ]
    both = zone_records("a.example.com", ["192.0.2.1", "2001:db8::1"])
    assert [(one.name, one.type) for one in both] == [("a.example.com", "A"), ("a.example.com", "AAAA")]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("nowhere", "must be an address"),
        (7, "must be an address"),
        ({}, "must be records by type"),
        ({"NAPTR": "x"}, "not NAPTR"),
        ({"A": "2001:db8::1"}, "of the other family"),
        ({"CNAME": "a.b", "TXT": "x"}, "can have nothing else"),
        ({"CNAME": "a b"}, "must be a DNS name"),
        ({"TXT": 'a"b'}, "printable ASCII"),
        ({"TXT": "a\nserver=192.0.2.1"}, "printable ASCII"),
        ({"MX": "mail.example.com"}, "PREFERENCE NAME"),
        ({"SRV": "0 1 70000 a.b"}, "PRIORITY WEIGHT PORT NAME"),
    ],
)
def test_what_makes_no_record_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        zone_records("example.com", value)


@pytest.mark.parametrize("name", ["", "a..b", "a b.example.com", "-a.example.com", "a,b", 5])
def test_names_are_names(name: Any) -> None:
    with pytest.raises(ValueError, match="DNS name"):
        zone_records(name, "192.0.2.1")


def test_every_type_is_a_line_of_dnsmasq() -> None:
    zone = [
        *zone_records("a.example.com", "192.0.2.1"),
        *zone_records("b.example.com", {"CNAME": "a.example.com"}),
        *zone_records("c.example.com", {"TXT": "hello, world", "MX": "10 a.example.com"}),
        *zone_records("_x._tcp.example.com", {"SRV": "0 5 80 a.example.com"}),
        *zone_records("1.2.0.192.in-addr.arpa", {"PTR": "a.example.com"}),
    ]
    lines = upstream_config(zone, ["203.0.113.53"]).splitlines()
    assert lines[-6:] == [
        "host-record=a.example.com,192.0.2.1",
        "cname=b.example.com,a.example.com",
        'txt-record=c.example.com,"hello, world"',
        "mx-host=c.example.com,a.example.com,10",
        "srv-host=_x._tcp.example.com,a.example.com,80,0,5",
        "ptr-record=1.2.0.192.in-addr.arpa,a.example.com",
    ]
    assert {"listen-address=203.0.113.53", "address=/#/"} <= set(lines)


def test_backslashes_of_a_text_reach_who_asks() -> None:
    """Inside quotes dnsmasq makes a tab of \\t."""
    zone = zone_records("c.example.com", {"TXT": r"C:\temp"})
    assert upstream_config(zone, []).splitlines()[-1] == r'txt-record=c.example.com,"C:\\temp"'


def test_machines_use_the_hosts_outside() -> None:
    assert (
        resolv_conf(["203.0.113.53", "2001:db8::53"]) == "nameserver 203.0.113.53\nnameserver 2001:db8::53\n"
    )


def test_aliases_in_circles_are_found() -> None:
    def alias(name: str, target: str) -> Any:
        return zone_records(name, {"CNAME": target})[0]

    assert circles([alias("a.x", "b.x"), alias("b.x", "a.x"), alias("c.x", "a.x"), alias("d.x", "e.x")]) == [
        *("a.x", "b.x", "c.x")
    ]
    assert circles([alias("a.x", "a.x")]) == ["a.x"]
