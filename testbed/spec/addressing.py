"""Who gets which address on the fabric: pure arithmetic on the nodes' range.

The contract of a flat segment: gateway ``.1``, control plane ``.10``, node-k ``.(10+k)``. A routed
topology cuts the range into blocks of one size; block 0 is the core segment (gateway, control plane),
the others are the racks' or zones', each with its router at the first address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, ClassVar, Protocol

from testbed.spec.model import IPAddress, IPNetwork
from testbed.spec.params import Param

Path = tuple[str | int, ...]

GATEWAY = "gateway"
CONTROL_PLANE = "control-plane"
OUTSIDE_PREFIX = {4: 24, 6: 64}
"""Hosts behind the gateway share a segment per range of this size."""


class CutError(ValueError):
    """The nodes do not fit into the range. path: what to change, relative to ``spec``."""

    def __init__(self, path: Path, message: str) -> None:
        self.path, self.message = path, message
        super().__init__(message)


@dataclass(frozen=True)
class Wanted:
    """A node as asked for; addresses: those given by the user, if any."""

    name: str
    zone: str = ""
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True)
class Request:
    """What a builder needs to cut the nodes' range. zones: names in order; params: as in the spec."""

    node_cidrs: tuple[IPNetwork, ...]
    nodes: tuple[Wanted, ...]
    zones: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """A layer 2 segment: one subnet and one router address per family; nodes start at offset ``first``."""

    name: str
    subnets: tuple[IPNetwork, ...]
    gateway: tuple[IPAddress, ...]
    first: int

    def interfaces(self) -> tuple[str, ...]:
        """The router's addresses, with prefix length."""
        return with_prefix(self.gateway, self.subnets)


@dataclass(frozen=True)
class Cut:
    """The nodes' range, cut: the core segment, and each node's segment and zone in the request's order.

    links: the ranges that links between routers take their addresses from; zone_names: all zones,
    where a builder knows of more than the nodes are in.
    """

    core: Segment
    nodes: tuple[Segment, ...]
    zones: tuple[str, ...]
    gateway_name: str = GATEWAY
    links: tuple[IPNetwork, ...] = ()
    zone_names: tuple[str, ...] = ()

    def all_zones(self) -> tuple[str, ...]:
        """The names of all zones, in order."""
        return self.zone_names or tuple(dict.fromkeys(zone for zone in self.zones if zone))


class Cutter(Protocol):
    """What the spec needs of a topology builder: its parameters, and how it cuts the nodes' range.

    parameters: the keys allowed in ``spec.topology.params``; None: whatever its constructor takes.
    """

    parameters: ClassVar[Mapping[str, Param] | None]

    @classmethod
    def cut(cls, request: Request) -> Cut:
        """Which segment each node is on, and its subnets. Raises CutError."""


# --- cutting ------------------------------------------------------------------------------------------


def flat(request: Request, gateway: Sequence[str] = (), gateway_name: str = GATEWAY) -> Cut:
    """One segment for everything. gateway: its addresses where they are not the first of the range."""
    given = [ip_address(text) for text in gateway]
    for address in given:
        if not any(is_host(address, cidr) for cidr in request.node_cidrs):
            raise CutError(("topology", "params", "gateway"), f"{address} is not a host address of nodeCIDR")
    addresses = tuple(
        next((address for address in given if address.version == cidr.version), cidr.network_address + 1)
        for cidr in request.node_cidrs
    )
    smallest = min(cidr.num_addresses for cidr in request.node_cidrs)
    core = Segment("nodes", request.node_cidrs, addresses, 11 if smallest >= 16 else 3)
    zones = tuple(node.zone for node in request.nodes)
    return Cut(core, (core,) * len(request.nodes), zones, gateway_name)


def segments(
    node_cidrs: Sequence[IPNetwork], names: Sequence[str], masks: Sequence[int] | None
) -> tuple[Segment, ...]:
    """One block of each range per name, in order. masks: prefix lengths (one: IPv4's), None: the largest.

    Raises CutError where the range is too small.
    """
    bits = (len(names) - 1).bit_length()
    blocks: list[list[IPNetwork]] = [[] for _ in names]
    for cidr in node_cidrs:
        prefix = _block_prefix(cidr, bits, masks)
        size = 1 << (cidr.max_prefixlen - prefix)
        for index, block in enumerate(blocks):
            block.append(ip_network((int(cidr.network_address) + index * size, prefix)))
    return tuple(
        Segment(name, tuple(block), tuple(subnet.network_address + 1 for subnet in block), _first(block))
        for name, block in zip(names, blocks, strict=True)
    )


