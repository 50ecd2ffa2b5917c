"""The kubenet and flannel rows of the comparison of dataplanes, on the reference lab with Services.

Nodes a 172.18.0.2 and b 172.18.0.3, outside host o 172.18.0.254 on their segment; pods a1, a2 on a, b1 on b;
Services one (backend b1), near (a2), self (a1). Each cell is asked in each mode. What needs no Service is
also in ``test_bridge`` and ``test_flannel``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cells
import pytest
from cell_lab import (
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
from testbed.wait import wait_until

A1, A2, B1 = "10.244.1.2", "10.244.1.3", "10.244.2.2"
GATEWAY = "10.244.1.1"


@dataclass(frozen=True, kw_only=True)
class Mode(Row):
    """A row with what is said of these dataplanes alone. options: of the spec; overhead: bytes; device: the
    tunnel's; udp: its port."""

    options: str
    near_ttl: int = 64
    far_ttl: int = 62
    far_source: str = A
    near_source: str = GATEWAY
    masquerade: tuple[str, str] = ("FLANNEL-POSTRTG", "-s 10.244.0.0/16 ! -d 224.0.0.0/4")
    overhead: int = 0
    device: str = ""
    udp: int = 0

    @property
    def mtu(self) -> int:
        """Of pods."""
        return self.path_mtu


TUNNEL = "10.244.1.0"
MODES = {
    "kubenet": Mode(
        options="name: bridge", path_mtu=1500, masquerade=("POSTROUTING", "kubenet: SNAT"), forwards=False
    ),
    "vxlan": Mode(
        options="name: flannel", path_mtu=1450, far_source=TUNNEL, overhead=50, device="flannel.1", udp=8472
    ),
    "hostgw": Mode(options="name: flannel, backend: host-gw", path_mtu=1500),
    "udp": Mode(
        options="name: flannel, backend: udp",
        path_mtu=1472,
        far_ttl=60,
        far_source=TUNNEL,
        overhead=28,
        device="flannel0",
        udp=8285,
    ),
}


class Lab(cells.Lab):
    """The lab in a mode."""

    row: Mode

    def __init__(self, cluster: Cluster, mode: str) -> None:
        super().__init__(cluster, mode)
        self.row, self.ip = MODES[mode], {"a1": A1, "a2": A2, "b1": B1}


@contextmanager
def running(mode: str, tmp: Path, called: str = "") -> Iterator[Lab]:
    """The lab in one mode."""
    (tmp / "lab.yaml").write_text(lab_spec(called or mode, MODES[mode].options))
    manifest = written(tmp, *map(pod, ("a1", "a2", "b1")), *services())
    with Cluster.up(tmp / "lab.yaml", manifests=[manifest]) as cluster:
        lab = Lab(cluster, mode)
        wait_until(lambda: lab.a1.run(["ping", "-c1", "-W1", B1]).code == 0, 10, "a1 reaches b1")
        ping(lab.a1, A2)
        yield lab


kubenet, vxlan, hostgw, udp = (in_mode(running, mode) for mode in MODES)
NEEDS_TUN = pytest.mark.needs("tun")
FLANNELS = ("vxlan", "hostgw", pytest.param("udp", marks=NEEDS_TUN))
lab = in_modes("kubenet", *FLANNELS)
flannel = in_modes(*FLANNELS)


class TestCells(Cells):
    """Of these rows."""


# --- §1 addressing --------------------------------------------------------------------------------------


def test_pods_have_the_modes_mtu_mask_gateway_and_routes(lab: Lab) -> None:
    (link,) = told(lab.a1, "ip", "-json", "-4", "address", "show", "eth0")
    assert (link["mtu"], link["addr_info"][0]["local"], link["addr_info"][0]["prefixlen"]) == (
        lab.row.mtu,
        A1,
        24,
    )
    expected = {("default", GATEWAY), ("10.244.1.0/24", None)}
    if lab.mode != "kubenet":
        expected.add(("10.244.0.0/16", GATEWAY))
    routes = told(lab.a1, "ip", "-json", "route")
    assert {(route["dst"], route.get("gateway")) for route in routes} == expected
    (neighbour,) = [n for n in told(lab.a1, "ip", "-json", "neigh") if n["dst"] == GATEWAY]
    assert neighbour["lladdr"] == mac(lab.a, "cni0")


# --- §3 TTL, sources, counters --------------------------------------------------------------------------


def test_bridged_packets_of_one_node_meet_forward(lab: Lab) -> None:
    rule = ["-s", "10.244.1.0/24", "-d", "10.244.1.0/24", "-p", "icmp", "-m", "comment", "--comment", "seen"]
    ok(lab.a, "iptables", "-I", "FORWARD", *rule)
    try:
        ping(lab.a1, A2)
        assert counted(lab.a, "filter", "FORWARD", "seen") == 2
    finally:
        ok(lab.a, "iptables", "-D", "FORWARD", *rule)


