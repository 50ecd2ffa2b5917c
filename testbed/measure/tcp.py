"""TCP reachability: a connect() that is answered, refused, or told off by ICMP; closed by a reset."""

from __future__ import annotations

import errno
import select
import socket
from typing import Final

from testbed.measure.messages import Flow, Outcome
from testbed.measure.sockets import (
    LINGER_RESET,
    TCP_INFO_SIZE,
    family_of,
    handshake_of,
    read_errors,
    want_errors,
)
from testbed.measure.verdicts import TRANSIENT, from_errno

_CONNECTING: Final = 2
"""TCP_SYN_SENT, include/net/tcp_states.h."""


class TcpExchange:
    """See ``exchange.Exchange``. The kernel itself repeats the SYN after 1 s; nothing is repeated here."""

    events = select.EPOLLOUT | select.EPOLLERR
    repeats = 0

    def open(self, flow: Flow) -> socket.socket | Outcome | None:
        """Send the SYN."""
        family = family_of(flow.ip)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        want_errors(sock)
        code = sock.connect_ex((flow.ip, flow.port))
        if code in (0, errno.EINPROGRESS):
            return sock
        sock.close()
        return None if code in TRANSIENT else from_errno(code)

    def read(self, sock: socket.socket) -> Outcome | None:
        """Connected, with the kernel's handshake time, or why not."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return next((outcome for outcome, _ in read_errors(sock)), from_errno(code))
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        if info[0] == _CONNECTING:
            return None
        return Outcome("ok", seconds=handshake_of(info) / 1e9 or None)

    def repeat(self, sock: socket.socket, number: int) -> None:
        """Never called."""
