"""Round-trip times: series of ICMP echoes with the kernel's own timestamps.

Two figures per echo. ``rtt`` is what iputils ping prints: from the clock read just before the send call to
the kernel's receive timestamp; it contains the way through the sender's own system call. ``rtt_kernel``
is from the kernel's transmit timestamp (taken as the packet is handed to the device) to the same receive
timestamp. Both are on the kernel's wall clock, and neither depends on when this process gets to read the
answer. That is why the loop may sleep: it sends on schedule, takes what has arrived, and sleeps again.

All series of a request are interleaved: echo k of each is sent within one interval, so that whatever
disturbs the machine disturbs them alike, the noise floor (a series over loopback) included.

What is done to keep Python out of the figure: packets are made beforehand, the collector is off while
the series run, the timer slack is 1 ns (its default of 50 us would blur the schedule), and between the
clock read and the system call there is one method call. What is done to be comparable: how long a sender
slept before it sends shows in its round trip (cold caches; tens of microseconds), so this one waits
as ping does: at intervals below 10 ms it spins, else it sleeps, and it looks for answers before it sends
(ping wakes up inside recvmsg). iputils ``ping_common.c``, ``main_loop``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Final

from testbed.measure import craft
from testbed.measure.icmp import ECHO, ECHO_REPLY, ECHO_REQUEST, icmp_part
from testbed.measure.messages import Series, Trip
from testbed.measure.sockets import (
    ERROR_SPACE,
    IP_RECVERR,
    IP_RECVTTL,
    IPV6_RECVERR,
    IPV6_RECVHOPLIMIT,
    OPT_ID,
    OPT_TSONLY,
    ORIGIN_TIMESTAMPING,
    RX_SOFTWARE,
    SCM_TIMESTAMPING,
    SO_TIMESTAMPING,
    SOFTWARE,
    TX_SOFTWARE,
    Namespaces,
    family_of,
    hops_left,
    icmp_error,
    raw_icmp,
    received_at,
)
from testbed.measure.verdicts import from_errno

CLOSEST: Final = 0.0005
"""Seconds: echoes of different series are sent no closer together than this."""
SPIN_BELOW: Final = 0.01
"""Seconds: iputils ping spins (sched_yield, non-blocking reads) at intervals below this (MININTERVAL)."""
_WARM_UP: Final = 2
_PR_SET_TIMERSLACK: Final = 29
_RECEIVE: Final = 2048
_libc = ctypes.CDLL(None, use_errno=True)


def with_sequence(template: bytes, sequence: int) -> bytes:
    """An echo request that has sequence number 0, with another; its checksum is adjusted (RFC 1624)."""
    kind, code, checksum, identifier, _ = ECHO.unpack_from(template)
    if kind == ECHO_REQUEST[socket.AF_INET]:  # of ICMPv6 the kernel makes it
        total = (~checksum & 0xFFFF) + sequence
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return ECHO.pack(kind, code, checksum, identifier, sequence) + template[ECHO.size :]


class _Line:
    """One series under way."""

    def __init__(self, series: Series, identifier: int, count: int) -> None:
        self.family = family_of(series.ip)
        self.version = 6 if self.family == socket.AF_INET6 else 4
        self.sock = raw_icmp(series.ip)
        self._identifier = identifier
        template = craft.echo_template(self.version, identifier, series.size)
        total = count + _WARM_UP
        self._packets = [with_sequence(template, number & 0xFFFF) for number in range(total)]
        self.sent = [0] * total
        self._transmitted = [0] * total
        self._received = [0] * total
        self._ttl = [0] * total
        self._errors: dict[int, str] = {}
        self._keys: dict[int, int] = {}
        self._next = 0
        self.unanswered = 0
        self.first_answer = b""
        self._connect(series.ip)

    def _connect(self, ip: str) -> None:
        flags = TX_SOFTWARE | RX_SOFTWARE | SOFTWARE | OPT_ID | OPT_TSONLY
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, flags)
        if self.version == 6:
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
        else:
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        try:
            self.sock.connect((ip, 0))
        except OSError as error:
            self.refused = from_errno(error.errno or 0).reason
        else:
            self.refused = ""

    def send(self) -> None:
        """Send the next echo."""
        number = self._next
        self._next += 1
        if self.refused:
            self._errors[number] = self.refused
            self.sent[number] = time.time_ns()
            return
        packet, send, clock = self._packets[number], self.sock.send, time.time_ns
        try:
            now = clock()
            send(packet)
        except OSError as error:
            self.sent[number] = now
            self._errors[number] = from_errno(error.errno or 0).reason
            return
        self.sent[number] = now
        self._keys[len(self._keys)] = number
        self.unanswered += 1

    def read(self) -> None:
        """Take every answer, error and transmit timestamp that has arrived."""
        while True:
            try:
                data, control, _, _ = self.sock.recvmsg(_RECEIVE, ERROR_SPACE)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error, reported here once and read with its details below
            self._take_answer(data, control)
        while True:
            try:
                data, control, _, _ = self.sock.recvmsg(256, ERROR_SPACE, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                break
            self._take_error(data, control)

    def _take_answer(self, data: bytes, control: list[tuple[int, int, bytes]]) -> None:
        message = icmp_part(self.family, data)
        number = self._number(message)
        if number is None or message[0] != ECHO_REPLY[self.family] or self._received[number]:
            return
        self._received[number] = received_at(control) or 0
        self._ttl[number] = hops_left(control)
        self.unanswered -= 1
        if not self.first_answer:
            self.first_answer = data

    def _take_error(self, data: bytes, control: list[tuple[int, int, bytes]]) -> None:
        stamp, key = 0, None
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, SCM_TIMESTAMPING):
                stamp = received_at([(level, kind, payload)]) or 0
            elif kind in (IP_RECVERR, IPV6_RECVERR) and payload[4] == ORIGIN_TIMESTAMPING:
                key = struct.unpack_from("=I", payload, 12)[0]
            elif (outcome := icmp_error(level, kind, payload)) is not None:
                number = self._number(data)
                if number is not None and number not in self._errors:
                    self._errors[number] = outcome.reason
                    self.unanswered -= 1
        if key in self._keys:
            self._transmitted[self._keys[key]] = stamp

    def _number(self, message: bytes) -> int | None:
        """Which echo a message answers or quotes: the latest one sent with its sequence number."""
        if len(message) < ECHO.size:
            return None
        _, _, _, identifier, sequence = ECHO.unpack_from(message)
        if identifier != self._identifier:
            return None
        behind = (self._next - 1 - sequence) & 0xFFFF
        number = self._next - 1 - behind
        return int(number) if number >= 0 else None

    def trips(self) -> tuple[Trip, ...]:
        """The echoes after the warm-up."""
        return tuple(self._trip(number) for number in range(_WARM_UP, len(self.sent)))

    def _trip(self, number: int) -> Trip:
        sent, received, transmitted = self.sent[number], self._received[number], self._transmitted[number]
        return Trip(
            at=sent,
            rtt=received - sent if received else None,
            rtt_kernel=received - transmitted if received and transmitted else None,
            ttl=self._ttl[number],
            error=self._errors.get(number, ""),
        )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection and no timer slack for the time being."""
    gc.collect()
    gc.disable()
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_TIMERSLACK, 0, 0, 0, 0)  # 0: back to the default
        gc.enable()


