"""Following packets: one flow, seen at every interface it crosses, all on one clock.

An AF_PACKET socket in each netns sees what passes there, with the kernel's stamp, the interface and the
direction. A packet is known again by bytes that nothing on the way rewrites: a token in the payload (ICMP,
UDP), the initial sequence number (TCP: SYN there, SYN-ACK back). What left by an interface is stamped as it
is handed to the device; what came in, as the device handed it over: it keeps that stamp until it leaves the
netns, so that a bridge and the port that a packet came in by have one time. Scapy reads the headers."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from testbed.measure import craft
from testbed.measure.datagrams import roomy
from testbed.measure.icmp import ECHO, echo_request, icmp_part
from testbed.measure.messages import Journey, Seen, Trace, Traced
from testbed.measure.sockets import (
    ERROR_SPACE,
    IP_RECVERR,
    IPV6_RECVERR,
    LINGER_RESET,
    OPT_ID,
    OPT_TSONLY,
    ORIGIN_TIMESTAMPING,
    RX_SOFTWARE,
    SCM_TIMESTAMPING,
    SO_TIMESTAMPING,
    SO_TIMESTAMPNS,
    SOFTWARE,
    TX_SCHED,
    Namespaces,
    family_of,
    raw_icmp,
    received_at,
)

_ETH_P_ALL: Final = 3
_OUTGOING: Final = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_MARK: Final = struct.Struct("!16sQ")
"""Token of the trace, number of the packet."""
_WARM_UP: Final = 2
"""Packets that come first and are not counted: they resolve neighbours and switch the kernel's receive
stamps on."""
_SETTLE: Final = 0.05
"""Seconds after an answer in which the last captures of it are read."""
_STAMPS: Final = TX_SCHED | RX_SOFTWARE | SOFTWARE | OPT_ID | OPT_TSONLY
"""The transmit stamp is that of the hand-over to the device's queue: the one of the driver comes only after
all captures of the packet have been served, which takes microseconds."""
_PLAIN_LINKS: Final = {772, 768, 769, 776, 65534}
"""ARPHRD of loopback and tunnels; those but loopback have no Ethernet header."""


@dataclass(frozen=True)
class _Frame:
    netns: str
    interface: str
    out: bool
    hardware: int
    at: int
    place: int
    data: bytes


class _Captures:
    """What passes through every watched netns."""

    def __init__(self, watched: tuple[str, ...], namespaces: Namespaces) -> None:
        self._socks: dict[int, tuple[str, socket.socket]] = {}
        self._epoll = select.epoll()
        self.frames: list[_Frame] = []
        try:
            for name in watched:
                namespaces.enter(name)
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
                self._socks[sock.fileno()] = name, sock
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
                roomy(sock)
                self._epoll.register(sock.fileno(), select.EPOLLIN)
        except OSError:
            self.close()
            raise

    def read(self, marks: tuple[bytes, ...] = (), within: float = 0.0) -> None:
        """Wait up to so many seconds for something, and take what is there; with marks, only what has one of
        them."""
        for fd, _ in self._epoll.poll(within, max(1, len(self._socks))):
            name, sock = self._socks[fd]
            while True:
                try:
                    data, control, _, address = sock.recvmsg(65535, ERROR_SPACE)
                except BlockingIOError:
                    break
                if marks and not any(mark in data for mark in marks):
                    continue
                at = received_at(control) or 0
                interface, _, kind, hardware = address[:4]
                self.frames.append(
                    _Frame(name, interface, kind == _OUTGOING, hardware, at, len(self.frames), data)
                )

    def lost(self) -> int:
        """Packets that no socket had room for."""
        return sum(
            struct.unpack("=II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
            for _, sock in self._socks.values()
        )

    def close(self) -> None:
        for _, sock in self._socks.values():
            sock.close()
        self._epoll.close()


def follow(message: Trace, namespaces: Namespaces) -> Traced:
    """Send, capture, put together. Raises OSError."""
    offset = time.time_ns() - time.monotonic_ns()
    craft.load()  # before anything is timed
    captures = _Captures(message.watched, namespaces)
    try:
        namespaces.enter(message.flow.source)
        sender = _Connects(message) if message.protocol == "tcp" else _Echoes(message)
        try:
            for number in range(message.count, message.count + _WARM_UP):
                _send(sender, number, captures, message)
            captures.read()
            captures.frames.clear()
            for number in range(message.count):
                _send(sender, number, captures, message)
            end = time.monotonic() + _SETTLE
            while (left := end - time.monotonic()) > 0:
                captures.read(sender.marks, left)
            times = [sender.times(number) for number in range(message.count)]
            journeys = [
                _journey(number, times[number], sender.frames(number, captures.frames), message, offset)
                for number in range(message.count)
            ]
        finally:
            sender.close()
        return Traced(message.id, tuple(journeys), offset, captures.lost())
    finally:
        captures.close()


def _send(sender: _Echoes | _Connects, number: int, captures: _Captures, message: Trace) -> None:
    """Send one packet; goes on when its interval is over and it was answered, or not answered in time."""
    due = time.monotonic() + message.interval
    sender.send(number)
    while not sender.answered(number) and time.monotonic() < due + message.timeout:
        captures.read(sender.marks)
    while (left := due - time.monotonic()) > 0:
        captures.read(sender.marks, left)


def _journey(
    number: int, times: tuple[int, int], frames: list[_Frame], message: Trace, offset: int
) -> Journey:
    """Sort what was seen of one packet. times: (sent, received), ns of CLOCK_REALTIME by the sender, 0:
    none."""
    frames = sorted(frames, key=lambda frame: (frame.at, frame.place))
    turn = turning([(frame.netns, frame.out) for frame in frames], message.ends)
    sent, received = times
    if not received:
        back = (frame.at for frame in frames[turn:] if frame.netns == message.flow.source and not frame.out)
        received = next(back, 0)
    if not sent and frames:
        sent = frames[0].at
    if received:
        frames = [frame for frame in frames if frame.at <= received]
    seen = tuple(
        Seen(
            frame.netns,
            frame.interface,
            "out" if frame.out else "in",
            frame.at - offset,
            craft.headers(frame.data, frame.hardware not in _PLAIN_LINKS or frame.hardware == 772),
        )
        for frame in frames
    )
    return Journey(
        number, sent - offset if sent else 0, received - offset if received else 0, min(turn, len(seen)), seen
    )


def turning(passed: list[tuple[str, bool]], ends: tuple[str, ...]) -> int:
    """Where the way back begins: the first time that one of ``ends`` sends after it has received.

    passed: (netns, whether it went out), in order. The number of all where nobody did.
    """
    heard: set[str] = set()
    for place, (netns, out) in enumerate(passed):
        if out and netns in heard and netns in ends:
            return place
        if not out:
            heard.add(netns)
    return len(passed)


class _Echoes:
    """Echo requests or datagrams with a token that comes back."""

    def __init__(self, message: Trace) -> None:
        ip, self._family = message.flow.ip, family_of(message.flow.ip)
        self._token = os.urandom(16)
        self.marks = (self._token,)
        self._icmp = message.protocol == "icmp"
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._rest = bytes(max(0, message.size - _MARK.size))
        self._sock = raw_icmp(ip) if self._icmp else socket.socket(self._family, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, _STAMPS)
        self._sock.connect((ip, message.flow.port))
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._keys: list[int] = []

    def send(self, number: int) -> None:
        payload = _MARK.pack(self._token, number) + self._rest
        if self._icmp:
            payload = echo_request(self._family, self._identifier, number + 1, payload)
        try:
            self._sock.send(payload)
        except OSError:
            return  # not sent, so never seen: the journey is empty
        self._keys.append(number)

    def answered(self, number: int) -> bool:
        self._read()
        return number in self._received

    def _read(self) -> None:
        while True:
            try:
                data, control, _, _ = self._sock.recvmsg(65535, ERROR_SPACE)
            except OSError:
                break
            if self._icmp:
                data = icmp_part(self._family, data)[ECHO.size :]
            if len(data) >= _MARK.size and data.startswith(self._token):
                self._received.setdefault(_MARK.unpack_from(data)[1], received_at(control) or 0)
        while True:
            try:
                _, control, _, _ = self._sock.recvmsg(512, ERROR_SPACE, socket.MSG_ERRQUEUE)
            except OSError:
                return
            stamp, key = 0, -1
            for level, kind, payload in control:
                if (level, kind) == (socket.SOL_SOCKET, SCM_TIMESTAMPING):
                    stamp = received_at([(level, kind, payload)]) or 0
                elif kind in (IP_RECVERR, IPV6_RECVERR) and payload[4] == ORIGIN_TIMESTAMPING:
                    key = struct.unpack_from("=I", payload, 12)[0]
            if 0 <= key < len(self._keys):
                self._sent[self._keys[key]] = stamp

    def times(self, number: int) -> tuple[int, int]:
        self._read()
        return self._sent.get(number, 0), self._received.get(number, 0)

    def frames(self, number: int, every: list[_Frame]) -> list[_Frame]:
        mark = _MARK.pack(self._token, number)
        return [frame for frame in every if mark in frame.data]

    def close(self) -> None:
        self._sock.close()


class _Connects:
    """Connections; the SYN is known by its sequence number, which the first capture at the source shows."""

    marks: tuple[bytes, ...] = ()

    def __init__(self, message: Trace) -> None:
        self._flow = message.flow
        self._ports: dict[int, int] = {}
        self._socks: dict[int, socket.socket] = {}

    def send(self, number: int) -> None:
        sock = socket.socket(family_of(self._flow.ip), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        sock.bind(("", 0))
        self._ports[number] = sock.getsockname()[1]
        self._socks[number] = sock
        sock.connect_ex((self._flow.ip, self._flow.port))

    def answered(self, number: int) -> bool:
        _, ready, _ = select.select([], [self._socks[number]], [], 0)
        return bool(ready)

    def times(self, number: int) -> tuple[int, int]:
        return 0, 0

    def frames(self, number: int, every: list[_Frame]) -> list[_Frame]:
        port = struct.pack("!H", self._ports[number])
        for frame in every:
            if frame.netns == self._flow.source and frame.out:
                first = craft.syn_of(frame.data)
                if first is not None and first[0] == port:
                    sequence = first[1]
                    break
        else:
            return []
        after = struct.pack("!I", (sequence + 1) & 0xFFFFFFFF)
        mark = struct.pack("!I", sequence)
        return [frame for frame in every if mark in frame.data or after in frame.data]

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
