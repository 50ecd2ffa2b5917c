"""The calico rows of the comparison of dataplanes, cell by cell, on the reference lab, in each mode.

Nodes a 172.18.0.2 and b 172.18.0.3, outside host o 172.18.0.254 on their segment; pods a1, a2 on a, b1 on b;
Services one (backend b1), near (a2), self (a1).
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cells
import node_lab
import pytest
from cell_lab import (
    IPIP,
    NODE_PORT,
    OUTSIDE,
    ROOT,
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

from testbed.api.cluster import Cluster, Place
from testbed.cluster import daemons, statedir
from testbed.control.ipam import Held
from testbed.dataplane import dataplanes
from testbed.dataplane.calico.names import HOST_MAC, host_end, vtep_mac
from testbed.state import NodeState
from testbed.wait import wait_until

PODS = ("a1", "a2", "b1")
OPTIONS = {"bgp": "", "vxlan": ", vxlanMode: Always", "ipip": ", ipipMode: Always"}
DEVICE = {"bgp": "", "vxlan": "vxlan.calico", "ipip": "tunl0"}
MTU = {"bgp": 1500, "vxlan": 1450, "ipip": 1480}
CONTROL = "/run/testbed-daemons/{}/bird/bird.ctl"
CONVERGED_WITHIN = 15.0

SPOOF = """\
import socket, struct, sys
source, target = map(socket.inet_aton, sys.argv[1:])
echo = struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0)
header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 1, 0, source, target)
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
    raw.sendto(header + echo, (sys.argv[2], 0))
"""
"""Sends one echo request with a source that is not its own."""


def objects(folder: Path) -> Path:
    """The lab's objects; a2 has a host port."""
    pods = (pod("a1"), pod("a2", hostPort=8088), pod("b1"))
    return written(folder, *pods, *services())


def spec(name: str, options: str) -> str:
    return lab_spec(name, f"name: calico{options}")


def on_node(name: str, node: str) -> dict[str, Any]:
    """One more pod."""
    made = pod(name)
    made["spec"]["nodeName"] = node
    return made


def answers(place: Place, target: str) -> bool:
    return place.run(["ping", "-n", "-c1", "-W1", target]).code == 0


def received(place: Place, device: str) -> int:
    (link,) = told(place, "ip", "-json", "-statistics", "link", "show", device)
    return int(link["stats64"]["rx"]["packets"]) + int(link["stats64"]["tx"]["packets"])


class Lab(cells.Lab):
    """The lab in a mode."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        super().__init__(cluster, mode)
        found = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.pods()}
        self.ip = {name: found[name] for name in PODS}
        self.row = Row(
            path_mtu=MTU[mode],
            near_ttl=63,
            far_ttl=62,
            far_source=A if mode == "bgp" else self.tunnel_address("a"),
            near_source=self.to_own_pods(),
            masquerade=("cali-nat-outgoing", "MASQUERADE"),
        )

    def converge(self) -> None:
        """BGP takes its time; nothing of the comparison is about it."""
        wait_until(
            lambda: answers(self.a1, self.ip["b1"]) and answers(self.b1, self.ip["a1"]),
            CONVERGED_WITHIN,
            "routes to the other node's pods",
        )
        # In IPIP routes to pods are felix's and there at once; BIRD's own black holes and sessions are not.
        if self.mode != "vxlan":
            wait_until(self.birds_speak, CONVERGED_WITHIN, "BIRD's sessions and routes on both nodes")

    def birds_speak(self) -> bool:
        """Each BIRD has its session, and the other's block of it; the kernel has the node's black hole."""
        for place, node, peer, name in ((self.a, "a", B, "a1"), (self.b, "b", A, "b1")):
            session = f"Mesh_{peer.replace('.', '_')}"
            if self.block(name) not in routes(place):
                return False
            if "Established" not in birds(place, node, "show", "protocols", "all", session):
                return False
            if "via" not in birds(place, node, "show", "route", "protocol", session):
                return False
        return True

    def host_end(self, pod: str) -> str:
        return host_end("default", pod)

    def block(self, pod: str) -> str:
        return str(ip_network(f"{self.ip[pod]}/26", strict=False))

    def tunnel_address(self, node: str) -> str:
        """Of a node's tunnel; the first of its block."""
        return str(ip_network(self.block(f"{node}1"))[0])

    def to_own_pods(self) -> str:
        """What a pod of node a sees of what the node sends by itself: host ends have no address, so that it
        is that of the node's oldest device; a netns's own tunl0 is older than what is put there."""
        order = [link["ifname"] for link in told(self.a, "ip", "-json", "link")]
        older = "tunl0" in order and order.index("tunl0") < order.index("eth0")
        return self.tunnel_address("a") if older else A


@contextmanager
def running(mode: str, tmp: Path) -> Iterator[Lab]:
    """The lab in one mode."""
    (tmp / "lab.yaml").write_text(spec(f"calico-{mode}", OPTIONS[mode]))
    with Cluster.up(tmp / "lab.yaml", manifests=[objects(tmp)]) as cluster:
        lab = Lab(cluster, mode)
        lab.converge()
        yield lab


bgp, vxlan, ipip = (in_mode(running, mode) for mode in OPTIONS)
lab = in_modes("bgp", "vxlan", *IPIP)
tunnelled = in_modes("vxlan", *IPIP)
bird = in_modes("bgp", *IPIP)


class TestCells(Cells):
    """Of these rows."""


@pytest.mark.needs("ipip")
def test_tunl0_is_the_kernels_own_device(ipip: Lab) -> None:
    (link,) = told(ipip.a, "ip", "-json", "-details", "address", "show", "tunl0")
    assert (link["link_type"], link["linkinfo"]["info_kind"], link["mtu"]) == ("ipip", "ipip", 1480)
    assert link["linkinfo"]["info_data"]["local"] == link["linkinfo"]["info_data"]["remote"] == "any"
    assert "tunl0x" not in {each["ifname"] for each in told(ipip.a, "ip", "-json", "link")}
    assert told(ipip.a, "ip", "-json", "neighbour", "show", "dev", "tunl0") == []


