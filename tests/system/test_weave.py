"""The weave rows of the comparison of dataplanes, cell by cell, on the reference lab.

Nodes a 172.18.0.2 and b 172.18.0.3, outside host o 172.18.0.254 on their segment; pods a1, a2 on a, b1 on b,
and a3, b2, b3, which nobody knows yet, for one test each; Services one (backend b1), near (a2), self (a1). A
cell that holds in both modes is asked in both.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cells
import pytest
from cell_lab import (
    NODE_PORT,
    OUTSIDE,
    VIP,
    A,
    B,
    Outer,
    captured,
    counted,
    curl,
    dissected,
    echoes,
    in_mode,
    in_modes,
    lab_spec,
    mac,
    ok,
    ping,
    pod,
    services,
    told,
    written,
)
from cells import Cells, Row

from testbed.api.cluster import Cluster
from testbed.dataplane.weave.names import peer_name

A1, A2, A3, B1, B2, B3 = "10.32.0.2", "10.32.0.3", "10.32.0.4", "10.40.0.1", "10.40.0.2", "10.40.0.3"
BRIDGE = {"a": "10.32.0.1", "b": "10.40.0.0"}
PODS = ("a1", "a2", "a3", "b1", "b2", "b3")


ROWS = {
    mode: Row(
        path_mtu=path_mtu,
        near_ttl=64,
        far_ttl=64,
        far_source=BRIDGE["a"],
        near_source=BRIDGE["a"],
        masquerade=("WEAVE", "-s 10.32.0.0/12 ! -d 10.32.0.0/12"),
    )
    for mode, path_mtu in (("fastdp", 1376), ("sleeve", 1438))
}


class Lab(cells.Lab):
    """The lab in a mode."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        super().__init__(cluster, mode)
        self.row, self.ip = ROWS[mode], {"a1": A1, "a2": A2, "b1": B1}


@contextmanager
def running(mode: str, tmp: Path, called: str = "") -> Iterator[Lab]:
    """The lab in one mode."""
    text = lab_spec(called or f"weave-{mode}", f"name: weave, mode: {mode}")
    text = re.sub(r", podCIDR: 10\.244\.\d\.0/24", "", text).replace("    podCIDR: 10.244.0.0/16\n", "")
    (tmp / "lab.yaml").write_text(text)
    with Cluster.up(tmp / "lab.yaml", manifests=[written(tmp, *map(pod, PODS), *services())]) as cluster:
        lab = Lab(cluster, mode)
        for place in (lab.a1, lab.a2):
            ping(place, B1)  # each knows the others from here on
        yield lab


fastdp, sleeve = (in_mode(running, mode) for mode in ("fastdp", "sleeve"))
lab = in_modes("fastdp", "sleeve")


class TestCells(Cells):
    """Of these rows."""


# --- §1 addressing --------------------------------------------------------------------------------------


def test_each_node_owns_its_half_of_the_range(lab: Lab) -> None:
    for place, half in ((lab.a, "10.32.0.0/13"), (lab.b, "10.40.0.0/13")):
        assert ok(place, "ipset", "list", "weaver-no-masq-local").split("Members:\n")[1].split() == [half]


def test_bridge_has_the_first_address_of_the_nodes_half_and_the_peers_name(lab: Lab) -> None:
    for name, place in (("a", lab.a), ("b", lab.b)):
        (link,) = told(place, "ip", "-json", "-4", "address", "show", "weave")
        assert [(info["local"], info["prefixlen"]) for info in link["addr_info"]] == [(BRIDGE[name], 12)]
        assert mac(place, "weave") == peer_name(name)


@pytest.mark.parametrize(("pod", "ip"), [("a1", A1), ("a2", A2), ("b1", B1)])
def test_pod_has_an_address_of_the_whole_range_and_one_route_beside_it(lab: Lab, pod: str, ip: str) -> None:
    place = lab.cluster.pod(pod)
    (link,) = told(place, "ip", "-json", "-4", "address", "show", "eth0")
    assert [(info["local"], info["prefixlen"]) for info in link["addr_info"]] == [(ip, 12)]
    routes = [(route["dst"], route.get("gateway")) for route in told(place, "ip", "-json", "route")]
    assert routes == [("default", BRIDGE[pod[0]]), ("10.32.0.0/12", None)]


