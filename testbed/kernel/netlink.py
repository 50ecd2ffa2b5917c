"""Routing netlink in bulk: the few messages we need, encoded here, many to a system call.

A function per wish returns a ``Request``; ``Netlink.send`` hands any number of them to the kernel of the
netns the socket was opened in and returns what was refused. The kernel handles a batch within sendmsg(2),
in order, and answers only those messages that failed and those that ask for an acknowledgement.

Layouts and numbers: linux/{rtnetlink,netlink,if_link,if_addr,neighbour,veth,if_bridge}.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

from testbed.errors import KernelRefused
from testbed.state import Address, FdbEntry, Neighbour, Nexthop, Redirect, Route, Shaper, Vxlan

AF_BRIDGE = 7
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = (
    0x1,
    0x4,
    0x100,
    0x200,
    0x400,
    0x800,
)
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NLMSGERR_ATTR_MSG = 270, 10, 11, 1
NLA_F_NESTED = 0x8000

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR = 16, 17, 20, 21
RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH = 24, 25, 28, 29
RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER = 36, 37, 44
RTM_SETNEIGHTBL = 67

IFF_UP, IFF_NOARP = 0x1, 0x80
TC_H_CLSACT_INGRESS = 0xFFFFFFF2
EVERY_PROTOCOL = 1 << 16 | 0x0300
"""Priority 1, ETH_P_ALL in the network's order."""
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS = 6, 7, 8
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_GROUP, IFLA_NET_NS_FD = (
    1,
    3,
    4,
    10,
    18,
    27,
    28,
)
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
IFLA_BRPORT_MODE = 4
IFLA_AF_SPEC, IFLA_INET_CONF = 26, 1
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_UDP_CSUM, IFLA_VXLAN_DF = 15, 17, 18, 29
IFLA_BR_NF_CALL_IPTABLES = 36
IFLA_IPTUN_LOCAL, IFLA_IPTUN_PMTUDISC = 2, 10

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x02

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_VIA = 9, 18
RTAX_MTU = 2
RTNH_F_ONLINK = 4
RT_TABLE_MAIN = 254
SCOPES = {"global": 0, "link": 253, "host": 254, "nowhere": 255}
IPV4_SETTINGS = {
    **{"forwarding": 1, "proxy_arp": 3, "arp_announce": 18, "arp_ignore": 19, "arp_notify": 22},
    "route_localnet": 26,
}
"""Settings of a device below net/ipv4/conf that do nothing but hold their value (forwarding: where the whole
netns forwards): linux/ip.h."""
ROUTE_KINDS = {"unicast": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
PROTOCOLS = {
    "redirect": 1, "kernel": 2, "boot": 3, "static": 4, "ra": 9, "bird": 12, "dhcp": 16, "babel": 42,
    "bgp": 186, "isis": 187, "ospf": 188, "rip": 189, "eigrp": 192,
}  # fmt: skip
"""Names of route protocols as iproute2's etc/iproute2/rt_protos has them; other ones are given as numbers."""

NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
NTF_SELF, NTF_PROXY = 0x02, 0x08
NDTA_NAME, NDTA_PARMS = 1, 6
NDTPA_IFINDEX, NDTPA_PROXY_DELAY = 1, 13
ARP_TABLE = "arp_cache"

TCA_KIND, TCA_OPTIONS = 1, 2
TCA_TBF_PARMS, TCA_TBF_RATE64 = 1, 4
TCA_U32_CLASSID, TCA_U32_SEL, TCA_U32_ACT = 1, 5, 7
TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_MIRRED_PARMS = 1, 2, 2
TC_ACT_STOLEN, TCA_EGRESS_REDIR, TC_U32_TERMINAL = 4, 1, 1
TC_H_ROOT, TC_H_INGRESS, INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
ETH_P_ALL = 0x0003
TICKS_PER_USEC = 15.625
"""The kernel's packet scheduler counts in ticks of 64 ns (/proc/net/psched)."""

BATCH_BYTES = 32 * 1024
"""Of requests in one sendmsg; also keeps the answers, should all fail, within a default receive buffer."""
BATCH_REQUESTS = 128

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, dst and src length, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_TRAFFIC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_NEXTHOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, hops, index


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel. what: the wish in words, for an error; dev: the device it is about."""

    kind: int
    flags: int
    body: bytes
    what: str
    dev: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request the kernel refused; number: the errno."""

    request: Request
    number: int
    message: str = ""

    @property
    def error(self) -> KernelRefused:
        """The refusal as an exception."""
        return KernelRefused(self.request.what, self.number, self.message or os.strerror(self.number))


# --- encoding -----------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute (nlattr), padded."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _packed(address: str) -> bytes:
    return ip_address(address).packed


def _link_body(
    name: str, *attributes: bytes, up: bool | None = None, mtu: int | None = None, mac: str | None = None
) -> bytes:
    """An ifinfomsg for the device called name; None leaves a thing as it is."""
    header = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    common = [_text(IFLA_IFNAME, name)]
    if mtu is not None:
        common.append(_u32(IFLA_MTU, mtu))
    if mac is not None:
        common.append(attribute(IFLA_ADDRESS, _mac(mac)))
    return header + b"".join((*common, *attributes))


def _kind(kind: str, *data: bytes) -> bytes:
    return _nested(
        IFLA_LINKINFO, _text(IFLA_INFO_KIND, kind), *([_nested(IFLA_INFO_DATA, *data)] if data else [])
    )


# --- links --------------------------------------------------------------------------------------------

_CREATE = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
_SET = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE


def add_veth(
    name: str, peer: str, peer_netns: int, mtu: int | None = None, mac: str | None = None
) -> Request:
    """Make a veth pair, both ends down: one here, the other, ``peer``, in the netns behind a descriptor.

    With the one queue each way that veth uses; the kernel would make one for each CPU.
    """
    queues = _u32(IFLA_NUM_TX_QUEUES, 1) + _u32(IFLA_NUM_RX_QUEUES, 1)
    there = _u32(IFLA_NET_NS_FD, peer_netns)
    other = _nested(VETH_INFO_PEER, _link_body(peer, there, queues, mtu=mtu))
    body = _link_body(name, _kind("veth", other), queues, mtu=mtu, mac=mac)
    return Request(RTM_NEWLINK, _CREATE, body, f"add veth {name} with peer {peer}", name)


def add_bridge(name: str, mtu: int | None = None, mac: str | None = None) -> Request:
    """Make a Linux bridge without spanning tree, down."""
    return Request(
        RTM_NEWLINK, _CREATE, _link_body(name, _kind("bridge"), mtu=mtu, mac=mac), f"add bridge {name}", name
    )


def add_dummy(name: str, mtu: int | None = None, mac: str | None = None) -> Request:
    """Make a dummy device, down."""
    return Request(
        RTM_NEWLINK, _CREATE, _link_body(name, _kind("dummy"), mtu=mtu, mac=mac), f"add dummy {name}", name
    )


def add_ifb(name: str, mtu: int | None = None, mac: str | None = None) -> Request:
    """Make an intermediate functional block, down."""
    return Request(
        RTM_NEWLINK, _CREATE, _link_body(name, _kind("ifb"), mtu=mtu, mac=mac), f"add ifb {name}", name
    )


def add_vxlan(
    name: str, vxlan: Vxlan, underlay: int, mtu: int | None = None, mac: str | None = None
) -> Request:
    """Make a vxlan device, down. underlay: index of ``vxlan.dev``."""
    local = IFLA_VXLAN_LOCAL6 if ":" in vxlan.local else IFLA_VXLAN_LOCAL
    data = (
        _u32(IFLA_VXLAN_ID, vxlan.vni),
        _u32(IFLA_VXLAN_LINK, underlay),
        attribute(local, _packed(vxlan.local)),
        attribute(IFLA_VXLAN_LEARNING, bytes([vxlan.learning])),
        attribute(IFLA_VXLAN_PORT, struct.pack("!H", vxlan.port)),
        *([attribute(IFLA_VXLAN_DF, b"\1")] if vxlan.df else []),
        *([] if vxlan.checksum else [attribute(IFLA_VXLAN_UDP_CSUM, b"\0")]),
    )
    body = _link_body(name, _kind("vxlan", *data), mtu=mtu, mac=mac)
    return Request(RTM_NEWLINK, _CREATE, body, f"add vxlan {name} with vni {vxlan.vni}", name)


def set_link(
    name: str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    master: int | None = None,
) -> Request:
    """Change a device; None leaves a thing as it is. master: index of a bridge, 0: none."""
    attributes = [] if master is None else [_u32(IFLA_MASTER, master)]
    wishes = {"up": up, "mtu": mtu, "mac": mac, "master": master}
    words = " ".join(f"{wish} {value}" for wish, value in wishes.items() if value is not None)
    body = _link_body(name, *attributes, up=up, mtu=mtu, mac=mac)
    return Request(RTM_NEWLINK, NLM_F_REQUEST, body, f"set {name} {words}", name)


def set_ipv4(name: str, setting: str, value: int) -> Request:
    """Set one of IPV4_SETTINGS of a device, as the sysctl of that name does."""
    conf = _nested(IFLA_INET_CONF, _u32(IPV4_SETTINGS[setting], value))
    body = _link_body(name, _nested(IFLA_AF_SPEC, _nested(socket.AF_INET, conf)))
    return Request(RTM_NEWLINK, NLM_F_REQUEST, body, f"set {name} {setting} {value}", name)


def set_proxy_delay(name: str, index: int, milliseconds: int) -> Request:
    """Set how long a device waits until it answers for others, as net/ipv4/neigh/DEVICE/proxy_delay does."""
    values = attribute(NDTPA_PROXY_DELAY, struct.pack("=Q", milliseconds))
    parameters = _nested(NDTA_PARMS, _u32(NDTPA_IFINDEX, index), values)
    body = struct.pack("=Bxxx", socket.AF_INET) + _text(NDTA_NAME, ARP_TABLE) + parameters
    what = f"set {name} proxy_delay {milliseconds} ms"
    return Request(RTM_SETNEIGHTBL, NLM_F_REQUEST, body, what, name)


def set_hairpin(name: str, on: bool) -> Request:
    """Whether a bridge port sends a frame back out of the port it came from."""
    info = _nested(
        IFLA_LINKINFO,
        _text(IFLA_INFO_SLAVE_KIND, "bridge"),
        _nested(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, bytes([on]))),
    )
    return Request(RTM_NEWLINK, NLM_F_REQUEST, _link_body(name, info), f"set {name} hairpin {on}", name)


