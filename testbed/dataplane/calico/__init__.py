"""Dataplane ``calico``: routed pods, blocks of a shared pool, BIRD on every node, felix's rules.

A pod has an address of its own and nothing else on its link: its veth's other end has no address and answers
for the gateway by proxy ARP. Nodes route each pod by itself, and each other's blocks: by BGP (plain), through
VXLAN (``vxlanMode``) or IP in IP (``ipipMode``), always or only across subnets.

Sources: projectcalico/calico v3.30 to v3.33: ``cni-plugin/pkg/dataplane/linux/dataplane_linux.go``,
``felix/dataplane/linux/{endpoint_mgr,route_mgr,vxlan_mgr,ipip_mgr}.go``, ``confd``. As from v3.33, felix
programs routes through tunnels and BIRD the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from testbed.control.ipam import Ipam
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.calico import bird, fabric
from testbed.dataplane.calico.blocks import BlockIpam, Pool
from testbed.dataplane.calico.felix import Felix
from testbed.dataplane.calico.names import (
    GATEWAY4,
    GATEWAY6,
    HOST_MAC,
    OVERHEAD,
    PREFIX,
    PROTO,
    TUNNEL,
    VNI,
    VXLAN,
    VXLAN_PORT,
    address,
    host_end,
    vtep_mac,
)
from testbed.dataplane.calico.options import PARAMETERS, Options
from testbed.dataplane.calico.rules import CHAIN_PREFIX, HASH_PREFIX, SET_PREFIXES
from testbed.dataplane.fitting import refuse_unknown
from testbed.dataplane.plugins import UPLINK
from testbed.errors import InputError, Problem
from testbed.policy import Enforcer
from testbed.spec.params import Param, read
from testbed.state import (
    Address,
    Daemon,
    FdbEntry,
    Ipip,
    Link,
    Neighbour,
    NetnsState,
    NodeState,
    PodState,
    Route,
    Upkeep,
    Vxlan,
)

__all__ = ["Calico"]

OWN = {"vxlan": {4: "vxlan", 6: "vxlan-v6"}, "ipip": {4: "ipip"}}
"""What a node's own address of a family is for, by encapsulation; see ``Held.own``."""


class Calico:
    """Compiles what the CNI plugin, confd and felix set up. Options: ``calico.options.PARAMETERS``."""

    needs: frozenset[str] = frozenset({"veth", "iptables", "ipset"})
    parameters: Mapping[str, Param] = PARAMETERS
    enforces_policy = True
    names_all_pods = False
    spares_own_node = False
    underlay_routes = False
    pools_addresses = True

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """The node's ends of its pods' links, its tunnel and its routes, its BIRD, and its pods' netns."""
        options = Options.of(snapshot.facts)
        pods = [pod for pod in snapshot.pods_by_node.get(node.name, ()) if not pod.host_network]
        ends = [host_end(pod.namespace, pod.name) for pod in pods]
        links = [Link(end, "peer", mtu=options.mtu, mac=HOST_MAC) for end in ends]
        routes = [route for pod in pods for route in _to_pod(pod)]
        sysctls = _node_sysctls(options)
        for end, pod in zip(ends, pods, strict=True):
            sysctls |= _link_sysctls(end, pod)
        netns = NetnsState(
            links={link.name: link for link in links},
            routes={route.dst: route for route in routes},
            sysctls=sysctls,
        )
        for version in options.versions:
            if address(node, version) is not None:
                netns = _with_cluster(netns, snapshot, node, options, version)
        daemons = {bird.NAME: bird.daemon(snapshot, node, options)} if options.bgp else {}
        return NodeState(netns, {pod.uid: _pod(pod, options.mtu) for pod in pods}, daemons=daemons)

    def upkeep(self, options: Mapping[str, Any]) -> tuple[Upkeep, ...]:
        """Felix looks after its rules, its sets, its VXLAN's peers, and its routes: on pods' host ends, on
        its VXLAN, and of its protocol (``felix/routetable/ownershippol/main_route_table_policy.go``)."""
        values = read(PARAMETERS, options)
        rules, sets, routes = (values[f"{what}RefreshInterval"] for what in ("iptables", "ipsets", "route"))
        return (
            Upkeep("chains", rules, (CHAIN_PREFIX,), comment=HASH_PREFIX, exclusive=True),
            Upkeep("ipsets", sets, SET_PREFIXES),
            Upkeep("routes", routes, (PREFIX, *VXLAN.values()), protocols=(PROTO,), exclusive=True),
            Upkeep("neighbours", routes, tuple(VXLAN.values())),
            Upkeep("fdb", routes, tuple(VXLAN.values())),
        )

    def more_needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Of the mode: IP in IP needs the kernel's own device, or programs in its place."""
        if options.get("vxlanMode", "Never") != "Never":
            return frozenset({"vxlan"})
        return frozenset({"bird"} if options.get("ipipMode", "Never") == "Never" else {"bird", "ipip-tunnel"})

    def routers(self, snapshot: Snapshot) -> Mapping[str, Mapping[str, Daemon]]:
        """Where nodes stand in racks and BGP routes their pods, the fabric's routers run BIRD, too."""
        options = Options.of(snapshot.facts)
        if not options.plain or not fabric.speaks(snapshot.facts):
            return {}
        return {
            router.name: {bird.NAME: bird.router_daemon(snapshot.facts, router, options)}
            for router in snapshot.facts.routers
        }

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """Blocks of the pools. Raises InputError for pools smaller than a block, and for reflectors that
        would leave nodes without any peer."""
        options = Options.of(facts)
        _check_reflectors(facts, options)
        sizes = dict(zip((4, 6), options.block_sizes, strict=True))
        _check_pools(facts, sizes)
        pools = [Pool(cidr, sizes[ip_network(cidr).version]) for cidr in facts.pod_cidrs]
        encapsulated = {version: options.encapsulation(version) for version in options.versions}
        tunnels = {version: OWN[how][version] for version, how in encapsulated.items() if how}
        return BlockIpam(pools, tunnels)

    def enforcer(self) -> Enforcer:
        """Felix's rules."""
        return Felix()

    def interface_names(self) -> tuple[str, ...]:
        """The prefix of the pods' host ends and the tunnels' devices."""
        return PREFIX, *VXLAN.values(), TUNNEL


