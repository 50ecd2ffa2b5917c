"""Captures packets of the netns it runs in and writes them to standard output as pcapng.

Run as a program in the target's netns (``argv`` says how); it imports the standard library alone, so
that it starts in a few hundredths of a second and needs nothing of the project installed there.

An AF_PACKET socket with a TPACKET_V3 ring: nanosecond timestamps, the interface and the direction of
every packet and the count of lost ones come from the kernel. tcpdump itself cannot run in a sandbox of
one user id, where it has nobody to drop its privileges to. Sources: linux/if_packet.h,
Documentation/networking/packet_mmap.rst; draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ANY = "any"
SNAPLEN = 262144
"""Bytes kept of a packet, as tcpdump has it; also the size of a block of the ring."""
BLOCKS = 64
RETIRE_MS = 20
"""How long the kernel fills a block of the ring before it hands it over."""

LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101
LINKTYPES = {
    1: LINKTYPE_ETHERNET,  # ARPHRD_ETHER: veth, bridges, vxlan
    772: LINKTYPE_ETHERNET,  # ARPHRD_LOOPBACK: frames with zero addresses
    65534: LINKTYPE_RAW,  # ARPHRD_NONE: tun
    768: LINKTYPE_RAW,  # ARPHRD_TUNNEL: ipip
    769: LINKTYPE_RAW,  # ARPHRD_TUNNEL6
    776: LINKTYPE_RAW,  # ARPHRD_SIT
}
ARPHRD_LOOPBACK = 772
OUTGOING = 4  # PACKET_OUTGOING

_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_SIOCGIFHWADDR = 0x8927
_TP_STATUS_USER = 1
_TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 0x10, 0x40
_RING = struct.Struct("=7I")  # tpacket_req3
_BLOCK = struct.Struct("=5I")  # version, offset_to_priv, block_status, num_pkts, offset_to_first_pkt
_STATUS_OFFSET = 8
_PACKET = struct.Struct("=6I2H2I2H8xH2xiHB")  # tpacket3_hdr, then sockaddr_ll up to its sll_pkttype
_STATISTICS = struct.Struct("=3I")  # tpacket_stats_v3: packets (with the lost ones), drops, freezes
_INSTRUCTION = struct.Struct("=HBBI")  # sock_filter


class Packet(NamedTuple):
    """A packet as the ring holds it.

    time: ns since 1970; interface, hardware: its index and ARPHRD type; kind: PACKET_HOST … PACKET_OUTGOING.
    """

    time: int
    interface: int
    hardware: int
    kind: int
    length: int
    data: bytes


# --- the file format --------------------------------------------------------------------------------


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + size + body + size


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def section_header(comment: str) -> bytes:
    """The first block of a file; comment: what was captured."""
    options = _option(1, comment.encode()) + _option(4, b"testbed") + _option(0, b"")
    return _block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1) + options)


def interface_block(name: str, linktype: int) -> bytes:
    """An interface, whose number in the file is how many came before it; times in nanoseconds."""
    options = _option(2, name.encode()) + _option(9, b"\x09") + _option(0, b"")
    return _block(1, struct.pack("=HHI", linktype, 0, SNAPLEN) + options)


def packet_block(interface: int, packet: Packet) -> bytes:
    """An enhanced packet block with the direction in its flags."""
    head = struct.pack(
        "=5I", interface, packet.time >> 32, packet.time & 0xFFFFFFFF, len(packet.data), packet.length
    )
    flags = _option(2, struct.pack("=I", _flags(packet.kind))) + _option(0, b"")
    return _block(6, head + packet.data + bytes(-len(packet.data) % 4) + flags)


def _flags(kind: int) -> int:
    """epb_flags: bits 0-1 inbound 1, outbound 2; bits 2-4 unicast 1, multicast 2, broadcast 3, other's 4."""
    reception = {0: 1, 1: 3, 2: 2, 3: 4}.get(kind, 0)
    return (2 if kind == OUTGOING else 1) | reception << 2


def statistics_block(interface: int, received: int, dropped: int) -> bytes:
    """What became of an interface's packets, for one that has its socket to itself."""
    options = _option(4, struct.pack("=Q", received)) + _option(7, struct.pack("=Q", dropped))
    return _block(5, struct.pack("=3I", interface, 0, 0) + options + _option(0, b""))


