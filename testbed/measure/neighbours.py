"""The kernel's neighbour tables and routes, asked by netlink; as small as the prober needs them.

The table's size and limits are one for the whole host (``net.ipv4.neigh.default.gc_thresh3``), and
this is how a process inside any netns can see them. Messages: include/uapi/linux/{neighbour,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from testbed.measure.messages import NeighbourTable
from testbed.measure.sockets import canonical, family_of

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_GETROUTE, _GETNEIGH, _GETNEIGHTBL = 26, 30, 66
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_NDA_DST = 1
_RTA_DST, _RTA_GATEWAY = 1, 5
_NDTA_THRESH3, _NDTA_CONFIG, _NDTA_STATS = 4, 5, 7
_INCOMPLETE, _FAILED = 0x01, 0x20


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Send one request; yield the body of each message of the answer (nothing where it is an error)."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    while True:
        data = sock.recv(1 << 16)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, answer, _, _, _ = _HEADER.unpack_from(data, offset)
            if answer in (_ERROR, _DONE):
                return
            yield data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3
        if not flags & _DUMP:
            return


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found.setdefault(kind & 0x3FFF, body[offset + _ATTRIBUTE.size : offset + length])
        offset += (length + 3) & ~3
    return found


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def table(family: socket.AddressFamily) -> NeighbourTable:
    """Fill, limit and overflow count of the host-wide neighbour table of a family."""
    name = b"arp_cache" if family == socket.AF_INET else b"ndisc_cache"
    with _netlink() as sock:
        for body in _ask(sock, _GETNEIGHTBL, _REQUEST | _DUMP, struct.pack("=B3x", family)):
            found = _attributes(body, 4)
            if found.get(1, b"").rstrip(b"\0") == name and _NDTA_STATS in found:
                return NeighbourTable(
                    entries=struct.unpack_from("=HHI", found[_NDTA_CONFIG])[2],
                    limit=struct.unpack("=I", found[_NDTA_THRESH3])[0],
                    overflows=struct.unpack_from("=11Q", found[_NDTA_STATS])[10],
                )
    return NeighbourTable(0, 0, 0)


def unresolved(ips: set[str]) -> set[str]:
    """Those of ``ips`` whose next hop from this netns does not answer ARP or neighbour discovery."""
    silent = _silent_neighbours()
    if not silent:
        return set()
    with _netlink() as sock:
        return {ip for ip in ips if _next_hop(sock, ip) in silent}


def _silent_neighbours() -> set[str]:
    silent = set()
    with _netlink() as sock:
        for body in _ask(sock, _GETNEIGH, _REQUEST | _DUMP, struct.pack("=B11x", socket.AF_UNSPEC)):
            family, _, state = struct.unpack_from("=B3xiH", body)
            address = _attributes(body, 12).get(_NDA_DST)
            if address and state & (_INCOMPLETE | _FAILED) and family in (socket.AF_INET, socket.AF_INET6):
                silent.add(socket.inet_ntop(family, address))
    return silent


def _next_hop(sock: socket.socket, ip: str) -> str:
    """The gateway towards ip, or ip itself where it is on a link of this netns."""
    family = family_of(ip)
    packed = socket.inet_pton(family, ip)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    body = struct.pack("=BBBBBBBBI", family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute
    for answer in _ask(sock, _GETROUTE, _REQUEST, body):
        gateway = _attributes(answer, 12).get(_RTA_GATEWAY)
        if gateway:
            return socket.inet_ntop(family, gateway)
    return canonical(ip)