@pytest.mark.needs("ipip")
def test_a_stranger_that_sends_ip_in_ip_is_dropped_by_felix(ipip: Lab) -> None:
    """cali-INPUT takes protocol 4 from nodes alone; what the stand-in takes in passes no iptables."""
    inner = ["-n", "-c1", "-W1"]
    ok(ipip.o, "ip", "tunnel", "add", "strange", "mode", "ipip", "local", OUTSIDE, "remote", A)
    try:
        ok(ipip.o, "ip", "link", "set", "strange", "up")
        ok(ipip.o, "ip", "route", "add", f"{ipip.ip['a1']}/32", "dev", "strange", "src", OUTSIDE)
        before = counted(ipip.a, "filter", "cali-INPUT", "DROP", "IPIP")
        assert ipip.o.run(["ping", *inner, ipip.ip["a1"]]).code != 0
        assert counted(ipip.a, "filter", "cali-INPUT", "DROP", "IPIP") > before
    finally:
        ok(ipip.o, "ip", "tunnel", "del", "strange")


def routes(place: Place, *more: str) -> dict[str, dict[str, Any]]:
    return {route["dst"]: route for route in told(place, "ip", "-json", "-details", "route", *more)}


# --- §1 addressing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pod", PODS)
def test_pod_has_an_address_of_full_length_and_a_gateway_on_its_link(lab: Lab, pod: str) -> None:
    place = lab.cluster.pod(pod)
    (link,) = told(place, "ip", "-json", "-4", "address", "show", "eth0")
    assert [(info["local"], info["prefixlen"]) for info in link["addr_info"]] == [(lab.ip[pod], 32)]
    assert link["mtu"] == MTU[lab.mode]
    found = {
        (dst, route.get("gateway"), route["dev"], route["scope"]) for dst, route in routes(place).items()
    }
    assert found == {
        ("default", "169.254.1.1", "eth0", "global"),
        ("169.254.1.1", None, "eth0", "link"),
    }
    assert ok(place, "sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"


def test_blocks_are_of_26_bits_and_pods_of_a_node_share_one(lab: Lab) -> None:
    assert lab.block("a1") == lab.block("a2") != lab.block("b1")
    pool = ip_network("10.244.0.0/16")
    assert all(ip_address(ip) in pool for ip in lab.ip.values())


def test_a_tunnels_address_is_the_first_of_its_nodes_block(tunnelled: Lab) -> None:
    device = DEVICE[tunnelled.mode]
    (link,) = told(tunnelled.a, "ip", "-json", "-4", "address", "show", device)
    found = [(info["local"], info["prefixlen"]) for info in link["addr_info"]]
    assert found == [(tunnelled.tunnel_address("a"), 32)]
    assert link["mtu"] == MTU[tunnelled.mode]


def test_vxlan_device_has_calicos_number_and_port_and_learns_nothing(vxlan: Lab) -> None:
    (link,) = told(vxlan.a, "ip", "-json", "-details", "link", "show", "vxlan.calico")
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["learning"]) == (4096, 4789, A, False)
    assert link["address"] == vtep_mac("a", 4)


def test_host_end_has_the_fixed_mac_no_address_and_answers_for_the_gateway(lab: Lab) -> None:
    end = lab.host_end("a1")
    (link,) = told(lab.a, "ip", "-json", "address", "show", end)
    assert link["address"] == HOST_MAC
    assert [info for info in link["addr_info"] if info["family"] == "inet"] == []
    assert link["mtu"] == MTU[lab.mode]
    for path, value in {
        f"ipv4/conf/{end}/proxy_arp": "1",
        f"ipv4/conf/{end}/forwarding": "1",
        f"ipv4/conf/{end}/route_localnet": "1",
        f"ipv4/neigh/{end}/proxy_delay": "0",
    }.items():
        assert ok(lab.a, "cat", f"/proc/sys/net/{path}").strip() == value
    ping(lab.a1, lab.ip["b1"])
    known = {(entry["dst"], entry.get("lladdr")) for entry in told(lab.a1, "ip", "-json", "neighbour")}
    asked = {(lab.row.near_source, HOST_MAC)}  # where the node asked whether the pod is still there
    assert known - asked == {("169.254.1.1", HOST_MAC)}


def test_node_routes_each_pod_by_itself(lab: Lab) -> None:
    route = routes(lab.a)[lab.ip["a1"]]
    assert (route["dev"], route["scope"], route.get("gateway")) == (lab.host_end("a1"), "link", None)


# --- §2 control and enforcement ---------------------------------------------------------------------------


def test_the_other_nodes_block_is_routed_as_the_mode_has_it(lab: Lab) -> None:
    route = routes(lab.a)[lab.block("b1")]
    via, device, protocol = {
        "bgp": (B, "eth0", "bird"),
        "vxlan": (lab.tunnel_address("b"), "vxlan.calico", "80"),
        "ipip": (B, "tunl0", "80"),
    }[lab.mode]
    assert (route["gateway"], route["dev"], route["protocol"]) == (via, device, protocol)
    assert ("onlink" in route["flags"]) == (lab.mode != "bgp")


def test_the_own_block_is_a_black_hole(lab: Lab) -> None:
    route = routes(lab.a)[lab.block("a1")]
    protocol = "80" if lab.mode == "vxlan" else "bird"
    assert (route["type"], route["protocol"]) == ("blackhole", protocol)


