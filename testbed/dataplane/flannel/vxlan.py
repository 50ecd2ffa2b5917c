"""Backend ``vxlan``: a device ``flannel.<VNI>`` that learns nothing, and three entries for each peer.

Source: flannel v0.28 ``pkg/backend/vxlan/{vxlan,device,vxlan_network}.go``.
"""

from __future__ import annotations

from collections.abc import Mapping

from testbed.dataplane.flannel.backend import Made, Site, derived_mac, device_address
from testbed.dataplane.plugins import UPLINK, Network
from testbed.spec.fields import flag
from testbed.spec.params import Param, integer
from testbed.state import FdbEntry, Link, Neighbour, NetnsState, Route, Vxlan

PORT = 8472
"""UDP; Linux's own default for VXLAN, since flannel leaves it at 0."""

OVERHEAD = {4: 50, 6: 70}
"""Bytes: Ethernet 14, IP 20 or 40, UDP 8, VXLAN 8 (``vxlan_network.go``: encapOverhead)."""


class ByVxlan:
    """Options: ``vni``, ``port``, ``directRouting``: peers on the same segment by a plain route."""

    needs = frozenset({"vxlan"})
    parameters: Mapping[str, Param] = {
        "vni": Param(integer(1, 2**24 - 1), 1),
        "port": Param(integer(1, 65535), PORT),
        "directRouting": Param(flag, False),
    }
    carries_ipv6 = True
    kept_routes: tuple[str, ...] = ()

    def overhead(self, site: Site) -> int:
        """That of the larger family."""
        return max((OVERHEAD[network.version] for network in site.ranges), default=0)

    def compile(self, site: Site) -> Made:
        """A device for each family."""
        tunnels = [(_tunnel(site, network), network) for network in site.ranges]
        addresses = [device_address(link.name, network) for link, network in tunnels]
        routes: list[Route] = []
        neighbours: list[Neighbour] = []
        fdb: list[FdbEntry] = []
        for peer, network, public in site.peers():
            if site.options["directRouting"] and site.direct(public):
                routes.append(Route(str(network), via=public, dev=UPLINK))
                continue
            vtep, mac = str(network.network_address), vtep_mac(peer.name, network.version)
            device = _device(site, network)
            neighbours.append(Neighbour(device, vtep, mac))
            fdb.append(FdbEntry(device, mac, public))
            routes.append(Route(str(network), via=vtep, dev=device, onlink=True))
        return Made(
            NetnsState(
                links={link.name: link for link, _ in tunnels},
                addresses={(each.dev, each.address): each for each in addresses},
                routes={route.dst: route for route in routes},
                neighbours={(entry.dev, entry.dst): entry for entry in neighbours},
                fdb={(entry.dev, entry.mac, entry.dst): entry for entry in fdb},
            )
        )


def vtep_mac(node: str, version: int) -> str:
    """The tunnel device's MAC."""
    return derived_mac(f"flannel{version}", node)


def _device(site: Site, network: Network) -> str:
    return f"flannel.{site.options['vni']}" if network.version == 4 else f"flannel-v6.{site.options['vni']}"


def _tunnel(site: Site, network: Network) -> Link:
    options = site.options
    return Link(
        _device(site, network),
        "vxlan",
        mtu=site.underlay - OVERHEAD[network.version],
        mac=vtep_mac(site.node.name, network.version),
        vxlan=Vxlan(options["vni"], options["port"], UPLINK, site.public(network.version) or ""),
    )
