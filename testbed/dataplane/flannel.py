"""Dataplane ``flannel``: a subnet per node, and packets between nodes in VXLAN or by plain routes.

Pods are wired by the plugins bridge and host-local (see ``plugins``), which the flannel plugin drives: they
have a second route, to the cluster's range. Backend ``vxlan``: a device ``flannel.<VNI>`` with the first
address of the node's subnet, and for each peer a neighbour, a forwarding entry and a route; no learning.
Backend ``host-gw``: only a route for each peer, which must be on the node's own segment. Backend ``udp``: a
TUN device and a proxy in user space (``relays.flannel``), IPv4 only. flannel enforces no network policy.

Sources: flannel v0.28 ``pkg/backend/vxlan/{vxlan,device,vxlan_network}.go``, ``pkg/backend/hostgw``,
``pkg/backend/route_network.go``, ``pkg/backend/udp``, ``pkg/trafficmngr/iptables/iptables.go``,
``pkg/subnet/subnet.go``; flannel CNI plugin v1.9 ``flannel_linux.go``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from msgspec.structs import replace

from testbed.control.ipam import HostLocal, Ipam
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.plugins import UPLINK, Network, on_segment, wire
from testbed.spec.fields import choice, flag
from testbed.spec.params import Param, integer
from testbed.state import (
    Address,
    Chain,
    Daemon,
    Family,
    FdbEntry,
    Link,
    Neighbour,
    NetnsState,
    NodeState,
    Route,
    Vxlan,
)

PORT = 8472
"""UDP; Linux's own default for VXLAN, since flannel leaves it at 0."""

UDP_PORT = 8285

VXLAN_OVERHEAD = {4: 50, 6: 70}
"""Bytes: Ethernet 14, IP 20 or 40, UDP 8, VXLAN 8 (``vxlan_network.go``: encapOverhead)."""
UDP_OVERHEAD = 28
"""Bytes: IP 20, UDP 8 (``udp_amd64.go``: encapOverhead)."""

SUBNET_FILE = "/run/flannel/subnet.env"

MASQUERADED = "0x4000/0x4000"
"""kube-proxy's mark: it translates these itself."""

POSTROUTING, FORWARD = "FLANNEL-POSTRTG", "FLANNEL-FWD"

RESYNC_SECONDS = 5.0
"""flanneld's --iptables-resync."""


class Flannel:
    """Compiles what flanneld and its plugin set up.

    Options: ``backend``: vxlan (default), host-gw or udp; ``vni``, ``port``, ``directRouting`` (peers on the
    same segment by a plain route) of vxlan; ``mtu`` of the underlay, where it is not the links'.
    """

    needs: frozenset[str] = frozenset({"veth", "bridge", "br_netfilter", "vxlan", "iptables"})
    parameters: Mapping[str, Param] = {
        "backend": Param(choice("vxlan", "host-gw", "udp"), "vxlan"),
        "vni": Param(integer(1, 2**24 - 1), 1),
        "port": Param(integer(1, 65535), PORT),
        "directRouting": Param(flag, False),
        "mtu": Param(integer(68, 65535)),
    }
    enforces_policy = False
    underlay_routes = False
    repaired = (POSTROUTING, FORWARD)
    repair_seconds = RESYNC_SECONDS

    def more_needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """What the proxy of backend udp needs."""
        return frozenset({"tun"}) if options.get("backend") == "udp" else frozenset()

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """The node's bridge and pods, its tunnel device with an entry for each peer, and its rules."""
        options = snapshot.facts.dataplane_options
        underlay = int(options.get("mtu") or snapshot.facts.link_mtu)
        ranges = tuple(ip_network(cidr) for cidr in node.pod_cidrs)
        backend = options.get("backend", "vxlan")
        by_vxlan = backend == "vxlan"
        mtu = underlay - _overhead(backend, ranges)
        wired = wire(
            snapshot,
            node,
            mtu=mtu,
            mac=_mac("cni0", node.name),
            pod_routes=snapshot.facts.pod_cidrs,
        )
        tunnels = [_tunnel(node, network, underlay, options) for network in ranges] if by_vxlan else []
        netns = replace(
            wired.netns,
            links=wired.netns.links | {link.name: link for link in tunnels},
            addresses=wired.netns.addresses
            | {
                (link.name, address.address): address
                for link, network in zip(tunnels, ranges, strict=False)
                for address in [_tunnel_address(link, network)]
            },
            chains={
                (chain.family, chain.table, chain.name): chain for chain in _chains(snapshot.facts, node)
            },
        )
        return NodeState(
            netns if backend == "udp" else _with_peers(netns, snapshot, node, by_vxlan),
            wired.pods,
            daemons=_proxy(snapshot, node, mtu) if backend == "udp" else {},
            files={SUBNET_FILE: _subnet_file(snapshot.facts, node, mtu)},
        )

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """Each node for itself."""
        return HostLocal()

    def interface_names(self) -> tuple[str, ...]:
        """The bridge, the tunnel devices and the prefix of the pods' host ends."""
        return "cni0", "flannel", "veth"


