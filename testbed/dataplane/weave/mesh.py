"""Which way packets go through a mesh of peers: next hops to each, and a tree for each one's broadcasts.

What gossip tells every peer is known here at once; what a peer makes of it is as in weave. Sources: vendored
``github.com/weaveworks/mesh`` ``routes.go`` (calculateUnicast, calculateBroadcast), ``peer.go`` (routes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Connections = Mapping[str, frozenset[str]]
"""Peer → those that it has a connection to, the same both ways."""


def connections(peers: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """The mesh: a peer that is in some pair is connected as the pairs say, others to all."""
    everybody = tuple(peers)
    listed = {(one, other) for pair in pairs for one, other in (pair, pair[::-1])}
    named = {one for one, _ in listed}
    return {
        one: frozenset(
            other
            for other in everybody
            if other != one and ((one, other) in listed or not {one, other} <= named)
        )
        for one in everybody
    }


def tree(mesh: Connections, source: str) -> dict[str, str]:
    """Peer → the one before it on the shortest way from ``source``; who cannot be reached is not in it.

    By breadth-first search in the order of names.
    """
    before = {source: ""}
    level = [source]
    while level:
        found: list[str] = []
        for peer in sorted(level):
            for neighbour in sorted(mesh[peer]):
                if neighbour not in before:
                    before[neighbour] = peer
                    found.append(neighbour)
        level = found
    del before[source]
    return before


def unicast(mesh: Connections, peer: str) -> dict[str, str]:
    """Other peer → the neighbour of ``peer`` that what is for it is sent to."""
    before = tree(mesh, peer)

    def first(other: str) -> str:
        return other if before[other] == peer else first(before[other])

    return {other: first(other) for other in before}


def broadcast(mesh: Connections, peer: str) -> dict[str, tuple[str, ...]]:
    """Source → the neighbours that ``peer`` sends its broadcasts on to: each peer gets them exactly once."""
    return {
        source: tuple(sorted(other for other, by in tree(mesh, source).items() if by == peer))
        for source in mesh
    }