def set_nf_call_iptables(name: str, on: bool) -> Request:
    """Whether the frames of a bridge meet iptables where the netns's sysctl is 0."""
    info = _kind("bridge", attribute(IFLA_BR_NF_CALL_IPTABLES, bytes([on])))
    return Request(
        RTM_NEWLINK, NLM_F_REQUEST, _link_body(name, info), f"set {name} nf_call_iptables {on}", name
    )


def set_group(name: str, group: int) -> Request:
    """Put a device into a group, by which many can be deleted at once."""
    return Request(
        RTM_NEWLINK,
        NLM_F_REQUEST,
        _link_body(name, _u32(IFLA_GROUP, group)),
        f"set {name} group {group}",
        name,
    )


def delete_link(name: str) -> Request:
    """Delete a device."""
    return Request(RTM_DELLINK, NLM_F_REQUEST, _link_body(name), f"delete {name}", name)


def delete_group(group: int) -> Request:
    """Delete every device of a group in one go, which costs the kernel one grace period for all."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_GROUP, group)
    return Request(RTM_DELLINK, NLM_F_REQUEST, body, f"delete group {group}")


# --- addresses ----------------------------------------------------------------------------------------


def _address(kind: int, flags: int, verb: str, address: Address, index: int) -> Request:
    interface = ip_interface(address.address)
    packed, prefix = interface.ip.packed, interface.network.prefixlen
    attributes = [attribute(IFA_LOCAL, packed), attribute(IFA_ADDRESS, packed)]
    if interface.version == 6:
        attributes.append(_u32(IFA_FLAGS, IFA_F_NODAD))
    elif address.broadcast and prefix < 31:
        attributes.append(attribute(IFA_BROADCAST, interface.network.broadcast_address.packed))
    family = socket.AF_INET6 if interface.version == 6 else socket.AF_INET
    body = _ADDRESS.pack(family, prefix, 0, SCOPES[address.scope], index) + b"".join(attributes)
    return Request(kind, flags, body, f"{verb} address {address.address} on {address.dev}", address.dev)


def add_address(address: Address, index: int) -> Request:
    """Give a device an address, usable at once (IPv6: without duplicate address detection)."""
    return _address(RTM_NEWADDR, _SET, "add", address, index)


def delete_address(address: Address, index: int) -> Request:
    """Take an address from a device."""
    return _address(RTM_DELADDR, NLM_F_REQUEST, "delete", address, index)


# --- routes -------------------------------------------------------------------------------------------


def _gateway(via: str, family: int) -> bytes:
    if _family(via) == family:
        return attribute(RTA_GATEWAY, _packed(via))
    return attribute(RTA_VIA, struct.pack("=H", _family(via)) + _packed(via))


def _hop(hop: Nexthop, family: int, onlink: bool, index: Mapping[str, int]) -> bytes:
    attributes = _gateway(hop.via, family)
    length = _NEXTHOP.size + len(attributes)
    return (
        _NEXTHOP.pack(length, RTNH_F_ONLINK if onlink else 0, 0, index[hop.dev] if hop.dev else 0)
        + attributes
    )


def _route_family(route: Route) -> int:
    if route.dst == "default":
        return socket.AF_INET
    return socket.AF_INET6 if route.dst == "default6" else _family(route.dst)


def protocol_number(name: str) -> int:
    """The number of a route protocol given by name or as a number."""
    return PROTOCOLS[name] if name in PROTOCOLS else int(name)


def _route(kind: int, flags: int, verb: str, route: Route, index: Mapping[str, int]) -> Request:
    family = _route_family(route)
    attributes, length = [], 0
    if not route.dst.startswith("default"):
        network = ip_network(route.dst)
        length = network.prefixlen
        attributes.append(attribute(RTA_DST, network.network_address.packed))
    if route.nexthops:
        attributes.append(
            attribute(RTA_MULTIPATH, b"".join(_hop(h, family, route.onlink, index) for h in route.nexthops))
        )
    if route.via is not None:
        attributes.append(_gateway(route.via, family))
    if route.dev is not None:
        attributes.append(_u32(RTA_OIF, index[route.dev]))
    if route.src is not None:
        attributes.append(attribute(RTA_PREFSRC, _packed(route.src)))
    if route.metric:
        attributes.append(_u32(RTA_PRIORITY, route.metric))
    if route.mtu is not None:
        attributes.append(_nested(RTA_METRICS, _u32(RTAX_MTU, route.mtu)))
    # A route is deleted whatever its scope; IPv6 knows no scopes.
    scope = SCOPES[route.scope] if kind == RTM_NEWROUTE else SCOPES["nowhere"]
    header = _ROUTE.pack(
        family, length, 0, 0, RT_TABLE_MAIN, protocol_number(route.proto), scope, ROUTE_KINDS[route.kind],
        RTNH_F_ONLINK if route.onlink and not route.nexthops else 0,
    )  # fmt: skip
    via = f" via {route.via}" if route.via else "".join(f" nexthop {hop.via}" for hop in route.nexthops)
    what = f"{verb} {route.kind} route {route.dst}{via}{f' dev {route.dev}' if route.dev else ''}"
    return Request(kind, flags, header + b"".join(attributes), what, route.dev or "")


def add_route(route: Route, index: Mapping[str, int]) -> Request:
    """Set the main table's route to ``route.dst``. index: device name → index, of those the route names."""
    return _route(RTM_NEWROUTE, _SET, "add", route, index)


