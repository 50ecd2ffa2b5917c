"""Dataplane ``bridge``: kubenet, or the plugins bridge and host-local with ipMasq off.

Each node has a bridge ``cni0`` with the first address of its podCIDR; pods hang on it by veth pairs with
hairpin on. Other nodes' podCIDRs are host routes where the node is on the same segment; elsewhere the
underlay's routers know them, as a cloud's route table does. Nothing is encapsulated or translated, but for
one POSTROUTING rule for traffic that leaves the cluster.

Sources: kubernetes 1.23 ``pkg/kubelet/dockershim/network/kubenet/kubenet_linux.go``; containernetworking
plugins 1.1.1 ``plugins/main/bridge``, ``pkg/ipam``.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from msgspec.structs import replace

from testbed.control.ipam import HostLocal, Ipam
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.plugins import BRIDGE, Network, gateway, kubenet_masquerade, peer_routes, wire
from testbed.spec.params import Param, integer
from testbed.state import NodeState


class Bridge:
    """Compiles the flat network.

    Options: ``mtu`` of the pods' devices (default: the links'); ``nonMasqueradeCIDR``: where pods keep
    their own address.
    """

    needs: frozenset[str] = frozenset({"veth", "bridge", "br_netfilter", "iptables"})
    parameters: Mapping[str, Param] = {
        "mtu": Param(integer(68, 65535)),
        "nonMasqueradeCIDR": Param(ip_network),
    }
    enforces_policy = False
    underlay_routes = True

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """The node's bridge (from its first pod on), routes and rule, and its pods' netns."""
        ranges = tuple(ip_network(cidr) for cidr in node.pod_cidrs)
        wired = wire(
            snapshot,
            node,
            mtu=int(snapshot.facts.dataplane_options.get("mtu") or snapshot.facts.link_mtu),
            mac=_bridge_mac(ranges[0]) if ranges else "",
        )
        netns = replace(
            wired.netns,
            routes={route.dst: route for route in peer_routes(snapshot, node)},
            chains={
                (chain.family, chain.table, chain.name): chain for chain in kubenet_masquerade(snapshot.facts)
            },
        )
        return NodeState(netns, wired.pods)

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """Each node for itself."""
        return HostLocal()

    def interface_names(self) -> tuple[str, ...]:
        """The bridge and the prefix of the pods' host ends."""
        return BRIDGE, "veth"


dataplanes.register("bridge")(Bridge())


def _bridge_mac(network: Network) -> str:
    """kubenet's scheme, 0a:58 and the IPv4 address; pinned, or ports that come and go would change it."""
    return "0a:58:" + ":".join(f"{byte:02x}" for byte in ip_address(gateway(network)).packed[-4:])
