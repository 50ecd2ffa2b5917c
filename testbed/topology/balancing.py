"""Routes by which traffic that enters at the gateway is spread over several hosts: equal-cost multipath.

Every host gets the same share, however many routers there are on the way; a next hop that leads to more of
them, or is one of fewer ways there, has a weight. Traffic only ever moves away from the gateway, so there
are no loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from ipaddress import ip_address
from math import lcm

from testbed.topology.routing import Graph

MAX_WEIGHT = 256
"""Of a next hop (``rtnh_hops`` is a byte)."""


def spread(graph: Graph, hosts: Iterable[str], version: int) -> dict[str, tuple[str, ...]]:
    """Router → next hops, ``ADDRESS`` or ``ADDRESS weight N``, for traffic to any of ``hosts``.

    version: 4 or 6. No gateway, or no host that it reaches: no routes.
    """
    shares: dict[str, dict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    starts = [name for name in graph.routers if graph.roles[name] == "gateway"]
    for host in hosts:
        table = graph.towards(host, version)
        flow = {name: Fraction(1) for name in starts if name in table}
        while flow:
            onward: dict[str, Fraction] = defaultdict(Fraction)
            for router, share in flow.items():
                for via in table[router]:
                    part = share / len(table[router])
                    shares[router][via] += part
                    if (owner := graph.owner(via)) != host:
                        onward[owner] += part
            flow = onward
    return {router: _weighted(of) for router, of in sorted(shares.items())}


def _weighted(shares: dict[str, Fraction]) -> tuple[str, ...]:
    common = lcm(*(share.denominator for share in shares.values()))
    weights = {via: int(share * common) for via, share in shares.items()}
    scale = max(1.0, max(weights.values()) / MAX_WEIGHT)
    ordered = sorted(weights, key=lambda via: int(ip_address(via)))
    if len(set(weights.values())) == 1:
        return tuple(ordered)
    return tuple(f"{via} weight {max(1, round(weights[via] / scale))}" for via in ordered)