def delete_route(route: Route, index: Mapping[str, int]) -> Request:
    """Delete exactly this route."""
    return _route(RTM_DELROUTE, NLM_F_REQUEST, "delete", route, index)


# --- neighbours ---------------------------------------------------------------------------------------


def _neighbour(kind: int, flags: int, verb: str, entry: Neighbour, index: int) -> Request:
    body = _NEIGHBOUR.pack(
        _family(entry.dst), index, NUD_PERMANENT if entry.mac else 0, 0 if entry.mac else NTF_PROXY, 0
    ) + attribute(NDA_DST, _packed(entry.dst))
    if entry.mac and kind == RTM_NEWNEIGH:
        body += attribute(NDA_LLADDR, _mac(entry.mac))
    return Request(kind, flags, body, f"{verb} neighbour {entry.dst} on {entry.dev}", entry.dev)


def add_neighbour(entry: Neighbour, index: int) -> Request:
    """Set a permanent or, without a mac, a proxy neighbour entry."""
    return _neighbour(RTM_NEWNEIGH, _SET, "add", entry, index)


def delete_neighbour(entry: Neighbour, index: int) -> Request:
    """Delete a neighbour entry."""
    return _neighbour(RTM_DELNEIGH, NLM_F_REQUEST, "delete", entry, index)