class Labels:
    """Says of each packet of a file written here which interface it passed, and in which direction."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The labels, as tcpdump prints them (``eth0  In ``), of the packets that end in ``data``."""
        self._rest += data
        labels: list[str] = []
        position = 0
        while len(self._rest) - position >= 8:
            kind, size = struct.unpack_from("=II", self._rest, position)
            if position + size > len(self._rest):
                break
            if kind == 1:
                self._names.append(self._name(position))
            elif kind == 6:
                labels.append(self._label(position))
            position += size
        self._rest = self._rest[position:]
        return labels

    def _name(self, block: int) -> str:
        (length,) = struct.unpack_from("=H", self._rest, block + 18)  # of the first option, if_name
        return self._rest[block + 20 : block + 20 + length].decode()

    def _label(self, block: int) -> str:
        interface, captured = struct.unpack_from("=I8xI", self._rest, block + 8)
        (flags,) = struct.unpack_from("=I", self._rest, block + 28 + captured + -captured % 4 + 4)
        direction = "Out" if flags & 3 == 2 else _RECEPTION[flags >> 2]
        return f"{self._names[interface]:<5} {direction}"


_RECEPTION = {0: "In ", 1: "In ", 2: "M  ", 3: "B  ", 4: "P  "}


# --- the ring ---------------------------------------------------------------------------------------


class Ring:
    """A bound packet socket and the memory the kernel puts packets into."""

    def __init__(self, interface: str, code: Sequence[tuple[int, int, int, int]]) -> None:
        """interface: a name, or ANY; code: a classic BPF program, empty for every packet. Raises OSError."""
        # Protocol 0 receives nothing until it is bound; Python cannot bind to all interfaces. What such a
        # socket receives before the filter is there does not get into the ring, which comes last.
        protocol = socket.htons(_ETH_P_ALL) if interface == ANY else 0
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol)
        if code:
            self._attach(code)
        self.sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        request = _RING.pack(SNAPLEN, BLOCKS, SNAPLEN, BLOCKS, RETIRE_MS, 0, 0)
        self.sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._memory = mmap.mmap(self.sock.fileno(), SNAPLEN * BLOCKS)
        self._next = 0
        if interface != ANY:
            self.sock.bind((interface, _ETH_P_ALL))

    def _attach(self, code: Sequence[tuple[int, int, int, int]]) -> None:
        import ctypes

        program = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*line) for line in code))
        sock_fprog = struct.pack("@HP", len(code), ctypes.addressof(program))
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)

    def shut(self) -> None:
        """Let no more packets in; those in the ring stay."""
        self._attach([(0x06, 0, 0, 0)])  # BPF_RET | BPF_K 0

    def packets(self) -> Iterator[Packet]:
        """The packets of the next block the kernel has handed over, none if there is no such block."""
        start = self._next * SNAPLEN
        _, _, status, count, offset = _BLOCK.unpack_from(self._memory, start)
        if not status & _TP_STATUS_USER:
            return
        position = start + offset
        for _ in range(count):
            following, packet = self._packet(position)
            position += following
            yield packet
        struct.pack_into("=I", self._memory, start + _STATUS_OFFSET, 0)
        self._next = (self._next + 1) % BLOCKS

    def _packet(self, position: int) -> tuple[int, Packet]:
        (
            following,
            sec,
            nsec,
            captured,
            length,
            status,
            mac,
            _,
            _,
            tci,
            tpid,
            _,
            _,
            index,
            hardware,
            kind,
        ) = _PACKET.unpack_from(self._memory, position)
        data = self._memory[position + mac : position + mac + captured]
        if status & _TP_STATUS_VLAN_VALID:
            # The kernel keeps the tag beside the frame; on the wire it was in it.
            tag = struct.pack("!HH", tpid if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100, tci)
            data, length = data[:12] + tag + data[12:], length + 4
        return following, Packet(sec * 1_000_000_000 + nsec, index, hardware, kind, length, data)

    def statistics(self) -> tuple[int, int]:
        """(packets that passed the filter, those of them that were lost) since it was last asked."""
        data = self.sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        packets, drops, _ = _STATISTICS.unpack(data)
        return packets, drops


# --- the program ------------------------------------------------------------------------------------


class Capture:
    """Copies packets from a ring to a file until it is told to stop."""

    def __init__(self, ring: Ring, out: int, limit: int) -> None:
        """out: descriptor; limit: packets after which it ends, 0 for none."""
        self._ring, self._out, self._limit = ring, out, limit
        self._interfaces: dict[int, int] = {}
        self.count = 0
        self.foreign = 0
        """Packets written; packets of interfaces whose link type is not known here, which are not."""

    def declare(self, index: int, name: str, hardware: int) -> bytes:
        """The block of an interface that has none yet."""
        self._interfaces[index] = len(self._interfaces)
        return interface_block(name, LINKTYPES[hardware])

    def drain(self) -> bool:
        """Copy what the kernel has handed over; False: there was nothing."""
        blocks = bytearray()
        seen = False
        for packet in self._ring.packets():
            seen = True
            if not self.full:
                blocks += self._blocks(packet)
        _write(self._out, blocks)
        return seen

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return 0 < self._limit <= self.count

    def _blocks(self, packet: Packet) -> bytes:
        if packet.hardware == ARPHRD_LOOPBACK and packet.kind == OUTGOING:
            return b""  # it comes in again; tcpdump shows it once too
        if packet.hardware not in LINKTYPES:
            self.foreign += 1
            return b""
        blocks = b""
        if packet.interface not in self._interfaces:
            blocks = self.declare(packet.interface, _name(packet.interface), packet.hardware)
        self.count += 1
        return blocks + packet_block(self._interfaces[packet.interface], packet)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"  # gone since


