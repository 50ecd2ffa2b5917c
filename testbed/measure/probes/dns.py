"""``dns``: questions to a DNS server over UDP."""

from __future__ import annotations

import socket
import struct
from typing import ClassVar, Literal

from testbed.apps.wire import dns
from testbed.measure.book import Book
from testbed.measure.datagrams import Datagrams
from testbed.measure.messages import Outcome, ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.sockets import Namespaces, family_of
from testbed.measure.watch import Watch


@probe("dns")
class Dns(Kind, frozen=True, kw_only=True):
    """question: the whole name to ask for; record: its type. An answer other than NOERROR is an ``error``."""

    port: ClassVar[int] = 53

    question: str = "kubernetes.default.svc.cluster.local"
    record: Literal["A", "AAAA", "SRV", "CNAME", "PTR", "TXT", "NS"] = "A"

    def __post_init__(self) -> None:
        try:
            dns.question(0, self.question, self.record)
        except (ValueError, UnicodeError) as error:
            raise ValueError(f"question: {error}") from error

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Questions:
        """One socket for each flow; answers are told apart by their number, 16 bits."""
        return Questions(flow, dns.question(0, self.question, self.record), watch, book)


class Questions(Datagrams):
    """The questions of one flow."""

    def __init__(self, flow: ProbeFlow, question: bytes, watch: Watch, book: Book) -> None:
        self._rest = question[2:]
        self._numbers: dict[int, int] = {}
        super().__init__(
            socket.socket(family_of(flow.ip), socket.SOCK_DGRAM), flow.ip, flow.port, watch, book
        )

    def packet(self, number: int) -> bytes:
        """The question under the next number."""
        self._numbers[number & 0xFFFF] = number
        return struct.pack("!H", number & 0xFFFF) + self._rest

    def heard(self, data: bytes, received: int) -> None:
        """An answer; its first address, or its return code, is kept."""
        try:
            message = dns.parse(data)
        except dns.Malformed:
            return
        number = self._numbers.get(message.number)
        if number is None or not message.answer:
            return
        if message.rcode == "NOERROR":
            found = message.answers[-1].data if message.answers else ""
            self.arrived(number, received, found)
        else:
            self.book.copies[number] += 1
            self.book.received[number] = received - self.book.offset
            self.book.failed(number, Outcome("error", message.rcode))