def _fdb(kind: int, flags: int, verb: str, entry: FdbEntry, index: int) -> Request:
    body = _NEIGHBOUR.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    body += attribute(NDA_LLADDR, _mac(entry.mac)) + attribute(NDA_DST, _packed(entry.dst))
    return Request(
        kind, flags, body, f"{verb} fdb entry {entry.mac} dst {entry.dst} on {entry.dev}", entry.dev
    )


def add_fdb(entry: FdbEntry, index: int) -> Request:
    """Set a forwarding entry; the all-zero mac (flooding) has any number of destinations."""
    many = not any(_mac(entry.mac))
    flags = NLM_F_REQUEST | NLM_F_CREATE | (NLM_F_APPEND if many else NLM_F_REPLACE)
    return _fdb(RTM_NEWNEIGH, flags, "add", entry, index)


def delete_fdb(entry: FdbEntry, index: int) -> Request:
    """Delete a forwarding entry."""
    return _fdb(RTM_DELNEIGH, NLM_F_REQUEST, "delete", entry, index)


# --- traffic control ------------------------------------------------------------------------------------


def _qdisc(kind: int, flags: int, what: str, dev: str, header: bytes, *attributes: bytes) -> Request:
    return Request(kind, flags, header + b"".join(attributes), f"{what} on {dev}", dev)


