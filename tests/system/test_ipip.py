"""Tunnels of IP in IP made of programs: what is left of one that nobody looks after any more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sandboxed import in_sandbox

from testbed.errors import KernelRefused
from testbed.kernel import bpf, ipip, netns
from testbed.kernel.netlink import Netlink
from testbed.state import Ipip, Link, Route

pytestmark = pytest.mark.needs("bpf")

TUNNEL = Link("tunnel", "ipip", mtu=1480, ipip=Ipip("under", "192.168.0.1"))
ROUTE = Route("10.2.0.0/26", via="192.168.0.2", dev="tunnel")


def underlay() -> None:
    netns.enter_new()
    subprocess.run(["ip", "link", "add", "under", "type", "veth", "peer", "name", "far"], check=True)
    subprocess.run(["ip", "link", "set", "under", "up"], check=True)


def seen() -> tuple[set[str], set[str], int]:
    """Devices, those of them with programs, and how many descriptors are open."""
    show = ["ip", "-brief", "link", "show"]
    lines = subprocess.run(show, check=True, capture_output=True, text=True).stdout.splitlines()
    devices = {line.split()[0].partition("@")[0] for line in lines} - {"lo"}
    show = ["tc", "qdisc", "show"]
    lines = subprocess.run(show, check=True, capture_output=True, text=True).stdout.splitlines()
    programs = {line.split()[4] for line in lines if line.startswith("qdisc clsact")}
    return devices, programs, len(os.listdir("/proc/self/fd"))


def test_what_a_killed_agent_left_gives_way_to_a_new_tunnel(tmp_path: Path) -> None:
    def body() -> None:
        underlay()
        home = netns.current()
        with Netlink() as socket:
            bare = seen()
            left = ipip.make(TUNNEL, home, socket)
            left.set(ROUTE)
            left.close()  # as its process is gone
            tunnel = ipip.make(TUNNEL, home, socket)
            tunnel.set(ROUTE)
            devices, programs, _ = seen()
            assert devices == {"under", "far", "tunnel", ipip.OTHER_END}
            assert programs == {"under", ipip.OTHER_END}
            ipip.unmake(tunnel, socket)
            assert seen() == bare

    in_sandbox(body, tmp_path / "testbed")


def test_of_a_tunnel_that_cannot_be_made_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = bpf.load_program

    def refuse_second(lines: list[bpf.Line], name: str) -> int:
        if name == "testbed_decap":
            raise KernelRefused("load a program", 1, "no")
        return load(lines, name)

    monkeypatch.setattr(bpf, "load_program", refuse_second)

    def body() -> None:
        underlay()
        home = netns.current()
        with Netlink() as socket:
            bare = seen()
            with pytest.raises(KernelRefused, match="load a program"):
                ipip.make(TUNNEL, home, socket)
            assert seen() == bare

    in_sandbox(body, tmp_path / "testbed")
