"""What is written to the kernel without nft: the one rule of which a node has thousands, and elements alone.

A change of nothing but elements of sets and maps (a pod's label, under network policy) takes nft ten
milliseconds and more, as it starts and asks for every set there is; here it is one message for each set.

The rule of which there are thousands picks a destination at random out of a map without a name. nft lets the
kernel number these maps, and the kernel looks at all there are to find a free number: 5,000 rules take it
seconds, with numbers chosen here a third of that. What nft lists afterwards is the same.

Layouts and numbers: linux/netfilter/{nfnetlink,nf_tables}.h; the data types are nft's own (datatype.h).
"""

from __future__ import annotations

import errno
import re
import socket
import string
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count, groupby
from typing import NamedTuple

from testbed.errors import KernelRefused
from testbed.kernel.netlink import NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, attribute
from testbed.rules import nft
from testbed.state import NftChain, NftElement, NftSet

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 6, 9, 12, 14

NFT_SET_ANONYMOUS, NFT_SET_CONSTANT, NFT_SET_MAP = 0x1, 0x2, 0x8
TYPE_INTEGER, TYPE_IPADDR, TYPE_IP6ADDR, TYPE_INET_SERVICE = 4, 7, 8, 13
TYPE_BITS = 6
"""nft's number of a concatenation holds those of its parts, this many bits each."""
HOST_ENDIAN_KEY = bytes.fromhex("000401000000010400000000060400000000")
"""NFTA_SET_USERDATA as nft 1.0.6 writes it: the key is in the host's byte order; two more facts are 0."""

REG_1, REG32_01, REG_2 = 1, 9, 2
META_L4PROTO, CMP_EQ, NG_RANDOM, NAT_DNAT = 16, 0, 1, 1

NAME_LENGTH = 4
"""Of maps that nft shows without a name. The kernel compares each name with all there are, three times for
a rule: short ones that differ in their first character take it a fifth less time than ``__map%d``."""

LETTERS = string.ascii_letters + string.digits

SOME_MAP, SOME_NUMBER = b"\2" * NAME_LENGTH, b"\xf0\xf1\xf2\xf3"
"""Placeholders for the name and the number of a map."""

BATCH_BYTES = 64 * 1024
"""Of one transaction; what a socket may send by default is a little more than three times this."""

NFT_JUMP, NFT_GOTO = -3, -4

MOST_ELEMENTS = 400
"""In a change that is written here: all of it is one batch, which is smaller than ``BATCH_BYTES`` then."""

MOST = 500
"""Destinations of a rule written here: they must fit into one attribute."""

_RULE = re.compile(
    r"meta l4proto (tcp|udp|sctp) dnat (ip6?) to numgen random mod \d+ map \{ ([0-9a-f.:, ]+) \}"
)
_names = count(1_000_000)
"""Numbers of maps: each is used once in this process, and far from those that nft has the kernel choose."""


class Pick(NamedTuple):
    """A chain whose one rule sends packets of a protocol to one of several (address, port)."""

    chain: NftChain
    protocol: str
    destinations: tuple[tuple[str, int], ...]


def pick(chain: NftChain) -> Pick | None:
    """What the chain is, if it has one such rule and nothing else."""
    if len(chain.rules) != 1 or not (match := _RULE.fullmatch(chain.rules[0])):
        return None
    protocol, family, choices = match.groups()
    entries = [entry.split(" : ", 1)[1].rsplit(" . ", 1) for entry in choices.split(", ")]
    if family != chain.family or len(entries) > MOST:
        return None
    return Pick(chain, protocol, tuple((ip, int(port)) for ip, port in entries))