def set_shaper(shaper: Shaper, index: int) -> Request:
    """Put a token bucket at a device's root, in place of what is there.

    The numbers are worked out as the plugin bandwidth does, 32 bits wide. Source: containernetworking plugins
    1.1.1 ``plugins/meta/bandwidth/ifb_creator.go``; linux/pkt_sched.h.
    """
    rate, burst = shaper.rate // 8, shaper.burst // 8 & 0xFFFFFFFF
    ticks = int((int(burst * 1_000_000 / rate) & 0xFFFFFFFF) * TICKS_PER_USEC)
    limit = int(rate * shaper.latency) + burst
    no_rate = struct.pack("=BBHhHI", 0, 0, 0, 0, 0, 0)
    own_rate = struct.pack("=BBHhHI", 0, 0, 0, 0, 0, min(rate, 0xFFFFFFFF))
    parameters = own_rate + no_rate + struct.pack("=III", limit & 0xFFFFFFFF, ticks & 0xFFFFFFFF, 0)
    wide = [attribute(TCA_TBF_RATE64, struct.pack("=Q", rate))] if rate > 0xFFFFFFFF else []
    options = _nested(TCA_OPTIONS, attribute(TCA_TBF_PARMS, parameters), *wide)
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, 1 << 16, TC_H_ROOT, 0)
    what = f"set tbf with rate {shaper.rate}"
    return _qdisc(RTM_NEWQDISC, _SET, what, shaper.dev, header, _text(TCA_KIND, "tbf"), options)