dataplanes.register("flannel")(Flannel())


def _overhead(backend: str, ranges: tuple[Network, ...]) -> int:
    if backend == "vxlan":
        return max((VXLAN_OVERHEAD[network.version] for network in ranges), default=0)
    return UDP_OVERHEAD if backend == "udp" else 0


def _subnet_file(facts: ClusterFacts, node: Node, mtu: int) -> str:
    """What flanneld tells its plugin. Source: ``pkg/subnet/subnet.go`` (WriteSubnetFile)."""
    lines = {}
    clusters = {network.version: network for network in map(ip_network, reversed(facts.pod_cidrs))}
    for network in map(ip_network, node.pod_cidrs):
        infix = "" if network.version == 4 else "IPV6_"
        lines[f"FLANNEL_{infix}NETWORK"] = str(clusters[network.version])
        lines[f"FLANNEL_{infix}SUBNET"] = f"{network.network_address + 1}/{network.prefixlen}"
    lines |= {"FLANNEL_MTU": str(mtu), "FLANNEL_IPMASQ": "true"}
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _proxy(snapshot: Snapshot, node: Node, mtu: int) -> dict[str, Daemon]:
    """The proxy of backend udp; flannel has it for IPv4 alone."""
    own = next((network for network in map(ip_network, node.pod_cidrs) if network.version == 4), None)
    cluster = next((text for text in snapshot.facts.pod_cidrs if ip_network(text).version == 4), None)
    listen = _address(node, 4)
    if own is None or cluster is None or listen is None:
        return {}
    peers = {
        cidr: public
        for peer in snapshot.nodes
        if peer.name != node.name and (public := _address(peer, 4)) is not None
        for cidr in peer.pod_cidrs
        if ip_network(cidr).version == 4
    }
    config = {
        "device": "flannel0",
        "address": f"{own.network_address}/32",
        "network": cluster,
        "mtu": mtu,
        "port": UDP_PORT,
        "peers": peers,
    }
    argv = ("@PYTHON@", "-m", "testbed.relays.flannel", "@DIR@", listen)
    reload = ("pkill", "--signal", "HUP", "--pidfile", "@DIR@/pid")
    return {"flanneld": Daemon(argv, {"config.json": json.dumps(config)}, reload)}


def vtep_mac(node: str, version: int) -> str:
    """The tunnel device's MAC: locally administered, the same for the same node always."""
    return _mac(f"flannel{version}", node)


