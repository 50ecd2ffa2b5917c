"""The pure part of the fabric: names, and the lines that ip and tc are given."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InputError, MissingCapability
from testbed.fabric import nodes, verify
from testbed.fabric.links import Shaping, mac_address, netem_error, seconds, switch_port
from testbed.fabric.nodes import ClusterHost, Router
from testbed.spec.links import SHAPING


def unstarted(cls: type[ClusterHost], interfaces: dict[str, dict[str, Any]], **params: Any) -> ClusterHost:
    """A node whose shell was never started; interfaces: name → parameters of that end of its link."""
    node = cls.__new__(cls)
    node.name, node.params = "n", params
    node.intfs = {
        port: SimpleNamespace(name=name, params=given)
        for port, (name, given) in enumerate(interfaces.items())
    }
    return node


def test_switch_port_is_named_as_mininet_does() -> None:
    assert switch_port("s1", 3) == "s1-eth3"


def test_switch_ports_of_long_names_fit_and_differ() -> None:
    names = {switch_port(f"leaf-switch-{number}", port) for number in range(50) for port in range(1, 30)}
    assert len(names) == 50 * 29
    assert max(map(len, names)) <= 15


def test_mac_addresses_are_stable_unicast_local_and_distinct() -> None:
    macs = [mac_address(f"node-{number}", port) for number in range(100) for port in range(4)]
    assert macs[0] == mac_address("node-0", 0)
    assert len(set(macs)) == len(macs)
    assert all(mac.startswith("02:") for mac in macs)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("10.0.0.1/24", "address replace 10.0.0.1/24 broadcast + dev eth0"),
        ("10.0.0.0/31", "address replace 10.0.0.0/31 dev eth0"),
        ("fd00::b/64", "address replace fd00::b/64 dev eth0 nodad"),
    ],
)
def test_address_line(address: str, line: str) -> None:
    assert nodes.address_line(address, "eth0") == line


@pytest.mark.parametrize(
    ("dst", "vias", "line"),
    [
        ("default", "192.168.100.1", "route replace 0.0.0.0/0 via 192.168.100.1"),
        ("default", "fd00::1", "route replace ::/0 via fd00::1"),
        ("10.0.0.0/8", ["10.0.1.2"], "route replace 10.0.0.0/8 via 10.0.1.2"),
        (
            "10.0.0.0/8",
            ("10.0.1.2", "10.0.2.2"),
            "route replace 10.0.0.0/8 nexthop via 10.0.1.2 nexthop via 10.0.2.2",
        ),
    ],
)
def test_route_line(dst: str, vias: str | list[str], line: str) -> None:
    assert nodes.route_line(dst, vias) == line


def test_route_with_host_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="host bits"):
        nodes.route_line("10.0.0.1/8", "10.0.1.2")


def test_node_forwards_and_passes_bridged_traffic_to_iptables() -> None:
    node = unstarted(ClusterHost, {"eth0": {}}, role="node", ips=["192.168.100.11/24"])
    sysctls = nodes.commands(node)[0].argv
    assert sysctls[:3] == ("sysctl", "-q", "-w")
    assert {"net/ipv4/ip_forward=1", "net/bridge/bridge-nf-call-iptables=1"} <= set(sysctls)
    assert "net/ipv6/conf/all/forwarding=1" not in sysctls


def test_dual_stack_node_forwards_both_families() -> None:
    node = unstarted(ClusterHost, {"eth0": {}}, role="node", ips=["192.168.100.11/24", "fd00::b/64"])
    assert "net/ipv6/conf/all/forwarding=1" in nodes.commands(node)[0].argv


def test_outside_host_does_not_forward() -> None:
    host = unstarted(ClusterHost, {"eth0": {}}, ips=["203.0.113.10/24"])
    assert nodes.role(host) == "external"
    assert not [word for command in nodes.commands(host) for word in command.argv if "forward" in word]


def test_router_takes_addresses_per_link_and_routes_after_them() -> None:
    router = unstarted(
        Router,
        {"eth0": {"ips": ["10.0.1.1/24"], "mtu": 1400}, "eth1": {"ips": ["10.0.2.1/24"]}},
        ip="10.0.0.9/8",
        routes=[("default", ["10.0.1.2", "10.0.2.2"])],
    )
    assert nodes.role(router) == "router"
    assert nodes.commands(router)[-1].stdin.splitlines() == [
        "link set lo up",
        "address replace 10.0.1.1/24 broadcast + dev eth0",
        "link set eth0 up mtu 1400",
        "address replace 10.0.2.1/24 broadcast + dev eth1",
        "link set eth1 up",
        "route replace 0.0.0.0/0 nexthop via 10.0.1.2 nexthop via 10.0.2.2",
    ]


def test_host_of_a_plain_mininet_topology_keeps_the_address_mininet_gave_it() -> None:
    host = unstarted(ClusterHost, {"eth0": {}}, ip="10.0.0.3/8")
    assert nodes.addresses(host) == {"eth0": ("10.0.0.3/8",)}


def test_refused_batch_line_is_shown_in_place_of_its_number() -> None:
    text = nodes.explain("Error: Nexthop has invalid gateway.\nCommand failed -:2\n", "first\nroute add x\n")
    assert text == "Error: Nexthop has invalid gateway.\nin line: route add x\n"


def test_link_without_limits_is_not_shaped() -> None:
    assert Shaping.of({"delay": "0ms", "loss": 0, "jitter": "0us"}).tc_lines("eth0") == []


def test_bandwidth_is_an_htb_class_with_a_burst_of_one_millisecond_or_mininets() -> None:
    assert Shaping(bw=10).tc_lines("eth0") == [
        "qdisc add dev eth0 root handle 5: htb default 1",
        "class add dev eth0 parent 5: classid 5:1 htb rate 10000000bit burst 15000b",
    ]
    assert Shaping(bw=1000).tc_lines("eth0")[1].endswith("rate 1000000000bit burst 125000b")


def test_delay_and_loss_are_a_netem_below_the_rate() -> None:
    shaping = Shaping.of({"bw": 0.5, "delay": "10ms", "jitter": "2ms", "loss": 1.5, "max_queue_size": 50})
    assert shaping.needs_netem
    assert shaping.tc_lines("s1-eth1")[2] == (
        "qdisc add dev s1-eth1 parent 5:1 handle 10: netem delay 10ms 2ms loss 1.50000% limit 50"
    )
    assert Shaping(loss=1).tc_lines("x") == ["qdisc add dev x root handle 10: netem loss 1.00000%"]


def test_all_that_netem_does_is_one_line() -> None:
    shaping = Shaping.of(
        {
            "delay": "10ms",
            "jitter": "1ms",
            "distribution": "pareto",
            "burst_loss": (1, 25, 100, 0),
            "duplicate": 2,
            "corrupt": 3,
            "reorder": 4,
            "max_queue_size": 9,
        }
    )
    assert shaping.tc_lines("x") == [
        "qdisc add dev x root handle 10: netem delay 10ms 1ms distribution pareto"
        " loss gemodel 1.00000% 25.00000% 100.00000% 0.00000%"
        " duplicate 2.00000% corrupt 3.00000% reorder 4.00000% limit 9"
    ]
    assert "distribution" not in Shaping(delay="1ms", jitter="1ms", distribution="uniform").tc_lines("x")[0]


def test_netem_has_room_for_what_is_under_way() -> None:
    """100 ms of 100 Mbit/s are 833 full frames; without a bandwidth 10 Gbit/s are reckoned with."""
    assert Shaping(bw=100, delay="100ms").tc_lines("x")[-1].endswith(" netem delay 100ms limit 1833")
    assert Shaping(delay="100ms").tc_lines("x") == [
        "qdisc add dev x root handle 10: netem delay 100ms limit 84333"
    ]


@pytest.mark.parametrize(
    ("text", "expected"), [("10ms", 0.01), ("1.5s", 1.5), ("20us", 2e-5), ("7", 7e-6), ("3msec", 3e-3)]
)
def test_times_are_read_as_tc_reads_them(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


def test_a_time_that_tc_does_not_take_is_bad_input() -> None:
    with pytest.raises(InputError, match="no time"):
        Shaping(delay="soon").tc_lines("x")


def test_flows_are_bands_with_a_netem_each_and_the_rest_is_the_last() -> None:
    flows = [
        {"match": {"protocol": "udp", "port": 53}, "delay": "5ms", "bw": 1, "max_queue_size": 8},
        {"match": {"source": "10.0.0.0/8", "dscp": 46}, "loss": 1},
    ]
    lines = Shaping.of({"bw": 10, "loss": 2, "flows": flows}).tc_lines("x")
    assert lines[2:] == [
        "qdisc add dev x parent 5:1 handle 6: prio bands 3 priomap 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2",
        "qdisc add dev x parent 6:1 handle 11: netem delay 5ms rate 1000000bit limit 8",
        "filter add dev x parent 6: protocol ip prio 2 u32"
        " match ip protocol 17 0xff match ip dport 53 0xffff flowid 6:1",
        "filter add dev x parent 6: protocol ipv6 prio 3 u32"
        " match ip6 protocol 17 0xff match ip6 dport 53 0xffff flowid 6:1",
        "qdisc add dev x parent 6:2 handle 12: netem loss 1.00000%",
        "filter add dev x parent 6: protocol ip prio 4 u32"
        " match ip src 10.0.0.0/8 match ip dsfield 0xb8 0xfc flowid 6:2",
        "qdisc add dev x parent 6:3 handle 10: netem loss 2.00000%",
    ]


def test_shaping_s_parts_are_known_to_the_spec() -> None:
    parts = {field.name for field in fields(Shaping)} - {"max_queue_size"}
    assert parts == set(SHAPING)


def test_queue_size_alone_is_a_fifo() -> None:
    assert (
        Shaping(bw=1, max_queue_size=7).tc_lines("x")[2]
        == "qdisc add dev x parent 5:1 handle 10: pfifo limit 7"
    )


def test_a_kernel_without_netem_is_a_missing_capability() -> None:
    error = netem_error("Error: Specified qdisc kind is unknown.")
    assert isinstance(error, MissingCapability)
    assert error.lacks[0].name == "netem"
    assert netem_error("Error: Exclusivity flag on, cannot modify.") is None


def test_every_link_is_checked_both_ways() -> None:
    a, b = (
        verify.End("a-eth0", "/a", "eth0", "02:00:00:00:00:0a"),
        verify.End("s1-eth1", "", "s1-eth1", "02:00:00:00:00:0b"),
    )
    assert list(map(str, verify.crossings([(a, b)]))) == ["a-eth0 -> s1-eth1", "s1-eth1 -> a-eth0"]


def test_frame_carries_its_number_to_the_other_ends_address() -> None:
    a, b = verify.End("a", "", "a", "02:00:00:00:00:0a"), verify.End("b", "", "b", "02:00:00:00:00:0b")
    frame = verify.frame(7, verify.Crossing(a, b))
    assert frame[:12].hex() == "02000000000b02000000000a"
    assert len(frame) == 60
    assert verify.frame_number(frame) == 7


@pytest.mark.parametrize("data", [b"", b"x" * 20, b"\0" * 60])
def test_frames_of_others_have_no_number(data: bytes) -> None:
    assert verify.frame_number(data) is None


@pytest.mark.parametrize(("seed", "policy"), [(0, "1"), (7, "3")])
def test_routers_hash_the_five_tuple_with_a_seed_of_their_own_where_there_are_seeds(
    seed: int, policy: str
) -> None:
    wanted = nodes.router_sysctls(ipv6=True, seed=seed)
    assert {wanted[f"net/{family}/fib_multipath_hash_policy"] for family in ("ipv4", "ipv6")} == {policy}
    assert wanted.get(nodes.HASH_SEED) == (str(seed) if seed else None)
