"""DNS messages (RFC 1035), as far as asking and reading answers needs them.

Names are text without trailing dot, in the case in which they came; labels are taken as ASCII.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

TYPES: Final = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "TXT": 16, "AAAA": 28, "SRV": 33, "OPT": 41}
NAMES: Final = {number: name for name, number in TYPES.items()}
RCODES: Final = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_ANSWER, _AUTHORITATIVE, _TRUNCATED, _RECURSION = 0x8000, 0x0400, 0x0200, 0x0100
MAX_JUMPS = 64
"""How many compression pointers one name may have: more is a loop."""


class Malformed(ValueError):
    """Bytes that are no DNS message."""


@dataclass(frozen=True)
class Record:
    """One record. data: as dig prints it, names without trailing dot."""

    name: str
    type: str
    ttl: int
    data: str


@dataclass(frozen=True)
class Message:
    """A message. rcode: its name; name, type: of the first question, "" without one."""

    number: int
    answer: bool
    rcode: str
    authoritative: bool
    truncated: bool
    name: str
    type: str
    answers: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()


def question(number: int, name: str, kind: str, *, recursion: bool = True) -> bytes:
    """A question. Raises ValueError for a name that is none."""
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".") if label]
    if any(len(label) > 63 for label in labels) or sum(len(label) + 1 for label in labels) > 254:
        raise ValueError(f"{name}: too long for a DNS name")
    encoded = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    flags = _RECURSION if recursion else 0
    return _HEADER.pack(number, flags, 1, 0, 0, 0) + encoded + struct.pack("!HH", TYPES[kind], 1)


def parse(data: bytes) -> Message:
    """Read a message. Raises Malformed."""
    try:
        number, flags, questions, *counts = _HEADER.unpack_from(data)
        at, name, kind = _HEADER.size, "", 0
        for index in range(questions):
            asked, at = _name(data, at)
            (asked_kind,) = struct.unpack_from("!H", data, at)
            at += 4
            if index == 0:
                name, kind = asked, asked_kind
        sections: list[tuple[Record, ...]] = []
        for count in counts:
            found = []
            for _ in range(count):
                record, at = _record(data, at)
                found.append(record)
            sections.append(tuple(found))
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise Malformed(str(error)) from error
    code = flags & 0xF
    return Message(
        number,
        bool(flags & _ANSWER),
        RCODES[code] if code < len(RCODES) else str(code),
        bool(flags & _AUTHORITATIVE),
        bool(flags & _TRUNCATED),
        name,
        NAMES.get(kind, str(kind)) if questions else "",
        *sections,
    )


def _name(data: bytes, at: int) -> tuple[str, int]:
    labels: list[str] = []
    end, jumps = 0, 0
    while length := data[at]:
        if length & 0xC0 == 0xC0:
            end = end or at + 2
            at = struct.unpack_from("!H", data, at)[0] & 0x3FFF
            jumps += 1
            if jumps > MAX_JUMPS:
                raise Malformed("a name goes in circles")
            continue
        labels.append(data[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels), end or at + 1


def _record(data: bytes, at: int) -> tuple[Record, int]:
    name, at = _name(data, at)
    kind, _, ttl, length = _RECORD.unpack_from(data, at)
    at += _RECORD.size
    if at + length > len(data):
        raise Malformed("a record goes beyond the end")
    return Record(name, NAMES.get(kind, str(kind)), ttl, _data(data, kind, at, length)), at + length


def _data(data: bytes, kind: int, at: int, length: int) -> str:
    raw = data[at : at + length]
    match NAMES.get(kind):
        case "A":
            return str(IPv4Address(raw))
        case "AAAA":
            return str(IPv6Address(raw))
        case "CNAME" | "PTR" | "NS":
            return _name(data, at)[0]
        case "SRV":
            numbers = struct.unpack_from("!HHH", data, at)
            return " ".join(map(str, (*numbers, _name(data, at + 6)[0])))
        case "SOA":
            mname, at = _name(data, at)
            rname, at = _name(data, at)
            return " ".join((mname, rname, *map(str, struct.unpack_from("!IIIII", data, at))))
        case "TXT":
            parts = []
            while raw:
                parts.append('"' + raw[1 : 1 + raw[0]].decode("ascii") + '"')
                raw = raw[1 + raw[0] :]
            return " ".join(parts)
    return raw.hex()
