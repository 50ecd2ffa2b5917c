"""What the reference plugins bridge and host-local make of a node and its pods, for the dataplanes on them.

A bridge ``cni0`` with the first address of each of the node's ranges, from its first pod on; pods hang on it
by veth pairs with hairpin on. Sources: containernetworking plugins 1.1.1 ``plugins/main/bridge``,
``plugins/ipam/host-local``, ``pkg/ipam``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.policy import meaning
from testbed.state import Address, Chain, Family, Link, NetnsState, NodeState, PodState, Route

BRIDGE = "cni0"
UPLINK = "eth0"

NON_MASQUERADE_CIDR = "10.0.0.0/8"
"""kubelet's default of --non-masquerade-cidr, IPv4 only."""
MASQUERADE_COMMENT = "kubenet: SNAT for outbound traffic from cluster"

Network = IPv4Network | IPv6Network


def wire(snapshot: Snapshot, node: Node, *, mtu: int, mac: str, pod_routes: Iterable[str] = ()) -> NodeState:
    """The bridge, its ports, and the netns of the node's pods; and the sysctls that this needs.

    mac: the bridge's own; pinned, or ports that come and go would change it. pod_routes: destinations beside
    the default route that pods reach through the bridge.
    """
    pods = tuple(pod for pod in snapshot.pods_by_node.get(node.name, ()) if not pod.host_network)
    ranges = tuple(ip_network(cidr) for cidr in node.pod_cidrs)
    links: dict[str, Link] = {}
    addresses: dict[tuple[str, str], Address] = {}
    if (pods or node.had_pods) and ranges:
        links[BRIDGE] = Link(BRIDGE, "bridge", mtu=mtu, mac=mac)
        links |= {link.name: link for link in (_host_end(pod, mtu) for pod in pods)}
        held = (Address(BRIDGE, f"{gateway(network)}/{network.prefixlen}") for network in ranges)
        addresses |= {(address.dev, address.address): address for address in held}
    netns = NetnsState(links=links, addresses=addresses, sysctls=node_sysctls(ranges, BRIDGE in links))
    routes = tuple(pod_routes)
    return NodeState(netns, {pod.uid: _pod(pod, ranges, mtu, routes) for pod in pods})


def host_end_name(uid: str) -> str:
    """The host end of a pod's veth pair: ``veth`` and 8 hex digits, the same for the same pod always."""
    return "veth" + hashlib.sha256(uid.encode()).hexdigest()[:8]


def gateway(network: Network) -> str:
    """The bridge's address in a range: the first one."""
    return str(network.network_address + 1)


def on_segment(snapshot: Snapshot, node: Node, address: str) -> bool:
    """Whether the node reaches an address without a router."""
    segments = map(meaning.network, node.networks or snapshot.facts.node_cidrs)
    return any(meaning.address(address) in segment for segment in segments)


def peer_routes(snapshot: Snapshot, node: Node) -> Iterator[Route]:
    """Host routes to the podCIDRs of the nodes that this one reaches without a router."""
    for other in snapshot.nodes:
        if other.name == node.name:
            continue
        via = {meaning.address(address).version: address for address in reversed(other.addresses)}
        for cidr in map(meaning.network, other.pod_cidrs):
            address = via.get(cidr.version)
            if address and on_segment(snapshot, node, address):
                yield Route(str(cidr), via=address, dev=UPLINK)


def kubenet_masquerade(facts: ClusterFacts) -> Iterator[Chain]:
    """kubenet's rule for traffic that leaves the cluster, beside the plugins that it runs.

    Source: kubernetes 1.23 ``pkg/kubelet/dockershim/network/kubenet/kubenet_linux.go``.
    """
    for pods in map(ip_network, facts.pod_cidrs):
        family: Family = "ipv4" if pods.version == 4 else "ipv6"
        inside = _non_masquerade_cidr(facts, pods)
        if inside.prefixlen == 0:  # kubenet: then nobody masquerades
            continue
        rule = (
            f'! -d {inside} -m comment --comment "{MASQUERADE_COMMENT}" '
            "-m addrtype ! --dst-type LOCAL -j MASQUERADE"
        )
        yield Chain(family, "nat", "POSTROUTING", (rule,))


def _non_masquerade_cidr(facts: ClusterFacts, pods: Network) -> Network:
    """Where pods keep their address: as asked for, else kubenet's 10.0.0.0/8 where it holds the pods.

    Other pod ranges, and IPv6, for which kubenet has no default, get the cluster's own range: pods must see
    each other's addresses.
    """
    asked = facts.dataplane_options.get("nonMasqueradeCIDR", NON_MASQUERADE_CIDR)
    explicit = "nonMasqueradeCIDR" in facts.dataplane_options
    network = ip_network(asked)
    same_family = network.version == pods.version
    if same_family and (explicit or pods.subnet_of(network)):  # type: ignore[arg-type]
        return network
    return pods


def _host_end(pod: Pod, mtu: int) -> Link:
    return Link(host_end_name(pod.uid), "peer", mtu=mtu, master=BRIDGE, hairpin=True)


def _pod(pod: Pod, ranges: tuple[Network, ...], mtu: int, more: tuple[str, ...]) -> PodState:
    mine = {network.version: network for network in ranges}
    placed = [(ip, mine[ip_address(ip).version]) for ip in pod.ips if ip_address(ip).version in mine]
    addresses = [Address("eth0", f"{ip}/{network.prefixlen}") for ip, network in placed]
    routes = [
        Route(dst, via=gateway(network), dev="eth0")
        for _, network in placed
        for dst in (_default(network), *(dst for dst in more if ip_network(dst).version == network.version))
    ]
    # arp_notify: bridge.go, so that a reused address replaces the old pod's in neighbour tables. accept_dad:
    # with hairpin on, a port hears its own probe and would take every IPv6 address for a duplicate.
    sysctls = {"net/ipv4/conf/eth0/arp_notify": "1"}
    if any(network.version == 6 for _, network in placed):
        sysctls |= {"net/ipv6/conf/eth0/disable_ipv6": "0", "net/ipv6/conf/eth0/accept_dad": "0"}
    return PodState(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        hostname="",
        netns=NetnsState(
            links={
                "lo": Link("lo", "existing"),
                "eth0": Link("eth0", "veth", mtu=mtu, peer=host_end_name(pod.uid)),
            },
            addresses={(address.dev, address.address): address for address in addresses},
            routes={route.dst: route for route in routes},
            sysctls=sysctls,
        ),
    )


def _default(network: Network) -> str:
    return "default" if network.version == 4 else "default6"


def node_sysctls(ranges: tuple[Network, ...], has_bridge: bool = False) -> dict[str, str]:
    """Forwarding, and bridged frames through iptables, per netns since Linux 5.3: set it explicitly."""
    sysctls: dict[str, str] = {}
    versions = {network.version for network in ranges}
    if 4 in versions:
        sysctls |= {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}
    if 6 in versions:
        sysctls |= {"net/ipv6/conf/all/forwarding": "1", "net/bridge/bridge-nf-call-ip6tables": "1"}
        if has_bridge:
            sysctls |= {f"net/ipv6/conf/{BRIDGE}/{name}": "0" for name in ("accept_dad", "accept_ra")}
    return sysctls
