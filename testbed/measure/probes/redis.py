"""``redis``: PING over a connection of its own, answered by PONG (RESP2)."""

from __future__ import annotations

import socket
from typing import ClassVar

from testbed.measure.book import Book
from testbed.measure.messages import Outcome, ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.probes.tcp import Connections
from testbed.measure.sockets import Namespaces
from testbed.measure.watch import Watch


@probe("redis")
class Redis(Kind, frozen=True, kw_only=True):
    """An answer other than PONG is an ``error``, with what it was."""

    ports: ClassVar[str] = "tcp"

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Pings:
        """A connection for each probe."""
        return Pings(flow, namespaces, watch, book)


class Pings(Connections):
    """The pings of one flow."""

    def connected(self, number: int, sock: socket.socket) -> None:
        """Ask."""
        self.listen(number, sock)
        sock.send(b"PING\r\n")

    def more(self, number: int, data: bytes, received: int) -> None:
        """One line, in one segment; received is the kernel's stamp of it."""
        if data == b"+PONG\r\n":
            self.done(number, received)
        else:
            self.book.failed(number, Outcome("error", data.decode("ascii", "replace").strip() or "hung up"))
            self.expire(number)
