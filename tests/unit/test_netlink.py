"""Encoding is compared with pyroute2's decoding of the same bytes, answers with ones the kernel gave."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.ndtmsg import ndtmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from testbed.kernel import netlink
from testbed.state import Address, FdbEntry, Neighbour, Nexthop, Route, Vxlan


def decoded(request: netlink.Request, kind: type[Any]) -> Any:
    """The request as pyroute2 reads it."""
    message = kind(netlink.encode([request]))
    message.decode()
    return message


def attributes(message: Any) -> dict[str, Any]:
    return dict(message["attrs"])


def test_veth_carries_the_peer_with_its_namespace():
    message = decoded(netlink.add_veth("eth0", "veth12345678", 7, 1400), ifinfmsg)
    assert message.get_attr("IFLA_IFNAME") == "eth0"
    assert message.get_attr("IFLA_MTU") == 1400
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer.get_attr("IFLA_IFNAME") == "veth12345678"
    assert peer.get_attr("IFLA_NET_NS_FD") == 7


def test_vxlan():
    vxlan = Vxlan(1, 8472, "eth0", "172.18.0.2")
    message = decoded(netlink.add_vxlan("flannel.1", vxlan, 2, mac="0a:00:00:00:00:01"), ifinfmsg)
    assert message.get_attr("IFLA_ADDRESS") == "0a:00:00:00:00:01"
    data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    assert data.get_attr("IFLA_VXLAN_ID") == 1
    assert data.get_attr("IFLA_VXLAN_PORT") == 8472
    assert data.get_attr("IFLA_VXLAN_LINK") == 2
    assert data.get_attr("IFLA_VXLAN_LOCAL") == "172.18.0.2"
    assert data.get_attr("IFLA_VXLAN_LEARNING") == 0


def test_ipv4_setting_of_a_device():
    message = decoded(netlink.set_ipv4("eth0", "arp_notify", 1), ifinfmsg)
    assert message.get_attr("IFLA_IFNAME") == "eth0"
    # pyroute2 reads the settings as the kernel reports them: a row of numbers, not attributes.
    assert netlink.set_ipv4("eth0", "arp_notify", 1).body.endswith(
        struct.pack("=HHHHHHI", 16, 0x8002, 12, 0x8001, 8, 22, 1)
    )


def test_proxy_delay_of_a_device():
    message = decoded(netlink.set_proxy_delay("cali1", 5, 800), ndtmsg)
    assert message["family"] == socket.AF_INET
    assert message.get_attr("NDTA_NAME") == "arp_cache"
    parameters = message.get_attr("NDTA_PARMS")
    assert parameters.get_attr("NDTPA_IFINDEX") == 5
    assert parameters.get_attr("NDTPA_PROXY_DELAY") == 800


def test_address_has_its_broadcast_and_ipv6_no_duplicate_detection():
    message = decoded(netlink.add_address(Address("eth0", "10.244.1.2/24"), 2), ifaddrmsg)
    assert (message["prefixlen"], message["index"]) == (24, 2)
    assert attributes(message) == {
        "IFA_LOCAL": "10.244.1.2",
        "IFA_ADDRESS": "10.244.1.2",
        "IFA_BROADCAST": "10.244.1.255",
    }
    six = decoded(netlink.add_address(Address("eth0", "fd00::2/64"), 2), ifaddrmsg)
    assert six.get_attr("IFA_FLAGS") == netlink.IFA_F_NODAD


def test_route_with_gateway_device_source_mtu_and_metric():
    route = Route("10.2.0.0/24", "172.18.0.3", "eth0", "10.1.0.1", proto="bird", mtu=1450, metric=32)
    message = decoded(netlink.add_route(route, {"eth0": 2}), rtmsg)
    assert (message["dst_len"], message["proto"], message["table"]) == (24, 12, 254)
    assert message.get_attr("RTA_DST") == "10.2.0.0"
    assert message.get_attr("RTA_GATEWAY") == "172.18.0.3"
    assert message.get_attr("RTA_OIF") == 2
    assert message.get_attr("RTA_PREFSRC") == "10.1.0.1"
    assert message.get_attr("RTA_PRIORITY") == 32
    assert message.get_attr("RTA_METRICS").get_attr("RTAX_MTU") == 1450


def test_multipath_route():
    route = Route("default6", nexthops=(Nexthop("fd00::3", "eth0"), Nexthop("fd00::4")))
    message = decoded(netlink.add_route(route, {"eth0": 2}), rtmsg)
    hops = message.get_attr("RTA_MULTIPATH")
    assert [(hop["oif"], hop.get_attr("RTA_GATEWAY")) for hop in hops] == [(2, "fd00::3"), (0, "fd00::4")]


def test_route_kinds_protocols_and_flags():
    blackhole = decoded(netlink.add_route(Route("10.0.0.0/26", kind="blackhole", proto="80"), {}), rtmsg)
    assert (blackhole["type"], blackhole["proto"]) == (6, 80)
    onlink = Route("10.3.0.0/24", via="10.3.0.0", dev="vx", onlink=True)
    assert decoded(netlink.add_route(onlink, {"vx": 3}), rtmsg)["flags"] == netlink.RTNH_F_ONLINK


def test_permanent_proxy_and_forwarding_entries():
    permanent = decoded(netlink.add_neighbour(Neighbour("vx", "10.2.0.0", "0a:00:00:00:00:01"), 3), ndmsg)
    assert (permanent["state"], permanent["ifindex"]) == (netlink.NUD_PERMANENT, 3)
    assert attributes(permanent) == {"NDA_DST": "10.2.0.0", "NDA_LLADDR": "0a:00:00:00:00:01"}
    assert (
        decoded(netlink.add_neighbour(Neighbour("eth0", "169.254.1.1"), 2), ndmsg)["flags"]
        == netlink.NTF_PROXY
    )
    entry = decoded(netlink.add_fdb(FdbEntry("vx", "0a:00:00:00:00:01", "172.18.0.3"), 3), ndmsg)
    assert (entry["family"], entry["flags"]) == (netlink.AF_BRIDGE, netlink.NTF_SELF)


def test_batch_numbers_its_requests_and_asks_for_one_acknowledgement():
    data = netlink.encode([netlink.delete_link(name) for name in "abc"], first=5)
    headers, at = [], 0
    while at < len(data):
        length, _, flags, sequence, _ = struct.unpack_from("=IHHII", data, at)
        headers.append((sequence, bool(flags & netlink.NLM_F_ACK)))
        at += length
    assert headers == [(5, False), (6, False), (7, True)]


def test_batches_stay_within_bounds_and_lose_nothing():
    requests = [netlink.delete_link(f"veth{number}") for number in range(1000)]
    parts = list(netlink.batches(requests))
    assert [request for part in parts for request in part] == requests
    assert all(len(part) <= netlink.BATCH_REQUESTS for part in parts)
    assert all(len(netlink.encode(part)) <= netlink.BATCH_BYTES for part in parts)


def answer(sequence: int, number: int, message: str = "") -> bytes:
    text = message.encode() + b"\0"
    extra = struct.pack("=HH", 4 + len(text), 1) + text + b"\0" * (-len(text) % 4) if message else b""
    flags = netlink.NLM_F_CAPPED | (netlink.NLM_F_ACK_TLVS if message else 0)
    body = struct.pack("=i", -number) + struct.pack("=IHHII", 32, 16, 5, sequence, 0) + extra
    return struct.pack("=IHHII", 16 + len(body), netlink.NLMSG_ERROR, flags, sequence, 0) + body


def test_answers_carry_the_kernels_own_words():
    data = answer(3, errno.EINVAL, "Nexthop has invalid gateway") + answer(4, errno.EEXIST) + answer(5, 0)
    assert list(netlink.answers(data)) == [
        (3, errno.EINVAL, "Nexthop has invalid gateway"),
        (4, errno.EEXIST, ""),
        (5, 0, ""),
    ]


def test_refusal_says_what_was_asked():
    refusal = netlink.Refusal(netlink.add_bridge("cni0"), errno.EEXIST)
    assert str(refusal.error) == "add bridge cni0: errno 17: File exists"


@pytest.mark.parametrize(("name", "number"), [("boot", 3), ("bird", 12), ("80", 80)])
def test_protocol_number(name: str, number: int):
    assert netlink.protocol_number(name) == number


def test_ipip_beside_the_netnss_own_has_a_local_address_and_the_inner_packets_df():
    info = decoded(netlink.add_ipip("flannel.ipip", "172.18.0.2"), ifinfmsg).get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "ipip"
    data = info.get_attr("IFLA_INFO_DATA")
    assert (data.get_attr("IFLA_IPIP_LOCAL"), data.get_attr("IFLA_IPIP_PMTUDISC")) == ("172.18.0.2", 0)
    plain = decoded(netlink.add_ipip("tunl0"), ifinfmsg).get_attr("IFLA_LINKINFO")
    assert plain.get_attr("IFLA_INFO_DATA") is None


def test_wireguard():
    message = decoded(netlink.add_wireguard("flannel-wg", 1420), ifinfmsg)
    assert message.get_attr("IFLA_MTU") == 1420
    assert message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND") == "wireguard"
