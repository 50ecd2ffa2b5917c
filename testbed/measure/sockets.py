"""Linux socket facts that Python's socket module does not have, and the few calls built on them.

Numbers: include/uapi/linux/{in,in6,icmp,errqueue,net_tstamp,tcp}.h, asm-generic/socket.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Final

from testbed.measure.messages import Outcome
from testbed.measure.verdicts import from_icmp

IP_RECVTTL: Final = 12
IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25
IPV6_RECVHOPLIMIT: Final = 51
IPV6_HOPLIMIT: Final = 52
ICMP_FILTER: Final = 1
ICMP6_FILTER: Final = 1
SOL_RAW: Final = 255
SO_TIMESTAMPNS: Final = 35
SO_TIMESTAMPING: Final = 37
SCM_TIMESTAMPNS: Final = SO_TIMESTAMPNS
SCM_TIMESTAMPING: Final = SO_TIMESTAMPING
TX_SOFTWARE: Final = 1 << 1
RX_SOFTWARE: Final = 1 << 3
SOFTWARE: Final = 1 << 4
OPT_ID: Final = 1 << 7
TX_SCHED: Final = 1 << 8
OPT_TSONLY: Final = 1 << 11
TCP_INFO_SIZE: Final = 104
"""Bytes of struct tcp_info, linux/tcp.h, as far as they are read."""
_TCP_INFO_RTT, _TCP_INFO_TOTAL_RETRANS = 68, 100
"""Offsets in it: tcpi_rtt (u32, microseconds), tcpi_total_retrans (u32)."""

ORIGIN_LOCAL, ORIGIN_ICMP, ORIGIN_ICMP6, ORIGIN_TIMESTAMPING = 1, 2, 3, 4
CLONE_NEWNET: Final = 0x40000000

LINGER_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send a RST: no TIME_WAIT, no port kept."""

_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")
_TIMESPEC: Final = struct.Struct("=qq")
ERROR_SPACE: Final = 512
"""Room for the control messages of one read: extended error with offender, timestamps, TTL."""

_libc = ctypes.CDLL(None, use_errno=True)


def handshake_of(info: bytes) -> int:
    """ns from SYN to SYN-ACK as the kernel measures it; 0 where it does not say. info: struct tcp_info of a
    connection that has just come about.

    Where the SYN had to be repeated, tcpi_rtt knows nothing of the wait for that (RFC 6298, section 3)."""
    if struct.unpack_from("=I", info, _TCP_INFO_TOTAL_RETRANS)[0]:
        return 0
    return int(struct.unpack_from("=I", info, _TCP_INFO_RTT)[0]) * 1000


def enter(netns_fd: int) -> None:
    """Move this thread into a network namespace; its sockets from now on belong there."""
    if _libc.setns(netns_fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


class Namespaces:
    """Netns descriptors by name, and which one this thread is in; leaving goes back to the first one."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        self.fds = fds
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._where = ""

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *exc: object) -> None:
        enter(self._home)
        os.close(self._home)

    def enter(self, name: str) -> None:
        """Go into the netns called ``name``; nothing to do when already there."""
        if name != self._where:
            enter(self.fds[name])
            self._where = name


def family_of(ip: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6, by the look of an address."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def canonical(ip: str) -> str:
    """An address as the kernel's answers print it: ``fd00:0::1`` as ``fd00::1``."""
    family = family_of(ip)
    return socket.inet_ntop(family, socket.inet_pton(family, ip))


def want_errors(sock: socket.socket) -> None:
    """Have ICMP errors queued with their type, code and sender (IP_RECVERR, ip(7))."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def read_errors(sock: socket.socket) -> Iterator[tuple[Outcome, bytes]]:
    """Every ICMP error in a socket's error queue: its outcome and the head of the packet it quotes."""
    while True:
        try:
            data, control, _, _ = sock.recvmsg(256, ERROR_SPACE, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for level, kind, payload in control:
            outcome = icmp_error(level, kind, payload)
            if outcome is not None:
                yield outcome, data


def icmp_error(level: int, kind: int, payload: bytes) -> Outcome | None:
    """The outcome a control message of an error queue tells of; None if it is not an ICMP error."""
    if (level, kind) not in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
        return None
    _, origin, icmp_type, icmp_code, _, _, _ = _EXTENDED_ERROR.unpack_from(payload)
    if origin not in (ORIGIN_ICMP, ORIGIN_ICMP6):
        return None
    version = 4 if origin == ORIGIN_ICMP else 6
    return from_icmp(version, icmp_type, icmp_code, _offender(payload[_EXTENDED_ERROR.size :]))


def _offender(sockaddr: bytes) -> str:
    """The address in the sockaddr that follows a sock_extended_err; empty where there is none."""
    family = struct.unpack_from("=H", sockaddr)[0] if len(sockaddr) >= 8 else socket.AF_UNSPEC
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])
    return ""


def received_at(control: list[tuple[int, int, bytes]]) -> int | None:
    """The kernel's receive timestamp among control messages, in ns since the epoch."""
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind in (SCM_TIMESTAMPNS, SCM_TIMESTAMPING):
            seconds, nanoseconds = _TIMESPEC.unpack_from(payload)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None


def stamp_of(control: list[tuple[int, int, bytes]]) -> int:
    """The kernel's receive timestamp, or the time now where there is none: the kernel only begins to stamp
    when somebody has asked for it, and what is under way at that moment has no stamp. In ns since the
    epoch."""
    return received_at(control) or time.time_ns()


def hops_left(control: list[tuple[int, int, bytes]]) -> int:
    """The TTL or hop limit of a received packet; 0 if it was not asked for."""
    for level, kind, payload in control:
        if (level, kind) in ((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, IPV6_HOPLIMIT)):
            return int(struct.unpack_from("=i", payload)[0])
    return 0


def raw_icmp(ip: str) -> socket.socket:
    """A non-blocking raw ICMP socket of the address' family that hears echo replies and ICMP errors only."""
    family = family_of(ip)
    if family == socket.AF_INET6:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
        passed = bytearray(b"\xff" * 32)  # a set bit is blocked
        passed[129 // 8] &= ~(1 << (129 % 8))
        sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, bytes(passed))
    else:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", ~1 & 0xFFFFFFFF))
    want_errors(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def pending_error(sock: socket.socket) -> int:
    """Take (and so clear) the error a socket holds; 0 if none."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def out_of_descriptors(error: OSError) -> bool:
    """Whether the process has no descriptor left, so that a smaller window would do."""
    return error.errno in (errno.EMFILE, errno.ENFILE)
