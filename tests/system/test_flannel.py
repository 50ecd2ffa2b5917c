"""The flannel rows of the comparison of dataplanes, with real packets: every cell without a Service.

Lab: nodes a 172.18.0.2 and b 172.18.0.3, outside 172.18.0.254; pods a1, a2 on a, b1 on b.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as msgspec_replace
from node_lab import FACTS, NODES, OUTSIDE, Host, Lab, captured, pod, running_lab
from test_bridge import echoes, mac, ping, source_seen

from testbed import Cluster
from testbed.dataplane import dataplanes
from testbed.dataplane.flannel import keys
from testbed.errors import MissingCapability
from testbed.kernel.probe import PROBES
from testbed.rules.wireguard import parse_dump
from testbed.state import NodeState
from testbed.wait import wait_until

A1, A2, B1 = pod("a1", "a", 2), pod("a2", "a", 3), pod("b1", "b", 2)
PODS = (A1, A2, B1)
IP = {"a1": "10.244.1.2", "a2": "10.244.1.3", "b1": "10.244.2.2"}
B1_6 = "fd24:0:0:2::2"
FLANNEL = dataplanes.get("flannel")
IPV4 = replace(FACTS, pod_cidrs=("10.244.0.0/16",))
NODES4 = tuple(replace(node, pod_cidrs=node.pod_cidrs[:1]) for node in NODES)
PODS4 = tuple(replace(each, ips=each.ips[:1]) for each in PODS)


SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: flannel-{backend}}}
spec: {{nodes: {{count: 1}}, network: {{dataplane: {{name: flannel, backend: {backend}}}}}}}
"""


def wire(lab: Lab, **options: Any) -> None:
    facts = replace(IPV4, dataplane_options=options)
    lab.wire(*PODS4, dataplane=FLANNEL, nodes=NODES4, facts=facts)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


@pytest.fixture
def vxlan(lab: Lab) -> Lab:
    wire(lab)
    return lab


@pytest.fixture
def host_gw(lab: Lab) -> Lab:
    wire(lab, backend="host-gw")
    return lab


def routes(host: Host, where: str = "node") -> set[tuple[str, str | None, str]]:
    found = host.json("ip", "-json", "route", where=where)
    return {(route["dst"], route.get("gateway"), route["dev"]) for route in found}


def received(host: Host, interface: str) -> int:
    (link,) = host.json("ip", "-json", "-statistics", "link", "show", interface)
    return int(link["stats64"]["rx"]["packets"])


# --- vxlan ----------------------------------------------------------------------------------------------


def test_pod_has_a_route_to_the_clusters_range_and_the_tunnels_mtu(vxlan: Lab) -> None:
    (link,) = vxlan.a.json("ip", "-json", "-4", "address", "show", "eth0", where="uid-a1")
    assert [(info["local"], info["prefixlen"]) for info in link["addr_info"]] == [(IP["a1"], 24)]
    assert link["mtu"] == 1450
    assert routes(vxlan.a, "uid-a1") == {
        ("default", "10.244.1.1", "eth0"),
        ("10.244.0.0/16", "10.244.1.1", "eth0"),
        ("10.244.1.0/24", None, "eth0"),
    }


def test_tunnel_device_has_its_nodes_first_address_and_learns_nothing(vxlan: Lab) -> None:
    (link,) = vxlan.a.json("ip", "-json", "-details", "address", "show", "flannel.1")
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["learning"]) == (1, 8472, "172.18.0.2", False)
    assert link["mtu"] == 1450
    (address,) = [info for info in link["addr_info"] if info["family"] == "inet"]
    assert (address["local"], address["prefixlen"]) == ("10.244.1.0", 32)


def test_a_peer_is_one_route_one_neighbour_and_one_forwarding_entry(vxlan: Lab) -> None:
    peer = mac(vxlan.b, "flannel.1")
    assert "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink" in vxlan.a.ok("ip", "route")
    neighbours = vxlan.a.json("ip", "-json", "neighbour", "show", "dev", "flannel.1")
    assert [(n["dst"], n["lladdr"], n["state"]) for n in neighbours] == [("10.244.2.0", peer, ["PERMANENT"])]
    assert vxlan.a.ok("bridge", "fdb", "show", "dev", "flannel.1").split() == [
        *(peer, "dst", "172.18.0.3", "self", "permanent")
    ]