def _mac(what: str, node: str) -> str:
    digest = hashlib.sha256(f"{what} {node}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (digest[0] & 0xFC | 0x02, *digest[1:6]))


def _device(version: int, vni: int) -> str:
    return f"flannel.{vni}" if version == 4 else f"flannel-v6.{vni}"


def _tunnel(node: Node, network: Network, underlay: int, options: Mapping[str, Any]) -> Link:
    vni = int(options.get("vni", 1))
    return Link(
        _device(network.version, vni),
        "vxlan",
        mtu=underlay - VXLAN_OVERHEAD[network.version],
        mac=vtep_mac(node.name, network.version),
        vxlan=Vxlan(vni, int(options.get("port", PORT)), UPLINK, _address(node, network.version) or ""),
    )


def _tunnel_address(link: Link, network: Network) -> Address:
    """Of full length, so that nothing is on the device's link by itself."""
    return Address(link.name, f"{network.network_address}/{network.max_prefixlen}", broadcast=False)


def _address(node: Node, version: int) -> str | None:
    return next((text for text in node.addresses if ip_address(text).version == version), None)


def _with_peers(netns: NetnsState, snapshot: Snapshot, node: Node, by_vxlan: bool) -> NetnsState:
    """The state with what leads to each peer's subnet."""
    options = snapshot.facts.dataplane_options
    routes: list[Route] = []
    neighbours: list[Neighbour] = []
    fdb: list[FdbEntry] = []
    for peer in snapshot.nodes:
        for network in map(ip_network, peer.pod_cidrs):
            public = _address(peer, network.version)
            if peer.name == node.name or public is None:
                continue
            direct = on_segment(snapshot, node, public)
            if not by_vxlan or (direct and options.get("directRouting", False)):
                if direct:  # flanneld: host-gw works on one segment only
                    routes.append(Route(str(network), via=public, dev=UPLINK))
                continue
            vtep, mac = str(network.network_address), vtep_mac(peer.name, network.version)
            device = _device(network.version, int(options.get("vni", 1)))
            neighbours.append(Neighbour(device, vtep, mac))
            fdb.append(FdbEntry(device, mac, public))
            routes.append(Route(str(network), via=vtep, dev=device, onlink=True))
    return replace(
        netns,
        routes={route.dst: route for route in routes},
        neighbours={(entry.dev, entry.dst): entry for entry in neighbours},
        fdb={(entry.dev, entry.mac, entry.dst): entry for entry in fdb},
    )


def _chains(facts: ClusterFacts, node: Node) -> Iterator[Chain]:
    """``trafficmngr/iptables``: masqRules and forwardRules. One chain each, so that a resync is one look."""
    own = {network.version: network for network in map(ip_network, node.pod_cidrs)}
    for cluster in map(ip_network, facts.pod_cidrs):
        family: Family = "ipv4" if cluster.version == 4 else "ipv6"
        multicast = "224.0.0.0/4" if cluster.version == 4 else "ff00::/8"
        masq = '-m comment --comment "flanneld masq"'
        forward = '-m comment --comment "flanneld forward"'
        mine = own.get(cluster.version)
        if mine is None:
            continue
        yield Chain(family, "nat", "POSTROUTING", (f"{masq} -j {POSTROUTING}",))
        yield Chain(
            family,
            "nat",
            POSTROUTING,
            (
                f"-m mark --mark {MASQUERADED} {masq} -j RETURN",
                f"-s {mine} -d {cluster} {masq} -j RETURN",
                f"-s {cluster} -d {mine} {masq} -j RETURN",
                f"! -s {cluster} -d {mine} {masq} -j RETURN",
                f"-s {cluster} ! -d {multicast} {masq} -j MASQUERADE --random-fully",
                f"! -s {cluster} -d {cluster} {masq} -j MASQUERADE --random-fully",
            ),
        )
        yield Chain(family, "filter", "FORWARD", (f"{forward} -j {FORWARD}",))
        yield Chain(
            family,
            "filter",
            FORWARD,
            (f"-s {cluster} {forward} -j ACCEPT", f"-d {cluster} {forward} -j ACCEPT"),
        )