dataplanes.register("calico")(Calico())


# --- pods -----------------------------------------------------------------------------------------------


def _pod(pod: Pod, mtu: int) -> PodState:
    addresses, routes = [], []
    sysctls = {"net/ipv4/ip_forward": "0"}
    for ip in pod.ips:
        if ip_address(ip).version == 4:
            addresses.append(Address("eth0", f"{ip}/32", broadcast=False))
            routes.append(Route(f"{GATEWAY4}/32", dev="eth0", scope="link"))
            routes.append(Route("default", via=GATEWAY4, dev="eth0"))
        else:
            addresses.append(Address("eth0", f"{ip}/128"))
            routes.append(Route("default6", via=GATEWAY6, dev="eth0"))
            sysctls |= {"net/ipv6/conf/eth0/disable_ipv6": "0", "net/ipv6/conf/eth0/accept_dad": "0"}
    return PodState(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        hostname="",
        netns=NetnsState(
            links={
                "lo": Link("lo", "existing"),
                "eth0": Link("eth0", "veth", mtu=mtu, peer=host_end(pod.namespace, pod.name)),
            },
            addresses={(each.dev, each.address): each for each in addresses},
            routes={route.dst: route for route in routes},
            sysctls=sysctls,
        ),
    )


def _to_pod(pod: Pod) -> Iterator[Route]:
    """The node's route to each address of a pod."""
    for ip in pod.ips:
        whole = ip_network(ip)
        scope = "link" if whole.version == 4 else "global"  # IPv6 knows no scopes
        yield Route(str(whole), dev=host_end(pod.namespace, pod.name), scope=scope)  # type: ignore[arg-type]


def _link_sysctls(device: str, pod: Pod) -> dict[str, str]:
    """What the plugin sets on a host end while it is down."""
    sysctls: dict[str, str] = {}
    versions = {ip_address(ip).version for ip in pod.ips}
    if 4 in versions:
        base = f"net/ipv4/conf/{device}"
        sysctls |= {f"{base}/route_localnet": "1", f"{base}/proxy_arp": "1", f"{base}/forwarding": "1"}
        sysctls[f"net/ipv4/neigh/{device}/proxy_delay"] = "0"
    if 6 in versions:
        base = f"net/ipv6/conf/{device}"
        sysctls |= {f"{base}/proxy_ndp": "1", f"{base}/forwarding": "1"}
        sysctls |= {f"{base}/accept_dad": "0", f"{base}/accept_ra": "0"}
    return sysctls


def _node_sysctls(options: Options) -> dict[str, str]:
    sysctls: dict[str, str] = {}
    if 4 in options.versions:
        sysctls["net/ipv4/ip_forward"] = "1"
    if 6 in options.versions:
        sysctls["net/ipv6/conf/all/forwarding"] = "1"
    return sysctls


# --- other nodes ----------------------------------------------------------------------------------------