def test_packet_across_is_in_vxlan_between_the_nodes_and_between_the_tunnel_devices(vxlan: Lab) -> None:
    with captured(vxlan.a, "eth0") as underlay, captured(vxlan.a, "flannel.1") as tunnel:
        assert ping(vxlan.a, IP["b1"], where="uid-a1") == 62
    sent = [frame for frame in underlay if frame["src"] == "172.18.0.2" and frame.get("dport") == 8472]
    assert [(frame["dst"], frame["ttl"], frame["length"]) for frame in sent] == [("172.18.0.3", 64, 148)]
    (inner,) = echoes(tunnel)
    assert (inner["from"], inner["to"]) == (mac(vxlan.a, "flannel.1"), mac(vxlan.b, "flannel.1"))
    assert (inner["src"], inner["ttl"]) == (IP["a1"], 63)


def test_packet_of_the_mtu_passes_whole_and_one_byte_more_does_not(vxlan: Lab) -> None:
    ping(vxlan.a, IP["b1"], "-M", "do", "-s", "1422", where="uid-a1")
    assert vxlan.a.run("ping", "-n", "-c1", "-W1", "-M", "do", "-s", "1423", IP["b1"], where="uid-a1").code


def test_who_is_seen_with_which_address(vxlan: Lab) -> None:
    assert source_seen(vxlan.a, IP["b1"], "uid-a1", vxlan.b, "uid-b1") == IP["a1"]
    assert source_seen(vxlan.a, IP["b1"], "node", vxlan.b, "uid-b1") == "10.244.1.0"
    assert source_seen(vxlan.a, "172.18.0.3", "uid-a1", vxlan.b, "node") == "172.18.0.2"
    assert ping(vxlan.a, IP["a2"], where="uid-a1") == 64


def test_outside_sees_the_nodes_address_in_a_plain_frame(vxlan: Lab) -> None:
    with captured(vxlan.outside, "eth0") as seen:
        ping(vxlan.a, OUTSIDE, where="uid-a1")
    (echo,) = echoes(seen)
    assert (echo["src"], echo["ttl"], echo["length"]) == ("172.18.0.2", 63, 98)


def test_forwarding_goes_on_where_the_policy_is_to_drop(vxlan: Lab) -> None:
    vxlan.a.ok("iptables-nft", "-P", "FORWARD", "DROP")
    try:
        ping(vxlan.a, IP["b1"], where="uid-a1")
    finally:
        vxlan.a.ok("iptables-nft", "-P", "FORWARD", "ACCEPT")


def test_without_its_forwarding_entry_a_peers_pods_alone_are_lost(vxlan: Lab) -> None:
    peer = mac(vxlan.b, "flannel.1")
    entry = [peer, "dev", "flannel.1", "dst", "172.18.0.3", "self", "permanent"]
    vxlan.a.ok("bridge", "fdb", "del", *entry)
    try:
        assert vxlan.a.run("ping", "-n", "-c1", "-W1", IP["b1"], where="uid-a1").code == 1
        ping(vxlan.a, IP["a2"], where="uid-a1")
    finally:
        vxlan.a.ok("bridge", "fdb", "append", *entry)


def test_direct_routing_leaves_the_tunnel_to_peers_behind_a_router(lab: Lab) -> None:
    wire(lab, directRouting=True)
    assert ("10.244.2.0/24", "172.18.0.3", "eth0") in routes(lab.a)
    assert lab.a.ok("bridge", "fdb", "show", "dev", "flannel.1") == ""
    assert ping(lab.a, IP["b1"], where="uid-a1") == 62


def test_both_families_cross_in_tunnels_of_their_own(lab: Lab) -> None:
    lab.wire(*PODS, dataplane=FLANNEL)
    ping(lab.a, IP["b1"], where="uid-a1")
    before = received(lab.a, "flannel-v6.1")
    assert ping(lab.a, B1_6, where="uid-a1") == 62
    assert received(lab.a, "flannel-v6.1") > before


# --- host-gw --------------------------------------------------------------------------------------------


def test_host_gw_is_a_route_to_each_peer_and_nothing_else(host_gw: Lab) -> None:
    assert ("10.244.2.0/24", "172.18.0.3", "eth0") in routes(host_gw.a)
    names = {link["ifname"] for link in host_gw.a.json("ip", "-json", "link")}
    assert not [name for name in names if name.startswith("flannel")]
    (link,) = host_gw.a.json("ip", "-json", "link", "show", "eth0", where="uid-a1")
    assert link["mtu"] == 1500