def delete_shaper(shaper: Shaper, index: int) -> Request:
    """Take a device's root qdisc away; the kernel's default takes its place."""
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, 1 << 16, TC_H_ROOT, 0)
    return _qdisc(RTM_DELQDISC, NLM_F_REQUEST, "delete tbf", shaper.dev, header)


def add_ingress(redirect: Redirect, index: int) -> Request:
    """Give a device a qdisc for what comes in, where it has none."""
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, INGRESS_HANDLE, TC_H_INGRESS, 0)
    what = "add ingress qdisc"
    return _qdisc(RTM_NEWQDISC, _CREATE, what, redirect.dev, header, _text(TCA_KIND, "ingress"))


def set_redirect(redirect: Redirect, index: int, to: int) -> Request:
    """Redirect all that comes in to device ``to`` (its index); there is an ingress qdisc."""
    mirred = struct.pack("=IIiiiiI", 0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to)
    action = _nested(
        1,
        _text(TCA_ACT_KIND, "mirred"),
        _nested(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, mirred)),
    )
    # One key that every packet has; the selector's other fields are of no use here.
    selector = struct.pack("=BBBxHHhhI", TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack(
        "=IIii", 0, 0, 0, 0
    )
    options = _nested(
        TCA_OPTIONS,
        _u32(TCA_U32_CLASSID, 1 << 16 | 1),
        attribute(TCA_U32_SEL, selector),
        _nested(TCA_U32_ACT, action),
    )
    info = 1 << 16 | socket.htons(ETH_P_ALL)
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, 0, INGRESS_HANDLE, info)
    what = f"redirect what comes in to {redirect.to}"
    return _qdisc(RTM_NEWTFILTER, _CREATE, what, redirect.dev, header, _text(TCA_KIND, "u32"), options)


def add_clsact(index: int) -> Request:
    """Make it possible for programs to see what comes in by a device."""
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, INGRESS_HANDLE, TC_H_INGRESS, 0)
    body = header + _text(TCA_KIND, "clsact")
    return Request(RTM_NEWQDISC, _CREATE, body, f"add clsact to device {index}")


def delete_clsact(index: int) -> Request:
    """Undo ``add_clsact``; its programs go, too."""
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, INGRESS_HANDLE, TC_H_INGRESS, 0)
    return Request(RTM_DELQDISC, NLM_F_REQUEST, header, f"delete clsact of device {index}")


def add_program(index: int, program: int) -> Request:
    """Have a program, by its descriptor, decide about all that comes in by a device with clsact."""
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, 0, TC_H_CLSACT_INGRESS, EVERY_PROTOCOL)
    options = _nested(
        TCA_OPTIONS, _u32(TCA_BPF_FD, program), _text(TCA_BPF_NAME, "testbed"), _u32(TCA_BPF_FLAGS, 1)
    )
    body = header + _text(TCA_KIND, "bpf") + options
    return Request(RTM_NEWTFILTER, _CREATE, body, f"add a program to device {index}")


def set_no_arp(name: str) -> Request:
    """Have nobody be asked for on a device."""
    header = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_NOARP, IFF_NOARP)
    return Request(RTM_NEWLINK, NLM_F_REQUEST, header + _text(IFLA_IFNAME, name), f"set {name} noarp", name)