def test_mtu_is_that_of_the_mode_on_all_devices(lab: Lab) -> None:
    wanted = {"fastdp": 1376, "sleeve": 65535}[lab.mode]
    names = ["weave", "vethwe-bridge", lab.host_end("a1")]
    names += ["datapath", "vethwe-datapath", "vxlan-6784"] if lab.mode == "fastdp" else ["vethwe-pcap"]
    for name in names:
        assert told(lab.a, "ip", "-json", "link", "show", name)[0]["mtu"] == wanted, name
    assert told(lab.a1, "ip", "-json", "link", "show", "eth0")[0]["mtu"] == wanted


def test_gateway_answers_with_the_bridges_mac(lab: Lab) -> None:
    ping(lab.a1, BRIDGE["a"])
    (entry,) = told(lab.a1, "ip", "-json", "neighbour", "show", BRIDGE["a"])
    assert entry["lladdr"] == peer_name("a")


def test_neighbours_are_asked_again_soon(lab: Lab) -> None:
    for place, device in ((lab.a, "weave"), (lab.a1, "eth0")):
        values = [
            ok(place, "sysctl", "-n", f"net.ipv4.neigh.{device}.{name}").strip()
            for name in ("base_reachable_time", "delay_first_probe_time", "ucast_solicit")
        ]
        assert values == ["5", "2", "1"]


def test_host_ends_are_ports_of_the_bridge_with_hairpin(lab: Lab) -> None:
    links = told(lab.a, "ip", "-json", "-details", "link", "show", "master", "weave")
    ports = {link["ifname"]: link["linkinfo"]["info_slave_data"]["hairpin"] for link in links}
    assert ports.pop("vethwe-bridge") is False
    assert ports == {lab.host_end(name): True for name in ("a1", "a2", "a3")}
    assert all(len(name) == 15 and name.startswith("vethwepl") for name in ports)


def test_datapath_is_a_bridge_of_its_own_without_addresses_and_iptables(fastdp: Lab) -> None:
    assert told(fastdp.a, "ip", "-json", "-4", "address", "show", "datapath") in ([], [{}])
    links = {link["ifname"] for link in told(fastdp.a, "ip", "-json", "link", "show", "master", "datapath")}
    assert links == {"vethwe-datapath", "vxlan-6784"}
    assert ok(fastdp.a, "sysctl", "-n", "net.bridge.bridge-nf-call-iptables").strip() == "0"
    flags = {
        name: told(fastdp.a, "ip", "-json", "-details", "link", "show", name)[0]["linkinfo"]["info_data"][
            "nf_call_iptables"
        ]
        for name in ("weave", "datapath")
    }
    assert flags == {"weave": 1, "datapath": 0}


def test_sleeve_answers_what_is_too_large_and_carries_fragments(sleeve: Lab) -> None:
    ok(sleeve.a1, "ip", "route", "flush", "cache")  # nobody has told the pod yet
    refused = sleeve.a1.run(["ping", "-n", "-c1", "-W2", "-M", "do", "-s", "1411", B1])
    assert refused.code != 0
    assert "mtu = 1438" in refused.stdout + refused.stderr
    ping(sleeve.a1, B1, "-M", "dont", "-s", "9000")
    (route,) = told(sleeve.a1, "ip", "-json", "route", "get", B1)
    assert route["metrics"][0]["mtu"] == 1438, "the pod has learned it"


# --- §2 control and enforcement ---------------------------------------------------------------------------


def test_arp_request_crosses_once_to_each_peer(lab: Lab) -> None:
    with captured(lab.a, "eth0") as underlay, captured(lab.b1, "eth0") as p_b1:
        ping(lab.a1, B2)
    port, length, start = (6784, 92, 8) if lab.mode == "fastdp" else (6783, 104, 20)
    asked = [
        Outer.of(frame)
        for frame in underlay
        if frame.get("dport") == port and frame["src"] == A and frame["length"] == length
    ]
    requests = [outer for outer in asked if outer.payload[start : start + 6] == b"\xff" * 6]
    assert len(requests) == 1
    arrived = [frame for frame in p_b1 if frame["what"] == "arp" and (frame["op"], frame["src"]) == (1, A1)]
    assert len(arrived) == 1


def test_whole_range_is_on_the_bridge_and_no_route_leads_to_other_nodes_pods(lab: Lab) -> None:
    routes = {(each["dst"], each["dev"]) for each in told(lab.a, "ip", "-json", "route")}
    assert routes == {("default", "eth0"), ("172.18.0.0/24", "eth0"), ("10.32.0.0/12", "weave")}
    (service,) = told(lab.a, "ip", "-json", "route", "get", VIP["one"])
    assert (service["gateway"], service["dev"]) == (OUTSIDE, "eth0")