def _with_cluster(
    netns: NetnsState, snapshot: Snapshot, node: Node, options: Options, version: int
) -> NetnsState:
    """The state with the tunnel of a family and felix's routes; without a tunnel BIRD has them all."""
    how = options.encapsulation(version)
    if not how:
        return netns
    tunnel, device = _tunnel(node, options, version)
    addresses: list[Address] = []
    if own := node.held.own.get(OWN[how][version]):
        addresses.append(Address(device, str(ip_network(own)), broadcast=False))
    neighbours: list[Neighbour] = []
    fdb: list[FdbEntry] = []
    routes = list(_own_blocks(node, version)) if how == "vxlan" else []
    for peer in snapshot.nodes:
        there = address(peer, version)
        if peer.name == node.name or there is None:
            continue
        own = peer.held.own.get(OWN[how][version])
        if how == "vxlan" and own is not None:
            mac = vtep_mac(peer.name, version)
            neighbours.append(Neighbour(device, own, mac))
            fdb.append(FdbEntry(device, mac, there))
        routes += _to_peer(snapshot, node, peer, options, version)
    return NetnsState(
        links=netns.links | {tunnel.name: tunnel},
        addresses=netns.addresses | {(each.dev, each.address): each for each in addresses},
        routes=netns.routes | {route.dst: route for route in routes},
        neighbours=netns.neighbours | {(each.dev, each.dst): each for each in neighbours},
        fdb=netns.fdb | {(each.dev, each.mac, each.dst): each for each in fdb},
        sysctls=netns.sysctls,
    )


def _tunnel(node: Node, options: Options, version: int) -> tuple[Link, str]:
    if options.encapsulation(version) == "ipip":
        mtu = options.underlay_mtu - OVERHEAD["ipip"][version]
        ipip = Ipip(UPLINK, address(node, version) or "")
        return Link(TUNNEL, "ipip", mtu=mtu, ipip=ipip), TUNNEL
    name = VXLAN[version]
    mtu = options.underlay_mtu - OVERHEAD["vxlan"][version]
    vxlan = Vxlan(VNI, VXLAN_PORT, UPLINK, address(node, version) or "")
    return Link(name, "vxlan", mtu=mtu, mac=vtep_mac(node.name, version), vxlan=vxlan), name


def _own_blocks(node: Node, version: int) -> Iterator[Route]:
    """What nobody has of the node's own blocks is dropped silently; a block of one address is its pod's."""
    for block in map(ip_network, node.held.ranges):
        if block.version == version and block.num_addresses > 1:
            yield Route(str(block), kind="blackhole", proto=PROTO)


def _to_peer(snapshot: Snapshot, node: Node, peer: Node, options: Options, version: int) -> Iterator[Route]:
    """Felix's routes to a peer's blocks, to addresses it borrowed, and to its own tunnel's."""
    there = address(peer, version)
    how = options.encapsulation(version)
    own = peer.held.own.get(OWN[how][version])
    held = [each for each in (*peer.held.ranges, *peer.held.borrowed) if ip_network(each).version == version]
    tunnelled = options.tunnel_to(snapshot, node, peer, version)
    for each in held:
        dst = str(ip_network(each))
        if not tunnelled:
            yield Route(dst, via=there, dev=UPLINK, proto=PROTO)
        elif how == "ipip":
            yield Route(dst, via=there, dev=TUNNEL, proto=PROTO, onlink=True)
        elif own is not None and dst != str(ip_network(own)):
            yield Route(dst, via=own, dev=VXLAN[version], proto=PROTO, onlink=True)
    if how == "vxlan" and tunnelled and own is not None:
        scope = "link" if version == 4 else "global"
        yield Route(str(ip_network(own)), dev=VXLAN[version], proto=PROTO, scope=scope)  # type: ignore[arg-type]


def _check_pools(facts: ClusterFacts, sizes: Mapping[int, int]) -> None:
    """Raises InputError for those that upstream refuses, too (``libcalico-go/lib/clientv3/ippool.go``)."""
    for pool in map(ip_network, facts.pod_cidrs):
        if pool.prefixlen > (size := sizes[pool.version]):
            name = "blockSize" if pool.version == 4 else "blockSizeV6"
            message = f"{pool} is smaller than a block: {name} is /{size}, and a pool has to be at least that"
            raise InputError([Problem(message, path="spec.network.podCIDR")])


def _check_reflectors(facts: ClusterFacts, options: Options) -> None:
    path = "spec.network.dataplane.routeReflectors"
    refuse_unknown(options.reflectors, facts, path)
    if options.reflectors and not options.bgp:
        raise InputError([Problem("with vxlanMode nodes run no BGP", path=path)])
    if options.reflectors and fabric.speaks(facts) and options.plain == options.versions:
        why = "on racks nodes speak BGP with their leaf, not with each other"
        raise InputError([Problem(why, path=path)])
