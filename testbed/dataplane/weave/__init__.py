"""Dataplane ``weave``: one flat layer 2 for the pods of all nodes, and addresses from a ring.

Pods hang on a bridge ``weave`` with addresses of the whole range (/12), see each other's own MACs, and reach
everything else through the bridge's address of their node. What is for other nodes leaves by
``vethwe-bridge``: in mode ``fastdp`` into the datapath, which sends frames in VXLAN to UDP 6784, in mode
``sleeve`` to a program that sends them to UDP 6783 (``relays.weave``). fastdp's datapath here is a Linux
bridge with a vxlan device that sends what has no known place to every peer; where its heartbeats die frames
go by sleeve. Addresses: ``ring``; network policy: ``npc``.

Sources: weave 2.8 ``net/{bridge,veth,arp,expose}.go``, ``plugin/net/cni.go``, ``router/{fastdp,sleeve}.go``,
``prog/weave-kube/launch.sh``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from testbed.control.ipam import Ipam
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.fitting import refuse_unknown
from testbed.dataplane.portmap import container_id
from testbed.dataplane.weave.mesh import broadcast, connections, unicast
from testbed.dataplane.weave.names import (
    BRIDGE,
    BRIDGE_PORT,
    DATAPATH,
    DATAPATH_PORT,
    FASTDP_PORT,
    PCAP_PORT,
    POD_PORT,
    VXLAN,
    peer_name,
    pod_port,
)
from testbed.dataplane.weave.npc import MULTICAST, Npc
from testbed.dataplane.weave.odp import flows
from testbed.dataplane.weave.ring import EXPOSED, Ring
from testbed.errors import InputError
from testbed.policy import Enforcer
from testbed.spec.fields import choice, flag
from testbed.spec.params import Param, integer, read
from testbed.state import (
    Address,
    Chain,
    Daemon,
    FdbEntry,
    IpSet,
    Link,
    NetnsState,
    NodeState,
    PodState,
    Route,
    Vxlan,
)
from testbed.units import describe, parse_duration

UPLINK = "eth0"
FASTDP_MTU, SLEEVE_MTU = 1376, 65535
"""Of the datapath: for the smallest underlay that weave expects, encrypted (1460 - 20 - 8 - 8 - 14 - 34); of
sleeve: the most there is."""
VXLAN_OVERHEAD = 50
FLOOD = "00:00:00:00:00:00"
ROUTER = "weaver"
"""The daemon that carries frames by sleeve; its status.json says how each peer is reached."""
SWITCH = "ovs"
OVS_NEEDS = frozenset({"tun", "openvswitch-switch"})
NO_MASQUERADE = "weaver-no-masq-local"
ARP_CACHE = {"base_reachable_time": "5", "delay_first_probe_time": "2", "ucast_solicit": "1"}
"""``net/arp.go``: so that a MAC that moves is noticed soon."""


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Reads a list of pairs of nodes."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of pairs of nodes, not {describe(value)}")
    for pair in value:
        if not isinstance(pair, list | tuple) or [type(end) for end in pair] != [str, str]:
            raise ValueError(f"must be pairs of nodes such as [node-1, node-2], not {describe(pair)}")
    return tuple((pair[0], pair[1]) for pair in value)


class Weave:
    """Compiles what weaver, its plugin and weave-npc set up.

    Options: ``mode``: fastdp (default) or sleeve; ``datapath`` of fastdp: linux (a bridge, default) or ovs;
    ``mtu`` of the pods' devices (WEAVE_MTU); ``consensus``: the number of peers that is expected to agree on
    the ring at first (default: those of the spec); ``connections``: pairs of nodes that are connected
    (default: all); ``fallback``: whether sleeve takes over where fastdp's heartbeats die, by the clocks that
    follow.
    """

    needs: frozenset[str] = frozenset({"veth", "bridge", "br_netfilter", "iptables", "ipset"})
    parameters: Mapping[str, Param] = {
        "mode": Param(choice("fastdp", "sleeve"), "fastdp"),
        "datapath": Param(choice("linux", "ovs"), "linux"),
        "mtu": Param(integer(576, 65535)),
        "consensus": Param(integer(0, 10_000), 0),
        "connections": Param(_pairs, ()),
        "fallback": Param(flag, True),
        "fastHeartbeat": Param(parse_duration, "500ms"),
        "slowHeartbeat": Param(parse_duration, "10s"),
        "heartbeatTimeout": Param(parse_duration, "60s"),
    }
    enforces_policy = True
    names_all_pods = True
    spares_own_node = True
    underlay_routes = False
    pools_addresses = True

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """The node's bridge, what leads to its peers, its pods, and the rules of masquerading."""
        options = read(self.parameters, snapshot.facts.dataplane_options)
        whole = pod_range(snapshot.facts)
        sleeve, by_ovs = options["mode"] == "sleeve", _by_ovs(options)
        mtu = int(options["mtu"] or (SLEEVE_MTU if sleeve else FASTDP_MTU))
        gateway = node.held.own.get(EXPOSED)
        pods = tuple(pod for pod in snapshot.pods_by_node.get(node.name, ()) if not pod.host_network)
        links = [
            Link(
                BRIDGE,
                "bridge",
                mtu=mtu,
                mac=peer_name(node.name),
                nf_call_iptables=True,
                tx_checksum=not sleeve,
            ),
            *(
                _sleeve_links(mtu)
                if sleeve
                else _ovs_links(mtu)
                if by_ovs
                else _fastdp_links(node, mtu, snapshot.facts.link_mtu)
            ),
            *(Link(_port(pod), "peer", mtu=mtu, master=BRIDGE, hairpin=True) for pod in pods),
        ]
        addresses = [Address(BRIDGE, f"{gateway}/{whole.prefixlen}")] if gateway else []
        fdb = [] if sleeve or by_ovs else list(_fdb(snapshot, node))
        chains = list(_chains(str(whole)))
        if by_ovs:  # user space has these packets already, and the kernel would answer that nobody does
            rule = f"-p udp -m udp --dport {FASTDP_PORT} -j DROP"
            chains.append(Chain("ipv4", "raw", "PREROUTING", (rule,)))
        netns = NetnsState(
            links={link.name: link for link in links},
            addresses={(address.dev, address.address): address for address in addresses},
            fdb={(entry.dev, entry.mac, entry.dst): entry for entry in fdb},
            sysctls={
                "net/ipv4/ip_forward": "1",
                # The sysctl and the flag of each bridge are or-ed: frames of the datapath, which in weave is
                # Open vSwitch's and knows no iptables, must not be translated a second time.
                "net/bridge/bridge-nf-call-iptables": "0",
                **_arp_cache(BRIDGE),
            },
            chains={(chain.family, chain.table, chain.name): chain for chain in chains},
            ipsets={NO_MASQUERADE: IpSet(NO_MASQUERADE, "hash:net", "inet", frozenset(node.held.ranges))},
        )
        made = {pod.uid: _pod(pod, whole.prefixlen, str(whole), gateway, mtu, sleeve) for pod in pods}
        daemons = {}
        if _address(node) is not None and by_ovs:
            daemons[SWITCH] = _switch(snapshot, node, options)
        elif _address(node) is not None and (sleeve or options["fallback"]):
            daemons[ROUTER] = _router(snapshot, node, options, mtu)
        return NodeState(netns, made, daemons=daemons)

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """The ring."""
        options = read(self.parameters, facts.dataplane_options)
        if options["mode"] == "fastdp" and options["datapath"] == "linux" and options["connections"]:
            raise InputError(
                "spec.network.dataplane.connections: a Linux bridge as datapath relays nothing, so peers that"
                " are not all connected need datapath: ovs or mode: sleeve"
            )
        connected = (name for pair in options["connections"] for name in pair)
        refuse_unknown(connected, facts, "spec.network.dataplane.connections")
        return Ring(str(pod_range(facts)), facts.node_names, int(options["consensus"]))

    def more_needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """What carries frames: the kernel's VXLAN, or Open vSwitch; sleeve is a program of ours."""
        values = read(self.parameters, options)
        if _by_ovs(values):
            return OVS_NEEDS
        return frozenset() if values["mode"] == "sleeve" else frozenset({"vxlan"})

    def enforcer(self) -> Enforcer:
        """weave-npc."""
        return Npc()

    def interface_names(self) -> tuple[str, ...]:
        """The bridges, the ports between them, the tunnel device and the prefix of the pods' host ends."""
        return BRIDGE, DATAPATH, "vethwe-", VXLAN, POD_PORT, "br-phy"


