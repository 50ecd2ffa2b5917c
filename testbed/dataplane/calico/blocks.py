"""Calico's IPAM: one pool per family, cut into blocks that nodes claim as they need them.

A node's first block is where a hash of its name points; if that is taken, the next free one. A block hands
its addresses out in order, all of them, and a freed one comes last again. A node whose blocks are full while
no block is free borrows single addresses of other nodes' blocks.

Go's random numbers are not reproduced: where a name points is as deterministic as upstream's, but elsewhere.
Sources: projectcalico/calico ``libcalico-go/lib/ipam/{ipam,ipam_block,ipam_block_reader_writer}.go``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from testbed.control.ipam import NOTHING, AllocationError, Held, asked_by_version

Network = IPv4Network | IPv6Network


def fnv32(text: str) -> int:
    """FNV-1 of 32 bits."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value * 0x01000193) & 0xFFFFFFFF ^ byte
    return value


@dataclass
class _Block:
    """A block. node: whose it is; free: ordinals, the next one first; used: ordinal → owner."""

    number: int
    node: str
    free: deque[int]
    used: dict[int, str] = field(default_factory=dict)


class Pool:
    """One family's range. length: prefix length of its blocks, at least that of the range."""

    def __init__(self, cidr: str, length: int) -> None:
        self.network: Network = ip_network(cidr)
        self.length = length
        self.size = 1 << (self.network.max_prefixlen - self.length)
        self.count = 1 << (self.length - self.network.prefixlen)
        self._blocks: dict[int, _Block] = {}
        self._of: dict[str, list[_Block]] = {}

    def cidr(self, block: _Block) -> str:
        """A block's range."""
        return f"{self._address(block.number * self.size)}/{self.length}"

    def _address(self, offset: int) -> IPv4Address | IPv6Address:
        return self.network.network_address + offset

    def blocks(self, node: str) -> Iterator[_Block]:
        """Those of a node, in the order in which it claimed them."""
        yield from self._of.get(node, ())

    def take(self, node: str, owner: str) -> tuple[str, _Block]:
        """An address for a node's owner, and whose block it is of. Raises AllocationError."""
        block = next((each for each in self.blocks(node) if each.free), None) or self._claim(node)
        if block is None:  # borrow, from the block that the name points to on
            block = next((each for each in self._walk(node) if each is not None and each.free), None)
        if block is None:
            family = f"IPv{self.network.version}"
            raise AllocationError(
                f"assigned 0 out of 1 requested {family} addresses; pool {self.network} is full"
            )
        ordinal = block.free.popleft()
        block.used[ordinal] = owner
        return str(self._address(block.number * self.size + ordinal)), block

    def take_this(self, node: str, owner: str, asked: str) -> _Block:
        """The asked address for a node's owner. Raises AllocationError."""
        number, ordinal = self._place(asked)
        if not 0 <= number < self.count:
            raise AllocationError(f"{asked} is not in a configured pool: {self.network}")
        block = self._blocks.get(number) or self._new(number, node)
        if ordinal in block.used:
            raise AllocationError(f"address {asked} is already assigned")
        block.free.remove(ordinal)
        block.used[ordinal] = owner
        return block

    def give_back(self, ip: str) -> _Block:
        """An address that was taken is free again."""
        number, ordinal = self._place(ip)
        block = self._blocks[number]
        del block.used[ordinal]
        block.free.append(ordinal)
        return block

    def block_of(self, ip: str) -> _Block:
        """The block of an address that was taken."""
        return self._blocks[self._place(ip)[0]]

    def let_go(self, node: str) -> None:
        """The blocks of a node that nobody uses are nobody's again."""
        for block in [each for each in self.blocks(node) if not each.used]:
            self._of[node].remove(block)
            del self._blocks[block.number]

    def _place(self, ip: str) -> tuple[int, int]:
        return divmod(int(ip_address(ip)) - int(self.network.network_address), self.size)

    def _start(self, node: str) -> int:
        return random.Random(fnv32(node)).randrange(self.count)  # noqa: S311 - nothing secret

    def _walk(self, node: str) -> Iterator[_Block | None]:
        start = self._start(node)
        return (self._blocks.get((start + step) % self.count) for step in range(self.count))

    def _claim(self, node: str) -> _Block | None:
        """The next block that is nobody's; None where there is none left."""
        if len(self._blocks) >= self.count:
            return None
        start = self._start(node)
        steps = (step for step in range(self.count) if (start + step) % self.count not in self._blocks)
        return self._new((start + next(steps)) % self.count, node)

    def _new(self, number: int, node: str) -> _Block:
        block = self._blocks[number] = _Block(number, node, deque(range(self.size)))
        self._of.setdefault(node, []).append(block)
        return block


