"""Who gives pods their addresses: what an IPAM is, and the one of most dataplanes, the host-local plugin.

A dataplane names its own (``Dataplane.ipam``). host-local goes round robin in the node's range. Source of its
rules: containernetworking/plugins, ``plugins/ipam/host-local/backend/allocator``: the range is
network + 1 to broadcast - 1 (IPv6: to the last address), the gateway is network + 1 and is never given out,
the search starts after the last address reserved and wraps, so a freed address is not reused at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol


class AllocationError(Exception):
    """An address cannot be given; the message is that of the plugin who gives them."""


ASKED = "testbed/ip"
"""The annotation of pods that ask for addresses: one, or one of each family, comma-separated."""


def asked_addresses(text: str) -> list[str]:
    """The addresses that an annotation asks for, each once. Raises AllocationError."""
    try:
        found = [ip_address(each) for each in filter(None, map(str.strip, text.split(",")))]
    except ValueError as error:
        raise AllocationError(f"annotation {ASKED}: {error}") from error
    return list(dict.fromkeys(map(str, found)))


def asked_by_version(text: str) -> dict[int, str]:
    """The addresses that an annotation asks for, by IP version. Raises AllocationError.

    Two of one family are refused in Calico's words (``cni-plugin/pkg/k8s/k8s.go``: validateAndExtractIPs).
    """
    found: dict[int, str] = {}
    for address in asked_addresses(text):
        version = ip_address(address).version
        if version in found:
            raise AllocationError(f'cannot have more than one IPv{version} address for "{ASKED}" annotation')
        found[version] = address
    return found


@dataclass(frozen=True)
class Held:
    """What a node has of a pool that nodes share, as compilers see it; nothing where its podCIDRs say it all.

    ranges: CIDRs that are the node's. borrowed: addresses of its pods in ranges of others. own: what for →
    the address of a device of the node itself (a tunnel's, a bridge's).
    """

    ranges: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    own: dict[str, str] = field(default_factory=dict)


NOTHING = Held()
"""Held by nodes whose podCIDRs say it all."""


class Ipam(Protocol):
    """Gives addresses out, for a whole cluster. owner: a pod's uid."""

    def add_node(self, node: str, pod_cidrs: tuple[str, ...]) -> None:
        """A node came; one that came back finds what it had."""
        ...

    def remove_node(self, node: str) -> None:
        """A node's object is gone; its pods are released one by one."""
        ...

    def allocate(self, node: str, owner: str, asked: str = "") -> tuple[str, ...]:
        """One address per family; asked: comma-separated addresses wanted. Raises AllocationError.

        None at all: the pod's node gives them, and its agent says which.
        """
        ...

    def adopt(self, node: str, owner: str, ips: tuple[str, ...]) -> None:
        """A pod came with these addresses, however it got them: they are not given out again."""
        ...

    def release(self, node: str, owner: str) -> None:
        """Give back what ``owner`` has; one without an address is fine."""
        ...

    def held(self, node: str) -> Held:
        """What the node has now."""
        ...

    def changed(self) -> Iterable[str]:
        """The nodes whose ``held`` is another since this was last asked."""
        ...


class Range:
    """One node's range of one family. cidr: text, ``10.244.1.0/24``."""

    def __init__(self, cidr: str) -> None:
        network = ip_network(cidr)
        if network.num_addresses < 4:
            raise AllocationError(f"Network {cidr} too small to allocate from")
        self.network = network
        self._first = int(network.network_address) + 1
        last = int(network.network_address) + network.num_addresses - 1
        self._last = last - 1 if network.version == 4 else last
        self._reserved: dict[int, str] = {}
        self._by_owner: dict[str, int] = {}
        self._latest = self._first  # the gateway: the first pod gets the address after it

    @property
    def gateway(self) -> str:
        """The address of the node's bridge, ``10.244.1.1``."""
        return str(self._text(self._first))

    def _text(self, number: int) -> IPv4Address | IPv6Address:
        return IPv4Address(number) if self.network.version == 4 else IPv6Address(number)

    def allocate(self, owner: str, asked: str | None = None) -> str:
        """An address for ``owner``, the ``asked`` one where given. Raises AllocationError."""
        if owner in self._by_owner:
            raise AllocationError(f"{owner} has been allocated, duplicate allocation is not allowed")
        number = self._asked(asked) if asked is not None else self._next()
        self._reserved[number] = owner
        self._by_owner[owner] = number
        self._latest = number
        return str(self._text(number))

    def __contains__(self, address: str) -> bool:
        """Whether an address is in the range: the gateway is, the network's and its broadcast are not."""
        it = ip_address(address)
        return it.version == self.network.version and self._first <= int(it) <= self._last

    def _asked(self, asked: str) -> int:
        number = int(ip_address(asked))
        if asked not in self:
            raise AllocationError(f"requested IP address {asked} is not available in range set {self}")
        if number == self._first:
            raise AllocationError(f"requested ip {asked} is subnet's gateway")
        if number in self._reserved:
            raise AllocationError(f"requested IP address {asked} is not available in range set {self}")
        return number

    def _next(self) -> int:
        if len(self._reserved) < self._last - self._first:
            size = self._last - self._first + 1
            for step in range(1, size + 1):
                number = self._first + (self._latest - self._first + step) % size
                if number != self._first and number not in self._reserved:
                    return number
        raise AllocationError(f"no IP addresses available in range set: {self}")

    def release(self, owner: str) -> None:
        """Give ``owner``'s address back; an owner without one is fine, as in the plugin's DEL."""
        number = self._by_owner.pop(owner, None)
        if number is not None:
            del self._reserved[number]

    def __str__(self) -> str:
        return f"{self._text(self._first)}-{self._text(self._last)}"