dataplanes.register("weave")(Weave())


def pod_range(facts: ClusterFacts) -> Any:
    """The whole range. Raises InputError: weave knows one, of IPv4."""
    ranges = [ip_network(cidr) for cidr in facts.pod_cidrs]
    if len(ranges) != 1 or ranges[0].version != 4:
        raise InputError(
            f"spec.network.podCIDR: dataplane weave has one range, of IPv4, not {', '.join(map(str, ranges))}"
        )
    return ranges[0]


def _port(pod: Pod) -> str:
    return pod_port(container_id(pod))


def _sleeve_links(mtu: int) -> Iterator[Link]:
    yield Link(BRIDGE_PORT, "veth", mtu=mtu, master=BRIDGE, peer=PCAP_PORT)
    yield Link(PCAP_PORT, "peer", mtu=mtu)


def _by_ovs(options: Mapping[str, Any]) -> bool:
    return bool(options["mode"] == "fastdp" and options["datapath"] == "ovs")


def _ovs_links(mtu: int) -> Iterator[Link]:
    """Without the datapath, which its switch makes; user space needs whole checksums."""
    yield Link(BRIDGE_PORT, "veth", mtu=mtu, master=BRIDGE, peer=DATAPATH_PORT, tx_checksum=False)
    yield Link(DATAPATH_PORT, "peer", mtu=mtu)