def append(picks: Iterable[Pick]) -> None:
    """Append these rules to their chains, which are there. Raises KernelRefused; some may be written then."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    with opened as sock:
        for batch in _batches(_rule(each, next(_names)) for each in picks):
            sock.send(_limit(NFNL_MSG_BATCH_BEGIN) + batch + _limit(NFNL_MSG_BATCH_END))
            _check(sock)


def change_elements(
    sets: Mapping[nft.Key, NftSet], add: Iterable[NftElement], remove: Iterable[NftElement]
) -> bool:
    """Remove and add elements of sets that are there, in one transaction.

    Whether it was done: False, and nothing is, where an element is not of the plain kinds that are known here
    (addresses, alone or with protocol and port; of maps, jumps). Raises KernelRefused; then nothing is done.
    """
    gone, new = list(remove), list(add)
    if not 0 < len(gone) + len(new) <= MOST_ELEMENTS:
        return False
    try:
        messages = [
            *_of_sets(NFT_MSG_DELSETELEM, 0, sets, gone),
            *_of_sets(NFT_MSG_NEWSETELEM, NLM_F_CREATE, sets, new),
        ]
    except _Unknown:
        return False
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    with opened as sock:
        sock.send(_limit(NFNL_MSG_BATCH_BEGIN) + b"".join(messages) + _limit(NFNL_MSG_BATCH_END))
        _check(sock, "change elements of nftables sets")
    return True


def _check(sock: socket.socket, what: str = "append rules to nftables chains") -> None:
    """The kernel answers before send returns, and only if it refuses."""
    try:
        answer = sock.recv(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise KernelRefused(what, number, errno.errorcode.get(number, ""))


def _batches(messages: Iterable[bytes]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for message in messages:
        if batch and size + len(message) > BATCH_BYTES:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(message)
        size += len(message)
    if batch:
        yield b"".join(batch)


# --- messages -----------------------------------------------------------------------------------------


def _limit(kind: int) -> bytes:
    """The message that begins or ends a transaction."""
    return struct.pack("=IHHIIBBH", 20, kind, NLM_F_REQUEST, 0, 0, 0, 0, socket.htons(NFNL_SUBSYS_NFTABLES))


def _message(kind: int, flags: int, family: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    whole = NFNL_SUBSYS_NFTABLES << 8 | kind
    return struct.pack("=IHHII", 16 + len(body), whole, NLM_F_REQUEST | flags, 0, 0) + body


def _nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *attributes))


def _rule(each: Pick, number: int) -> bytes:
    """The map, what is in it, and the rule that looks at it."""
    family = socket.AF_INET6 if each.chain.family == "ip6" else socket.AF_INET
    count, table, chain = len(each.destinations), each.chain.table, each.chain.name
    before, after = _template(family, table, each.protocol, count, len(chain.encode()))
    identity = struct.pack(">I", number)
    return b"".join(
        (
            before.replace(SOME_MAP, _map_name(number)).replace(SOME_NUMBER, identity),
            _message(
                NFT_MSG_NEWSETELEM,
                NLM_F_CREATE,
                family,
                _text(1, table),
                attribute(4, identity),  # by number alone, which is found at once
                _nested(3, *_elements(each, family)),
            ),
            after.replace(SOME_MAP, _map_name(number))
            .replace(SOME_NUMBER, identity)
            .replace(b"\1" * len(chain.encode()), chain.encode()),
        )
    )


def _map_name(number: int) -> bytes:
    """As long as all others, and none that another of the last 14 million numbers had."""
    letters = []
    for _ in range(NAME_LENGTH):
        number, place = divmod(number, len(LETTERS))
        letters.append(LETTERS[place])
    return "".join(letters).encode()


_ELEMENTS = {
    socket.AF_INET: struct.Struct("=HHHHHHIHHHH4sHH"),
    socket.AF_INET6: struct.Struct("=HHHHHHIHHHH16sHH"),
}


def _elements(each: Pick, family: int) -> Iterator[bytes]:
    """Each a nest of a key, which is its place, and data: address and port."""
    layout = _ELEMENTS[socket.AddressFamily(family)]
    size = 20 if family == socket.AF_INET6 else 8
    for index, (ip, port) in enumerate(each.destinations):
        yield layout.pack(
            *(layout.size, 1 | NLA_F_NESTED),
            *(12, 1 | NLA_F_NESTED, 8, 1, index),
            *(size + 8, 2 | NLA_F_NESTED, size + 4, 1, socket.inet_pton(family, ip), socket.htons(port), 0),
        )


@lru_cache(1024)
def _template(family: int, table: str, protocol: str, count: int, chain: int) -> tuple[bytes, bytes]:
    """The messages before and after the elements, with placeholders. chain: the length of its name."""
    six = family == socket.AF_INET6
    address, size = (TYPE_IP6ADDR, 16) if six else (TYPE_IPADDR, 4)
    name, number = attribute(2, SOME_MAP + b"\0"), attribute(10, SOME_NUMBER)
    made = _message(
        NFT_MSG_NEWSET,
        NLM_F_CREATE,
        family,
        _text(1, table),
        name,
        _number(3, NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | NFT_SET_MAP),
        _number(4, TYPE_INTEGER),
        _number(5, 4),
        _number(6, address << TYPE_BITS | TYPE_INET_SERVICE),
        _number(7, size + 4),
        number,
        _nested(9, _number(1, count)),
        attribute(13, HOST_ENDIAN_KEY),
    )
    expressions = _nested(4, *_expressions(family, protocol, count))
    where = attribute(2, b"\1" * chain + b"\0")
    rule = _message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, _text(1, table), where, expressions)
    return made, rule


def _expressions(family: int, protocol: str, count: int) -> Iterator[bytes]:
    """What ``nft --debug=netlink`` shows for the rule: registers 1 and after it carry address and port."""
    number = {"tcp": 6, "udp": 17, "sctp": 132}[protocol]
    yield _expression("meta", _number(2, META_L4PROTO), _number(1, REG_1))
    value = _nested(3, attribute(1, bytes([number])))
    yield _expression("cmp", _number(1, REG_1), _number(2, CMP_EQ), value)
    yield _expression("numgen", _number(1, REG_1), _number(2, count), _number(3, NG_RANDOM), _number(4, 0))
    name, identity = attribute(1, SOME_MAP + b"\0"), attribute(4, SOME_NUMBER)
    yield _expression("lookup", _number(2, REG_1), _number(3, REG_1), name, identity)
    port = REG_2 if family == socket.AF_INET6 else REG32_01
    yield _expression("nat", _number(1, NAT_DNAT), _number(2, family), _number(3, REG_1), _number(5, port))


# --- elements -----------------------------------------------------------------------------------------


class _Unknown(Exception):
    """An element of a kind that is left to nft."""


FAMILIES = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


def _of_sets(
    kind: int, flags: int, sets: Mapping[nft.Key, NftSet], elements: list[NftElement]
) -> Iterator[bytes]:
    """A message for each set."""
    for key, group in groupby(sorted(elements, key=nft.element_set), key=nft.element_set):
        each = sets.get(key)
        if each is None or each.flags or each.timeout or each.family not in FAMILIES:
            raise _Unknown
        yield _message(
            kind,
            flags,
            FAMILIES[each.family],
            _text(1, each.table),
            _text(2, each.name),
            _nested(3, *(_element(each, element) for element in group)),
        )


def _element(each: NftSet, element: NftElement) -> bytes:
    if element.comment:
        raise _Unknown
    parts = element.key.split(" . ")
    types = each.type.split(" . ")
    if len(parts) != len(types):
        raise _Unknown
    key = b"".join(map(_key_part, types, parts))
    data = _verdict(element.value) if each.value == "verdict" else b""
    if element.value and not data:
        raise _Unknown
    return _nested(1, _nested(1, attribute(1, key)), data)


def _key_part(kind: str, text: str) -> bytes:
    """A part of a key, as long as the registers it is in."""
    try:
        match kind:
            case "ipv4_addr":
                return socket.inet_pton(socket.AF_INET, text)
            case "ipv6_addr":
                return socket.inet_pton(socket.AF_INET6, text)
            case "inet_proto":
                return struct.pack("=B3x", PROTOCOLS[text])
            case "inet_service":
                return struct.pack(">H2x", int(text))
    except (OSError, KeyError, ValueError, struct.error) as error:
        raise _Unknown from error
    raise _Unknown


def _verdict(text: str) -> bytes:
    verb, _, chain = text.partition(" ")
    code = {"goto": NFT_GOTO, "jump": NFT_JUMP}.get(verb)
    if code is None or not chain:
        raise _Unknown
    return _nested(2, _nested(2, attribute(1, struct.pack(">i", code)), _text(2, chain)))
