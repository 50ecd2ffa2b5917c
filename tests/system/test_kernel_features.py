"""Features of stock kernels that dataplanes and proxy modes build on: each carries traffic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from stock_lab import on_star, out

from testbed.fabric.network import ClusterNet
from testbed.kernel.capabilities import CAPABILITIES, missing
from testbed.kernel.run import run

ECHO = """
import socket, sys
address, kind, protocol = sys.argv[1], socket.SOCK_STREAM, int(sys.argv[2])
with socket.socket(socket.AF_INET, kind, protocol) as server:
    server.bind((address, 8080))
    server.listen()
    print("ready", flush=True)
    while True:
        connection, peer = server.accept()
        connection.sendall(f"hello {peer[0]}".encode())
        connection.close()
"""
ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[2])) as sock:
    sock.settimeout(30)
    sock.connect((sys.argv[1], 8080))
    print(sock.recv(100).decode())
"""
PYTHON = "/usr/bin/python3"
TCP, SCTP = "6", "132"


def echoed(net: ClusterNet, server: str, address: str, client: str, protocol: str, to: str = "") -> str:
    """What a server on one host says to a client on another."""
    process = net[server].popen([PYTHON, "-c", ECHO, address, protocol])
    try:
        assert process.stdout.readline() == b"ready\n"
        return out(net, client, PYTHON, "-c", ASK, to or address, protocol).strip()
    finally:
        process.kill()
        process.wait()


def tell(net: ClusterNet, host: str, command: str) -> str:
    """What a command without blanks in its words prints on a host; it must succeed."""
    return out(net, host, *command.split())


def pinged(net: ClusterNet, host: str, address: str) -> bool:
    return bool(net[host].pexec("ping", "-c3", "-i0.2", "-W5", address)[2] == 0)


def counters(net: ClusterNet, host: str, dev: str) -> tuple[int, int]:
    (link,) = json.loads(out(net, host, "ip", "-json", "-stats", "link", "show", "dev", dev))
    return link["stats64"]["rx"]["packets"], link["stats64"]["tx"]["packets"]


@pytest.mark.every_change
@pytest.mark.needs("ipip")
def test_ipip_carries_pings(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        for host, own, other in (("hub", 1, 2), ("h1", 2, 1)):
            ends = f"local 10.0.1.{own} remote 10.0.1.{other}"
            tell(net, host, f"ip link add tunnel type ipip {ends}")
            tell(net, host, f"ip address add 10.9.0.{own}/24 dev tunnel")
            tell(net, host, "ip link set tunnel up")
        return [pinged(net, "hub", "10.9.0.2"), min(counters(net, "h1", "tunnel")) >= 3]

    assert on_star([{}], look, tmp_path) == [True, True]


@pytest.mark.needs("wireguard", "tool:wg")
def test_wireguard_carries_pings(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        hosts = {"hub": 1, "h1": 2}
        keys = {host: out(net, host, "wg", "genkey").strip() for host in hosts}
        public = {}
        for host, key in keys.items():
            file = tmp_path / host
            file.write_text(key)
            tell(net, host, "ip link add wg0 type wireguard")
            out(net, host, "wg", "set", "wg0", "listen-port", "51820", "private-key", str(file))
            public[host] = out(net, host, "wg", "show", "wg0", "public-key").strip()
        for host, other in (("hub", "h1"), ("h1", "hub")):
            peer = f"peer {public[other]} allowed-ips 10.9.0.{hosts[other]}/32"
            tell(net, host, f"wg set wg0 {peer} endpoint 10.0.1.{hosts[other]}:51820")
            tell(net, host, f"ip address add 10.9.0.{hosts[host]}/24 dev wg0")
            tell(net, host, "ip link set wg0 up")
        reached = pinged(net, "hub", "10.9.0.2")
        received = int(out(net, "h1", "wg", "show", "wg0", "transfer").split()[1])
        return [reached, received > 3 * 84]

    assert on_star([{}], look, tmp_path) == [True, True]


@pytest.mark.every_change
@pytest.mark.needs("ipvs", "dummy", "tool:ipvsadm")
def test_ipvs_sends_connections_on(tmp_path: Path) -> None:
    """To a virtual address on a dummy link, as proxy mode ipvs does it."""

    def look(net: ClusterNet) -> Any:
        tell(net, "hub", "ip link add kube-ipvs0 type dummy")
        tell(net, "hub", "ip address add 10.96.0.10/32 dev kube-ipvs0")
        tell(net, "h1", "ip route add 10.96.0.10 via 10.0.1.1")
        tell(net, "hub", "ipvsadm --add-service --tcp-service 10.96.0.10:8080 --scheduler rr")
        server = "--tcp-service 10.96.0.10:8080 --real-server 10.0.1.2:8080 --masquerading"
        tell(net, "hub", f"ipvsadm --add-server {server}")
        said = echoed(net, "h1", "10.0.1.2", "hub", TCP, to="10.96.0.10")
        connection = tell(net, "hub", "ipvsadm -L -n --connection").splitlines()[-1]
        return [said, connection.split()[-2:]]

    expected = ["hello 10.96.0.10", ["10.96.0.10:8080", "10.0.1.2:8080"]]
    assert on_star([{}], look, tmp_path) == expected


@pytest.mark.needs("openvswitch", "tool:ovs-dpctl")
def test_open_vswitch_s_module_switches(tmp_path: Path) -> None:
    """Two hosts on one subnet, whose links end in a datapath of the hub."""

    def look(net: ClusterNet) -> Any:
        out(net, "hub", "ovs-dpctl", "add-dp", "lab")
        for dev in ("eth0", "eth1"):
            out(net, "hub", "ip", "address", "flush", "dev", dev)
            out(net, "hub", "ovs-dpctl", "add-if", "lab", dev)
        for host, own in (("h1", 1), ("h2", 2)):
            tell(net, host, f"ip address add 10.9.0.{own}/24 dev eth0")
        before = pinged(net, "h1", "10.9.0.2")
        for port, other in ((1, 2), (2, 1)):
            for kind, fields in (("0x0806", "arp()"), ("0x0800", "ipv4()")):
                match = f"in_port({port}),eth(),eth_type({kind}),{fields}"
                out(net, "hub", "ovs-dpctl", "add-flow", "lab", match, str(other))
        after = pinged(net, "h1", "10.9.0.2")
        used = out(net, "hub", "ovs-dpctl", "dump-flows", "lab")
        out(net, "hub", "ovs-dpctl", "del-dp", "lab")
        return [before, after, used.count("packets:0,")]

    assert on_star([{}, {}], look, tmp_path) == [False, True, 0]


@pytest.mark.needs("sctp")
def test_sctp_carries_an_association(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        return echoed(net, "h1", "10.0.1.2", "hub", SCTP)

    assert on_star([{}], look, tmp_path) == "hello 10.0.1.1"


STOCK = ("netem", "ipip", "ipvs", "wireguard", "openvswitch", "sctp", "dummy", "ipvlan", "vrf", "fq_codel")


@pytest.mark.every_change
@pytest.mark.needs(*STOCK)
def test_a_stock_kernel_lacks_nothing() -> None:
    """Nor does the doctor say so."""
    assert [lack.name for lack in missing(CAPABILITIES)] == []
    argv = [sys.executable, "-m", "testbed.cli.main", "doctor", "-o", "json"]
    findings = json.loads(run(argv, deadline=30).stdout)["findings"]
    known = {each["name"]: each["has"] for each in findings if each["name"] in CAPABILITIES}
    assert known == dict.fromkeys(CAPABILITIES, True)