def test_peers_of_vxlan_are_permanent_neighbours(vxlan: Lab) -> None:
    (entry,) = told(vxlan.a, "ip", "-json", "neighbour", "show", "dev", "vxlan.calico")
    assert (entry["dst"], entry["lladdr"]) == (vxlan.tunnel_address("b"), vtep_mac("b", 4))
    assert entry["state"] == ["PERMANENT"]
    found = told(vxlan.a, "bridge", "-json", "fdb", "show", "dev", "vxlan.calico")
    assert [(each["mac"], each["dst"]) for each in found] == [(vtep_mac("b", 4), B)]


def birds(place: Place, node: str, *question: str) -> str:
    return ok(place, "birdc", "-r", "-s", CONTROL.format(node), *question)


def test_bird_speaks_with_the_peer_and_one_side_is_passive(bird: Lab) -> None:
    shown = birds(bird.a, "a", "show", "protocols", "all", "Mesh_172_18_0_3")
    assert "Established" in shown
    assert re.search(r"Neighbor AS: +64512", shown)
    passive = {
        node: "passive on" in ok(place, "cat", f"/run/testbed-daemons/{node}/bird/bird.conf")
        for node, place in (("a", bird.a), ("b", bird.b))
    }
    assert passive == {"a": True, "b": False}


def test_birds_routes_are_the_kernels_and_ours(bird: Lab) -> None:
    """``birdc show route``, the kernel's table and what was compiled name the same blocks."""
    for place, node, own, other in ((bird.a, "a", "a1", "b1"), (bird.b, "b", "b1", "a1")):
        shown = birds(place, node, "show", "route", "protocol", f"Mesh_172_18_0_{3 if node == 'a' else 2}")
        learned = set(re.findall(r"^(\S+/\d+) ", shown, re.M))
        assert learned == {bird.block(other)}
        static = birds(place, node, "show", "route", "protocol", "blocks4")
        assert set(re.findall(r"^(\S+/\d+) ", static, re.M)) == {bird.block(own)}
        kernel = {dst for dst, route in routes(place).items() if route["protocol"] == "bird"}
        wanted = {bird.block(own)} | ({bird.block(other)} if bird.mode == "bgp" else set())
        assert kernel == wanted


def test_egress_is_judged_at_the_source_and_ingress_at_the_destination(lab: Lab) -> None:
    ends = [
        (lab.a, f"cali-fw-{lab.host_end('a1')}"),
        (lab.b, f"cali-tw-{lab.host_end('b1')}"),
        (lab.a, f"cali-tw-{lab.host_end('a1')}"),
        (lab.b, f"cali-fw-{lab.host_end('b1')}"),
    ]
    before = [_profile(place, chain) for place, chain in ends]
    ping(lab.a1, lab.ip["b1"])
    after = [_profile(place, chain) for place, chain in ends]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 0, 0]


def _profile(place: Place, chain: str) -> int:
    """How many packets a pod's chain has sent on to the profile of its namespace."""
    return counted(place, "filter", chain, "kns.default")


def test_felixs_rules_stand_in_front(lab: Lab) -> None:
    for table, chains in {
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
        "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
        "raw": ("PREROUTING", "OUTPUT"),
        "mangle": ("PREROUTING", "POSTROUTING"),
    }.items():
        saved = ok(lab.a, "iptables-save", "-t", table).splitlines()
        for chain in chains:
            # The plugin portmap puts its own rule in front when the first host port comes.
            own = [line for line in saved if line.startswith(f"-A {chain} ") and "CNI-HOSTPORT" not in line]
            first = own[0]
            assert first.endswith(f"-j cali-{chain}"), first
    forward = [
        line for line in ok(lab.a, "iptables-save", "-t", "filter").splitlines() if "-A FORWARD" in line
    ]
    assert "Policy explicitly accepted packet." in forward[-2]
    assert forward[-1].endswith("-j MARK --set-xmark 0x10000/0x10000")


def test_sets_name_the_pool(lab: Lab) -> None:
    for name in ("cali40all-ipam-pools", "cali40masq-ipam-pools"):
        members = ok(lab.a, "ipset", "list", name).split("Members:\n")[1].split()
        assert members == ["10.244.0.0/16"]


# --- §3 TTL, source addresses, counters -------------------------------------------------------------------


def test_packets_of_one_node_meet_forward(lab: Lab) -> None:
    before = counted(lab.a, "filter", "FORWARD", "-j cali-FORWARD")
    ping(lab.a1, lab.ip["a2"])
    assert counted(lab.a, "filter", "FORWARD", "-j cali-FORWARD") >= before + 2


def test_host_port_is_answered_by_its_pod(lab: Lab) -> None:
    answer = curl(lab.o, f"http://{A}:8088/hostname")
    assert (answer.code, answer.stdout.strip()) == (0, "a2"), answer.stderr
    answer = curl(lab.a, "http://127.0.0.1:8088/hostname")
    assert (answer.code, answer.stdout.strip()) == (0, "a2"), answer.stderr


# --- §4 captures ------------------------------------------------------------------------------------------


def test_same_node_frames_have_the_fixed_mac_and_nothing_is_on_the_underlay(lab: Lab) -> None:
    with ExitStack() as stack:
        p_a1 = stack.enter_context(captured(lab.a1, "eth0"))
        p_a2 = stack.enter_context(captured(lab.a2, "eth0"))
        underlay = stack.enter_context(captured(lab.a, "eth0"))
        tunnel = stack.enter_context(captured(lab.a, DEVICE[lab.mode])) if lab.mode != "bgp" else []
        ping(lab.a1, lab.ip["a2"])
    (sent,), (came,) = echoes(p_a1), echoes(p_a2)
    assert (sent["from"], sent["to"], sent["ttl"]) == (mac(lab.a1, "eth0"), HOST_MAC, 64)
    assert (came["from"], came["to"], came["ttl"]) == (HOST_MAC, mac(lab.a2, "eth0"), 63)
    pods = set(lab.ip.values())
    assert [frame for frame in underlay if {frame["src"], frame["dst"]} & pods] == []
    assert echoes(tunnel) == []