# --- §4 captures ----------------------------------------------------------------------------------------


def test_same_node_frame_has_the_pods_macs_everywhere_and_none_is_on_the_underlay(lab: Lab) -> None:
    with (
        captured(lab.a1, "eth0") as p_a1,
        captured(lab.a, lab.host_end("a1")) as h_a1,
        captured(lab.a, lab.host_end("a2")) as h_a2,
        captured(lab.a2, "eth0") as p_a2,
        captured(lab.a, "eth0") as underlay,
        captured(lab.a, "cni0", promiscuous=True) as bridge,
    ):
        ping(lab.a1, A2)
    for seen in (p_a1, h_a1, h_a2, p_a2):
        (echo,) = echoes(seen)
        assert (echo["from"], echo["to"], echo["ttl"], echo["length"]) == (
            mac(lab.a1, "eth0"),
            mac(lab.a2, "eth0"),
            64,
            98,
        )
    assert [frame for frame in underlay if A1 in (frame["src"], frame["dst"])] == []
    assert len(echoes(bridge)) == len(echoes(bridge, "reply")) == 1


def test_cross_node_packet_on_the_underlay(lab: Lab) -> None:
    """98 bytes and what the overlay adds; inner TTL 63, one less where the proxy has decremented it, too."""
    with captured(lab.a, "eth0") as underlay, captured(lab.b1, "eth0") as p_b1:
        ping(lab.a1, B1)
    if not lab.row.udp:
        (echo,) = echoes(underlay)
        assert (echo["src"], echo["dst"], echo["ttl"], echo["length"]) == (A1, B1, 63, 98)
        assert (echo["from"], echo["to"]) == (mac(lab.a, "eth0"), mac(lab.b, "eth0"))
    else:
        sent = [f for f in underlay if f.get("dport") == lab.row.udp and f["src"] == A]
        assert [frame["length"] for frame in sent] == [98 + lab.row.overhead]
        outer = Outer.of(sent[0])
        assert (outer.destination, outer.ttl) == (B, 64)
        inner = outer.payload[8 + 14 :] if lab.mode == "vxlan" else outer.payload
        assert inner[8] == (63 if lab.mode == "vxlan" else 62)
        if lab.mode == "vxlan":
            assert (outer.vni, outer.df) == (1, False)
    (arrived,) = echoes(p_b1)
    assert (arrived["src"], arrived["ttl"]) == (A1, lab.row.far_ttl)


def test_vxlan_is_decoded_by_tshark_without_a_warning(vxlan: Lab, tmp_path: Path) -> None:
    with captured(vxlan.a, "eth0") as underlay:
        ping(vxlan.a1, B1)
        curl(vxlan.a1, f"http://{VIP['one']}/hostname")
    frames = [frame for frame in underlay if frame.get("dport") == 8472]
    packets = dissected(frames, "-d", "udp.port==8472,vxlan")
    assert all("vxlan" in layers for layers in packets)
    assert {"icmp", "http"} <= {name for layers in packets for name in layers}
    path = tmp_path / "one.pcap"
    path.write_bytes(pcap(frames[:1]))
    text = ok(vxlan.a, "tcpdump", "-T", "vxlan", "-nn", "-r", str(path))
    assert "VXLAN, flags [I] (0x08), vni 1" in text


def pcap(frames: list[dict[str, object]]) -> bytes:
    """Frames as a capture file."""
    found = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for frame in frames:
        raw = bytes.fromhex(str(frame["raw"]))
        found += struct.pack("=IIII", 0, 0, len(raw), len(raw)) + raw
    return found


def test_service_of_the_same_node_needs_iptables_on_the_bridge(lab: Lab) -> None:
    switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    assert curl(lab.a1, f"http://{VIP['near']}/hostname").stdout.strip() == "a2"
    ok(lab.a, "sh", "-c", f"echo 0 > {switch}")
    try:
        assert curl(lab.a1, f"http://{VIP['near']}/hostname", "-m1").code == 28
    finally:
        ok(lab.a, "sh", "-c", f"echo 1 > {switch}")
    assert curl(lab.a1, f"http://{VIP['near']}/hostname").stdout.strip() == "a2"


def test_pod_that_is_its_own_backend_sees_the_bridge_and_needs_hairpin(lab: Lab) -> None:
    assert curl(lab.a1, f"http://{VIP['self']}/clientip").stdout.startswith(f"{GATEWAY}:")
    port = lab.host_end("a1")
    ok(lab.a, "ip", "link", "set", port, "type", "bridge_slave", "hairpin", "off")
    try:
        assert curl(lab.a1, f"http://{VIP['self']}/clientip", "-m1").code == 28
    finally:
        ok(lab.a, "ip", "link", "set", port, "type", "bridge_slave", "hairpin", "on")


# --- §5 negative checks ---------------------------------------------------------------------------------