def _write(out: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]


def _hardware(sock: socket.socket, name: str) -> int:
    """The ARPHRD type of an interface, from struct ifreq: the name, then the address whose family it is."""
    reply = fcntl.ioctl(sock, _SIOCGIFHWADDR, name.encode().ljust(40, b"\0"))
    return int(struct.unpack_from("=H", reply, 16)[0])


def _stop_pipe() -> int:
    """A descriptor that becomes readable when a signal asks for the end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader


def argv(interface: str, count: int, code: Sequence[tuple[int, int, int, int]], comment: str) -> list[str]:
    """The command that captures; code: see ``parse_code``."""
    program = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
    text = ",".join(" ".join(map(str, line)) for line in code)
    return [*program, "-i", interface, "-c", str(count), "--code", text, "--comment", comment]


def parse_code(text: str) -> list[tuple[int, int, int, int]]:
    """A classic BPF program as ``tcpdump -ddd`` prints it: the number of lines, then four numbers each."""
    lines = [tuple(map(int, line.split())) for line in text.split("\n")[1:] if line]
    return [(code, jt, jf, k) for code, jt, jf, k in lines]


def main(arguments: Sequence[str]) -> int:
    """Capture until the count is reached or a signal comes; then say how it went on standard error."""
    parser = argparse.ArgumentParser(prog="capture")
    parser.add_argument("-i", "--interface", default=ANY)
    parser.add_argument("-c", "--count", type=int, default=0)
    parser.add_argument("--code", default="")
    parser.add_argument("--comment", default="")
    args = parser.parse_args(arguments)
    stop = _stop_pipe()
    code = parse_code("\n" + args.code.replace(",", "\n"))
    try:
        ring = Ring(args.interface, code)
    except OSError as error:
        print(f"capture on {args.interface}: {_why(args.interface, error)}", file=sys.stderr)
        return 2 if error.errno in (errno.ENODEV, errno.ENETDOWN, errno.EINVAL) else 4
    try:
        return _run(ring, args.interface, args.count, args.comment, stop)
    except BrokenPipeError:
        return 0  # whoever reads has seen enough


def _why(interface: str, error: OSError) -> str:
    if error.errno == errno.ENODEV:
        names = ", ".join(name for _, name in socket.if_nameindex())
        return f"no such interface: there are {names}"
    return error.strerror or str(error)


def _run(ring: Ring, interface: str, limit: int, comment: str, stop: int) -> int:
    capture = Capture(ring, 1, limit)
    names = {index: name for index, name in socket.if_nameindex() if interface in (ANY, name)}
    hardware = {index: _hardware(ring.sock, name) for index, name in names.items()}
    known = [index for index in names if hardware[index] in LINKTYPES]
    blocks = [capture.declare(index, names[index], hardware[index]) for index in known]
    _write(1, section_header(comment) + b"".join(blocks))
    print(f"listening on {interface}, snapshot length {SNAPLEN} bytes", file=sys.stderr, flush=True)
    poll = select.poll()
    poll.register(ring.sock, select.POLLIN)
    poll.register(stop, select.POLLIN)
    stopped = False
    while not (stopped or capture.full):
        stopped = any(fd == stop for fd, _ in poll.poll())
        while capture.drain():
            pass
    ring.shut()
    poll.unregister(stop)
    # The kernel hands the block it is filling over when its time is up, and does not tell of an empty one.
    while not capture.full and poll.poll(3 * RETIRE_MS) and capture.drain():
        pass
    _report(capture, ring, single=len(known) == 1 and interface != ANY)
    return 0


def _report(capture: Capture, ring: Ring, *, single: bool) -> None:
    received, dropped = ring.statistics()
    if single:
        _write(1, statistics_block(0, received, dropped))
    plural = "" if capture.count == 1 else "s"
    print(f"{capture.count} packet{plural} captured", file=sys.stderr)
    print(f"{dropped} packet{'' if dropped == 1 else 's'} dropped by kernel", file=sys.stderr)
    if capture.foreign:
        print(f"{capture.foreign} of interfaces with an unknown link type left out", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