def test_across_nodes_the_underlay_carries_what_the_mode_says(lab: Lab) -> None:
    with ExitStack() as stack:
        underlay = stack.enter_context(captured(lab.a, "eth0"))
        tunnel = stack.enter_context(captured(lab.a, DEVICE[lab.mode])) if lab.mode != "bgp" else []
        end = stack.enter_context(captured(lab.b1, "eth0"))
        ping(lab.a1, lab.ip["b1"])
    a1, b1 = lab.ip["a1"], lab.ip["b1"]
    (arrived,) = echoes(end)
    assert (arrived["src"], arrived["ttl"]) == (a1, 62)
    if lab.mode == "bgp":
        (echo,) = echoes(underlay)
        assert (echo["from"], echo["to"]) == (mac(lab.a, "eth0"), mac(lab.b, "eth0"))
        assert (echo["src"], echo["dst"], echo["ttl"], echo["length"]) == (a1, b1, 63, 98)
        return
    (inner,) = echoes(tunnel)
    assert (inner["src"], inner["dst"], inner["ttl"]) == (a1, b1, 63)
    if lab.mode == "ipip":
        carried = [f for f in underlay if f["what"] == 4]
        assert [(f["src"], f["dst"], f["ttl"], f["length"]) for f in carried][:1] == [(A, B, 63, 118)]
        raw = bytes.fromhex(carried[0]["raw"])
        assert raw[20] & 0x40 == raw[34 + 6] & 0x40, "the inner packet's own"
        layers = dissected(carried)
        assert len(layers) == 2
        assert all("icmp" in each for each in layers)
    if lab.mode == "vxlan":
        assert (inner["from"], inner["to"]) == (vtep_mac("a", 4), vtep_mac("b", 4))
        carried = [f for f in underlay if f.get("dport") == 4789 and f["src"] == A]
        (frame,) = carried
        outer = Outer.of(frame)
        assert (outer.source, outer.destination, outer.ttl, outer.df) == (A, B, 64, False)
        assert (outer.vni, frame["length"]) == (4096, 148)
        assert outer.payload[8 + 14 + 8] == 63
        replies = [f for f in underlay if f.get("dport") == 4789 and f["src"] == B]
        layers = dissected([frame, *replies])
        assert all("vxlan" in each and "icmp" in each for each in layers)
        assert layers[0]["vxlan"]["vxlan.vni"] == "4096"


def test_vxlan_has_no_entry_in_conntrack(vxlan: Lab) -> None:
    ping(vxlan.a1, vxlan.ip["b1"])
    listing = vxlan.a.run(["conntrack", "-L", "-p", "udp"])
    assert "dport=4789" not in listing.stdout


def test_source_port_of_a_flow_stays(vxlan: Lab) -> None:
    with captured(vxlan.a, "eth0") as underlay:
        ok(vxlan.a1, "ping", "-n", "-c3", "-i0.2", vxlan.ip["b1"])
    ports = {Outer.of(frame).sport for frame in underlay if frame.get("dport") == 4789 and frame["src"] == A}
    assert len(ports) == 1


@pytest.mark.parametrize("bridged", ["0", "1"])
def test_backend_of_the_same_node_answers_whatever_bridge_nf_is(lab: Lab, bridged: str) -> None:
    ok(lab.a, "sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={bridged}")
    answer = curl(lab.a1, f"http://{VIP['near']}/clientip")
    assert answer.stdout.rpartition(":")[0] == lab.ip["a1"], answer.stderr


def test_a_pod_that_asks_for_two_addresses_of_one_family_is_told_so_and_waits(vxlan: Lab) -> None:
    asking = on_node("greedy", "a")
    asked = [str(ip_network(vxlan.block("a1"))[number]) for number in (40, 41)]
    asking["metadata"]["annotations"] = {"testbed/ip": ",".join(asked)}
    path = "/api/v1/namespaces/default/pods"
    vxlan.cluster.client.post(path, asking)
    try:
        vxlan.cluster.settle()
        events = vxlan.cluster.client.get("/api/v1/namespaces/default/events")["items"]
        said = [event["message"] for event in events if event["involvedObject"]["name"] == "greedy"]
        assert 'cannot have more than one IPv4 address for "testbed/ip" annotation' in said
        assert not vxlan.cluster.client.get(f"{path}/greedy")["status"].get("podIPs")
    finally:
        vxlan.cluster.client.delete(f"{path}/greedy")
        vxlan.cluster.settle()


# --- §5 negative checks -----------------------------------------------------------------------------------


def test_packet_to_an_unused_address_of_the_own_block_is_lost_silently(lab: Lab) -> None:
    unused = str(ip_network(lab.block("a1"))[-2])
    assert unused not in lab.ip.values()
    with captured(lab.a, "eth0") as underlay, captured(lab.a1, "eth0") as pod:
        assert not answers(lab.a1, unused)
    assert [frame for frame in underlay if unused in (frame["src"], frame["dst"])] == []
    assert [frame["what"] for frame in pod if frame["dst"] == lab.ip["a1"]] == []


def test_spoofed_source_is_dropped_in_raw(lab: Lab) -> None:
    spoofed = str(ip_network(lab.block("b1"))[9])
    before = counted(lab.a, "raw", "cali-PREROUTING", "rpfilter")
    with captured(lab.a, lab.host_end("a1")) as sent, captured(lab.b1, "eth0") as seen:
        ok(lab.a1, sys.executable, "-c", SPOOF, spoofed, lab.ip["b1"])
        wait_until(
            lambda: counted(lab.a, "raw", "cali-PREROUTING", "rpfilter") == before + 1, 5, "it is dropped"
        )
        ping(lab.a1, lab.ip["b1"])
    assert spoofed in {frame["src"] for frame in echoes(sent)}
    assert {frame["src"] for frame in echoes(seen)} == {lab.ip["a1"]}