def _first(block: Sequence[IPNetwork]) -> int:
    return 11 if min(subnet.num_addresses for subnet in block) >= 64 else 2


def _block_prefix(cidr: IPNetwork, bits: int, masks: Sequence[int] | None) -> int:
    largest = cidr.prefixlen + bits
    if largest > cidr.max_prefixlen - 3:
        raise CutError(("network", "nodeCIDR"), f"{cidr} is too small to be cut into {1 << bits} subnets")
    if not masks or (len(masks) == 1 and cidr.version == 6 and masks[0] <= 32):
        return largest
    wanted = masks[-1] if cidr.version == 6 else masks[0]
    if not largest <= wanted <= cidr.max_prefixlen - 3:
        raise CutError(
            ("topology", "params", "mask"),
            f"/{wanted} does not fit: {cidr} has to be cut into {1 << bits} subnets "
            f"(/{largest} to /{cidr.max_prefixlen - 3})",
        )
    return wanted


def link_ranges(families: Sequence[int], given: Sequence[str], links: int) -> tuple[IPNetwork, ...]:
    """The range per family for ``links`` links of two addresses each. Raises CutError."""
    ranges: dict[int, IPNetwork] = {network.version: network for network in map(ip_network, given)}
    path = ("topology", "params", "linkCIDR")
    for version in families:
        if version not in ranges:
            raise CutError(path, f"has no IPv{version} range")
        if ranges[version].num_addresses < 2 * links:
            raise CutError(path, f"{ranges[version]} is too small for {links} links between routers")
    return tuple(ranges[version] for version in families)


def link_addresses(ranges: Sequence[IPNetwork], index: int) -> tuple[list[str], list[str]]:
    """The addresses of both ends of the index-th link: a /31 (RFC 3021) and a /127 (RFC 6164)."""
    ends: tuple[list[str], list[str]] = ([], [])
    for network in ranges:
        for side, end in enumerate(ends):
            end.append(f"{network.network_address + 2 * index + side}/{network.max_prefixlen - 1}")
    return ends


# --- assigning ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assigned:
    """Everyone's final addresses, one per family; problems: path relative to ``spec`` and message."""

    control_plane: tuple[IPAddress, ...]
    nodes: tuple[tuple[IPAddress, ...], ...]
    problems: tuple[tuple[Path, str], ...] = ()


def assign(
    cut: Cut,
    nodes: Sequence[Wanted],
    control_plane: Sequence[IPAddress] = (),
    others: Sequence[IPAddress] = (),
) -> Assigned:
    """Give every node and the control plane an address per family; given ones are kept and checked.

    others: addresses on the core segment that are somebody else's (outside hosts attached to it).
    """
    assigner = _Assigner(cut)
    for address in others:
        assigner.owner[address] = "a host outside the cluster"
    where: Path = ("controlPlane", "address")
    assigner.claim(control_plane, cut.core, CONTROL_PLANE, where)
    for index, (node, segment) in enumerate(zip(nodes, cut.nodes, strict=True)):
        assigner.claim(node.addresses, segment, node.name, ("nodes", "items", index, "address"))
    own = assigner.complete(control_plane, cut.core, 10 if cut.core.first == 11 else 2, CONTROL_PLANE)
    final = tuple(
        assigner.complete(node.addresses, segment, segment.first, node.name)
        for node, segment in zip(nodes, cut.nodes, strict=True)
    )
    return Assigned(own, final, tuple(assigner.problems))


