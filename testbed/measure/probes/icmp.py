"""``icmp``: echo requests; the kernel of the address answers."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec

from testbed.measure import craft
from testbed.measure.book import Book
from testbed.measure.datagrams import Datagrams
from testbed.measure.icmp import ECHO, ECHO_REPLY, icmp_part
from testbed.measure.messages import ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.rtt import with_sequence
from testbed.measure.sockets import Namespaces, family_of, raw_icmp
from testbed.measure.watch import Watch


@probe("icmp")
class Icmp(Kind, frozen=True, kw_only=True):
    """size: bytes after the ICMP header, as ``ping -s``."""

    size: Annotated[int, msgspec.Meta(ge=0, le=65000)] = 56

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Echoes:
        """A raw socket of its own for each flow."""
        return Echoes(flow, self.size, watch, book)


class Echoes(Datagrams):
    """The echoes of one flow; an answer is found by its sequence number, the latest probe that has it."""

    def __init__(self, flow: ProbeFlow, size: int, watch: Watch, book: Book) -> None:
        self._family = family_of(flow.ip)
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._template = craft.echo_template(6 if ":" in flow.ip else 4, self._identifier, size)
        self._numbers: dict[int, int] = {}
        self._next = 0
        super().__init__(raw_icmp(flow.ip), flow.ip, 0, watch, book)

    def packet(self, number: int) -> bytes:
        """The next sequence number; its checksum is adjusted, not computed."""
        sequence = self._next & 0xFFFF
        self._next += 1
        self._numbers[sequence] = number
        return with_sequence(self._template, sequence)

    def heard(self, data: bytes, received: int) -> None:
        """An answer, if it is one of ours."""
        message = icmp_part(self._family, data)
        number = self.number_of(message)
        if number is not None and message[0] == ECHO_REPLY[self._family]:
            self.arrived(number, received)

    def number_of(self, quoted: bytes) -> int | None:
        """By the identifier and the sequence number."""
        if len(quoted) < ECHO.size:
            return None
        _, _, _, identifier, sequence = ECHO.unpack_from(quoted)
        return self._numbers.get(sequence) if identifier == self._identifier else None
