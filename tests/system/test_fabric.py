"""The fabric on the real kernel: networks are built, verified, cut, shaped; each in a sandbox of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from mininet.topo import Topo
from sandboxed import in_sandbox

from testbed.errors import CommandFailed, InputError, MissingCapability, NotConverged
from testbed.fabric.network import ClusterNet
from testbed.fabric.nodes import Router

T = TypeVar("T")


class Single(Topo):
    """One switch with two nodes and a router to a host outside. link: parameters of node-1's link."""

    def build(self, **link: Any) -> None:
        self.addSwitch("s1")
        self.addHost("gateway", cls=Router, role="gateway")
        self.addHost(
            "node-1",
            role="node",
            ips=["192.168.100.11/24", "fd00::11/64"],
            routes=[("default", "192.168.100.1"), ("default", "fd00::1")],
        )
        self.addHost("node-2", role="node", ips=["192.168.100.12/24"], routes=[("default", "192.168.100.1")])
        self.addHost(
            "client",
            ips=["203.0.113.10/24", "fd01::10/64"],
            routes=[("default", "203.0.113.1"), ("default", "fd01::1")],
        )
        self.addLink("s1", "gateway", params2={"ips": ["192.168.100.1/24", "fd00::1/64"]})
        self.addLink("s1", "node-1", **link)
        self.addLink("s1", "node-2")
        self.addLink("client", "gateway", params2={"ips": ["203.0.113.1/24", "fd01::1/64"]})


class LeafSpine(Topo):
    """Two leaves, two spines; leaf-1 and leaf-2 reach each other's host over both spines."""

    def build(self) -> None:
        for leaf in (1, 2):
            other = 3 - leaf
            vias = [f"10.255.{leaf}{spine}.1" for spine in (1, 2)]
            vias6 = [f"fd00:{leaf}{spine}::1" for spine in (1, 2)]
            self.addHost(
                f"leaf-{leaf}",
                cls=Router,
                routes=[(f"10.0.{other}.0/24", vias), (f"fd00:{other}::/64", vias6)],
            )
            self.addHost(
                f"h-{leaf}",
                ips=[f"10.0.{leaf}.2/24", f"fd00:{leaf}::2/64"],
                routes=[("default", f"10.0.{leaf}.1"), ("default", f"fd00:{leaf}::1")],
            )
        for spine in (1, 2):
            routes = [(f"10.0.{leaf}.0/24", f"10.255.{leaf}{spine}.0") for leaf in (1, 2)]
            routes += [(f"fd00:{leaf}::/64", f"fd00:{leaf}{spine}::") for leaf in (1, 2)]
            self.addHost(f"spine-{spine}", cls=Router, routes=routes)
        for leaf in (1, 2):
            for spine in (1, 2):
                link, link6 = f"10.255.{leaf}{spine}", f"fd00:{leaf}{spine}::"
                self.addLink(
                    f"leaf-{leaf}",
                    f"spine-{spine}",
                    params1={"ips": [f"{link}.0/31", f"{link6}/127"]},
                    params2={"ips": [f"{link}.1/31", f"{link6}1/127"]},
                )
            self.addLink(
                f"h-{leaf}", f"leaf-{leaf}", params2={"ips": [f"10.0.{leaf}.1/24", f"fd00:{leaf}::1/64"]}
            )


def with_net(topo: Callable[[], Topo], look: Callable[[ClusterNet], Any], root: Path) -> Any:
    """What ``look`` returns (JSON) for the started network, in a sandbox."""

    def inside() -> Any:
        net = ClusterNet(topo())
        net.start()
        return look(net)

    return in_sandbox(inside, root)


def out(net: ClusterNet, host: str, *argv: str) -> str:
    """What a command prints on a host; it must succeed."""
    text, errors, code = net[host].pexec(*argv)
    assert code == 0, errors
    return str(text)


def ip_json(net: ClusterNet, host: str, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out(net, host, "ip", "-json", *words))
    return found


def reaches(net: ClusterNet, host: str, address: str) -> bool:
    _, _, code = net[host].pexec("ping", "-c1", "-W2", address)
    return bool(code == 0)


def test_hosts_reach_each_other_over_a_switch_and_a_router(tmp_path: Path) -> None:
    pairs = [
        ("node-1", "192.168.100.12"),
        ("node-2", "203.0.113.10"),
        ("client", "192.168.100.11"),
        ("node-1", "fd01::10"),
    ]
    found = with_net(Single, lambda net: [reaches(net, *pair) for pair in pairs], tmp_path)
    assert found == [True] * len(pairs)


