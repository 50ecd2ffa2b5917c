"""Which way a flow goes, from where its ends are placed; and which pairs show each way. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

Path = Literal["self", "same-node", "cross-node", "outside"]
PATHS: tuple[Path, ...] = ("self", "same-node", "cross-node", "outside")


class Port(msgspec.Struct, frozen=True):
    """A port something listens on. protocol: ``tcp``, ``udp`` or ``sctp``."""

    protocol: str
    port: int


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A pod, or a host of the fabric, as one end of a flow.

    key: the pod's uid or ``host:NAME``, by which its netns is asked for. namespace and node are empty for
    a host. ips: one per family, the primary first. ports: what answers there. gone: why it cannot take
    part, "" if it can.
    """

    key: str
    namespace: str
    name: str
    node: str
    ips: tuple[str, ...]
    ports: tuple[Port, ...] = ()
    labels: dict[str, str] = {}
    gone: str = ""

    @property
    def is_host(self) -> bool:
        """A host of the fabric, outside the cluster."""
        return self.key.startswith("host:")

    def port(self, protocol: str) -> int | None:
        """The first port it answers on over a protocol."""
        return next((port.port for port in self.ports if port.protocol == protocol), None)

    def ip(self, family: str | None = None) -> str | None:
        """Its address of a family (``ipv4``, ``ipv6``), or its primary one."""
        wanted = [ip for ip in self.ips if family is None or (":" in ip) == (family == "ipv6")]
        return wanted[0] if wanted else None


def path_of(source: Endpoint, destination: Endpoint) -> Path:
    """The class of the way from one to the other."""
    if source.key == destination.key:
        return "self"
    if source.is_host or destination.is_host:
        return "outside"
    return "same-node" if source.node == destination.node else "cross-node"


def choose_pairs(
    endpoints: Sequence[Endpoint], paths: Iterable[Path], per_path: int
) -> list[tuple[Endpoint, Endpoint]]:
    """Up to ``per_path`` pairs for each way, pod first, spread over nodes; the same for the same input.

    A pair of nodes (or node and host) is used again only when every other one has been used.
    """
    pods = sorted((e for e in endpoints if not e.is_host), key=lambda e: (e.namespace, e.name))
    hosts = sorted((e for e in endpoints if e.is_host), key=lambda e: e.name)
    chosen: list[tuple[Endpoint, Endpoint]] = []
    for path in paths:
        others = hosts if path == "outside" else pods
        groups: dict[tuple[str, str], list[tuple[Endpoint, Endpoint]]] = {}
        for source, destination in itertools.product(pods, others):
            if path_of(source, destination) == path:
                place = (source.node, destination.node or destination.name)
                groups.setdefault(place, []).append((source, destination))
        rounds = itertools.zip_longest(*(groups[place] for place in sorted(groups)))
        spread = (pair for one_round in rounds for pair in one_round if pair is not None)
        chosen += itertools.islice(spread, per_path)
    return chosen


def rotate(sources: Sequence[Endpoint], destinations: Sequence[Endpoint]) -> list[tuple[Endpoint, Endpoint]]:
    """Every source with every destination but itself, source by source.

    Each source begins its round one further on, so that no destination hears from all at once: its
    accept queue and its ICMP rate limit are never the reason of a verdict.
    """
    pairs = []
    for number, source in enumerate(sources):
        offset = number % len(destinations) if destinations else 0
        for destination in itertools.chain(destinations[offset:], destinations[:offset]):
            if destination.key != source.key:
                pairs.append((source, destination))
    return pairs