def test_policy_is_enforced_at_the_source_for_egress_and_at_the_destination_for_ingress(lab: Lab) -> None:
    def counters() -> list[int]:
        return [
            counted(lab.a, "filter", "FORWARD", "-i weave ", "-j WEAVE-NPC-EGRESS"),
            counted(lab.a, "filter", "WEAVE-NPC", "--physdev-out vethwe-bridge"),
            counted(lab.b, "filter", "WEAVE-NPC-EGRESS", "--physdev-in vethwe-bridge", "-j RETURN"),
            counted(lab.b, "filter", "WEAVE-NPC-DEFAULT", "namespace: default"),
            counted(lab.a, "filter", "WEAVE-NPC-DEFAULT", "namespace: default"),
        ]

    before = counters()
    ping(lab.a1, B1)
    assert [now - then for now, then in zip(counters(), before, strict=True)] == [2, 1, 1, 1, 0]


def test_masquerade_rules_are_weaves_in_their_order(lab: Lab) -> None:
    rules = [
        line.removeprefix("-A WEAVE ")
        for line in ok(lab.a, "iptables-save", "-t", "nat").splitlines()
        if line.startswith("-A WEAVE ")
    ]
    assert [rule.rpartition("-j ")[2] for rule in rules] == ["RETURN", "RETURN", "MASQUERADE", "MASQUERADE"]
    assert "weaver-no-masq-local dst" in rules[0]
    assert rules[1:] == [
        "-s 10.32.0.0/12 -d 224.0.0.0/4 -j RETURN",
        "! -s 10.32.0.0/12 -d 10.32.0.0/12 -j MASQUERADE",
        "-s 10.32.0.0/12 ! -d 10.32.0.0/12 -j MASQUERADE",
    ]