def test_host_gw_sends_plain_frames_and_the_nodes_own_address(host_gw: Lab) -> None:
    with captured(host_gw.a, "eth0") as underlay:
        assert ping(host_gw.a, IP["b1"], where="uid-a1") == 62
    (echo,) = echoes(underlay)
    assert (echo["src"], echo["dst"], echo["ttl"], echo["length"]) == (IP["a1"], IP["b1"], 63, 98)
    assert source_seen(host_gw.a, IP["b1"], "node", host_gw.b, "uid-b1") == "172.18.0.2"


# --- what flanneld looks after --------------------------------------------------------------------------

TO_B = "10.244.2.0/24"


def looked_after(lab: Lab, period: float, **options: Any) -> None:
    """Node a looks after what flanneld does, this often."""
    lab.a.keep(*FLANNEL.upkeep(options), period=period)
    wire(lab, **options)


def leads_to_b(lab: Lab) -> bool:
    return TO_B in {dst for dst, _, _ in routes(lab.a)}


def forwards(lab: Lab) -> bool:
    return "-j ACCEPT" in lab.a.ok("iptables-nft", "-S", "FLANNEL-FWD")


def mended_rules(lab: Lab) -> None:
    """Flush a chain of flannel's and wait until it is whole."""
    lab.a.ok("iptables-nft", "-F", "FLANNEL-FWD")
    assert not forwards(lab)
    wait_until(lambda: forwards(lab), 10, "the rules are made again")


def test_a_deleted_route_of_host_gw_comes_back_and_one_that_leads_elsewhere_stays() -> None:
    with running_lab() as lab:
        looked_after(lab, 0.2, backend="host-gw")
        before = routes(lab.a)
        lab.a.ok("ip", "route", "del", TO_B)
        wait_until(
            lambda: routes(lab.a) == before, 10, "the route is back", detail=lambda: str(routes(lab.a))
        )
        ping(lab.a, IP["b1"], where="uid-a1")
        lab.a.ok("ip", "route", "replace", TO_B, "via", OUTSIDE)
        mended_rules(lab)
        mended_rules(lab)  # whole periods later
        assert (TO_B, OUTSIDE, "eth0") in routes(lab.a)


def test_a_missing_route_of_host_gw_comes_back_beside_one_of_another_metric() -> None:
    with running_lab() as lab:
        looked_after(lab, 0.2, backend="host-gw")
        lab.a.ok("ip", "route", "add", TO_B, "via", OUTSIDE, "metric", "100")
        lab.a.ok("ip", "route", "del", TO_B, "via", "172.18.0.3")
        wait_until(lambda: (TO_B, "172.18.0.3", "eth0") in routes(lab.a), 10, "the route is back")
        assert (TO_B, OUTSIDE, "eth0") in routes(lab.a)
        ping(lab.a, IP["b1"], where="uid-a1")


def test_a_strange_rule_in_a_chain_of_flannels_stays() -> None:
    """While nothing is missing; and where something is, flannel's own rules are made again behind it."""
    strange = "-A FLANNEL-FWD -s 192.0.2.1/32 -j DROP"

    def rules() -> list[str]:
        return lab.a.ok("iptables-nft", "-S", "FLANNEL-FWD").splitlines()[1:]

    with running_lab() as lab:
        looked_after(lab, 0.2, backend="host-gw")
        own = rules()
        lab.a.ok("iptables-nft", *strange.split())
        for _ in range(2):  # looks at rules come between those at routes
            lab.a.ok("ip", "route", "del", TO_B)
            wait_until(lambda: leads_to_b(lab), 10, "the route is back")
        assert rules() == [*own, strange]
        lab.a.ok("iptables-nft", "-D", "FLANNEL-FWD", "1")
        wait_until(lambda: len(rules()) == 3, 10, "the rule is back", detail=lambda: str(rules()))
        assert rules() == [strange, *own]


def test_a_route_that_is_no_longer_wanted_is_not_put_back() -> None:
    with running_lab() as lab:
        looked_after(lab, 0.2, backend="host-gw")
        state = lab.a.state
        without = {dst: route for dst, route in state.netns.routes.items() if dst != TO_B}
        lab.a.become(msgspec_replace(state, netns=msgspec_replace(state.netns, routes=without)))
        mended_rules(lab)
        mended_rules(lab)
        assert not leads_to_b(lab)
        lab.a.become(state)
        assert leads_to_b(lab)


