"""The DNS host outside: what its dnsmasq reads. Pure.

To a cluster it is the whole world's DNS: what its zone does not have does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from testbed.dns.dnsmasq import lines
from testbed.spec.zone import ZoneRecord

TTL = 300
"""Seconds: more than a cluster's cache keeps anything."""


def upstream_config(zone: Iterable[ZoneRecord], addresses: Iterable[str]) -> str:
    """The configuration. addresses: the host's own, on which it answers."""
    return lines([*_server(addresses), *_records(zone)])


def _server(addresses: Iterable[str]) -> Iterator[str]:
    yield "port=53"
    yield "bind-interfaces"
    yield from (f"listen-address={address}" for address in addresses)
    yield from (f"local-ttl={TTL}", "cache-size=0", "address=/#/")


def _records(zone: Iterable[ZoneRecord]) -> Iterator[str]:
    for record in zone:
        match record.type:
            case "A" | "AAAA":
                yield f"host-record={record.name},{record.value}"
            case "CNAME":
                yield f"cname={record.name},{record.value}"
            case "TXT":
                text = record.value.replace("\\", "\\\\")  # in quotes, dnsmasq reads \t and the like
                yield f'txt-record={record.name},"{text}"'
            case "MX":
                preference, target = record.value.split()
                yield f"mx-host={record.name},{target},{preference}"
            case "SRV":
                priority, weight, port, target = record.value.split()
                yield f"srv-host={record.name},{target},{port},{priority},{weight}"
            case "PTR":
                yield f"ptr-record={record.name},{record.value}"


def resolv_conf(addresses: Iterable[str]) -> str:
    """The resolv.conf of a machine that uses these hosts."""
    return "".join(f"nameserver {ip_address(address)}\n" for address in addresses)