# --- flanneld -------------------------------------------------------------------------------------------


def test_subnet_file_is_its_nodes_own_with_the_first_usable_address(flannel: Lab) -> None:
    for place, k in ((flannel.a, 1), (flannel.b, 2)):
        assert ok(place, "cat", "/run/flannel/subnet.env").splitlines() == [
            "FLANNEL_NETWORK=10.244.0.0/16",
            f"FLANNEL_SUBNET=10.244.{k}.1/24",
            f"FLANNEL_MTU={flannel.row.mtu}",
            "FLANNEL_IPMASQ=true",
        ]


@pytest.mark.parametrize(
    "sabotage",
    [
        (
            "iptables",
            "-t",
            "nat",
            "-D",
            "POSTROUTING",
            "-m",
            "comment",
            "--comment",
            "flanneld masq",
            "-j",
            "FLANNEL-POSTRTG",
        ),
        ("iptables", "-t", "nat", "-D", "FLANNEL-POSTRTG", "3"),
        ("iptables", "-t", "filter", "-F", "FLANNEL-FWD"),
        ("nft", "flush", "ruleset"),  # and with them all that others have
    ],
)
def test_rules_that_somebody_changed_are_made_again_in_their_order(
    flannel: Lab, sabotage: tuple[str, ...]
) -> None:
    def rules() -> list[str]:
        saved = ok(flannel.a, "iptables-save")
        return [line for line in saved.splitlines() if line.startswith("-A") and "FLANNEL" in line]

    before = rules()
    ok(flannel.a, *sabotage)  # they may be back at once
    wait_until(
        lambda: sorted(rules()) == sorted(before),
        15,
        "flannel's rules are repaired",
        detail=lambda: str(rules()),
    )
    assert [rule for rule in rules() if "-A FLANNEL" in rule] == [
        rule for rule in before if "-A FLANNEL" in rule
    ]


def test_a_route_that_somebody_deleted_is_put_back_by_host_gw(hostgw: Lab) -> None:
    def route() -> str:
        return ok(hostgw.a, "ip", "route", "show", "10.244.2.0/24").strip()

    before = route()
    ok(hostgw.a, "ip", "route", "del", "10.244.2.0/24")
    assert hostgw.a1.run(["ping", "-c1", "-W1", B1]).code
    wait_until(lambda: route() == before, 20, "the route is back", detail=route)
    ping(hostgw.a1, B1)


@NEEDS_TUN
def test_proxy_answers_for_what_no_node_has_and_drops_what_ends(udp: Lab) -> None:
    # Its ICMP error comes from the device's own address, as the original's does; Linux takes that for a
    # martian source and drops it, so the sender only times out.
    before = received(udp)
    assert udp.a1.run(["ping", "-n", "-c1", "-W1", "10.244.9.9"]).code == 1
    assert received(udp) == before + 1
    (link,) = told(udp.a, "ip", "-json", "-details", "address", "show", "flannel0")
    assert (link["linkinfo"]["info_kind"], link["mtu"]) == ("tun", 1472)
    assert [(info["local"], info["prefixlen"]) for info in link["addr_info"] if info["family"] == "inet"] == [
        ("10.244.1.0", 32)
    ]
    assert udp.a1.run(["ping", "-c1", "-W1", "-t", "2", B1]).code == 1  # dropped without a word


@NEEDS_TUN
def test_proxy_that_dies_starts_again_with_its_device_and_route(tmp_path: Path) -> None:
    with running("udp", tmp_path, "flannel-udp-again") as lab:
        file = "/run/testbed-daemons/a/flanneld/pid"
        first = ok(lab.a, "cat", file)
        ok(lab.a, "kill", "-KILL", first.strip())
        wait_until(
            lambda: lab.a.run(["cat", file]).stdout.strip() not in ("", first.strip()), 15, "another pid"
        )
        wait_until(lambda: lab.a1.run(["ping", "-c1", "-W1", B1]).code == 0, 15, "the proxy is back")


def received(lab: Lab) -> int:
    """Packets that the proxy put into its device."""
    (link,) = told(lab.a, "ip", "-json", "-statistics", "link", "show", "flannel0")
    return int(link["stats64"]["rx"]["packets"])


@pytest.mark.parametrize("mode", ["kubenet", *FLANNELS])
def test_after_the_last_pod_the_nodes_own_devices_remain(mode: str, tmp_path: Path) -> None:
    with running(mode, tmp_path, f"{mode}-empty") as lab:
        for name in ("a1", "a2", "b1"):
            lab.cluster.client.delete(f"/api/v1/namespaces/default/pods/{name}")

        def links() -> set[str]:
            return {link["ifname"] for link in told(lab.a, "ip", "-json", "link")}

        expected = {"lo", "eth0", "cni0"} | ({lab.row.device} if lab.row.device else set())
        wait_until(lambda: links() == expected, 10, "the pods' devices are gone", detail=lambda: str(links()))