def test_pod_may_speak_to_its_own_node(lab: Lab) -> None:
    before = counted(lab.a, "filter", "cali-wl-to-host", "DefaultEndpointToHostAction")
    ping(lab.a1, A)
    assert counted(lab.a, "filter", "cali-wl-to-host", "DefaultEndpointToHostAction") > before


def test_without_a_default_route_nobody_answers_for_a_new_pods_gateway(lab: Lab, tmp_path: Path) -> None:
    """Check 2: proxy ARP answers only for what the node routes elsewhere."""
    late_pod = written(tmp_path, on_node("late", "a"))
    with lab.cluster.fault("no-default-route", "a"):
        assert told(lab.a, "ip", "-json", "route", "show", "default") == []
        lab.cluster.apply(late_pod)
        lab.cluster.wait(ready="app=late")
        late = lab.cluster.pod("late")
        assert not answers(late, lab.ip["a2"])
        (entry,) = told(late, "ip", "-json", "neighbour", "show", "169.254.1.1")
        assert entry["state"][0] in ("INCOMPLETE", "FAILED")
    (default,) = told(lab.a, "ip", "-json", "route", "show", "default")
    assert (default["gateway"], default["dev"]) == (OUTSIDE, "eth0")
    wait_until(lambda: answers(late, lab.ip["a2"]), 10, "the gateway answers")
    lab.cluster.delete(late_pod)
    lab.cluster.settle()


def test_without_a_peers_entries_just_its_pods_are_lost(vxlan: Lab) -> None:
    """Check 1."""
    entry = ("bridge", "fdb", "del", vtep_mac("b", 4), "dev", "vxlan.calico", "dst", B)
    ok(vxlan.a, *entry)
    try:
        assert not answers(vxlan.a1, vxlan.ip["b1"])
        assert answers(vxlan.a1, vxlan.ip["a2"])
        assert answers(vxlan.a1, OUTSIDE)
    finally:
        ok(vxlan.a, *(word if word != "del" else "append" for word in entry), "self", "permanent")
    assert answers(vxlan.a1, vxlan.ip["b1"])


def test_masqueraded_packets_with_bad_checksums_are_lost_across_and_others_are_not(vxlan: Lab) -> None:
    """The offload fault of kernels before 5.7: what kube-proxy masquerades is lost in the tunnel."""
    url = f"http://{A}:{NODE_PORT['one']}/hostname"
    with vxlan.cluster.fault("checksum-fault", "b", share=1.0):
        assert curl(vxlan.o, url, "-m1").code == 28
        assert answers(vxlan.a1, vxlan.ip["b1"])
        assert curl(vxlan.a1, f"http://{VIP['one']}/hostname").stdout.strip() == "b1"
    assert curl(vxlan.o, url).stdout.strip() == "b1"


# --- what changes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [", timers: fast", ", routeReflectors: [a], timers: fast", ", vxlanMode: Always"]
)
def test_pods_and_bird_may_come_and_go(options: str, tmp_path: Path) -> None:
    """After each change everybody reaches everybody again, in both families."""
    (tmp_path / "lab.yaml").write_text(dual(spec("calico-churn", options)))
    with Cluster.up(tmp_path / "lab.yaml", manifests=[objects(tmp_path)]) as cluster:

        def everybody() -> None:
            places = {pod["metadata"]["name"]: pod["status"]["podIPs"] for pod in cluster.pods()}
            ends = [(name, each["ip"]) for name, ips in places.items() for each in ips]
            wait_until(
                lambda: all(answers(cluster.pod(name), ip) for name in places for _, ip in ends),
                30,
                "everybody reaches everybody",
            )

        everybody()
        if "vxlan" not in options:
            pid = birds_pid(cluster.node("a"))
            before = routes(cluster.node("a"))
            ok(cluster.node("a"), "kill", "-9", pid)
            assert routes(cluster.node("a")).keys() == before.keys()
            wait_until(lambda: birds_pid(cluster.node("a")) not in ("", pid), 10, "BIRD runs again")
            everybody()
        cluster.delete(tmp_path / "objects.json")
        cluster.settle()
        assert [
            link for link in told(cluster.node("a"), "ip", "-json", "link") if "cali" in link["ifname"][:4]
        ] == []
        assert "cali-fw-" not in ok(cluster.node("a"), "iptables-save")
        cluster.apply(tmp_path / "objects.json")
        for name in PODS:
            cluster.wait(ready=f"app={name}")
        everybody()


REFRESH = "".join(f", {what}RefreshInterval: 1s" for what in ("iptables", "ipsets", "route"))