class _Assigner:
    def __init__(self, cut: Cut) -> None:
        self.problems: list[tuple[Path, str]] = []
        self.owner: dict[IPAddress, str] = dict.fromkeys(cut.core.gateway, cut.gateway_name)
        for segment in cut.nodes:
            for address in segment.gateway:
                self.owner.setdefault(address, f"the router of {segment.name}")
        self._next: dict[tuple[IPNetwork, int], int] = {}
        self._full: set[IPNetwork] = set()

    def claim(self, given: Sequence[IPAddress], segment: Segment, name: str, path: Path) -> None:
        """Check the addresses that the user chose for ``name``."""
        for address in given:
            if not any(is_host(address, subnet) for subnet in segment.subnets):
                ranges = ", ".join(map(str, segment.subnets))
                self.problems.append((path, f"{address} is not a host address of {ranges}"))
            elif address in self.owner:
                self.problems.append((path, f"{address} is already that of {self.owner[address]}"))
            self.owner.setdefault(address, name)
        versions = [address.version for address in given]
        if len(set(versions)) < len(versions):
            self.problems.append((path, "must be one address per family"))

    def complete(
        self, given: Sequence[IPAddress], segment: Segment, first: int, name: str
    ) -> tuple[IPAddress, ...]:
        """The given addresses, and for each other family the next free one from offset ``first``."""
        chosen = {address.version: address for address in given}
        for subnet in segment.subnets:
            if subnet.version not in chosen and (free := self._free(subnet, first, name)):
                self.owner[free] = name
                chosen[subnet.version] = free
        return tuple(chosen[subnet.version] for subnet in segment.subnets if subnet.version in chosen)

    def _free(self, subnet: IPNetwork, first: int, name: str) -> IPAddress | None:
        start = self._next.get((subnet, first), first)
        last = subnet.num_addresses - (1 if subnet.version == 4 else 0)
        for offset in range(start, last):
            address = subnet.network_address + offset
            if address not in self.owner:
                self._next[subnet, first] = offset + 1
                return address
        self._next[subnet, first] = last
        if subnet not in self._full:
            self._full.add(subnet)
            self.problems.append((("network", "nodeCIDR"), f"{subnet} has no address left for {name}"))
        return None


def is_host(address: IPAddress, subnet: IPNetwork) -> bool:
    """Whether a host may have this address: in the subnet, and not its first or (IPv4) last one."""
    if address.version != subnet.version or address not in subnet:
        return False
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return True
    last = subnet.version == 4 and address == subnet.broadcast_address
    return address != subnet.network_address and not last


def with_prefix(addresses: Sequence[IPAddress], subnets: Sequence[IPNetwork]) -> tuple[str, ...]:
    """Each address with the prefix length of the subnet of its family: ``192.168.100.11/24``."""
    prefix = {subnet.version: subnet.prefixlen for subnet in subnets}
    return tuple(f"{address}/{prefix[address.version]}" for address in addresses)


# --- outside the cluster ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outside:
    """A segment behind the gateway: the gateway's addresses there, with prefix length, and the hosts on it.

    hosts: positions in what ``outside_segments`` was given.
    """

    gateway: tuple[str, ...]
    hosts: tuple[int, ...]


def outside_network(address: IPAddress) -> IPNetwork:
    """The subnet that a host behind the gateway is on."""
    return ip_network((int(address), OUTSIDE_PREFIX[address.version]), strict=False)


def outside_segments(hosts: Sequence[Sequence[IPAddress]]) -> tuple[Outside, ...]:
    """The segments of the hosts behind the gateway, given by their addresses: who shares a subnet shares one.

    Raises CutError where a subnet is full.
    """
    taken = {address for addresses in hosts for address in addresses}
    groups: list[tuple[set[IPNetwork], list[int]]] = []
    for position, addresses in enumerate(hosts):
        subnets = {outside_network(address) for address in addresses}
        members = [position]
        for group in [group for group in groups if group[0] & subnets]:
            groups.remove(group)
            subnets |= group[0]
            members = group[1] + members
        groups.append((subnets, members))
    return tuple(Outside(_outside_gateway(subnets, taken), tuple(members)) for subnets, members in groups)


def _outside_gateway(subnets: set[IPNetwork], taken: set[IPAddress]) -> tuple[str, ...]:
    ordered = tuple(sorted(subnets, key=lambda subnet: (subnet.version, int(subnet.network_address))))
    gateway = []
    for subnet in ordered:
        free = next((address for address in _hosts_of(subnet) if address not in taken), None)
        if free is None:
            raise CutError(("external",), f"{subnet} is full: the gateway needs an address there too")
        gateway.append(f"{free}/{subnet.prefixlen}")
    return tuple(gateway)


def _hosts_of(subnet: IPNetwork) -> Iterator[IPAddress]:
    yield from (subnet.network_address + offset for offset in range(1, min(subnet.num_addresses - 1, 2**20)))
