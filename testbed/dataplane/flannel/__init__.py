"""Dataplane ``flannel``: a subnet per node, and packets between nodes as one of its backends carries them.

Pods are wired by the plugins bridge and host-local (see ``plugins``), which the flannel plugin drives: they
have a second route, to the cluster's range. A backend (``backend.Backend``) is a class in a file of its own,
named in BACKENDS. flannel enforces no network policy.

Sources: flannel v0.28 ``pkg/backend``, ``pkg/trafficmngr/iptables/iptables.go``, ``pkg/subnet/subnet.go``;
flannel CNI plugin v1.9 ``flannel_linux.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from msgspec.structs import replace

from testbed.control.ipam import HostLocal, Ipam
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.flannel.backend import Backend, Site, derived_mac
from testbed.dataplane.flannel.routed import ROUTE_CHECK_SECONDS, HostGateway, IpInIp
from testbed.dataplane.flannel.rules import COMMENT, FORWARD, POSTROUTING, RESYNC_SECONDS, chains
from testbed.dataplane.flannel.udp import ByProxy
from testbed.dataplane.flannel.vxlan import ByVxlan
from testbed.dataplane.flannel.wireguard import ByWireguard
from testbed.dataplane.plugins import BRIDGE, wire
from testbed.errors import InputError, Problem
from testbed.spec import params
from testbed.spec.fields import choice
from testbed.spec.params import Param, integer
from testbed.state import NodeState, Upkeep

SUBNET_FILE = "/run/flannel/subnet.env"

BACKENDS: Mapping[str, Backend] = {
    "vxlan": ByVxlan(),
    "host-gw": HostGateway(),
    "udp": ByProxy(),
    "wireguard": ByWireguard(),
    "ipip": IpInIp(),
}


class Flannel:
    """Compiles what flanneld and its plugin set up.

    Options: ``backend``: one of BACKENDS, vxlan by default; those of the backend, which others do not read;
    ``mtu`` of the underlay, where it is not the links'.
    """

    needs: frozenset[str] = frozenset({"veth", "bridge", "br_netfilter", "iptables"})
    parameters: Mapping[str, Param] = {
        "backend": Param(choice(*BACKENDS), "vxlan"),
        "mtu": Param(integer(68, 65535)),
        **{name: param for backend in BACKENDS.values() for name, param in backend.parameters.items()},
    }
    enforces_policy = False
    underlay_routes = False

    def more_needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """What the backend needs."""
        return BACKENDS[options.get("backend") or "vxlan"].needs

    def upkeep(self, options: Mapping[str, Any]) -> tuple[Upkeep, ...]:
        """flanneld looks after its rules and, with some backends, after its routes."""
        devices = BACKENDS[options.get("backend") or "vxlan"].kept_routes
        routes = (Upkeep("routes", ROUTE_CHECK_SECONDS, devices),) if devices else ()
        return Upkeep("chains", RESYNC_SECONDS, (POSTROUTING, FORWARD), comment=COMMENT), *routes

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """The node's bridge and pods, what its backend has there, and its rules."""
        options = params.read(self.parameters, snapshot.facts.dataplane_options)
        site = Site(snapshot, node, options, int(options["mtu"] or snapshot.facts.link_mtu))
        backend = BACKENDS[options["backend"]]
        mtu = site.underlay - backend.overhead(site)
        wired = wire(
            snapshot,
            node,
            mtu=mtu,
            mac=derived_mac(BRIDGE, node.name),
            pod_routes=snapshot.facts.pod_cidrs,
        )
        made = backend.compile(site)
        netns = replace(
            made.netns,
            links=wired.netns.links | made.netns.links,
            addresses=wired.netns.addresses | made.netns.addresses,
            sysctls=wired.netns.sysctls,
            chains={(chain.family, chain.table, chain.name): chain for chain in chains(snapshot.facts, node)},
        )
        files = {SUBNET_FILE: _subnet_file(snapshot.facts, node, mtu), **made.files}
        return NodeState(netns, wired.pods, daemons=dict(made.daemons), files=files)

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """Each node for itself. Raises InputError for pods that the backend cannot carry."""
        name = params.read(self.parameters, facts.dataplane_options)["backend"]
        ranges = [cidr for cidr in facts.pod_cidrs if ip_network(cidr).version == 6]
        if ranges and not BACKENDS[name].carries_ipv6:
            message = f"{name} carries IPv4 alone, and podCIDR has {ranges[0]}"
            raise InputError([Problem(message, path="spec.network.dataplane.backend")])
        return HostLocal()

    def interface_names(self) -> tuple[str, ...]:
        """The bridge, the tunnel devices and the prefix of the pods' host ends."""
        return BRIDGE, "flannel", "veth"


dataplanes.register("flannel")(Flannel())


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