def mended(name: str) -> set[str]:
    """What agents of a cluster say that they made again."""
    log = (statedir.resolve(name).directory / statedir.LOG).read_text()
    return {
        each
        for line in log.splitlines()
        if (words := line.partition(" are made again: "))[1]
        for each in words[2].split(", ")
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(", timers: fast", id="bgp"),
        pytest.param(", vxlanMode: Always", id="vxlan"),
        pytest.param(", ipipMode: Always", id="ipip", marks=pytest.mark.needs("ipip-tunnel")),
    ],
)
def test_felix_mends_what_is_its_own_and_what_nobody_touched_is_not_made_again(
    options: str, tmp_path: Path
) -> None:
    (tmp_path / "lab.yaml").write_text(dual(spec("calico-mended", options + REFRESH)))
    with Cluster.up(tmp_path / "lab.yaml", manifests=[objects(tmp_path)]) as cluster:
        node, a1 = cluster.node("a"), cluster.pod("a1")
        found = {pod["metadata"]["name"]: pod["status"]["podIPs"] for pod in cluster.pods()}
        (a2, a2_6), (b1, b1_6) = ([each["ip"] for each in found[name]] for name in ("a2", "b1"))
        wait_until(lambda: answers(a1, b1) and answers(a1, b1_6), 20, "a1 reaches b1")
        end, pools = host_end("default", "a2"), "cali40all-ipam-pools"
        chain = f"cali-tw-{end}"
        shown = {
            "routes": ["ip", "route", "show", "dev", end],
            "routes6": ["ip", "-6", "route", "show", a2_6],
            "rules": ["iptables", "-S", "FORWARD"],
            "chain": ["ip6tables", "-S", chain],
            "set": ["ipset", "save", "-sorted", pools],
        }
        strange = ["-s", "203.0.113.99/32", "-j", "DROP"]
        broken = [
            ["ipset", "create", "mine", "bitmap:port", "range", "80-90"],  # nobody here makes such a one
            *(["ip", "route", "del", a2], ["ip", "-6", "route", "del", a2_6]),
            ["ip", "route", "add", "198.51.100.9", "dev", end],
            *(["iptables", "-D", "FORWARD", "1"], ["iptables", "-I", "FORWARD", *strange]),
            *(["ip6tables", "-F", chain], ["ipset", "flush", pools]),
        ]
        names = {f"{a2}/32", f"{a2_6}/128", "198.51.100.9/32", pools}
        names |= {"ipv4 filter FORWARD", f"ipv6 filter {chain}"}
        if "Mode" in options:
            shown["blocks"] = ["ip", "route", "show", "proto", "80"]
            block = str(ip_network(f"{b1}/26", strict=False))
            broken.append(["ip", "route", "del", block])
            names.add(block)
        if "vxlan" in options:
            mac, tunnel = vtep_mac("b", 4), str(ip_network(block)[0])
            shown["peers"] = ["ip", "neighbour", "show", "nud", "permanent"]
            shown["entries"] = ["bridge", "fdb", "show", "dev", "vxlan.calico"]
            broken.append(["ip", "neighbour", "del", tunnel, "dev", "vxlan.calico"])
            broken.append(["bridge", "fdb", "del", mac, "dev", "vxlan.calico", "dst", B, "self"])
            names |= {f"vxlan.calico {tunnel}", f"vxlan.calico {mac} {B}"}

        def state() -> dict[str, list[str]]:
            lines = {what: sorted(ok(node, *argv).splitlines()) for what, argv in shown.items()}
            lines["rules"] = [rule for rule in lines["rules"] if "203.0.113.99" not in rule]
            return lines

        before = state()
        for argv in broken:
            ok(node, *argv)
        wait_until(lambda: state() == before, 20, "all is as it was", detail=lambda: str(state()))
        order = ok(node, "iptables", "-S", "FORWARD").splitlines()
        assert "cali-FORWARD" in order[1]
        assert " ".join(["-A FORWARD", *strange]) in order, "what is not felix's stays"
        assert answers(a1, a2)
        assert answers(a1, a2_6)
        assert answers(a1, b1)
        for _ in range(2):  # whole periods later
            ok(node, "ip6tables", "-F", chain)
            ok(node, "ip", "-6", "route", "del", a2_6)
            wait_until(lambda: state() == before, 20, "all is as it was again", detail=lambda: str(state()))
        assert mended("calico-mended") == names


def test_felix_mends_its_rules_after_a_flush_also_where_the_node_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(spec("calico-flushed", ", timers: fast" + REFRESH))
    with Cluster.up(tmp_path / "lab.yaml", manifests=[objects(tmp_path)]) as cluster:
        node = cluster.node("a")

        def felixs() -> list[str]:
            lines = ok(node, "iptables-save").splitlines()
            return sorted(line for line in lines if line.startswith("-A ") and "cali-" in line)

        def whole() -> list[str]:
            return sorted(line for line in ok(node, "iptables-save").splitlines() if line.startswith("-A "))

        before, all_before = felixs(), whole()
        with cluster.fault("node-not-ready", "a"):
            ok(node, "nft", "flush", "ruleset")
            assert felixs() == []
            wait_until(lambda: felixs() == before, 20, "felix has its rules again, by itself")
        wait_until(lambda: whole() == all_before, 20, "kube-proxy has its own, once the node is heard")


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Lab]:
    """A lab for faults, with quick timers."""
    (tmp_path / "lab.yaml").write_text(spec("calico-broken", ", timers: fast"))
    with Cluster.up(tmp_path / "lab.yaml", manifests=[objects(tmp_path)]) as cluster:
        yield Lab(cluster, "bgp")


@pytest.mark.parametrize("kind", ["bird-down", "bgp-filtered", "bgp-withdrawn"])
def test_without_bgp_only_pods_of_the_own_node_are_reached(broken: Lab, kind: str) -> None:
    broken.converge()
    block = broken.block("b1")
    with broken.cluster.fault(kind, "b"):
        wait_until(lambda: block not in routes(broken.a), 40, "node a withdraws the routes to b")
        assert not answers(broken.a1, broken.ip["b1"])
        assert answers(broken.a1, broken.ip["a2"])
        assert answers(broken.a1, OUTSIDE)
        assert block in routes(broken.b), "b's own kernel keeps its block"
    broken.converge()


