"""A link counts as up when a frame crossed it: send one each way on every link and see it arrive.

A forked child does it: it enters the namespaces in turn to open its packet sockets, so that no thread of
the fabric ever does. Frames carry ethertype 0x88B5 (IEEE 802, local experimental 1) and the number of
their link and direction.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.errors import NotConverged, TestbedError
from testbed.kernel import process, syscalls
from testbed.wait import patient

ETHERTYPE = 0x88B5
ETH_P_ALL = 0x0003
MAGIC = 0x7E57BED0
FRAME = struct.Struct("!6s6sHII")
"""Destination, source, ethertype, our magic, which direction of which link."""
MIN_FRAME = 60
LINK_NOT_READY = (errno.ENETDOWN, errno.ENOBUFS, errno.EAGAIN)
"""What a socket says on a device that is down or has a full queue: try again until the deadline."""
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two rounds of sending: a link with loss gets about a hundred frames in 5 s."""


@dataclass(frozen=True)
class End:
    """One end of a link. netns: path of its namespace (``/proc/PID/ns/net``), "" for the switches'."""

    label: str
    netns: str
    dev: str
    mac: str


@dataclass(frozen=True)
class Crossing:
    """One direction of a link."""

    source: End
    target: End

    def __str__(self) -> str:
        return f"{self.source.label} -> {self.target.label}"


def crossings(links: Sequence[tuple[End, End]]) -> list[Crossing]:
    """Both directions of every link."""
    return [crossing for a, b in links for crossing in (Crossing(a, b), Crossing(b, a))]


def frame(number: int, crossing: Crossing) -> bytes:
    """The frame that proves ``crossing``; addressed to the other end, so that no switch floods it."""
    addresses = (bytes.fromhex(end.mac.replace(":", "")) for end in (crossing.target, crossing.source))
    return FRAME.pack(*addresses, ETHERTYPE, MAGIC, number).ljust(MIN_FRAME, b"\0")


def frame_number(data: bytes) -> int | None:
    """Which frame this is, None for a stranger's."""
    if len(data) < FRAME.size:
        return None
    _, _, ethertype, magic, number = FRAME.unpack_from(data)
    return int(number) if (ethertype, magic) == (ETHERTYPE, MAGIC) else None


def verify(links: Sequence[tuple[End, End]], deadline: float = 5.0) -> None:
    """Make sure a frame crosses every link both ways. deadline: seconds for all together.

    Raises NotConverged with the directions in which none arrived.
    """
    wanted = crossings(links)
    begin = time.monotonic()
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def body() -> None:
        sockets = _open(wanted)  # open until the report is out, see below
        missing = sorted(_missing(wanted, sockets, deadline))
        with os.fdopen(writer, "w") as report:
            json.dump(missing, report)

    # A child of a child, which nobody has to wait for: the kernel takes some 15 ms to close each of its
    # packet sockets (packet_release waits for an RCU grace period).
    child = process.fork(
        lambda: process.fork(body, title="testbed: verify links", keep=[writer]),
        title="testbed: verify links",
        keep=[writer],
    )
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as report:
        text = report.read()
    if not text:
        raise TestbedError("the process that checks the links failed")
    missing = [str(wanted[number]) for number in json.loads(text)]
    if missing:
        raise NotConverged(
            "a frame crosses every link", time.monotonic() - begin, "none on " + ", ".join(missing)
        )


def _missing(wanted: Sequence[Crossing], sockets: dict[str, socket.socket], deadline: float) -> set[int]:
    """The numbers of the directions in which no frame arrived."""
    by_fd = {sock.fileno(): (netns, sock) for netns, sock in sockets.items()}
    poller = select.poll()
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    missing = set(range(len(wanted)))
    end_time = time.monotonic() + patient(deadline)
    pause = FIRST_PAUSE
    while missing and time.monotonic() < end_time:
        for number in missing:
            _send(sockets[wanted[number].source.netns], number, wanted[number])
        round_end = min(end_time, time.monotonic() + pause)
        while missing and (left := round_end - time.monotonic()) > 0:
            for fd, _ in poller.poll(max(1, left * 1000)):
                netns, sock = by_fd[fd]
                missing -= {number for number, dev in _arrived(sock) if _is_at(wanted[number], netns, dev)}
        pause = min(2 * pause, LONGEST_PAUSE)
    return missing


def _is_at(crossing: Crossing, netns: str, dev: str) -> bool:
    return (crossing.target.netns, crossing.target.dev) == (netns, dev)


def _open(wanted: Sequence[Crossing]) -> dict[str, socket.socket]:
    """A packet socket in each namespace; this process stays in the last."""
    opened = {}
    # Sorted: ours, which is "", comes first.
    for netns in sorted({crossing.source.netns for crossing in wanted}):
        if netns:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd)
            os.close(fd)
        # All protocols: a bridge takes frames from its ports before the handlers of single protocols.
        opened[netns] = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL)
        )
    return opened


def _send(sock: socket.socket, number: int, crossing: Crossing) -> None:
    try:
        sock.sendto(frame(number, crossing), (crossing.source.dev, ETHERTYPE))
    except OSError as error:
        if error.errno not in LINK_NOT_READY:
            raise


def _arrived(sock: socket.socket) -> list[tuple[int, str]]:
    """The numbers of our frames that came in (not those that went out) and their devices."""
    arrived: list[tuple[int, str]] = []
    while True:
        try:
            data, address = sock.recvfrom(MIN_FRAME)
        except OSError as error:
            if error.errno not in LINK_NOT_READY:
                raise
            return arrived
        number = frame_number(data)
        if number is not None and address[2] != socket.PACKET_OUTGOING:
            arrived.append((number, address[0]))