class NodeIpam:
    """All families of one node. pod_cidrs: one per family."""

    def __init__(self, pod_cidrs: tuple[str, ...]) -> None:
        self.ranges = tuple(Range(cidr) for cidr in pod_cidrs)

    def allocate(self, owner: str, asked: str = "") -> tuple[str, ...]:
        """One address per family; asked: comma-separated addresses wanted (annotation ``testbed/ip``).

        Each range takes the first of those in it; what is left over, no range's or a second one's, is
        refused. Nothing stays reserved then, nor where one family has none. Raises AllocationError. Source:
        ``plugins/ipam/host-local/main.go``.
        """
        wanted = asked_addresses(asked)
        got: list[str] = []
        try:
            for number, range_ in enumerate(self.ranges):
                this = next((address for address in wanted if address in range_), None)
                if this is not None:
                    wanted.remove(this)
                try:
                    got.append(range_.allocate(owner, this))
                except AllocationError as error:
                    raise AllocationError(f"failed to allocate for range {number}: {error}") from error
            if wanted:
                raise AllocationError(f"failed to allocate all requested IPs: {' '.join(wanted)}")
        except AllocationError:
            self.release(owner)
            raise
        return tuple(got)

    def release(self, owner: str) -> None:
        """Give back what ``owner`` has."""
        for range_ in self.ranges:
            range_.release(owner)


class HostLocal:
    """The IPAM of the host-local plugin: each node for itself, in its podCIDRs."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeIpam] = {}

    def add_node(self, node: str, pod_cidrs: tuple[str, ...]) -> None:
        """See ``Ipam``."""
        if node not in self._nodes:
            self._nodes[node] = NodeIpam(pod_cidrs)

    def remove_node(self, node: str) -> None:
        """See ``Ipam``. What is reserved is in files on the node, and stays there."""

    def allocate(self, node: str, owner: str, asked: str = "") -> tuple[str, ...]:
        """See ``Ipam``."""
        return self._nodes[node].allocate(owner, asked)

    def adopt(self, node: str, owner: str, ips: tuple[str, ...]) -> None:
        """See ``Ipam``. An address outside the node's ranges needs no reservation."""
        with suppress(AllocationError, KeyError):
            self._nodes[node].allocate(owner, ",".join(ips))

    def release(self, node: str, owner: str) -> None:
        """See ``Ipam``."""
        if node in self._nodes:
            self._nodes[node].release(owner)

    def held(self, node: str) -> Held:
        """See ``Ipam``."""
        return NOTHING

    def changed(self) -> Iterable[str]:
        """See ``Ipam``."""
        return ()


class GivenByNodes:
    """No IPAM of ours: what wires a pod on its node gives it addresses, and the node's agent reports them."""

    def add_node(self, node: str, pod_cidrs: tuple[str, ...]) -> None:
        """See ``Ipam``."""

    def remove_node(self, node: str) -> None:
        """See ``Ipam``."""

    def allocate(self, node: str, owner: str, asked: str = "") -> tuple[str, ...]:
        """See ``Ipam``: none. What is asked for is the node's to grant."""
        return ()

    def adopt(self, node: str, owner: str, ips: tuple[str, ...]) -> None:
        """See ``Ipam``."""

    def release(self, node: str, owner: str) -> None:
        """See ``Ipam``."""

    def held(self, node: str) -> Held:
        """See ``Ipam``."""
        return NOTHING

    def changed(self) -> Iterable[str]:
        """See ``Ipam``."""
        return ()