def test_without_nat_outgoing_pods_keep_their_address_outside(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(spec("calico-no-nat", ", natOutgoing: false, vxlanMode: Always"))
    with Cluster.up(tmp_path / "lab.yaml", manifests=[objects(tmp_path)]) as cluster:
        lab = Lab(cluster, "vxlan")
        with captured(lab.o, "eth0") as seen:
            lab.a1.run(["ping", "-n", "-c1", "-W1", OUTSIDE])
        assert [frame["src"] for frame in echoes(seen)] == [lab.ip["a1"]]


def test_on_racks_the_fabrics_routers_know_pods_by_bgp(tmp_path: Path) -> None:
    """Equal-cost paths of a leaf, and a withdrawal that reaches the other rack, are the routers' own."""
    text = (ROOT / "topologies" / "calico.yaml").read_text().replace("vxlanMode: CrossSubnet", "timers: fast")
    (tmp_path / "racks.yaml").write_text(text.replace("spec:\n", "spec:\n  dns: {enabled: false}\n", 1))
    pods = written(tmp_path, *(on_node(f"p{k}", f"node-{k}") for k in (1, 2, 3, 4)))
    with Cluster.up(tmp_path / "racks.yaml", manifests=[pods]) as cluster:
        places = {name: cluster.pod(name) for name in ("p1", "p2", "p3", "p4")}
        ips = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.pods()}
        wait_until(
            lambda: all(answers(place, ip) for place in places.values() for ip in ips.values()),
            30,
            "everybody reaches everybody",
        )
        far = str(ip_network(f"{ips['p4']}/26", strict=False))
        leaf = cluster.host("leaf1")

        def by_both_spines() -> bool:
            return len(routes(leaf).get(far, {}).get("nexthops", ())) == 2

        wait_until(by_both_spines, 30, "equal-cost paths by both spines")  # one may be known before the other
        assert routes(leaf)[far]["protocol"] == "bird"
        assert routes(cluster.node("node-1"))[far]["gateway"] == "192.168.1.1"
        with cluster.fault("bgp-withdrawn", "node-4"):
            wait_until(lambda: far not in routes(leaf), 15, "the other rack's leaf withdraws the route")
            assert not answers(places["p1"], ips["p4"])
            assert answers(places["p1"], ips["p3"])
        wait_until(lambda: answers(places["p1"], ips["p4"]), 30, "the route is back")
        before = running_birds(leaf)
        (agent,) = processes(
            "testbed-router leaf1", leaf.run(["readlink", "/proc/self/ns/net"]).stdout.strip()
        )
        os.kill(agent, signal.SIGKILL)
        wait_until(
            lambda: running_birds(leaf) - before, 30, "BIRD runs again on a router whose agent was killed"
        )
        wait_until(by_both_spines, 30, "it has its routes again")
        wait_until(lambda: answers(places["p1"], ips["p4"]), 30, "and they carry packets")


SCARCE = {
    "vxlanMode: Always, blockSize: 32": (),
    "vxlanMode: Always, blockSize: 28": (),
    "ipipMode: Always, timers: fast, blockSize: 28": (pytest.mark.needs("ipip-tunnel"),),
}


@pytest.mark.parametrize("options", [pytest.param(each, marks=marks) for each, marks in SCARCE.items()])
def test_everybody_reaches_everybody_where_blocks_are_small_or_few(options: str, tmp_path: Path) -> None:
    """Blocks of one address; and one block for all, of which two nodes borrow, for their tunnels, too."""
    (tmp_path / "scarce.yaml").write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nspec: {nodes: {count: 3}, dns: {enabled: false}, network: "
        f"{{podCIDR: 10.244.0.0/28, dataplane: {{name: calico, {options}}}}}}}\n"
    )
    pods = written(tmp_path, *(on_node(f"p{k}", f"node-{k % 3 + 1}") for k in range(4)))
    with Cluster.up(tmp_path / "scarce.yaml", manifests=[pods]) as cluster:
        ips = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.pods()}
        nodes = [cluster.node(f"node-{k}") for k in (1, 2, 3)]
        wait_until(
            lambda: all(
                answers(place, ip) for place in (*nodes, *map(cluster.pod, ips)) for ip in ips.values()
            ),
            30,
            "everybody reaches everybody",
        )


RACKS = """\
apiVersion: testbed/v1
kind: Cluster
spec:
  nodes: {{count: {racks}}}
  dns: {{enabled: false}}
  topology: {{builder: racks, params: {{racks: {racks}, spines: 1, mask: 24}}}}
  network:
    nodeCIDR: [192.168.0.0/20, "fd00:192::/48"]
    podCIDR: [10.244.0.0/16, "fd00:10:244::/56"]
    dataplane: {{name: calico, timers: fast{options}}}
"""
"""A node in each rack."""


@contextmanager
def racks(tmp: Path, count: int, options: str = "") -> Iterator[Cluster]:
    """Nodes node-1 … in racks of their own, with pods p1 … that reach each other."""
    (tmp / "racks.yaml").write_text(RACKS.format(racks=count, options=options))
    pods = written(tmp, *(on_node(f"p{k}", f"node-{k}") for k in range(1, count + 1)))
    with Cluster.up(tmp / "racks.yaml", manifests=[pods]) as cluster:
        reached_by_all(cluster)
        yield cluster


def reached_by_all(cluster: Cluster) -> None:
    """All pods reach all pods, in each family."""
    ips = {
        pod["metadata"]["name"]: [each["ip"] for each in pod["status"]["podIPs"]] for pod in cluster.pods()
    }
    wait_until(
        lambda: all(answers(cluster.pod(name), ip) for name in ips for each in ips.values() for ip in each),
        30,
        "everybody reaches everybody",
    )


def test_racks_go_on_speaking_when_one_has_no_node_and_it_is_spoken_to_when_it_has(tmp_path: Path) -> None:
    """Also with a router that was started again meanwhile."""
    with racks(tmp_path, 3) as cluster:
        leaf = cluster.host("leaf2")
        begun = since(leaf, "leaf2")
        cluster.client.delete("/api/v1/nodes/node-1")
        reached_by_all(cluster)
        assert since(leaf, "leaf2") == pytest.approx(begun, abs=0.1), "nothing began anew meanwhile"
        emptied = cluster.host("leaf1")
        before = running_birds(emptied)
        (agent,) = processes(
            "testbed-router leaf1", emptied.run(["readlink", "/proc/self/ns/net"]).stdout.strip()
        )
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: running_birds(emptied) - before, 30, "BIRD runs again")
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
        cluster.apply(written(tmp_path, node, on_node("p1", "node-1")))
        cluster.wait(ready="app=p1")
        reached_by_all(cluster)


