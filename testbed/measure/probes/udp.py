"""``udp``: datagrams that an echo server gives back (the built-in netexec and echo do)."""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Annotated, ClassVar, Final

import msgspec

from testbed.measure.book import Book
from testbed.measure.datagrams import NOT_COUNTED, Datagrams
from testbed.measure.messages import ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.sockets import Namespaces, family_of
from testbed.measure.watch import Watch

HEAD: Final = struct.Struct("!4s4sQ")
"""Magic, the line's token, the probe's number."""
MAGIC: Final = b"tbud"
_WHO: Final = b"hostname"
_ASK_EVERY: Final = 1_000_000_000
"""ns between two questions for the server's name."""


def number_in(data: bytes, token: bytes) -> int | None:
    """The number of the probe that a datagram is, if it is one of a line's."""
    if len(data) < HEAD.size:
        return None
    magic, whose, number = HEAD.unpack_from(data)
    return int(number) if magic == MAGIC and whose == token else None


@probe("udp")
class Udp(Kind, frozen=True, kw_only=True):
    """size: bytes of payload. names: ask the server for its name, too, about once a second on the same flow,
    as agnhost's netexec answers it: samples say whom they were answered by."""

    ports: ClassVar[str] = "udp"

    size: Annotated[int, msgspec.Meta(ge=HEAD.size, le=65000)] = 32
    names: bool = True

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Echoed:
        """One socket, so one source port, for each flow."""
        return Echoed(flow, self.size, self.names, watch, book)


class Echoed(Datagrams):
    """The datagrams of one flow."""

    def __init__(self, flow: ProbeFlow, size: int, names: bool, watch: Watch, book: Book) -> None:
        self._token = os.urandom(4)
        self._rest = bytes(size - HEAD.size)
        self._names, self._asked, self._server = names, 0, ""
        super().__init__(
            socket.socket(family_of(flow.ip), socket.SOCK_DGRAM), flow.ip, flow.port, watch, book
        )

    def packet(self, number: int) -> bytes:
        """Its number, and zeros."""
        return HEAD.pack(MAGIC, self._token, number) + self._rest

    def send(self, number: int) -> None:
        """Send it; ask who answers, now and then."""
        super().send(number)
        now = time.monotonic_ns()
        if self._names and now - self._asked > _ASK_EVERY:
            self._asked = now
            self.aside(_WHO)

    def number_of(self, quoted: bytes) -> int | None:
        """As its datagram says; of a question for the name, of none."""
        number = number_in(quoted, self._token)
        return NOT_COUNTED if number is None and quoted == _WHO else number

    def heard(self, data: bytes, received: int) -> None:
        """An echo, or a name."""
        if (number := number_in(data, self._token)) is not None:
            self.arrived(number, received, self._server)
            return
        if data != _WHO and len(data) < 64:
            self._server = data.decode(errors="replace")
