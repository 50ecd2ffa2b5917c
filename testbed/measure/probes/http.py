"""``http``: a GET over a connection of its own; the whole answer is heard."""

from __future__ import annotations

import socket
import time
from typing import ClassVar

from testbed.measure.ask import understood
from testbed.measure.book import Book
from testbed.measure.messages import ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.probes.tcp import Connections
from testbed.measure.sockets import Namespaces
from testbed.measure.watch import Watch

MOST = 1 << 16


@probe("http")
class Http(Kind, frozen=True, kw_only=True):
    """path: what to get. A status other than 2xx is an ``error``; the body's first characters are the
    answer, so that ``/hostname`` of agnhost's netexec says who answered."""

    ports: ClassVar[str] = "tcp"

    path: str = "/hostname"
    host: str = "testbed"

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Requests:
        """A connection for each probe."""
        request = f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n\r\n"
        return Requests(request.encode(), flow, namespaces, watch, book)


class Requests(Connections):
    """The requests of one flow."""

    def __init__(
        self, request: bytes, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book
    ) -> None:
        super().__init__(flow, namespaces, watch, book)
        self._request = request
        self._heard: dict[int, bytes] = {}
        self._last: dict[int, int] = {}

    def connected(self, number: int, sock: socket.socket) -> None:
        """Ask."""
        self.listen(number, sock)
        sock.send(self._request)

    def more(self, number: int, data: bytes, received: int) -> None:
        """Collect; the end is the server's hanging up, its last bytes' stamp the time of the answer."""
        self._heard[number] = heard = self._heard.get(number, b"") + data
        if data:
            self._last[number] = received
        if data and len(heard) < MOST:
            return
        outcome, body = understood("http", heard)
        if outcome.verdict == "ok":
            self.done(number, self._last.get(number, time.time_ns()), body)
        else:
            self.book.failed(number, outcome)
            self.expire(number)
        self._heard.pop(number, None)
        self._last.pop(number, None)

    def expire(self, number: int) -> None:
        """Forget what was heard, too."""
        self._heard.pop(number, None)
        self._last.pop(number, None)
        super().expire(number)