def test_a_deleted_route_of_vxlan_stays_away_until_the_peer_is_announced_again() -> None:
    with running_lab() as lab:
        looked_after(lab, 0.2)
        lab.a.ok("ip", "route", "del", TO_B)
        mended_rules(lab)
        mended_rules(lab)
        assert not leads_to_b(lab)
        wire_alone = replace(IPV4, dataplane_options={})
        lab.a.become(lab.states(A1, A2, dataplane=FLANNEL, nodes=NODES4[:1], facts=wire_alone)["a"])
        wire(lab)
        assert leads_to_b(lab)
        ping(lab.a, IP["b1"], where="uid-a1")


# --- wireguard ------------------------------------------------------------------------------------------


@pytest.fixture
def wireguard(lab: Lab) -> Lab:
    wire(lab, backend="wireguard")
    return lab


@pytest.mark.needs("wireguard")
def test_wireguard_device_has_the_nodes_first_address_and_leads_to_the_clusters_range(wireguard: Lab) -> None:
    (link,) = wireguard.a.json("ip", "-json", "-details", "address", "show", "flannel-wg")
    assert (link["linkinfo"]["info_kind"], link["mtu"]) == ("wireguard", 1420)
    held = [(info["local"], info["prefixlen"]) for info in link["addr_info"] if info["family"] == "inet"]
    assert held == [("10.244.1.0", 32)]
    assert ("10.244.0.0/16", None, "flannel-wg") in routes(wireguard.a)
    (inside,) = wireguard.a.json("ip", "-json", "link", "show", "eth0", where="uid-a1")
    assert inside["mtu"] == 1420
    assert wireguard.a.ok("cat", "/run/flannel/wgkey") == keys.private_key("a")


@pytest.mark.needs("wireguard")
def test_a_peer_of_wireguard_is_allowed_its_subnet_and_nothing_else(wireguard: Lab) -> None:
    key = wireguard.a.ok("wg", "show", "flannel-wg", "public-key").strip()
    assert key == keys.public_key("a") == pubkey(wireguard.a, keys.private_key("a"))
    assert wireguard.a.ok("wg", "show", "flannel-wg", "listen-port").strip() == "51820"
    for what, value in {
        "allowed-ips": "10.244.2.0/24",
        "endpoints": "172.18.0.3:51820",
        "persistent-keepalive": "off",
    }.items():
        shown = wireguard.a.ok("wg", "show", "flannel-wg", what)
        assert shown.split() == [keys.public_key("b"), value]


@pytest.mark.needs("wireguard")
def test_packet_across_in_wireguard_is_encrypted_on_the_underlay_alone(
    wireguard: Lab,
) -> None:
    ping(wireguard.a, IP["b1"], where="uid-a1")  # the handshake
    with captured(wireguard.a, "eth0") as underlay, captured(wireguard.a, "flannel-wg") as tunnel:
        assert ping(wireguard.a, IP["b1"], where="uid-a1") == 62
    assert echoes(underlay) == []
    sent = [frame for frame in underlay if frame["src"] == "172.18.0.2" and frame.get("dport") == 51820]
    # 14 + 20 + 8, then 16 of WireGuard, the packet of 84 filled up to 96, and a tag of 16.
    assert ("172.18.0.3", 64, 170) in [(frame["dst"], frame["ttl"], frame["length"]) for frame in sent]
    assert [(frame["src"], frame["ttl"]) for frame in echoes(tunnel)] == [(IP["a1"], 63)]


@pytest.mark.needs("wireguard")
def test_packet_of_wireguards_mtu_passes_whole_and_one_byte_more_does_not(wireguard: Lab) -> None:
    ping(wireguard.a, IP["b1"], "-M", "do", "-s", "1392", where="uid-a1")
    refused = wireguard.a.run("ping", "-n", "-c1", "-W1", "-M", "do", "-s", "1393", IP["b1"], where="uid-a1")
    assert refused.code != 0


