"""UDP reachability: a datagram that is echoed, or answered by an ICMP error.

An attempt sends up to three datagrams, since nobody repeats a lost one and since a closed port may
answer no more than its kernel's ICMP rate limit allows (net.ipv4.icmp_msgs_per_sec).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Final

from testbed.measure.messages import Flow, Outcome
from testbed.measure.sockets import (
    ERROR_SPACE,
    SO_TIMESTAMPNS,
    family_of,
    read_errors,
    received_at,
    want_errors,
)
from testbed.measure.verdicts import TRANSIENT, from_errno

_PAYLOAD: Final = struct.Struct("!8sQ")
_MAGIC: Final = b"testbed\0"


class UdpExchange:
    """See ``exchange.Exchange``. Any answer from the address counts; only an echo tells the time."""

    events = select.EPOLLIN | select.EPOLLERR
    repeats = 2

    def open(self, flow: Flow) -> socket.socket | Outcome | None:
        """Send the first datagram."""
        family = family_of(flow.ip)
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            want_errors(sock)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sock.connect((flow.ip, flow.port))
            sock.send(_PAYLOAD.pack(_MAGIC, time.time_ns()))
        except OSError as error:
            sock.close()
            code = error.errno or 0
            return None if code in TRANSIENT else from_errno(code)
        return sock

    def read(self, sock: socket.socket) -> Outcome | None:
        """The echo with its time, or the ICMP error."""
        try:
            data, control, _, _ = sock.recvmsg(2048, ERROR_SPACE)
        except BlockingIOError:
            return next((outcome for outcome, _ in read_errors(sock)), None)
        except OSError as error:
            return next((outcome for outcome, _ in read_errors(sock)), from_errno(error.errno or 0))
        arrived = received_at(control)
        if arrived is None or len(data) != _PAYLOAD.size or not data.startswith(_MAGIC):
            return Outcome("ok")
        return Outcome("ok", seconds=(arrived - _PAYLOAD.unpack(data)[1]) / 1e9)

    def repeat(self, sock: socket.socket, number: int) -> None:
        """Send another datagram."""
        try:
            sock.send(_PAYLOAD.pack(_MAGIC, time.time_ns()))
        except OSError:
            return  # an error that came meanwhile: it is in the error queue too, where read() finds it
