"""The zone of a DNS host outside the cluster, as a spec writes it: ``external[].dns.zone``.

A name has one address, a list of them, or records by type::

    zone:
      www.example.com: 198.51.100.80
      both.example.com: [198.51.100.81, "2001:db8::81"]
      example.com: {A: 198.51.100.80, TXT: hello, MX: 10 mail.example.com}
      alias.example.com: {CNAME: www.example.com}

Pure. What is not in it does not exist: the host says NXDOMAIN to everything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from testbed.units import describe

ZoneType = Literal["A", "AAAA", "CNAME", "TXT", "MX", "SRV", "PTR"]
TYPES = ("A", "AAAA", "CNAME", "TXT", "MX", "SRV", "PTR")
_LABEL = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?")
_TEXT = re.compile(r"[ -!#-~]{0,255}")
"""Printable ASCII without the quote that ends a string of a dnsmasq configuration."""


@dataclass(frozen=True)
class ZoneRecord:
    """One record; value: as in a zone file, names without trailing dot."""

    name: str
    type: ZoneType
    value: str


def zone_records(name: Any, value: Any) -> tuple[ZoneRecord, ...]:
    """The records of one name of a zone. Raises ValueError with what is wrong."""
    owner = _name(name)
    if isinstance(value, dict):
        unknown = [str(kind) for kind in value if kind not in TYPES]
        if unknown or not value:
            raise ValueError(
                f"must be records by type ({', '.join(TYPES)}), not {', '.join(unknown) or 'empty'}"
            )
        if "CNAME" in value and len(value) > 1:
            raise ValueError("has a CNAME, and so can have nothing else")
        return tuple(
            ZoneRecord(owner, kind, _value(kind, one)) for kind, many in value.items() for one in _each(many)
        )
    return tuple(_address(owner, one) for one in _each(value))


def circles(records: Iterable[ZoneRecord]) -> list[str]:
    """Names whose aliases lead back to an alias on the way: dnsmasq does not start with such."""
    alias = {record.name: record.value for record in records if record.type == "CNAME"}
    found = []
    for name in alias:
        seen, target = {name}, alias[name]
        while target in alias and target not in seen:
            seen.add(target)
            target = alias[target]
        if target in seen:
            found.append(name)
    return found


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _address(owner: str, value: Any) -> ZoneRecord:
    try:
        address = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None:
        raise ValueError(f"must be an address, addresses, or records by type, not {describe(value)}")
    return ZoneRecord(owner, "A" if address.version == 4 else "AAAA", str(address))


def _value(kind: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{kind}: must be text, not {describe(value)}")
    match kind:
        case "A" | "AAAA":
            if (record := _address("", value)).type != kind:
                raise ValueError(f"{kind}: {value} is of the other family")
            return record.value
        case "TXT":
            if not _TEXT.fullmatch(value):
                raise ValueError("TXT: must be at most 255 printable ASCII characters without quotes")
            return value
        case "MX" | "SRV":
            *numbers, target = value.split() or [""]
            if len(numbers) != (1 if kind == "MX" else 3) or not all(
                number.isascii() and number.isdecimal() and int(number) < 65536 for number in numbers
            ):
                form = "PREFERENCE NAME" if kind == "MX" else "PRIORITY WEIGHT PORT NAME"
                raise ValueError(f"{kind}: must be {form}, not {value!r}")
            return " ".join((*numbers, _name(target)))
    return _name(value)


def _name(value: Any) -> str:
    """A name in lower case without the trailing dot. Raises ValueError."""
    name = value.rstrip(".").lower() if isinstance(value, str) else ""
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"must be a DNS name, not {describe(value)}")
    return name