def test_on_racks_a_node_with_other_addresses_is_spoken_to_by_its_router(tmp_path: Path) -> None:
    with racks(tmp_path, 2) as cluster:
        before = cluster.client.get("/api/v1/nodes/node-2")["status"]["addresses"]
        had = [each["address"] for each in before if each["type"] == "InternalIP"]
        addresses = [str(ip_address(each) + 60) for each in had]
        cluster.client.post("/apis/testbed/v1/nodes/node-2/addresses", {"addresses": addresses})
        reached_by_all(cluster)
        shown = birds(cluster.host("leaf2"), "leaf2", "show", "protocols", "all")
        spoken = {line.split()[-1] for line in shown.splitlines() if "Neighbor address" in line}
        assert spoken >= set(addresses)
        assert spoken.isdisjoint(had)


@pytest.mark.needs("ipip-tunnel")
def test_on_racks_ipv6_goes_by_bgp_where_ipv4_goes_through_ipip(tmp_path: Path) -> None:
    with racks(tmp_path, 2, ", ipipMode: CrossSubnet") as cluster:
        pools = {
            version: birds(cluster.host("leaf1"), "leaf1", "show", "route", "table", f"master{version}")
            for version in (4, 6)
        }
        assert "10.244." not in pools[4], "what is carried between nodes is nothing to the fabric"
        assert "fd00:10:244:" in pools[6]


def since(leaf: Place, name: str) -> dict[str, float]:
    """Each protocol of a router and since when it is in its state: seconds of the day, right to some ms."""
    shown = birds(leaf, name, "show", "protocols")
    times = re.findall(r"^(\S+) .* (\d+):(\d+):([0-9.]+)", shown, re.M)
    assert len(times) > 3, shown
    return {
        protocol: 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        for protocol, hours, minutes, seconds in times
    }


def running_birds(leaf: Place) -> frozenset[str]:
    return frozenset(leaf.run(["pgrep", "-x", "bird"]).stdout.split())


def processes(title: str, netns: str) -> list[int]:
    """Those with a title in a netns: other clusters on this machine may have the same titles."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if title in (path / "cmdline").read_text() and os.readlink(path / "ns" / "net") == netns:
                found.append(int(path.name))
    return found


CALICO = dataplanes.get("calico")
HELD = {
    "a": Held(("10.244.1.0/26",), own={"vxlan": "10.244.1.0"}),
    "b": Held(("10.244.2.0/26",), own={"vxlan": "10.244.2.0"}),
}


@pytest.mark.parametrize("options", [{"timers": "fast"}, {"vxlanMode": "Always"}], ids=["bgp", "vxlan"])
def test_a_node_may_join_leave_and_get_another_address(options: dict[str, str], monkeypatch: Any) -> None:
    facts = replace(node_lab.FACTS, pod_cidrs=("10.244.0.0/16",), dataplane_options=options)
    a1, b1 = (
        replace(each, ips=each.ips[:1]) for each in (node_lab.pod("a1", "a", 2), node_lab.pod("b1", "b", 2))
    )
    a, b = (
        replace(node, pod_cidrs=node.pod_cidrs[:1], pooled=True, held=HELD[node.name])
        for node in node_lab.NODES
    )
    moved = replace(b, addresses=("172.18.0.33", *b.addresses[1:]))
    with TemporaryDirectory() as state, monkeypatch.context() as patched:
        patched.setattr(daemons, "STATE", Path(state))  # a control socket's path must be short
        with node_lab.running_lab() as lab:

            def reached() -> bool:
                return lab.a.run("ping", "-n", "-c1", "-W1", "10.244.2.2", where="uid-a1").code == 0

            def blocks() -> set[str]:
                return {
                    each["dst"] for each in lab.a.json("ip", "-json", "route") if "10.244.2" in each["dst"]
                }

            lab.wire(a1, dataplane=CALICO, nodes=(a,), facts=facts)
            assert blocks() == set()
            lab.wire(a1, b1, dataplane=CALICO, nodes=(a, b), facts=facts)
            wait_until(reached, 15, "the new node's pod")
            lab.b.become(NodeState())
            lab.wire(a1, dataplane=CALICO, nodes=(a,), facts=facts)
            wait_until(lambda: blocks() == set(), 15, "the gone node's routes are withdrawn")
            lab.b.ok("ip", "address", "del", "172.18.0.3/16", "dev", "eth0")
            lab.b.ok("ip", "address", "add", "172.18.0.33/16", "dev", "eth0")
            lab.b.ok("ip", "route", "replace", "default", "via", node_lab.OUTSIDE)
            lab.wire(a1, b1, dataplane=CALICO, nodes=(a, moved), facts=facts)
            wait_until(reached, 15, "the node's pod by its other address")


def dual(text: str) -> str:
    """The lab with both families."""
    text = re.sub(r"address: (172\.18\.0\.(\d+)), podCIDR: (10\.244\.(\d)\.0/24)", two, text)
    text = text.replace("{address: 172.18.0.10}", '{address: [172.18.0.10, "fd18::10"]}')
    text = text.replace("gateway: 172.18.0.254", 'gateway: [172.18.0.254, "fd18::254"]')
    text = text.replace("podCIDR: 10.244.0.0/16", 'podCIDR: [10.244.0.0/16, "fd24::/48"]')
    text = text.replace("serviceCIDR: 10.96.0.0/16", 'serviceCIDR: [10.96.0.0/16, "fd96::/112"]')
    return text.replace("nodeCIDR: 172.18.0.0/24", 'nodeCIDR: [172.18.0.0/24, "fd18::/64"]')


def two(match: re.Match[str]) -> str:
    number = match[4]
    return f'address: [{match[1]}, "fd18::{match[2]}"], podCIDR: [{match[3]}, "fd24:0:0:{number}::/64"]'


def birds_pid(place: Place) -> str:
    """The process whose configuration is node a's; nodes see each other's processes."""
    for line in ok(place, "ps", "-eo", "pid,args").splitlines():
        if "/a/bird/bird.conf" in line:
            return line.split()[0]
    return ""