@pytest.mark.needs("wireguard")
def test_who_is_seen_with_which_address_across_wireguard(wireguard: Lab) -> None:
    assert source_seen(wireguard.a, IP["b1"], "uid-a1", wireguard.b, "uid-b1") == IP["a1"]
    assert source_seen(wireguard.a, IP["b1"], "node", wireguard.b, "uid-b1") == "10.244.1.0"
    assert source_seen(wireguard.a, "172.18.0.3", "uid-a1", wireguard.b, "node") == "172.18.0.2"


@pytest.mark.needs("wireguard")
def test_both_families_cross_in_wireguard_devices_of_their_own(lab: Lab) -> None:
    facts = replace(FACTS, dataplane_options={"backend": "wireguard"})
    lab.wire(*PODS, dataplane=FLANNEL, facts=facts)
    assert ping(lab.a, IP["b1"], where="uid-a1") == ping(lab.a, B1_6, where="uid-a1") == 62
    key = keys.public_key("b")
    shown = lab.a.ok("wg", "show", "flannel-wg-v6", "allowed-ips")
    assert shown.split() == [key, "fd24:0:0:2::/64"]
    facts = replace(FACTS, dataplane_options={"backend": "wireguard", "mode": "ipv4"})
    lab.wire(*PODS, dataplane=FLANNEL, facts=facts)
    assert ping(lab.a, IP["b1"], where="uid-a1") == ping(lab.a, B1_6, where="uid-a1") == 62
    assert lab.a.run("ip", "link", "show", "flannel-wg-v6").code != 0


@pytest.mark.needs("wireguard")
def test_peers_that_share_a_key_reach_each_other_and_one_that_lacks_it_does_not(lab: Lab) -> None:
    for host in (lab.a, lab.b):
        host.become(NodeState())  # a session that is there would outlast a change of keys
    psk, other = (lab.a.ok("wg", "genpsk").strip() for _ in range(2))
    wire(lab, backend="wireguard", psk=psk)
    assert lab.a.ok("wg", "show", "flannel-wg", "preshared-keys").split() == [keys.public_key("b"), psk]
    assert parse_dump(lab.a.ok("wg", "show", "all", "dump"))[1] == [*lab.a.state.netns.peers.values()]
    shared_with_a(lab.b, other)
    assert not pings(lab.a, IP["b1"], "uid-a1")
    shared_with_a(lab.b, psk)
    wait_until(lambda: pings(lab.a, IP["b1"], "uid-a1"), 30, "both have the same key")
    wire(lab, backend="wireguard")
    assert lab.a.ok("wg", "show", "flannel-wg", "preshared-keys").split() == [keys.public_key("b"), "(none)"]


def shared_with_a(host: Host, psk: str) -> None:
    """Have a node share this key with node a."""
    line = 'echo "$1" | wg set flannel-wg peer "$2" preshared-key /dev/stdin'
    host.ok("sh", "-c", line, "sh", psk, keys.public_key("a"))


@pytest.mark.needs("wireguard")
def test_what_is_read_back_of_wireguard_is_what_was_wanted(wireguard: Lab) -> None:
    """And a node that leaves takes its peer along; nothing is left after the dataplane."""
    ping(wireguard.a, IP["b1"], where="uid-a1")
    dump = wireguard.a.ok("wg", "show", "all", "dump")
    devices, peers = parse_dump(dump)
    assert devices == {"flannel-wg": wireguard.a.state.netns.links["flannel-wg"].wireguard}
    assert {(peer.dev, peer.key): peer for peer in peers} == wireguard.a.state.netns.peers
    facts = replace(IPV4, dataplane_options={"backend": "wireguard"})
    wireguard.wire(*PODS4[:2], dataplane=FLANNEL, nodes=NODES4[:1], facts=facts)
    assert parse_dump(wireguard.a.ok("wg", "show", "all", "dump"))[1] == []
    wireguard.a.become(NodeState())
    assert wireguard.a.run("ip", "link", "show", "flannel-wg").code != 0