def test_interfaces_are_eth0_in_hosts_and_ports_on_switches_and_addresses_usable_at_once(
    tmp_path: Path,
) -> None:
    def look(net: ClusterNet) -> Any:
        switch = {link["ifname"]: link.get("master") for link in ip_json(net, "s1", "link")}
        return switch, ip_json(net, "node-1", "address", "show", "dev", "eth0")[0]

    switch, eth0 = with_net(Single, look, tmp_path)
    assert switch == {"lo": None, "s1": None, "s1-eth1": "s1", "s1-eth2": "s1", "s1-eth3": "s1"}
    addresses = {info["local"]: info for info in eth0["addr_info"]}
    assert {"192.168.100.11", "fd00::11"} <= set(addresses)
    assert not any(info.get("tentative") for info in addresses.values())


def test_nodes_forward_and_filter_bridged_traffic_switches_do_not(tmp_path: Path) -> None:
    keys = (
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
    )
    found = with_net(
        Single,
        lambda net: {
            host: out(net, host, "sysctl", "-n", *keys).split() for host in ("node-1", "s1", "client")
        },
        tmp_path,
    )
    assert found["node-1"] == ["1", "1", "1", "1"]
    assert found["s1"] == ["0", "0", "0", "0"]
    assert found["client"][:2] == ["0", "0"]


def test_leaf_spine_has_multipath_routes_and_works_with_one_spine_cut(tmp_path: Path) -> None:
    def routes(net: ClusterNet) -> list[list[str]]:
        return [
            sorted(hop["gateway"] for hop in route.get("nexthops", [route]))
            for family, dst in (("-4", "10.0.2.0/24"), ("-6", "fd00:2::/64"))
            for route in ip_json(net, "leaf-1", family, "route", "show", dst)
        ]

    def look(net: ClusterNet) -> Any:
        before = routes(net)
        net.configLinkStatus("leaf-1", "spine-1", "down")
        net.configLinkStatus("leaf-2", "spine-1", "down")
        cut = [reaches(net, "h-1", "10.0.2.2"), reaches(net, "h-1", "fd00:2::2")]
        net.configLinkStatus("spine-1", "leaf-1", "up")
        net.configLinkStatus("spine-1", "leaf-2", "up")
        net.verify_links()
        return before, cut, routes(net), reaches(net, "h-1", "10.0.2.2")

    both = [["10.255.11.1", "10.255.12.1"], ["fd00:11::1", "fd00:12::1"]]
    before, cut, after, whole = with_net(LeafSpine, look, tmp_path)
    assert before == both
    assert cut == [True, True]
    assert after == both
    assert whole