def add_ipip(name: str, local: str = "") -> Request:
    """Make an ipip device without a peer, down. local: its address on the underlay; without one it would be
    the netns's own, ``tunl0``, which the kernel makes. TTL and "don't fragment" are the inner packet's."""
    data: tuple[bytes, ...] = ()
    if local:
        data = attribute(IFLA_IPTUN_LOCAL, _packed(local)), attribute(IFLA_IPTUN_PMTUDISC, b"\0")
    return Request(RTM_NEWLINK, _CREATE, _link_body(name, _kind("ipip", *data)), f"add ipip {name}", name)


def add_wireguard(name: str, mtu: int | None = None) -> Request:
    """Make a WireGuard device, down, without a key."""
    body = _link_body(name, _kind("wireguard"), mtu=mtu)
    return Request(RTM_NEWLINK, _CREATE, body, f"add wireguard {name}", name)


def delete_ingress(redirect: Redirect, index: int) -> Request:
    """Take a device's ingress qdisc away, with its filters."""
    header = _TRAFFIC.pack(socket.AF_UNSPEC, index, INGRESS_HANDLE, TC_H_INGRESS, 0)
    return _qdisc(RTM_DELQDISC, NLM_F_REQUEST, "delete ingress qdisc", redirect.dev, header)


# --- talking to the kernel ----------------------------------------------------------------------------


def batches(requests: Iterable[Request]) -> Iterable[list[Request]]:
    """The requests in runs that fit one sendmsg each."""
    batch: list[Request] = []
    size = 0
    for request in requests:
        length = _HEADER.size + len(request.body)
        if batch and (size + length > BATCH_BYTES or len(batch) == BATCH_REQUESTS):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += length
    if batch:
        yield batch


def encode(batch: Sequence[Request], first: int = 0) -> bytes:
    """One datagram: request k has the sequence number first + k; the last asks for an acknowledgement."""
    parts = []
    for number, request in enumerate(batch):
        flags = request.flags | (NLM_F_ACK if number == len(batch) - 1 else 0)
        parts.append(_HEADER.pack(_HEADER.size + len(request.body), request.kind, flags, first + number, 0))
        parts.append(request.body)
    return b"".join(parts)


def _message(answer: memoryview, flags: int) -> str:
    """The kernel's own words in an error answer, if it has any."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # nlmsghdr, error, the offending header; with its body unless the kernel left that out.
    original = _HEADER.size if flags & NLM_F_CAPPED else struct.unpack_from("=I", answer, 20)[0]
    at = 20 + original + (-original % 4)
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == NLMSGERR_ATTR_MSG:
            return bytes(answer[at + 4 : at + length]).rstrip(b"\0").decode(errors="replace")
        at += max(4, length + (-length % 4))
    return ""


def answers(data: bytes) -> Iterable[tuple[int, int, str]]:
    """(sequence number, errno or 0, message) of every answer in a datagram from the kernel."""
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(view, at)
        if kind == NLMSG_ERROR:
            answer = view[at : at + length]
            yield sequence, -struct.unpack_from("=i", answer, _HEADER.size)[0], _message(answer, flags)
        at += length + (-length % 4)


class Netlink:
    """A routing netlink socket in the netns of the thread that opens it; it stays there for good."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._sequence = 0

    def send(self, requests: Iterable[Request]) -> list[Refusal]:
        """Have the requests carried out in order and return those refused; a refusal stops nothing."""
        refused: list[Refusal] = []
        for batch in batches(requests):
            first, self._sequence = self._sequence, self._sequence + len(batch)
            self._socket.send(encode(batch, first))
            acknowledged = False
            while not acknowledged:
                for sequence, number, message in answers(self._socket.recv(1 << 16)):
                    if number:
                        refused.append(Refusal(batch[sequence - first], number, message))
                    acknowledged = acknowledged or sequence == first + len(batch) - 1
        return refused

    def index(self, name: str) -> int:
        """The index of a device in this thread's netns, which must be the socket's. Raises KernelRefused."""
        try:
            return socket.if_nametoindex(name)
        except OSError as error:
            raise KernelRefused(f"find device {name}", error.errno or 0, "no such device") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