def round_trips(
    series: Sequence[Series], namespaces: Namespaces, *, count: int, interval: float, timeout: float
) -> tuple[list[tuple[Trip, ...]], list[str]]:
    """``count`` echoes per series, and per series its first answer in words. interval, timeout: seconds.

    Two more echoes come first and are not counted: they resolve neighbours and switch the kernel's
    receive timestamps on. Raises OSError.
    """
    lines: list[_Line] = []
    try:
        start = int.from_bytes(os.urandom(2), "big")
        for number, one in enumerate(series):
            namespaces.enter(one.source)
            lines.append(_Line(one, (start + number) & 0xFFFF, count))
        with _undisturbed():
            _warm_up(lines, timeout)
            _run(lines, count, max(interval, CLOSEST * len(lines)))
            _listen(lines, timeout)
        return [line.trips() for line in lines], [
            craft.describe(line.version, line.first_answer) for line in lines
        ]
    finally:
        for line in lines:
            line.sock.close()


def _warm_up(lines: Sequence[_Line], timeout: float) -> None:
    for _ in range(_WARM_UP):
        for line in lines:
            line.send()
        _listen(lines, timeout)


def _run(lines: Sequence[_Line], count: int, interval: float) -> None:
    gap = interval / max(1, len(lines))
    spin = interval < SPIN_BELOW
    begin = time.monotonic() + gap
    for number in range(count):
        for place, line in enumerate(lines):
            _wait(line, begin + number * interval + place * gap, spin)
            line.read()
            line.send()
            line.read()


def _wait(line: _Line, due: float, spin: bool) -> None:
    """Wait for a moment of the monotonic clock, asleep or, like ping, by looking for answers all the time."""
    if not spin:
        # Until an absolute time: how long a sleep or a send took shifts no later one.
        time.sleep(max(0.0, due - time.monotonic()))
        return
    while time.monotonic() < due:
        os.sched_yield()
        line.read()


def _listen(lines: Sequence[_Line], timeout: float) -> None:
    """Read until every echo is answered or ``timeout`` seconds are over."""
    deadline = time.monotonic() + timeout
    poll = select.epoll()
    try:
        for line in lines:
            poll.register(line.sock.fileno(), select.EPOLLIN | select.EPOLLERR)
        while True:
            for line in lines:
                line.read()
            left = deadline - time.monotonic()
            if left <= 0 or not any(line.unanswered > 0 for line in lines):
                return
            poll.poll(left)
    finally:
        poll.close()
