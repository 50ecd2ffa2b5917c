"""Weave's IPAM: the whole range is a ring that is divided among the peers, who give away what others lack.

Each part of the ring belongs to one peer, which gives out the lowest free address of its own. The first
parts are made by halving the range over the peers that agreed (``consensus``); until enough of them are there
nobody gets an address. A peer that has none left is given half of the largest free piece of the peer with the
most free addresses (weave asks one at random, weighted by that). What a peer that was removed owned goes to
another, as ``weave rmpeer`` does it; weave-kube removes peers whose nodes are gone, unless they are kept.

Sources: weave ``docs/ipam.md``, ``ipam/{allocator.go,ring/ring.go,space/space.go}``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address, summarize_address_range

from testbed.control.ipam import NOTHING, AllocationError, Held, asked_by_version

EXPOSED = "weave:expose"
"""What the bridge's address is for."""


@dataclass(frozen=True)
class Part:
    """Addresses from ``start`` to before ``end`` that one peer owns."""

    start: int
    end: int
    peer: str


def split(network: IPv4Network, peers: tuple[str, ...]) -> Iterator[Part]:
    """The first parts: the range is halved, and each half again over half of the peers, the first half having
    the fewer of an odd number."""
    if len(peers) == 1:
        yield Part(int(network.network_address), int(network.broadcast_address) + 1, peers[0])
        return
    lower, upper = network.subnets()
    middle = len(peers) // 2
    yield from split(lower, peers[:middle])
    yield from split(upper, peers[middle:])


