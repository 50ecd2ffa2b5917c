"""Backend ``wireguard``: a device ``flannel-wg`` that encrypts, with a peer for each node.

One route leads the whole cluster's range to the device; which peer a packet goes to is said by what each peer
is allowed. Source: flannel v0.28 ``pkg/backend/wireguard/{wireguard,wireguard_network,device}.go``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network

from testbed.dataplane.flannel import keys
from testbed.dataplane.flannel.backend import Made, Site, address, device_address
from testbed.dataplane.plugins import Network
from testbed.spec.fields import choice
from testbed.spec.params import Param, integer
from testbed.state import Link, NetnsState, Peer, Route, Wireguard

OVERHEAD = 80
"""Bytes: IP 20 or 40, UDP 8, type 4, key index 4, nonce 8, tag 16 (``wireguard_network.go``: overhead)."""

KEY_FILE = "/run/flannel/wgkey"

DEVICE, DEVICE_V6 = "flannel-wg", "flannel-wg-v6"

PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""Ranges in which flannel takes no address for one of the Internet."""


class ByWireguard:
    """Options: ``mode``: separate (a device and an underlay for each family), or one device for both over
    ipv4, ipv6 or, auto, what is likelier to work; ``listenPort``, ``listenPortV6``: UDP; ``psk``: a key in
    base64 that all nodes share beside their own; ``persistentKeepaliveInterval``: seconds."""

    needs = frozenset({"wireguard"})
    parameters: Mapping[str, Param] = {
        "mode": Param(choice("separate", "auto", "ipv4", "ipv6"), "separate"),
        "listenPort": Param(integer(1, 65535), 51820),
        "listenPortV6": Param(integer(1, 65535), 51821),
        "psk": Param(keys.shared_key, ""),
        "persistentKeepaliveInterval": Param(integer(0, 65535), 0),
    }
    carries_ipv6 = True
    kept_routes: tuple[str, ...] = ()

    def overhead(self, site: Site) -> int:
        """The same for both families."""
        return OVERHEAD

    def compile(self, site: Site) -> Made:
        """The device or devices with the peers, and a route each to the cluster's ranges."""
        links, addresses, routes, peers = {}, {}, {}, {}
        for network in site.ranges:
            device = _device(site, network)
            guard = Wireguard(_port(site, device), keys.private_key(site.node.name))
            links[device] = Link(device, "wireguard", mtu=site.underlay - OVERHEAD, wireguard=guard)
            held = device_address(device, network)
            addresses[device, held.address] = held
            if (cluster := site.cluster(network.version)) is not None:
                routes[str(cluster)] = Route(str(cluster), dev=device, scope="link")
        for peer in _peers(site):
            peers[peer.dev, peer.key] = peer
        netns = NetnsState(links=links, addresses=addresses, routes=routes, peers=peers)
        return Made(netns, files={KEY_FILE: keys.private_key(site.node.name)})


def _device(site: Site, network: Network) -> str:
    return DEVICE_V6 if network.version == 6 and site.options["mode"] == "separate" else DEVICE


def _port(site: Site, device: str) -> int:
    return int(site.options["listenPort" if device == DEVICE else "listenPortV6"])


def _peers(site: Site) -> Iterator[Peer]:
    """A node is one peer of each device, with those of its subnets that the device is for."""
    devices = dict.fromkeys(_device(site, network) for network in site.ranges)
    for node in site.snapshot.nodes:
        for device in devices if node.name != site.node.name else ():
            subnets = [each for each in map(ip_network, node.pod_cidrs) if _device(site, each) == device]
            public = {version: address(node, version) for version in (4, 6)}
            if not subnets or (endpoint := _endpoint(site, subnets[0], public)) is None:
                continue
            host = f"[{endpoint}]" if ":" in endpoint else endpoint
            yield Peer(
                device,
                keys.public_key(node.name),
                f"{host}:{_port(site, device)}",
                tuple(map(str, subnets)),
                site.options["persistentKeepaliveInterval"],
                site.options["psk"],
            )


def _endpoint(site: Site, subnet: Network, public: Mapping[int, str | None]) -> str | None:
    """Which of a peer's addresses packets are sent to. Source: ``selectPublicEndpoint``."""
    match site.options["mode"]:
        case "separate":
            return public[subnet.version]
        case "ipv4":
            return public[4]
        case "ipv6":
            return public[6]
    if public[4] is None or public[6] is None:
        return public[4] or public[6]
    by_v4 = site.public(4) is not None and not _private(public[4])
    own = site.public(6)
    by_v6 = own is not None and not _private(own) and not _private(public[6])
    return public[6] if by_v6 and not by_v4 else public[4]


def _private(text: str) -> bool:
    found = ip_address(text)
    return any(found in each for each in PRIVATE if each.version == found.version)