def _fastdp_links(node: Node, mtu: int, underlay: int) -> Iterator[Link]:
    """The vxlan takes no MTU that its underlay does not carry; the others believe what they are told."""
    yield Link(BRIDGE_PORT, "veth", mtu=mtu, master=BRIDGE, peer=DATAPATH_PORT)
    yield Link(DATAPATH, "bridge", mtu=mtu, mac=_datapath_mac(node.name))
    yield Link(DATAPATH_PORT, "peer", mtu=mtu, master=DATAPATH)
    local = _address(node)
    if local is not None:
        vxlan = Vxlan(FASTDP_PORT, FASTDP_PORT, UPLINK, local, learning=True, df=True, checksum=False)
        mac = peer_name(f"{node.name}/{VXLAN}")
        carried = min(mtu, underlay - VXLAN_OVERHEAD)
        yield Link(VXLAN, "vxlan", mtu=carried, mac=mac, master=DATAPATH, vxlan=vxlan)


def _address(node: Node) -> str | None:
    return next((text for text in node.addresses if ip_address(text).version == 4), None)


def _datapath_mac(node: str) -> str:
    return peer_name(f"{node}/{DATAPATH}")


def _fdb(snapshot: Snapshot, node: Node) -> Iterator[FdbEntry]:
    """Where frames to unknown and to all are sent, and heartbeats: each peer by its datapath's own MAC."""
    for peer in snapshot.nodes:
        address = _address(peer)
        if peer.name != node.name and address is not None:
            yield FdbEntry(VXLAN, FLOOD, address)
            yield FdbEntry(VXLAN, _datapath_mac(peer.name), address)


