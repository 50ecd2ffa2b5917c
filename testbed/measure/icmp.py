"""ICMP echo: the packets as bytes (pure), and reachability by echo, one raw socket per source.

Formats: RFC 792, RFC 4443 4.1. For IPv6 the kernel fills in the checksum of a raw ICMPv6 socket.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from testbed.measure.messages import Flow, Outcome
from testbed.measure.sockets import (
    ERROR_SPACE,
    SO_TIMESTAMPNS,
    Namespaces,
    canonical,
    family_of,
    pending_error,
    raw_icmp,
    read_errors,
    received_at,
)
from testbed.measure.verdicts import TRANSIENT, from_errno

ECHO_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}
ECHO_REPLY: Final = {socket.AF_INET: 0, socket.AF_INET6: 129}
ECHO: Final = struct.Struct("!BBHHH")
"""Type, code, checksum, identifier, sequence number."""
_SENT: Final = struct.Struct("!Q")
_REPEATS: Final = 2
_DRAIN_EVERY: Final = 64


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of data."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(family: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    """A whole echo request message."""
    kind = ECHO_REQUEST[socket.AddressFamily(family)]
    bare = ECHO.pack(kind, 0, 0, identifier, sequence) + payload
    return ECHO.pack(kind, 0, checksum(bare), identifier, sequence) + payload


def icmp_part(family: int, packet: bytes) -> bytes:
    """What a raw socket received, from the ICMP header on: only IPv4 ones hand over the IP header."""
    return packet[(packet[0] & 0xF) * 4 :] if family == socket.AF_INET and packet else packet


class _Source:
    """The raw socket of one source and family, and which flows it has asked about."""

    def __init__(self, ip: str, identifier: int) -> None:
        self.sock = raw_icmp(ip)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.identifier = identifier
        self.asked: list[int] = []


class IcmpAttempt:
    """One attempt at every flow: up to three echo requests each, at equal distances within the timeout."""

    def __init__(self, flows: Sequence[Flow], timeout: float) -> None:
        self._flows, self._step = flows, timeout / (_REPEATS + 1)
        self._sources: dict[tuple[str, int], _Source] = {}
        self._sequence: list[int] = []
        self._outcomes: list[Outcome | None] = [None] * len(flows)
        self._waiting: set[int] = set()
        self._by_fd: dict[int, _Source] = {}
        self._poll = select.epoll()

    def run(self, namespaces: Namespaces) -> list[Outcome | None]:
        """An outcome per flow, None where there was no answer."""
        try:
            self._ask_all(namespaces)
            for number in itertools.count(1):
                self._listen(time.monotonic() + self._step)
                if not self._waiting or number > _REPEATS:
                    break
                for index in sorted(self._waiting):
                    self._ask(index)
        finally:
            for source in self._sources.values():
                source.sock.close()
            self._poll.close()
        return self._outcomes

    def _ask_all(self, namespaces: Namespaces) -> None:
        start = int.from_bytes(os.urandom(2), "big")
        for index, flow in enumerate(self._flows):
            key = (flow.source, family_of(flow.ip))
            source = self._sources.get(key)
            if source is None:
                namespaces.enter(flow.source)
                source = _Source(flow.ip, (start + len(self._sources)) & 0xFFFF)
                self._sources[key] = source
                self._by_fd[source.sock.fileno()] = source
                self._poll.register(source.sock.fileno(), select.EPOLLIN | select.EPOLLERR)
            self._sequence.append(len(source.asked))
            source.asked.append(index)
            self._waiting.add(index)
            self._ask(index)
            if index % _DRAIN_EVERY == 0:
                self._drain(0.0)

    def _ask(self, index: int) -> None:
        flow = self._flows[index]
        family = family_of(flow.ip)
        source = self._sources[(flow.source, family)]
        payload = _SENT.pack(time.time_ns()) + bytes(48)
        packet = echo_request(family, source.identifier, self._sequence[index], payload)
        for last in (False, True):
            try:
                source.sock.sendto(packet, (flow.ip, 0))
                return
            except OSError as error:
                # It may be the error of an earlier echo, which the kernel hands to the next call: take
                # what the error queue holds and try once more.
                self._read(source)
                pending_error(source.sock)
                if last and index in self._waiting and error.errno not in TRANSIENT:
                    self._settle(index, from_errno(error.errno or 0))

    def _listen(self, deadline: float) -> None:
        while self._waiting:
            now = time.monotonic()
            self._drain(max(0.0, deadline - now))
            if now >= deadline:
                return

    def _drain(self, wait: float) -> None:
        for fd, _ in self._poll.poll(wait, max(1, len(self._by_fd))):
            self._read(self._by_fd[fd])

    def _read(self, source: _Source) -> None:
        for outcome, quoted in read_errors(source.sock):
            self._match(source, quoted, outcome)
        while True:
            try:
                data, control, _, sender = source.sock.recvmsg(2048, ERROR_SPACE)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error, already read from the error queue; the kernel reports it once more
            message = icmp_part(source.sock.family, data)
            arrived = received_at(control)
            if len(message) < ECHO.size + _SENT.size or arrived is None:
                continue
            sent = _SENT.unpack_from(message, ECHO.size)[0]
            self._match(source, message, Outcome("ok", seconds=(arrived - sent) / 1e9), sender[0])

    def _match(self, source: _Source, message: bytes, outcome: Outcome, sender: str = "") -> None:
        """Settle the flow whose echo ``message`` belongs to, if it is one of ours."""
        if len(message) < ECHO.size:
            return
        _, _, _, identifier, sequence = ECHO.unpack_from(message)
        if identifier != source.identifier or sequence >= len(source.asked):
            return
        index = source.asked[sequence]
        if sender and sender.partition("%")[0] != canonical(self._flows[index].ip):
            return
        self._settle(index, outcome)

    def _settle(self, index: int, outcome: Outcome) -> None:
        if index in self._waiting:
            self._waiting.discard(index)
            self._outcomes[index] = outcome
