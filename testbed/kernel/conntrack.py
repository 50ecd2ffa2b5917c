"""The connections that the kernel tracks in the current netns: listed, marked one by one, ended.

Spoken to by netlink (``linux/netfilter/nfnetlink_conntrack.h``): a tool per connection would take longer than
the connections last.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from testbed.cluster.messages import Connection
from testbed.errors import KernelRefused
from testbed.kernel import sysctl
from testbed.rules.udpflows import Tracked, stale
from testbed.state import Family, UdpFlows

NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8
_CT_NEW, _CT_GET, _CT_DELETE = _CTNETLINK, _CTNETLINK | 1, _CTNETLINK | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_EXCLUSIVE, _CREATE = 0x200, 0x400
_STATUS, _TIMEOUT = 3, 7
_SEEN_REPLY, _ASSURED, _CONFIRMED = 0x2, 0x4, 0x8
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _PROTOINFO, _MARK, _MARK_MASK = 1, 2, 4, 8, 21
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_TIME_WAIT, _CLOSE = 7, 8
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_COUNT = "net/netfilter/nf_conntrack_count"
_ROOM = 1 << 18
BATCH = 64
"""Changes that are sent before their answers are read."""

FAMILIES: dict[int, Family] = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def connections(bit: int) -> list[Connection]:
    """Every tracked connection of both families that is not over. bit: of the mark, that ``marked`` tells of.

    The kernel remembers a TCP connection for two minutes after its end. Raises KernelRefused.
    """
    with _socket() as sock:
        return [_connection(each, bit) for each in _tracked(sock, socket.AF_UNSPEC) if not _is_over(each)]


def _is_over(attributes: dict[int, bytes]) -> bool:
    """Whether both ends have closed a TCP connection, or one has reset it."""
    tcp = _attributes(attributes.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b"")
    state = _attributes(tcp).get(_TCP_STATE)
    return state is not None and state[0] in (_TIME_WAIT, _CLOSE)


def mark(keys: Iterable[tuple[bytes, bool]], bit: int) -> None:
    """Set or clear a bit of connections' marks; those that are gone are skipped. Raises KernelRefused.

    keys: ``Connection.key`` and whether the bit is to be set.
    """
    requests = [
        _generic(key[0]) + key[1:] + _number(_MARK, bit if on else 0) + _number(_MARK_MASK, bit)
        for key, on in keys
    ]
    with _socket() as sock:
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            for body in batch:
                head = _HEADER.pack(_HEADER.size + len(body), _CT_NEW, _REQUEST | _ACK, 1, 0)
                sock.send(head + body)
            for _ in batch:
                _acknowledged(sock, "mark a connection")


def end_udp(flows: Iterable[UdpFlows]) -> int:
    """End the UDP connections of these that nobody serves any more; how many. Raises KernelRefused."""
    wanted = tuple(flows)
    if sysctl.read(_COUNT) == "0":  # a listing goes through the table that all netns share
        return 0
    families = {each.family for each in wanted}
    with _socket() as sock:
        gone = [
            each.key
            for number, family in FAMILIES.items()
            if family in families
            for each in stale(_udp(number, _tracked(sock, number)), wanted)
        ]
        for key in gone:
            body = _generic(key[0]) + key[1:]
            sock.send(_HEADER.pack(_HEADER.size + len(body), _CT_DELETE, _REQUEST | _ACK, 1, 0) + body)
            _acknowledged(sock, "end a connection")
    return len(gone)


def add_made_up(first: int, count: int, mark: int, timeout: int) -> int:
    """Enter connections that nobody has: the ``first`` and following of one fixed series; how many were.

    They are UDP, answered and assured, so that the kernel does not drop them early for others, between
    addresses of 198.18.0.0/15 (RFC 2544), which is for tests. mark: to find them by; timeout: seconds. Fewer
    than ``count`` where the table is full. Raises KernelRefused.
    """
    added, request = 0, _made_up(mark, timeout)
    with _socket() as sock:
        for start in range(first, first + count, BATCH):
            size = min(BATCH, first + count - start)
            sock.send(b"".join(map(request, range(start, start + size))))
            for number in _codes(sock, size):
                if number not in (0, errno.EEXIST, errno.ENOMEM):
                    raise KernelRefused("add a connection", number, os.strerror(number))
                if number == errno.ENOMEM:
                    return added
                added += 1
    return added


def end_marked(mark: int) -> None:
    """End every connection with exactly this mark. Raises KernelRefused."""
    body = _generic(0) + _number(_MARK, mark) + _number(_MARK_MASK, 0xFFFFFFFF)
    with _socket() as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(body), _CT_DELETE, _REQUEST | _ACK, 1, 0) + body)
        _acknowledged(sock, "end connections")


def _made_up(mark: int, timeout: int) -> Callable[[int], bytes]:
    """Makes the request for one of the series."""
    client, server, port, discard = b"CCCC", bytes([198, 19, 0, 1]), b"PP", (9).to_bytes(2, "big")

    def direction(kind: int, source: bytes, destination: bytes, ports: tuple[bytes, bytes]) -> bytes:
        addresses = _nested(_TUPLE_IP, _bytes(_V4_SRC, source) + _bytes(_V4_DST, destination))
        protocol = _bytes(_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
        protocol += _bytes(_SRC_PORT, ports[0]) + _bytes(_DST_PORT, ports[1])
        return _nested(kind, addresses + _nested(_TUPLE_PROTO, protocol))

    body = (
        _generic(socket.AF_INET)
        + direction(_TUPLE_ORIG, client, server, (port, discard))
        + direction(_TUPLE_REPLY, server, client, (discard, port))
        + _number(_STATUS, _SEEN_REPLY | _ASSURED | _CONFIRMED)
        + _number(_TIMEOUT, timeout)
        + _number(_MARK, mark)
    )
    flags = _REQUEST | _ACK | _CREATE | _EXCLUSIVE
    whole = _HEADER.pack(_HEADER.size + len(body), _CT_NEW, flags, 1, 0) + body

    def numbered(number: int) -> bytes:
        address = bytes([198, 18, number >> 8 & 0xFF, number & 0xFF])
        # The port first: an address may look like the place of a port.
        return whole.replace(port, (1024 + (number >> 16)).to_bytes(2, "big")).replace(client, address)

    return numbered


def _bytes(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _nested(kind: int, data: bytes) -> bytes:
    return _bytes(kind | _NESTED, data)


def _codes(sock: socket.socket, count: int) -> Iterator[int]:
    """The errno of each of so many acknowledgements."""
    while count > 0:
        for kind, body in _messages(sock.recv(_ROOM)):
            if kind == _ERROR:
                count -= 1
                yield -struct.unpack_from("=i", body)[0]


def _udp(family: int, tracked: Iterable[dict[int, bytes]]) -> Iterator[Tracked]:
    for attributes in tracked:
        origin = attributes[_TUPLE_ORIG]
        protocol = _attributes(_attributes(origin)[_TUPLE_PROTO])
        if protocol[_PROTO_NUM][0] != socket.IPPROTO_UDP:
            continue
        _, destination, _, _ = _tuple(origin)
        answers, _, _, port = _tuple(attributes[_TUPLE_REPLY])
        number = int.from_bytes(protocol[_DST_PORT], "big")
        yield Tracked(destination, number, answers, port, _key(family, origin))


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)


def _generic(family: int) -> bytes:
    return _GENERIC.pack(family, 0, 0)


def _number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits, in network order."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, kind) + struct.pack("!I", value)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _answers(sock: socket.socket) -> Iterator[bytes]:
    """The attributes of each message of a dump."""
    while True:
        for kind, body in _messages(sock.recv(_ROOM)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                _raise("list connections", body)
            yield body[_GENERIC.size :]


def _acknowledged(sock: socket.socket, what: str) -> None:
    """Hear the answer to one request; that the connection is gone is as good as done."""
    for kind, body in _messages(sock.recv(_ROOM)):
        if kind == _ERROR and -struct.unpack_from("=i", body)[0] not in (0, errno.ENOENT):
            _raise(what, body)


def _raise(what: str, body: bytes) -> None:
    number = -struct.unpack_from("=i", body)[0]
    raise KernelRefused(what, number, os.strerror(number))


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _tracked(sock: socket.socket, family: int) -> Iterator[dict[int, bytes]]:
    """The attributes of every connection of a family, or of all."""
    head = _HEADER.pack(_HEADER.size + _GENERIC.size, _CT_GET, _REQUEST | _DUMP, 1, 0)
    sock.send(head + _generic(family))
    return (_attributes(body) for body in _answers(sock))


def _key(family: int, origin: bytes) -> bytes:
    """What the kernel finds a connection by: its family, and where it came from and was sent to."""
    header = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(origin), _TUPLE_ORIG | _NESTED)
    return bytes([family]) + header + origin + b"\0" * (-len(origin) % 4)


def _connection(attributes: dict[int, bytes], bit: int) -> Connection:
    origin = attributes[_TUPLE_ORIG]
    family = socket.AF_INET if _V4_SRC in _attributes(_attributes(origin)[_TUPLE_IP]) else socket.AF_INET6
    source, _, number, _ = _tuple(origin)
    destination, _, _, port = _tuple(attributes[_TUPLE_REPLY])
    marked = bool(int.from_bytes(attributes.get(_MARK, b""), "big") & bit)
    name = PROTOCOLS.get(number, str(number))
    return Connection(source, destination, name, port, marked, _key(family, origin))


def _tuple(data: bytes) -> tuple[str, str, int, int]:
    """Source, destination, protocol number and source port (0 without) of one direction."""
    parts = _attributes(data)
    addresses, protocol = _attributes(parts[_TUPLE_IP]), _attributes(parts[_TUPLE_PROTO])
    family = socket.AF_INET if _V4_SRC in addresses else socket.AF_INET6
    first, second = (_V4_SRC, _V4_DST) if family == socket.AF_INET else (_V6_SRC, _V6_DST)
    return (
        socket.inet_ntop(family, addresses[first]),
        socket.inet_ntop(family, addresses[second]),
        protocol[_PROTO_NUM][0],
        int.from_bytes(protocol.get(_SRC_PORT, b""), "big"),
    )