def _switch(snapshot: Snapshot, node: Node, options: Mapping[str, Any]) -> Daemon:
    """The node's own Open vSwitch, and its flows."""
    addresses = {peer.name: address for peer in snapshot.nodes if (address := _address(peer))}
    mesh = connections(addresses, options["connections"])
    config = {
        "uplink": UPLINK,
        "address": addresses[node.name],
        "bridge": DATAPATH,
        "port": DATAPATH_PORT,
        "tunnel": VXLAN,
        "udp": FASTDP_PORT,
        "peers": sorted(addresses[name] for name in mesh[node.name]),
    }
    listed = flows(node.name, addresses, unicast(mesh, node.name), broadcast(mesh, node.name))
    files = {
        "config.json": json.dumps(config, indent=1) + "\n",
        "flows": "".join(f"{each}\n" for each in listed),
    }
    return Daemon(("@PYTHON@", "-m", "testbed.relays.ovs", "@DIR@/config.json"), files, reload=("true",))


def _router(snapshot: Snapshot, node: Node, options: Mapping[str, Any], mtu: int) -> Daemon:
    """The program that carries frames by sleeve, and what it is to do."""
    addresses = {peer.name: address for peer in snapshot.nodes if (address := _address(peer))}
    mesh = connections(addresses, options["connections"])
    fastdp = options["mode"] == "fastdp"
    config = {
        "name": peer_name(node.name),
        "port": DATAPATH_PORT if fastdp else PCAP_PORT,
        "bridgePort": BRIDGE_PORT,
        "vxlan": VXLAN if fastdp else "",
        "mtu": mtu,
        "clocks": {
            "fast": options["fastHeartbeat"],
            "slow": options["slowHeartbeat"],
            "timeout": options["heartbeatTimeout"],
        },
        "peers": {
            peer_name(name): {"node": name, "address": addresses[name], "datapath": _datapath_mac(name)}
            for name in sorted(mesh[node.name])
        },
        "unicast": {peer_name(to): peer_name(by) for to, by in sorted(unicast(mesh, node.name).items())},
        "broadcast": {
            peer_name(source): [peer_name(hop) for hop in hops]
            for source, hops in sorted(broadcast(mesh, node.name).items())
            if hops
        },
    }
    # It looks at its file by itself.
    argv = ("@PYTHON@", "-m", "testbed.relays.weave", "@DIR@/config.json")
    return Daemon(argv, {"config.json": json.dumps(config, indent=1) + "\n"}, reload=("true",))


def _arp_cache(device: str) -> dict[str, str]:
    return {f"net/ipv4/neigh/{device}/{name}": value for name, value in ARP_CACHE.items()}


def _chains(whole: str) -> Iterator[Chain]:
    """``net/expose.go``; ``net/bridge.go``: what leaves the range, and what comes into it from elsewhere."""
    yield Chain("ipv4", "nat", "POSTROUTING", ("-j WEAVE",))
    yield Chain(
        "ipv4",
        "nat",
        "WEAVE",
        (
            f"-m set --match-set {NO_MASQUERADE} dst -m comment --comment "
            '"Prevent SNAT to locally running containers" -j RETURN',
            f"-s {whole} -d {MULTICAST} -j RETURN",
            f"! -s {whole} -d {whole} -j MASQUERADE",
            f"-s {whole} ! -d {whole} -j MASQUERADE",
        ),
    )


def _pod(pod: Pod, length: int, whole: str, gateway: str | None, mtu: int, sleeve: bool) -> PodState:
    addresses = [Address("eth0", f"{ip}/{length}") for ip in pod.ips]
    routes = [Route("default", via=gateway, dev="eth0")] if gateway else []
    heard = Chain(
        "ipv4",
        "filter",
        "INPUT",
        (f"-s {whole} -d {MULTICAST} -j ACCEPT", f"-d {MULTICAST} -j DROP"),
    )
    return PodState(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        hostname="",
        netns=NetnsState(
            links={
                "lo": Link("lo", "existing"),
                "eth0": Link("eth0", "veth", mtu=mtu, peer=_port(pod), tx_checksum=not sleeve),
            },
            addresses={(address.dev, address.address): address for address in addresses},
            routes={route.dst: route for route in routes},
            sysctls={"net/ipv4/conf/eth0/arp_notify": "1", **_arp_cache("eth0")},
            chains={("ipv4", "filter", "INPUT"): heard},
        ),
    )
