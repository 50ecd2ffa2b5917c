"""Backends that are a route for each peer: ``host-gw`` in plain packets, ``ipip`` through a tunnel.

Sources: flannel v0.28 ``pkg/backend/route_network.go``, ``pkg/backend/hostgw/hostgw.go``,
``pkg/backend/ipip/ipip.go``.
"""

from __future__ import annotations

from collections.abc import Mapping

from testbed.dataplane.flannel.backend import Made, Site, device_address
from testbed.dataplane.plugins import UPLINK
from testbed.spec.fields import flag
from testbed.spec.params import Param
from testbed.state import Ipip, Link, NetnsState, Route

TUNNEL = "flannel.ipip"

ROUTE_CHECK_SECONDS = 10.0
"""How often missing routes come back; one that leads elsewhere stays (``route_network.go``: routeCheck)."""

OVERHEAD = 20
"""Bytes: the outer header (``ipip.go``)."""


class HostGateway:
    """Peers must be on the node's own segment."""

    needs: frozenset[str] = frozenset()
    parameters: Mapping[str, Param] = {}
    carries_ipv6 = True
    kept_routes: tuple[str, ...] = (UPLINK,)

    def overhead(self, site: Site) -> int:
        """Nothing is added."""
        return 0

    def compile(self, site: Site) -> Made:
        """A route for each peer that can have one."""
        routes = [
            Route(str(network), via=public, dev=UPLINK)
            for _, network, public in site.peers()
            if site.direct(public)
        ]
        return Made(NetnsState(routes={route.dst: route for route in routes}))


class IpInIp:
    """IPv4 only. Options: ``directRouting``: peers on the same segment without the tunnel."""

    needs = frozenset({"ipip-tunnel"})
    parameters: Mapping[str, Param] = {"directRouting": Param(flag, False)}
    carries_ipv6 = False
    kept_routes: tuple[str, ...] = (TUNNEL, UPLINK)

    def overhead(self, site: Site) -> int:
        """The outer header's."""
        return OVERHEAD

    def compile(self, site: Site) -> Made:
        """The device, which is not the netns's own ``tunl0``, and a route for each peer."""
        own, public = site.own(4), site.public(4)
        if own is None or public is None:
            return Made()
        tunnel = Link(TUNNEL, "ipip", mtu=site.underlay - OVERHEAD, ipip=Ipip(UPLINK, public))
        address = device_address(TUNNEL, own)
        routes = [
            Route(
                str(network),
                via=peer,
                dev=UPLINK if site.options["directRouting"] and site.direct(peer) else TUNNEL,
                onlink=True,
            )
            for _, network, peer in site.peers()
            if network.version == 4
        ]
        return Made(
            NetnsState(
                links={TUNNEL: tunnel},
                addresses={(TUNNEL, address.address): address},
                routes={route.dst: route for route in routes},
            )
        )
