"""``crafted``: packets that no ordinary program sends, made and read by Scapy: what does the way do to them?

A packet goes out by a raw socket in the source's netns; what comes back for it is seen by AF_PACKET there,
with the kernel's stamp. Scapy times nothing. There is no transmit stamp: times are from the send call on.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Annotated, Any, Literal

import msgspec

from testbed.errors import InputError
from testbed.measure import craft
from testbed.measure.book import Book
from testbed.measure.messages import Outcome, ProbeFlow
from testbed.measure.probes import Kind, probe
from testbed.measure.sockets import ERROR_SPACE, SO_TIMESTAMPNS, Namespaces, stamp_of
from testbed.measure.verdicts import from_errno, from_icmp
from testbed.measure.watch import Watch

_ETH_P_ALL = 3
_OUTGOING = 4
_ETH_P_IP = 0x0800

Packet = Literal["echo", "fragments", "bad-checksum", "flags"]


@probe("crafted")
class Crafted(Kind, frozen=True, kw_only=True):
    """packet: ``echo``: an ICMP echo that may not be fragmented, one probe for each of ``sizes`` in turn
    (bytes of the whole IP packet: an MTU sweep); ``fragments``: an echo in fragments of ``fragment`` bytes
    of payload; ``bad-checksum``: a UDP datagram whose checksum is wrong; ``flags``: a TCP segment with any
    ``flags`` (``FPU``, ``SF``). IPv4 only. The answer is Scapy's summary of what came back."""

    packet: Packet = "echo"
    sizes: tuple[Annotated[int, msgspec.Meta(ge=28, le=65000)], ...] = (1500,)
    fragment: Annotated[int, msgspec.Meta(ge=8, le=65000)] = 512
    flags: Annotated[str, msgspec.Meta(pattern="^[FSRPAUEC]*$")] = "FPU"

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> CraftedLine:
        """A raw socket and a capture."""
        if ":" in flow.ip:
            raise InputError("crafted: sends IPv4 only")
        return CraftedLine(self, flow, watch, book)


class CraftedLine:
    """The packets of one flow. What comes back is matched by IP identification or the source port."""

    def __init__(self, kind: Crafted, flow: ProbeFlow, watch: Watch, book: Book) -> None:
        self._kind, self._flow, self._watch, self._book = kind, flow, watch, book
        self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._in = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        self._in.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._in.setblocking(False)
        self._source = _source_of(flow.ip)
        self._base = int.from_bytes(os.urandom(2), "big") % 20000 + 20000
        self._arrived = 0
        watch.add(self._in, select.EPOLLIN, self._ready)

    def send(self, number: int) -> None:
        """Make and send one packet."""
        packets = self._packets(number)
        self._book.begun[number] = time.monotonic_ns()
        try:
            for packet in packets:
                self._out.sendto(packet, (self._flow.ip, 0))
        except OSError as error:
            self._book.failed(number, from_errno(error.errno or 0))

    def _packets(self, number: int) -> list[bytes]:
        mark = (self._base + number) & 0xFFFF
        kind, to = self._kind, self._flow
        head = {"src": self._source, "dst": to.ip, "id": mark}
        match kind.packet:
            case "echo":
                return [craft.sized_echo(head, kind.sizes[number % len(kind.sizes)], mark)]
            case "fragments":
                return craft.fragments(head, kind.sizes[number % len(kind.sizes)], kind.fragment, mark)
            case "bad-checksum":
                return [craft.bad_checksum(head, mark, to.port)]
            case "flags":
                return [craft.segment(head, mark, to.port, kind.flags)]

    def _ready(self, events: int) -> None:
        try:
            data, control, _, address = self._in.recvmsg(65535, ERROR_SPACE)
        except BlockingIOError:
            return
        if address[2] == _OUTGOING or len(data) < 20:
            return
        stamp = stamp_of(control)
        mark = craft.mark_of(data)
        if mark is None:
            return
        number = (mark - self._base) & 0xFFFF
        if number >= len(self._book.begun) or not self._book.begun[number]:
            return
        summary = craft.describe(4, data)
        error = _icmp_error(data)
        if error is not None:
            self._book.received[number] = stamp - self._book.offset
            self._book.failed(number, error, summary)
            return
        self._arrived += 1
        self._book.order[number] = self._arrived
        self._book.answered(number, stamp, summary)

    def expire(self, number: int) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Close both sockets."""
        self._watch.drop(self._in)
        self._in.close()
        self._out.close()


def _source_of(ip: str) -> str:
    """The address that the kernel would send from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((ip, 9))
        except OSError:
            return "0.0.0.0"  # noqa: S104 - the kernel fills it in, or refuses
        name: Any = sock.getsockname()
        return str(name[0])


def _icmp_error(data: bytes) -> Outcome | None:
    head = (data[0] & 15) * 4
    if data[9] != socket.IPPROTO_ICMP or len(data) < head + 8 or data[head] in (0, 8):
        return None
    kind, code = struct.unpack_from("!BB", data, head)
    return from_icmp(4, kind, code, socket.inet_ntoa(data[12:16]))