def test_a_cut_link_is_reported_with_its_directions_and_no_other(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        net.verify_links()
        net.configLinkStatus("s1", "node-2", "down")
        try:
            net.verify_links(deadline=0.3)
        except NotConverged as error:
            return str(error), [link.status() for link in net.links]
        return None

    message, statuses = with_net(Single, look, tmp_path)
    assert message.endswith("none on s1-eth3 -> node-2-eth0, node-2-eth0 -> s1-eth3")
    assert sorted(statuses) == ["(DOWN DOWN)", *["(OK OK)"] * 3]


def test_a_pulled_cable_leaves_addresses_and_routes(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        def view() -> list[str]:
            return [out(net, "node-1", "ip", family, "route") for family in ("-4", "-6")]

        before = view()
        net.configLinkStatus("node-1", "s1", "down")
        unreachable = not reaches(net, "node-1", "192.168.100.12")
        net.configLinkStatus("node-1", "s1", "up")
        return before == view(), unreachable, reaches(net, "node-1", "192.168.100.12")

    assert with_net(Single, look, tmp_path) == [True, True, True]


def test_bandwidth_and_mtu_hold_at_both_ends(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        return [
            (
                out(net, host, "tc", "class", "show", "dev", dev).split(" rate ")[1].split()[0],
                ip_json(net, host, "link", "show", "dev", dev)[0]["mtu"],
            )
            for host, dev in (("node-1", "eth0"), ("s1", "s1-eth2"))
        ]

    assert with_net(lambda: Single(bw=20, mtu=1400), look, tmp_path) == [["20Mbit", 1400]] * 2


def test_delay_without_netem_is_a_missing_capability(tmp_path: Path) -> None:
    def inside() -> Any:
        net = ClusterNet(Single(delay="5ms"))
        try:
            net.start()
        except MissingCapability as error:
            return [lack.name for lack in error.lacks]
        return json.loads(out(net, "node-1", "tc", "-json", "qdisc", "show", "dev", "eth0"))[0]["kind"]

    assert in_sandbox(inside, tmp_path) in (["netem"], "netem")


def test_routes_of_routers_are_replaced_as_a_set(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        def pod_routes() -> dict[str, Any]:
            found = ip_json(net, "gateway", "route") + ip_json(net, "gateway", "-6", "route")
            return {
                route["dst"]: sorted(hop["gateway"] for hop in route.get("nexthops", [route]))
                for route in found
                if route["dst"].startswith(("10.244.", "fd10:"))
            }

        net.set_routes({"gateway": {"10.244.1.0/24": ("192.168.100.11",), "fd10::/64": ("fd00::11",)}})
        first = pod_routes()
        net.set_routes({"gateway": {"10.244.1.0/24": ("192.168.100.11", "192.168.100.12")}})
        return first, pod_routes()

    assert with_net(Single, look, tmp_path) == [
        {"10.244.1.0/24": ["192.168.100.11"], "fd10::/64": ["fd00::11"]},
        {"10.244.1.0/24": ["192.168.100.11", "192.168.100.12"]},
    ]


def test_routes_that_went_by_themselves_do_not_hinder_later_ones(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        many = ("fd00::11", "fd00::12")
        net.set_routes({"gateway": {"10.244.1.0/24": ("192.168.100.11",), "fd10::/64": many}})
        out(net, "gateway", "ip", "route", "delete", "10.244.1.0/24")
        net.set_routes({"gateway": {"10.244.2.0/24": ("192.168.100.12",)}})
        found = ip_json(net, "gateway", "route") + ip_json(net, "gateway", "-6", "route")
        return [route["dst"] for route in found if route["dst"].startswith(("10.244.", "fd10:"))]

    assert with_net(Single, look, tmp_path) == ["10.244.2.0/24"]


def test_a_bad_route_is_an_error_that_shows_it(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        with pytest.raises(InputError, match="no such host in the fabric: nobody"):
            net.set_routes({"nobody": {}})
        with pytest.raises(CommandFailed) as caught:
            net.set_routes({"gateway": {"10.244.1.0/24": ("8.8.8.8",)}})
        return str(caught.value)

    assert "in line: route replace 10.244.1.0/24 via 8.8.8.8" in with_net(Single, look, tmp_path)


def test_a_host_gets_other_addresses_and_is_reached_by_them_alone(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        net.set_routes({"gateway": {"10.244.1.0/24": ("192.168.100.11",)}})
        with pytest.raises(InputError, match="must be of the families of"):
            net.readdress("node-1", ["192.168.100.33/24"])
        with pytest.raises(InputError, match="no such host in the fabric: s1"):
            net.readdress("s1", ["192.168.100.33/24"])
        with pytest.raises(CommandFailed):
            net.readdress("node-1", ["fd00::33%1/64", "192.168.100.33/24"])
        assert reaches(net, "client", "192.168.100.11"), "it has what it had"
        out(net, "node-1", "ip", "address", "flush", "dev", "eth0")
        net.readdress("node-1", ["fd00::33/64", "192.168.100.33/24"])
        found = [
            address["local"]
            for address in ip_json(net, "node-1", "address", "show", "dev", "eth0")[0]["addr_info"]
            if address["scope"] == "global"
        ]
        targets = ("192.168.100.33", "fd00::33", "192.168.100.11")
        return [*sorted(found), *(reaches(net, "client", target) for target in targets)]

    assert with_net(Single, look, tmp_path) == ["192.168.100.33", "fd00::33", True, True, False]


def test_routes_by_a_host_follow_its_address(tmp_path: Path) -> None:
    by_node, by_client = "10.244.1.0/24", "10.9.0.0/16"

    def look(net: ClusterNet) -> Any:
        net["gateway"].params["routes"] = [(by_node, "192.168.100.11"), (by_client, "203.0.113.10")]
        net.configHosts()
        net.readdress("node-1", ["192.168.100.33/24", "fd00::11/64"])
        found = ip_json(net, "gateway", "route")
        return {route["dst"]: route["gateway"] for route in found if "gateway" in route}

    assert with_net(Single, look, tmp_path) == {by_node: "192.168.100.33", by_client: "203.0.113.10"}


def test_a_link_added_to_a_running_network_works(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        net.addLink("node-1", "client", params1={"ips": ["10.9.0.1/30"]}, params2={"ips": ["10.9.0.2/30"]})
        net.verify_links()
        return reaches(net, "node-1", "10.9.0.2")

    assert with_net(Single, look, tmp_path)


def test_stop_leaves_only_loopback_and_no_shell(tmp_path: Path) -> None:
    def look(net: ClusterNet) -> Any:
        pids = [node.pid for node in net.values()]
        net.stop()
        links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
        return [link["ifname"] for link in links], [pid for pid in pids if os.path.exists(f"/proc/{pid}")]

    assert with_net(Single, look, tmp_path) == [["lo"], []]


def test_mininets_own_topologies_and_switches_without_numbers_work(tmp_path: Path) -> None:
    class Plain(Topo):
        def build(self) -> None:
            self.addSwitch("core")
            for host in ("a", "b"):
                self.addLink(self.addHost(host), "core")

    def inside() -> float:
        net = ClusterNet(Plain())
        net.start()
        return float(net.pingAll())

    assert in_sandbox(inside, tmp_path) == 0.0