@pytest.mark.parametrize(
    ("backend", "need", "way_out"),
    [("wireguard", "wireguard", "sudo modprobe wireguard"), ("ipip", "ipip-tunnel", "sudo modprobe ipip")],
)
def test_what_a_kernel_lacks_is_said_before_anything_starts(
    backend: str, need: str, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on kernels that really have no such link."""
    monkeypatch.setitem(PROBES, need, lambda: "the kernel does not know this kind of link")  # type: ignore[attr-defined]
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(backend=backend))
    with pytest.raises(MissingCapability) as raised, Cluster.up(spec):
        pass
    assert raised.value.exit_code == 3
    assert "the kernel does not know this kind of link" in str(raised.value)
    assert way_out in str(raised.value)


def pubkey(host: Host, private: str) -> str:
    """The public key as wg has it."""
    return host.ok("sh", "-c", 'echo "$1" | wg pubkey', "sh", private).strip()


# --- ipip -----------------------------------------------------------------------------------------------


@pytest.fixture
def ipip(lab: Lab) -> Lab:
    wire(lab, backend="ipip")
    return lab


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("device", marks=pytest.mark.needs("ipip")),
        pytest.param("programs", marks=pytest.mark.needs("bpf")),
    ],
)
def test_ipip_is_a_device_beside_tunl0_with_a_route_for_each_peer(ipip: Lab, way: str) -> None:
    """Where the kernel has no such device, programs do the same (``kernel.ipip``)."""
    (link,) = ipip.a.json("ip", "-json", "-details", "address", "show", "flannel.ipip")
    if way == "device":
        info = link["linkinfo"]
        assert (info["info_kind"], info["info_data"]["local"]) == ("ipip", "172.18.0.2")
    assert link["mtu"] == 1480
    held = [(info["local"], info["prefixlen"]) for info in link["addr_info"] if info["family"] == "inet"]
    assert held == [("10.244.1.0", 32)]
    assert "10.244.2.0/24 via 172.18.0.3 dev flannel.ipip onlink" in ipip.a.ok("ip", "route")
    with captured(ipip.a, "eth0") as underlay:
        assert ping(ipip.a, IP["b1"], where="uid-a1") == 62
    raw = [bytes.fromhex(frame["raw"]) for frame in underlay if frame["src"] == "172.18.0.2"]
    sent = [frame for frame in raw if frame[23] == 4]  # with the inner TTL outside, too: ttl inherit
    assert [(len(frame), frame[22], frame[34 + 8]) for frame in sent] == [(118, 63, 63)]
    assert source_seen(ipip.a, IP["b1"], "node", ipip.b, "uid-b1") == "10.244.1.0"
    ping(ipip.a, IP["b1"], "-M", "do", "-s", "1452", where="uid-a1")
    wire(ipip, backend="ipip", directRouting=True)
    assert "10.244.2.0/24 via 172.18.0.3 dev eth0 onlink" in ipip.a.ok("ip", "route")
    ipip.a.become(NodeState())
    assert ipip.a.run("ip", "link", "show", "flannel.ipip").code != 0


# --- nodes that change ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend", ["vxlan", "host-gw", pytest.param("wireguard", marks=pytest.mark.needs("wireguard"))]
)
def test_a_node_that_gets_another_address_is_reached_by_it_alone(lab: Lab, backend: str) -> None:
    """flanneld publishes the new public address, and every peer replaces what led to the old one."""
    wire(lab, backend=backend)
    ping(lab.a, IP["b1"], where="uid-a1")
    moved = (NODES4[0], replace(NODES4[1], addresses=("172.18.0.33", "fd18::3")))
    facts = replace(IPV4, dataplane_options={"backend": backend})
    lab.b.become(NodeState())  # what stands on the old address goes with it
    change_address(lab.b, "172.18.0.3/16", "172.18.0.33/16")
    try:
        lab.wire(*PODS4, dataplane=FLANNEL, nodes=moved, facts=facts)
        # WireGuard trusts its session with the device that was there until 15 s went by without an answer.
        wait_until(lambda: pings(lab.a, IP["b1"], "uid-a1"), 30, "the node is reached by its new address")
        assert "172.18.0.3 " not in lab.a.ok("ip", "route") + lab.a.ok("bridge", "fdb", "show")
    finally:
        change_address(lab.b, "172.18.0.33/16", "172.18.0.3/16")
        lab.b.become(NodeState())
        wire(lab, backend=backend)


def pings(host: Host, target: str, where: str) -> bool:
    return host.run("ping", "-n", "-c1", "-W1", target, where=where).code == 0


def change_address(host: Host, old: str, new: str) -> None:
    """Give a node another address; its routes go with the old one."""
    host.ok("ip", "address", "del", old, "dev", "eth0")
    host.ok("ip", "address", "add", new, "dev", "eth0")
    host.ok("ip", "route", "replace", "default", "via", OUTSIDE)
