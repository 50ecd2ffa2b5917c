"""``train``: a packet train one way. How long each packet was under way, and in which order they arrived.

Sender and receiver are sockets of this one process in two netns: one clock, no answer needed.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Annotated, ClassVar

import msgspec

from testbed.measure.book import Book
from testbed.measure.datagrams import STAMPS, Datagrams, roomy
from testbed.measure.messages import ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.probes.udp import HEAD, MAGIC, number_in
from testbed.measure.sockets import ERROR_SPACE, SO_TIMESTAMPING, Namespaces, family_of, stamp_of
from testbed.measure.watch import Watch


@probe("train")
class Train(Kind, frozen=True, kw_only=True):
    """size: bytes of payload. The destination is a pod, a node or a host: its netns is needed, too."""

    reaches: ClassVar[bool] = True

    size: Annotated[int, msgspec.Meta(ge=HEAD.size, le=65000)] = 32

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Wagons:
        """A receiver in the destination's netns, and a sender."""
        namespaces.enter(flow.target)
        receiver = socket.socket(family_of(flow.ip), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            receiver.bind((flow.ip, flow.port))
            port = receiver.getsockname()[1]
            namespaces.enter(flow.source)
            return Wagons(flow.ip, port, receiver, self.size, watch, book)
        except OSError:
            receiver.close()
            raise


class Wagons(Datagrams):
    """The packets of one flow."""

    def __init__(
        self, ip: str, port: int, receiver: socket.socket, size: int, watch: Watch, book: Book
    ) -> None:
        self._token = os.urandom(4)
        self._rest = bytes(size - HEAD.size)
        self._receiver = receiver
        super().__init__(socket.socket(family_of(ip), socket.SOCK_DGRAM), ip, port, watch, book)
        roomy(receiver)
        receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, STAMPS)
        watch.add(receiver, select.EPOLLIN, self._arrival)

    def packet(self, number: int) -> bytes:
        """Its number, and zeros."""
        return HEAD.pack(MAGIC, self._token, number) + self._rest

    def number_of(self, quoted: bytes) -> int | None:
        """As its datagram says."""
        return number_in(quoted, self._token)

    def heard(self, data: bytes, received: int) -> None:
        """Nobody answers."""

    def _arrival(self, events: int) -> None:
        try:
            data, control, _, _ = self._receiver.recvmsg(65535, ERROR_SPACE)
        except BlockingIOError:
            return
        if (number := number_in(data, self._token)) is not None:
            self.arrived(number, stamp_of(control))

    def close(self) -> None:
        """Close both sockets."""
        self._watch.drop(self._receiver)
        self._receiver.close()
        super().close()
