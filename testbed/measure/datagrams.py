"""One socket per flow and many datagrams on it, each with the kernel's stamps: what such probe kinds
share."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Final

from testbed.measure.book import Book
from testbed.measure.sockets import (
    ERROR_SPACE,
    IP_RECVERR,
    IPV6_RECVERR,
    OPT_ID,
    OPT_TSONLY,
    ORIGIN_TIMESTAMPING,
    RX_SOFTWARE,
    SCM_TIMESTAMPING,
    SO_TIMESTAMPING,
    SOFTWARE,
    TX_SOFTWARE,
    icmp_error,
    received_at,
    stamp_of,
    want_errors,
)
from testbed.measure.verdicts import from_errno
from testbed.measure.watch import Watch

STAMPS: Final = TX_SOFTWARE | RX_SOFTWARE | SOFTWARE | OPT_ID | OPT_TSONLY
_RECEIVE: Final = 65535
_SO_RCVBUFFORCE: Final = 33
_BUFFER: Final = 8 << 20
NOT_COUNTED: Final = -1
"""The number of what is no probe."""


def roomy(sock: socket.socket) -> None:
    """A receive buffer of 8 MB: what is not read in time shall not look like loss."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


class Datagrams:
    """A flow over a connected socket. What a kind adds: ``packet`` and ``heard``.

    The kernel numbers what a socket sends (SOF_TIMESTAMPING_OPT_ID): ``_keys[k]`` is the probe of number k.
    """

    def __init__(self, sock: socket.socket, ip: str, port: int, watch: Watch, book: Book) -> None:
        self.sock, self.book, self._watch = sock, book, watch
        self._keys: list[int] = []
        self._arrived = 0
        sock.setblocking(False)
        want_errors(sock)
        roomy(sock)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, STAMPS)
        code = sock.connect_ex((ip, port))
        self._refused = from_errno(code) if code else None
        watch.add(sock, select.EPOLLIN, self._ready)

    def packet(self, number: int) -> bytes:
        """What probe ``number`` sends."""
        raise NotImplementedError

    def heard(self, data: bytes, received: int) -> None:
        """A datagram arrived. received: ns of CLOCK_REALTIME."""
        raise NotImplementedError

    def number_of(self, quoted: bytes) -> int | None:
        """Which probe an ICMP error quotes, NOT_COUNTED: none; None: not known, the latest one is taken."""
        return None

    def send(self, number: int) -> None:
        """Send probe ``number``."""
        if self._refused is not None:
            self.book.failed(number, self._refused)
            return
        packet, send, clock = self.packet(number), self.sock.send, time.monotonic_ns
        try:
            now = clock()
            send(packet)
        except OSError as error:
            self._trouble(number, error)
        else:
            self.book.begun[number] = now
            self._keys.append(number)

    def aside(self, data: bytes) -> None:
        """Send something that is no probe."""
        try:
            self.sock.send(data)
        except OSError as error:
            self._trouble(NOT_COUNTED, error)
        else:
            self._keys.append(NOT_COUNTED)

    def _trouble(self, number: int, error: OSError) -> None:
        """A send failed: by its own error, or by that of an earlier one, which the kernel tells the next
        call."""
        earlier = self.book.settled
        while self._read_error():
            pass
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, STAMPS)  # counts from 0 again
        self._keys.clear()
        if self.book.settled > earlier or error.errno in _OF_EARLIER:
            try:
                self.sock.send(self.packet(number) if number >= 0 else b"")
            except OSError as second:
                error = second
            else:
                self._keys.append(number)
                return
        if number >= 0:
            self.book.failed(number, from_errno(error.errno or 0))

    def expire(self, number: int) -> None:
        """Nothing is held for one probe."""

    def close(self) -> None:
        """Close the socket."""
        self._watch.drop(self.sock)
        self.sock.close()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLIN:
            try:
                data, control, _, _ = self.sock.recvmsg(_RECEIVE, ERROR_SPACE)
            except OSError:  # nothing after all, or an error whose details are in the queue below
                events |= select.EPOLLERR
            else:
                self.heard(data, stamp_of(control))
        if events & select.EPOLLERR:
            self._read_error()
            self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # else it would be ready for ever

    def arrived(self, number: int, received: int, answer: str = "") -> None:
        """Write an answer into the book."""
        if not self.book.copies[number]:
            self._arrived += 1
            self.book.order[number] = self._arrived
        self.book.answered(number, received, answer)

    def _read_error(self) -> bool:
        """Take one entry of the error queue: a transmit stamp, or an ICMP error; whether there was one."""
        try:
            data, control, _, _ = self.sock.recvmsg(512, ERROR_SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            return False
        stamp, key = 0, -1
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, SCM_TIMESTAMPING):
                stamp = received_at([(level, kind, payload)]) or 0
            elif kind in (IP_RECVERR, IPV6_RECVERR) and payload[4] == ORIGIN_TIMESTAMPING:
                key = struct.unpack_from("=I", payload, 12)[0]
            elif (outcome := icmp_error(level, kind, payload)) is not None:
                number = self.number_of(data)
                if number is None and self._keys:
                    number = self._keys[-1]
                if number is not None and number >= 0:
                    self.book.failed(number, outcome)
        if 0 <= key < len(self._keys) and stamp and self._keys[key] >= 0:
            self.book.transmitted(self._keys[key], stamp)
        return True


_OF_EARLIER: Final = frozenset({111, 113, 101})
"""ECONNREFUSED, EHOSTUNREACH, ENETUNREACH: what an ICMP error of an earlier datagram says of the next one."""