def test_forward_begins_with_weaves_rules_and_ends_with_those_that_accept(lab: Lab) -> None:
    rules = [
        re.sub(r'-m comment --comment "[^"]*" ', "", line).removeprefix("-A FORWARD ")
        for line in ok(lab.a, "iptables-save", "-t", "filter").splitlines()
        if line.startswith("-A FORWARD ")
    ]
    assert rules[:4] == [
        "-i weave -j WEAVE-NPC-EGRESS",
        "-o weave -j WEAVE-NPC",
        "-o weave -m state --state NEW -j NFLOG --nflog-group 86",
        "-o weave -j DROP",
    ]
    assert rules[-2:] == [
        "-i weave ! -o weave -j ACCEPT",
        "-o weave -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]


# --- §3 TTL, source addresses, counters -------------------------------------------------------------------


def test_bridged_packets_of_one_node_meet_forward(lab: Lab) -> None:
    before = counted(lab.a, "filter", "FORWARD", "-i weave ", "-j WEAVE-NPC-EGRESS")
    ping(lab.a1, A2)
    assert counted(lab.a, "filter", "FORWARD", "-i weave ", "-j WEAVE-NPC-EGRESS") == before + 2


# --- §4 captures ------------------------------------------------------------------------------------------


def test_same_node_frame_is_the_same_everywhere_and_nothing_is_on_the_underlay(lab: Lab) -> None:
    with ExitStack() as stack:
        seen = [
            stack.enter_context(captured(*where))
            for where in (
                (lab.a1, "eth0"),
                (lab.a, lab.host_end("a1")),
                (lab.a, lab.host_end("a3")),
                (lab.cluster.pod("a3"), "eth0"),
            )
        ]
        bridge = stack.enter_context(captured(lab.a, "weave"))
        underlay = stack.enter_context(captured(lab.a, "eth0"))
        ping(lab.a1, A3)
    macs = mac(lab.a1, "eth0"), mac(lab.cluster.pod("a3"), "eth0")
    for frames in seen:
        (echo,) = echoes(frames)
        assert (echo["from"], echo["to"], echo["ttl"], echo["length"]) == (*macs, 64, 98)
    asked = [
        (frame["src"], frame["dst"]) for frame in seen[-1] if frame["what"] == "arp" and frame["op"] == 1
    ]
    assert (A1, A3) in asked
    assert echoes(bridge) == []
    assert echoes(underlay) == []


def test_bridge_shows_passing_packets_to_a_promiscuous_capture_only(lab: Lab) -> None:
    ping(lab.a1, A2)
    with captured(lab.a, "weave", promiscuous=True) as seen:
        ping(lab.a1, A2)
    assert len(echoes(seen) + echoes(seen, "reply")) == 2


def test_fastdp_sends_vxlan_to_6784_with_df_and_50_bytes_more(fastdp: Lab) -> None:
    ping(fastdp.a1, B1)
    with (
        captured(fastdp.a, "eth0") as underlay,
        captured(fastdp.a, "vethwe-bridge") as port,
        captured(fastdp.b1, "eth0") as p_b1,
    ):
        ping(fastdp.a1, B1)
    (there,) = [
        frame for frame in underlay if frame.get("dport") == 6784 and frame["src"] == A and _echo(frame)
    ]
    outer = Outer.of(there)
    assert (outer.source, outer.destination, outer.ttl, outer.tos, outer.df) == (A, B, 64, 0, True)
    assert (outer.checksum, outer.vni, there["length"]) == (0, 6784, 148)
    assert outer.payload[8 + 22] == 64
    macs = mac(fastdp.a1, "eth0"), mac(fastdp.b1, "eth0")
    (echo,) = echoes(port)
    assert (echo["from"], echo["to"], echo["ttl"], echo["length"]) == (*macs, 64, 98)
    (arrived,) = echoes(p_b1)
    assert (arrived["src"], arrived["from"], arrived["to"]) == (A1, *macs)


def _echo(frame: dict[str, object]) -> bool:
    """Whether a frame on the underlay has an ICMP packet of pods in it."""
    inner = bytes.fromhex(str(frame["raw"]))[42 + (8 if frame["dport"] == 6784 else 20) :]
    return inner[12:14] == b"\x08\x00" and inner[23] == 1


def test_one_flow_has_one_source_port(fastdp: Lab) -> None:
    with captured(fastdp.a, "eth0") as underlay:
        ok(fastdp.a1, "ping", "-n", "-c3", "-i0.2", B1)
    ports = {
        Outer.of(frame).sport
        for frame in underlay
        if frame.get("dport") == 6784 and frame["src"] == A and _echo(frame)
    }
    assert len(ports) == 1


def test_overlay_is_decoded_by_tshark_without_a_warning(fastdp: Lab) -> None:
    with captured(fastdp.a, "eth0") as underlay:
        ping(fastdp.a1, B3)
        curl(fastdp.a1, f"http://{VIP['one']}/hostname")
    frames = [frame for frame in underlay if frame.get("dport") == 6784]
    packets = dissected(frames, "-d", "udp.port==6784,vxlan")
    assert all("vxlan" in layers for layers in packets)
    inside = {name for layers in packets for name in layers}
    assert {"arp", "icmp", "http"} <= inside


def test_sleeve_needs_no_device_of_the_kernels_for_tunnels(sleeve: Lab) -> None:
    kinds = {
        link.get("linkinfo", {}).get("info_kind")
        for link in told(sleeve.a, "ip", "-json", "-details", "link")
    }
    assert "bridge" in kinds
    assert "vxlan" not in kinds


def test_sleeve_sends_the_frame_behind_the_names_of_both_peers(sleeve: Lab) -> None:
    with captured(sleeve.a, "eth0") as underlay, captured(sleeve.a, "vethwe-bridge") as port:
        ping(sleeve.a1, B1)
    (there,) = [
        frame for frame in underlay if frame.get("dport") == 6783 and frame["src"] == A and _echo(frame)
    ]
    outer = Outer.of(there)
    names = [bytes.fromhex(peer_name(name).replace(":", "")) for name in ("a", "b")]
    assert (outer.source, outer.destination, outer.sport, outer.dport) == (A, B, 6783, 6783)
    assert outer.payload[:20] == names[0] + names[0] + names[1] + (98).to_bytes(2)
    macs = bytes.fromhex((mac(sleeve.b1, "eth0") + mac(sleeve.a1, "eth0")).replace(":", ""))
    assert bytes.fromhex(there["raw"])[62:74] == macs
    assert (there["length"], outer.payload[20 + 22]) == (160, 64)
    (echo,) = echoes(port)
    assert (echo["ttl"], echo["length"]) == (64, 98)


def test_service_of_the_same_node_needs_iptables_on_the_bridge(lab: Lab) -> None:
    assert curl(lab.a1, f"http://{VIP['near']}/hostname").stdout.strip() == "a2"
    ok(lab.a, "ip", "link", "set", "weave", "type", "bridge", "nf_call_iptables", "0")
    try:
        assert curl(lab.a1, f"http://{VIP['near']}/hostname", "-m1").code == 28
    finally:
        ok(lab.a, "ip", "link", "set", "weave", "type", "bridge", "nf_call_iptables", "1")
    assert curl(lab.a1, f"http://{VIP['near']}/hostname").stdout.strip() == "a2"


def test_pod_that_is_its_own_backend_sees_the_bridge_and_needs_hairpin(lab: Lab) -> None:
    assert BRIDGE["a"] in curl(lab.a1, f"http://{VIP['self']}/clientip").stdout
    port = lab.host_end("a1")
    ok(lab.a, "ip", "link", "set", port, "type", "bridge_slave", "hairpin", "off")
    try:
        assert curl(lab.a1, f"http://{VIP['self']}/clientip", "-m1").code == 28
    finally:
        ok(lab.a, "ip", "link", "set", port, "type", "bridge_slave", "hairpin", "on")


# --- §5 negative checks -----------------------------------------------------------------------------------


def test_peer_without_a_flood_entry_and_a_learned_one_is_not_reached(fastdp: Lab) -> None:
    flood = ["bridge", "fdb", "del", "00:00:00:00:00:00", "dev", "vxlan-6784", "dst", B]
    learned = ["bridge", "fdb", "del", mac(fastdp.b1, "eth0"), "dev", "vxlan-6784"]
    ping(fastdp.a1, B1)
    ok(fastdp.a, *flood)
    fastdp.a.run(learned)
    try:
        assert fastdp.a1.run(["ping", "-n", "-c1", "-W1", B1]).code != 0
        ping(fastdp.a1, A2)
    finally:
        ok(fastdp.a, "bridge", "fdb", "append", *flood[3:])
    ping(fastdp.a1, B1)


def test_mac_that_moves_is_followed_after_its_first_frame(lab: Lab) -> None:
    """b1's MAC speaks on a, as a machine's that moved there; then b1 speaks again."""
    address = mac(lab.b1, "eth0")
    announcement = b"\xff" * 6 + bytes.fromhex(address.replace(":", "")) + b"\x88\xb5" + bytes(46)
    speak = (
        "import socket, sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); "
        "s.bind(('far', 0)); s.send(bytes.fromhex(sys.argv[1]))"
    )
    ping(lab.a1, B1)
    ok(lab.a, "ip", "link", "add", "near", "up", "master", "weave", "type", "veth", "peer", "name", "far")
    try:
        ok(lab.a, "ip", "link", "set", "far", "up")
        with captured(lab.a, "far", promiscuous=True) as seen:
            ok(lab.a, sys.executable, "-c", speak, announcement.hex())
            assert lab.a1.run(["ping", "-n", "-c1", "-W1", B1]).code != 0
        assert [frame["to"] for frame in echoes(seen)] == [address]
        ping(lab.b1, A1)
        ping(lab.a1, B1)
    finally:
        ok(lab.a, "ip", "link", "del", "near")


def test_policy_drop_of_forward_stops_nobody(lab: Lab) -> None:
    ok(lab.a, "iptables", "-P", "FORWARD", "DROP")
    try:
        ping(lab.a1, B1)
        ping(lab.a1, A2)
        ping(lab.a1, OUTSIDE)
        assert curl(lab.o, f"http://{A}:{NODE_PORT['near']}/hostname").stdout.strip() == "a2"
    finally:
        ok(lab.a, "iptables", "-P", "FORWARD", "ACCEPT")


@pytest.mark.parametrize("mode", ["fastdp", "sleeve"])
def test_after_the_last_pod_the_nodes_own_devices_remain(mode: str, tmp_path: Path) -> None:
    with running(mode, tmp_path, f"weave-{mode}-empty") as lab:
        lab.cluster.delete(tmp_path / "objects.json")
        lab.cluster.settle()
        mine = {"weave", "vethwe-bridge"}
        mine |= {"datapath", "vethwe-datapath", "vxlan-6784"} if mode == "fastdp" else {"vethwe-pcap"}
        links = {link["ifname"] for link in told(lab.a, "ip", "-json", "link")}
        assert links == {"lo", "eth0"} | mine
        chains = set(re.findall(r"^:(WEAVE\S*)", ok(lab.a, "iptables-save"), re.M))
        assert chains == {"WEAVE", "WEAVE-NPC", "WEAVE-NPC-DEFAULT", "WEAVE-NPC-INGRESS"} | {
            f"WEAVE-NPC-EGRESS{end}" for end in ("", "-DEFAULT", "-CUSTOM", "-ACCEPT")
        }