class BlockIpam:
    """A cluster's addresses. tunnels: IP version → what the nodes' own address of that family is for."""

    def __init__(self, pools: Iterable[Pool], tunnels: Mapping[int, str]) -> None:
        self._pools: dict[int, Pool] = {pool.network.version: pool for pool in pools}
        self._tunnels = dict(tunnels)
        self._own: dict[str, dict[str, str]] = {}
        self._ips: dict[str, tuple[str, tuple[str, ...]]] = {}  # owner → its node, its addresses
        self._borrowed: dict[str, dict[str, None]] = {}
        self._there: set[str] = set()
        self._lacking: dict[str, None] = {}  # nodes whose tunnels have no address yet
        self._changed: set[str] = set()

    def add_node(self, node: str, pod_cidrs: tuple[str, ...]) -> None:
        """See ``Ipam``. A tunnel's address is the first that a node takes (``node/pkg/allocateip``)."""
        self._there.add(node)
        self._address_tunnels(node)
        self._changed.add(node)

    def _address_tunnels(self, node: str) -> None:
        """Give those an address that have none; where there is none left, calico-node goes on trying."""
        own = self._own.setdefault(node, {})
        self._lacking.pop(node, None)
        for version, purpose in self._tunnels.items():
            if version not in self._pools or purpose in own:
                continue
            try:
                ip, block = self._pools[version].take(node, _tunnel_owner(node))
            except AllocationError:
                self._lacking[node] = None
                continue
            own[purpose] = ip
            self._note(node, ip, block)
            self._changed.add(node)

    def remove_node(self, node: str) -> None:
        """See ``Ipam``: its tunnels' addresses and empty blocks are free, others when its last pod goes."""
        self._there.discard(node)
        self._lacking.pop(node, None)
        for pool in self._pools.values():
            pool.let_go(node)
        self._give_back(node, self._own.pop(node, {}).values())
        self._changed.add(node)

    def allocate(self, node: str, owner: str, asked: str = "") -> tuple[str, ...]:
        """See ``Ipam``."""
        if owner in self._ips:
            raise AllocationError(f"{owner} has been allocated, duplicate allocation is not allowed")
        wanted = asked_by_version(asked)
        got: list[str] = []
        try:
            for version, pool in self._pools.items():
                this = wanted.pop(version, "")
                if this:
                    block = pool.take_this(node, owner, this)
                else:
                    this, block = pool.take(node, owner)
                got.append(this)
                self._note(node, this, block)
            if wanted:
                raise AllocationError(f"requested IP address {next(iter(wanted.values()))} has no pool here")
        except AllocationError:
            self._give_back(node, got)
            raise
        self._ips[owner] = node, tuple(got)
        return tuple(got)

    def adopt(self, node: str, owner: str, ips: tuple[str, ...]) -> None:
        """See ``Ipam``. Addresses of no pool are nothing to us."""
        taken = []
        for ip in ips:
            pool = self._pools.get(ip_address(ip).version)
            if pool is None or ip_address(ip) not in pool.network:
                continue
            try:
                self._note(node, ip, pool.take_this(node, owner, ip))
            except AllocationError:
                continue  # whoever has it keeps it
            taken.append(ip)
        self._ips[owner] = node, tuple(taken)

    def release(self, node: str, owner: str) -> None:
        """See ``Ipam``."""
        where, ips = self._ips.pop(owner, (node, ()))
        self._give_back(where, ips)

    def held(self, node: str) -> Held:
        """See ``Ipam``."""
        ranges = tuple(pool.cidr(block) for pool in self._pools.values() for block in pool.blocks(node))
        borrowed = tuple(self._borrowed.get(node, ()))
        own = self._own.get(node, {})
        return Held(ranges, borrowed, dict(own)) if ranges or borrowed or own else NOTHING

    def changed(self) -> Iterable[str]:
        """See ``Ipam``."""
        changed, self._changed = self._changed, set()
        return sorted(changed)

    def _note(self, node: str, ip: str, block: _Block) -> None:
        if block.node != node:
            self._borrowed.setdefault(node, {})[ip] = None
            self._changed.add(node)
        elif len(block.used) == 1:
            self._changed.add(node)

    def _give_back(self, node: str, ips: Iterable[str]) -> None:
        for ip in ips:
            pool = self._pools[ip_address(ip).version]
            block = pool.give_back(ip)
            if self._borrowed.get(node, {}).pop(ip, "") is None:
                self._changed.add(node)
            if not block.used and block.node not in self._there:
                pool.let_go(block.node)
        for lacking in list(self._lacking):
            self._address_tunnels(lacking)


def _tunnel_owner(node: str) -> str:
    return f"tunnel of {node}"