class Ring:
    """The IPAM of a whole cluster. peers: the nodes that it begins with, in order; consensus: how many are
    expected to agree on the first parts (0: so many as there are); it takes more than half of them."""

    def __init__(self, cidr: str, peers: tuple[str, ...], consensus: int = 0) -> None:
        self.network = IPv4Network(cidr)
        self._expected = peers
        self._quorum = (consensus or len(peers)) // 2 + 1
        self._parts: tuple[Part, ...] = ()
        self._peers: dict[str, None] = {}
        self._kept: set[str] = set()  # peers that nobody removes when they are gone
        self._owners: dict[int, tuple[str, str]] = {}  # address → (node, owner)
        self._numbers: dict[tuple[str, str], int] = {}
        # The whole range's first and last address are nobody's.
        self._reserved = {int(self.network.network_address), int(self.network.broadcast_address)}
        self._full_to: dict[int, int] = {}  # start of a part → before this none of its addresses is free
        self._held: dict[str, Held] = {}
        self._changed: dict[str, None] = {}

    # --- peers

    def add_node(self, node: str, pod_cidrs: tuple[str, ...] = ()) -> None:
        """A peer came. It owns nothing at first, unless it is one of those that the ring began with."""
        self._peers[node] = None
        if not self._parts and self._agree():
            initial = self._expected or tuple(self._peers)
            self._parts = tuple(split(self.network, initial))
            for peer in self._peers:
                self._come(peer)
        elif self._parts:
            if len(self._peers) == 1:  # what the last one owned that left is nobody else's
                self._give({part.peer for part in self._parts} - self._kept, node)
            self._come(node)

    def _agree(self) -> bool:
        return len(self._peers) >= self._quorum

    def _come(self, peer: str) -> None:
        self._touch(peer)
        with suppress(AllocationError):  # else its first pod has somebody give one
            self._expose(peer)

    def _expose(self, peer: str) -> None:
        """Give a peer's bridge its address. Raises AllocationError."""
        if (peer, EXPOSED) not in self._numbers:
            self._take(peer, EXPOSED, self._lowest(peer))
            self._touch(peer)

    def remove_node(self, node: str) -> None:
        """The peer is removed, and what it owned is another's; addresses of its pods stay taken."""
        self._peers.pop(node, None)
        self.release(node, EXPOSED)
        if node not in self._kept:
            self._remove(node)

    def keep(self, node: str) -> None:
        """Nobody is to remove this peer: gone, it still owns what it did."""
        self._kept.add(node)

    def forget(self, node: str) -> None:
        """Remove it as any other, now if it is gone."""
        self._kept.discard(node)
        if node not in self._peers:
            self._remove(node)

    def _remove(self, node: str) -> None:
        heirs = [peer for peer in self._peers if self._owns_anything(peer)] or list(self._peers)
        if not heirs or not self._parts:
            return
        self._give({node}, heirs[0])
        self._touch(heirs[0])

    def _give(self, owners: Collection[str], heir: str) -> None:
        self._set_parts(
            Part(part.start, part.end, heir if part.peer in owners else part.peer) for part in self._parts
        )

    def _owns_anything(self, peer: str) -> bool:
        return any(part.peer == peer for part in self._parts)

    # --- addresses

    def allocate(self, node: str, owner: str, asked: str = "") -> tuple[str, ...]:
        """See ``Ipam``: the lowest free address of the peer's own, or what another gives it.

        Errors are the plugin's (``plugin/net/cni.go``).
        """
        try:
            return (self._allocate(node, owner, asked_by_version(asked)),)
        except AllocationError as error:
            raise AllocationError(f"unable to allocate IP address: {error}") from error

    def _allocate(self, node: str, owner: str, asked: Mapping[int, str]) -> str:
        if not self._parts:
            raise AllocationError(
                f"no quorum: of {self._quorum} peers that have to agree {len(self._peers)} are there"
            )
        if (node, owner) in self._numbers:
            raise AllocationError(f"{owner} has an address already")
        self._expose(node)  # a pod is of no use without its gateway
        numbers = [self._asked(node, text) for text in asked.values()] or [self._lowest(node)]
        return self._take(node, owner, numbers[0])

    def _take(self, node: str, owner: str, number: int) -> str:
        self._owners[number] = node, owner
        self._numbers[node, owner] = number
        return str(IPv4Address(number))

    def _asked(self, node: str, text: str) -> int:
        number = int(ip_address(text))
        if ip_address(text) not in self.network or number in self._reserved:
            raise AllocationError(f"{text} is not an address of {self.network}")
        if number in self._owners:
            raise AllocationError(f"{text} is already owned by {self._owners[number][1]}")
        part = next(part for part in self._parts if part.start <= number < part.end)
        if part.peer != node:
            raise AllocationError(f"{text} is owned by other peer {part.peer}")
        return number

    def _lowest(self, peer: str) -> int:
        """The lowest free address that a peer owns, given by another one if there is none. Raises
        AllocationError."""
        number = self._first_free(peer)
        return self._be_given(peer) if number is None else number

    def _first_free(self, peer: str) -> int | None:
        for part in self._parts:
            if part.peer != peer:
                continue
            number = max(part.start, self._full_to.get(part.start, 0))
            while number < part.end and (number in self._owners or number in self._reserved):
                number += 1
            self._full_to[part.start] = number
            if number < part.end:
                return number
        return None

    def _free(self, peer: str) -> Iterator[tuple[int, int]]:
        """The pieces (from, to before) that a peer owns and nobody has, from the lowest."""
        for part in self._parts:
            if part.peer == peer:
                yield from self._holes(part)

    def _holes(self, part: Part) -> Iterator[tuple[int, int]]:
        taken = sorted(
            number for number in self._owners.keys() | self._reserved if part.start <= number < part.end
        )
        start = part.start
        for number in (*taken, part.end):
            if start < number:
                yield start, number
            start = number + 1

    def _be_given(self, peer: str) -> int:
        """A donation, of which the first address is returned: of the upper half of the largest free piece of
        the richest, its largest CIDR."""
        pieces = {other: list(self._free(other)) for other in self._peers if other != peer}
        rich = {other: sum(end - start for start, end in free) for other, free in pieces.items() if free}
        if not rich:
            raise AllocationError(self._full())
        donor = max(rich, key=lambda other: rich[other])
        start, end = max(pieces[donor], key=lambda piece: (piece[1] - piece[0], piece[0]))
        upper = end - (end - start + 1) // 2
        given = max(_cidrs(upper, end), key=lambda cidr: (cidr.num_addresses, int(cidr.network_address)))
        first, last = int(given.network_address), int(given.broadcast_address) + 1
        self._set_parts(_with(self._parts, Part(first, last, peer)))
        self._touch(donor)
        self._touch(peer)
        return first

    def _full(self) -> str:
        """Why nobody gives any, in the words of ``weave status``."""
        gone = {part.peer for part in self._parts} - self._peers.keys()
        lost = {peer: sum(end - start for start, end in self._free(peer)) for peer in sorted(gone)}
        if not sum(lost.values()):
            return f"no IP addresses available: {self.network} is full"
        shares = ", ".join(f"{peer} {count} IPs" for peer, count in lost.items())
        return f"waiting for IP range grant from peers: {shares} - unreachable! use 'rmpeer' if they are dead"

    def adopt(self, node: str, owner: str, ips: tuple[str, ...]) -> None:
        """See ``Ipam``. An address outside the range needs no reservation."""
        for ip in ips:
            number = int(ip_address(ip))
            if ip_address(ip) in self.network and number not in self._owners:
                self._take(node, owner, number)

    def release(self, node: str, owner: str) -> None:
        """See ``Ipam``."""
        number = self._numbers.pop((node, owner), None)
        if number is not None:
            del self._owners[number]
            for part in self._parts:
                if part.start <= number < part.end:
                    self._full_to[part.start] = min(number, self._full_to.get(part.start, number))

    # --- what nodes have

    def _set_parts(self, parts: Iterable[Part]) -> None:
        self._parts = tuple(parts)

    def _touch(self, peer: str) -> None:
        self._held.pop(peer, None)
        self._changed[peer] = None

    def held(self, node: str) -> Held:
        """See ``Ipam``: the peer's parts of the ring, and the address of its bridge as ``weave:expose``."""
        if node not in self._peers or not self._parts:
            return NOTHING
        if node not in self._held:
            ranges = (
                str(cidr)
                for start, end in _joined(part for part in self._parts if part.peer == node)
                for cidr in _cidrs(start, end)
            )
            number = self._numbers.get((node, EXPOSED))
            own = {} if number is None else {EXPOSED: str(IPv4Address(number))}
            self._held[node] = Held(tuple(ranges), own=own)
        return self._held[node]

    def changed(self) -> tuple[str, ...]:
        """See ``Ipam``."""
        changed, self._changed = tuple(self._changed), {}
        return changed


def _cidrs(start: int, end: int) -> list[IPv4Network]:
    return list(summarize_address_range(IPv4Address(start), IPv4Address(end - 1)))


def _with(parts: Iterable[Part], new: Part) -> Iterator[Part]:
    """The ring with a new part, cut out of the one it was in."""
    for part in parts:
        if not part.start <= new.start < part.end:
            yield part
            continue
        if part.start < new.start:
            yield Part(part.start, new.start, part.peer)
        yield new
        if new.end < part.end:
            yield Part(new.end, part.end, part.peer)


def _joined(parts: Iterable[Part]) -> Iterator[tuple[int, int]]:
    """Parts in order, those that touch as one."""
    start = end = -1
    for part in parts:
        if part.start != end:
            if end > start:
                yield start, end
            start = part.start
        end = part.end
    if end > start:
        yield start, end
