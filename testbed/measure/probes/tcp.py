"""``tcp``: a connection for each probe, opened and closed by a reset. ``http``: one that asks and hears all.

Both use the kernel's own connections. From SYN to SYN-ACK the kernel itself measures (tcpi_rtt, steps of 1
µs), unless the SYN had to be repeated: then it is until the handshake was seen to be over."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import ClassVar

from testbed.measure.book import Book
from testbed.measure.messages import ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.sockets import (
    ERROR_SPACE,
    LINGER_RESET,
    RX_SOFTWARE,
    SO_TIMESTAMPING,
    SOFTWARE,
    TCP_INFO_SIZE,
    Namespaces,
    family_of,
    handshake_of,
    read_errors,
    stamp_of,
    want_errors,
)
from testbed.measure.verdicts import from_errno
from testbed.measure.watch import Watch

READ = 1 << 16


@probe("tcp")
class Tcp(Kind, frozen=True, kw_only=True):
    """Connect, no more. Times are from SYN to SYN-ACK."""

    ports: ClassVar[str] = "tcp"

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Connections:
        """A socket for each probe."""
        return Connections(flow, namespaces, watch, book)


class Connections:
    """The connections of one flow. What a kind adds: ``connected`` and ``more``."""

    def __init__(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> None:
        self.book, self._flow, self._namespaces, self._watch = book, flow, namespaces, watch
        self._family = family_of(flow.ip)
        self._open: dict[int, socket.socket] = {}
        self._arrived = 0

    def send(self, number: int) -> None:
        """Begin to connect."""
        self._namespaces.enter(self._flow.source)
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self.book.failed(number, from_errno(error.errno or 0))
            return
        self._open[number] = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        want_errors(sock)
        self.book.begun[number] = time.monotonic_ns()
        code = sock.connect_ex((self._flow.ip, self._flow.port))
        if code in (0, errno.EINPROGRESS):
            self._watch.add(sock, select.EPOLLOUT, lambda events: self._settle(number, sock))
        else:
            self._failed(number, sock, code)

    def _settle(self, number: int, sock: socket.socket) -> None:
        """The handshake is over, one way or another."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(number, sock, code)
            return
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        self.book.took[number] = handshake_of(info)
        try:
            self.connected(number, sock)
        except OSError as error:
            self._failed(number, sock, error.errno or 0)

    def connected(self, number: int, sock: socket.socket) -> None:
        """That was all."""
        took = self.book.took[number]
        self.done(number, self.book.offset + self.book.begun[number] + took if took else time.time_ns())

    def listen(self, number: int, sock: socket.socket) -> None:
        """Have ``more`` called with what arrives. Raises OSError."""
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
        self._watch.drop(sock)
        self._watch.add(sock, select.EPOLLIN, lambda events: self._read(number, sock))

    def _read(self, number: int, sock: socket.socket) -> None:
        try:
            data, control, _, _ = sock.recvmsg(READ, ERROR_SPACE)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(number, sock, error.errno or 0)
            return
        self.more(number, data, stamp_of(control))

    def more(self, number: int, data: bytes, received: int) -> None:
        """Bytes of an answer, b"" at its end. received: ns of CLOCK_REALTIME."""
        raise NotImplementedError

    def done(self, number: int, received: int, answer: str = "") -> None:
        """It went well."""
        self._arrived += 1
        self.book.order[number] = self._arrived
        self.book.answered(number, received, answer)
        self._close(number)

    def _failed(self, number: int, sock: socket.socket, code: int) -> None:
        told = next((outcome for outcome, _ in read_errors(sock)), None)
        self.book.failed(number, told or from_errno(code))
        self._close(number)

    def expire(self, number: int) -> None:
        """Give it up."""
        self._close(number)

    def _close(self, number: int) -> None:
        if (sock := self._open.pop(number, None)) is not None:
            self._watch.drop(sock)
            sock.close()

    def close(self) -> None:
        """Close what is open."""
        for number in list(self._open):
            self._close(number)
