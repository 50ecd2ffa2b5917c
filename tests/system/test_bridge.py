"""The kubenet / bridge row of the comparison of dataplanes, with real packets: every cell without a Service.

Lab: nodes a 172.18.0.2 and b 172.18.0.3, outside 172.18.0.254 (and 10.99.0.1); pods a1, a2 on a, b1 on b.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from node_lab import OUTSIDE, OUTSIDE_IN_10, Host, Lab, captured, pod, running_lab

from testbed.dataplane import dataplanes
from testbed.dataplane.plugins import host_end_name

A1, A2, A3, B1 = pod("a1", "a", 2), pod("a2", "a", 3), pod("a3", "a", 4), pod("b1", "b", 2)
IP = {"a1": "10.244.1.2", "a2": "10.244.1.3", "a3": "10.244.1.4", "b1": "10.244.2.2"}
IP6 = {"a2": "fd24:0:0:1::3", "b1": "fd24:0:0:2::2"}
H = {name: host_end_name(f"uid-{name}") for name in IP}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        lab.wire(A1, A2, B1, dataplane=dataplanes.get("bridge"))
        yield lab


def ping(host: Host, target: str, *options: str, where: str) -> int:
    """The TTL with which one answer came."""
    output = host.ok("ping", "-n", "-c1", "-W2", *options, target, where=where)
    return int(re.search(r"ttl=(\d+)", output)[1])  # type: ignore[index]


def echoes(seen: list[dict[str, Any]], what: str = "echo") -> list[dict[str, Any]]:
    return [frame for frame in seen if frame["what"] == what]


def mac(host: Host, interface: str, where: str = "node") -> str:
    (link,) = host.json("ip", "-json", "link", "show", interface, where=where)
    return str(link["address"])


# --- §1 addressing ------------------------------------------------------------------------------------


def test_pod_has_a_24_and_only_a_default_route_besides_its_own_network(lab: Lab):
    (link,) = lab.a.json("ip", "-json", "-4", "address", "show", "eth0", where="uid-a1")
    assert [(info["local"], info["prefixlen"]) for info in link["addr_info"]] == [("10.244.1.2", 24)]
    assert link["mtu"] == 1500
    routes = lab.a.json("ip", "-json", "route", where="uid-a1")
    assert [(route["dst"], route.get("gateway")) for route in routes] == [
        ("default", "10.244.1.1"),
        ("10.244.1.0/24", None),
    ]


def test_reused_address_is_to_replace_the_old_pods_in_neighbour_tables(lab: Lab):
    assert lab.a.ok("sysctl", "-n", "net.ipv4.conf.eth0.arp_notify", where="uid-a1").strip() == "1"
    assert lab.a.ok("sysctl", "-n", "net.ipv4.conf.eth0.arp_announce", where="uid-a1").strip() == "0"


def test_gateway_is_the_bridge_and_answers_with_its_mac(lab: Lab):
    ping(lab.a, "10.244.1.1", where="uid-a1")
    (entry,) = lab.a.json("ip", "-json", "neighbour", "show", "10.244.1.1", where="uid-a1")
    assert entry["lladdr"] == mac(lab.a, "cni0") == "0a:58:0a:f4:01:01"


def test_bridge_ports_are_the_pods_host_ends_with_hairpin(lab: Lab):
    links = lab.a.json("ip", "-json", "-details", "link", "show", "master", "cni0")
    assert {link["ifname"] for link in links} == {H["a1"], H["a2"]}
    assert all(link["linkinfo"]["info_slave_data"]["hairpin"] for link in links)
    assert all(link["mtu"] == 1500 for link in links)


def test_unfragmented_packet_of_the_mtu_passes_and_one_byte_more_does_not(lab: Lab):
    ping(lab.a, IP["b1"], "-M", "do", "-s", "1472", where="uid-a1")
    ran = lab.a.run("ping", "-n", "-c1", "-W1", "-M", "do", "-s", "1473", IP["b1"], where="uid-a1")
    assert ran.code != 0
    assert "too long" in ran.output


# --- §2 routes ----------------------------------------------------------------------------------------


def test_node_has_a_host_route_to_the_other_nodes_pods_and_none_to_services(lab: Lab):
    (route,) = lab.a.json("ip", "-json", "route", "show", "10.244.2.0/24")
    assert (route["gateway"], route["dev"]) == ("172.18.0.3", "eth0")
    (service,) = lab.a.json("ip", "-json", "route", "get", "10.96.0.10")
    assert service["gateway"] == OUTSIDE


# --- §3 TTL, source addresses, counters ---------------------------------------------------------------


def test_ttl_is_64_on_one_node_and_62_across(lab: Lab):
    assert ping(lab.a, IP["a2"], where="uid-a1") == 64
    assert ping(lab.a, IP["b1"], where="uid-a1") == 62
    assert ping(lab.a, IP6["a2"], where="uid-a1") == 64
    assert ping(lab.a, IP6["b1"], where="uid-a1") == 62


def forwarded(host: Host, rule: list[str]) -> int:
    """How many packets a counting rule in FORWARD has seen."""
    listing = host.ok("iptables-nft", "-L", "FORWARD", "-v", "-x", "-n")
    line = next(line for line in listing.splitlines() if rule[-1] in line and rule[1] in line)
    return int(line.split()[0])


def test_bridged_packets_pass_forward_with_bridge_nf_and_not_without(lab: Lab):
    rule = ["-s", IP["a1"], "-d", IP["a2"]]
    lab.a.ok("iptables-nft", "-A", "FORWARD", *rule)
    try:
        ping(lab.a, IP["a2"], where="uid-a1")
        assert forwarded(lab.a, rule) == 1
        lab.a.ok("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
        ping(lab.a, IP["a2"], where="uid-a1")
        assert forwarded(lab.a, rule) == 1
    finally:
        lab.a.ok("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        lab.a.ok("iptables-nft", "-D", "FORWARD", *rule)


def source_seen(sender: Host, target: str, where: str, receiver: Host, place: str) -> str:
    """The source of one echo request as it arrives."""
    with captured(receiver, "eth0", place) as seen:
        ping(sender, target, where=where)
    (echo,) = [frame for frame in echoes(seen) if frame["way"] == "in"]
    return str(echo["src"])


def test_pod_is_seen_with_its_own_address_by_a_pod_across(lab: Lab):
    assert source_seen(lab.a, IP["b1"], "uid-a1", lab.b, "uid-b1") == IP["a1"]


def test_node_is_seen_with_its_address_by_a_pod_across(lab: Lab):
    assert source_seen(lab.a, IP["b1"], "node", lab.b, "uid-b1") == "172.18.0.2"


def test_node_is_seen_with_the_bridges_address_by_its_own_pod(lab: Lab):
    assert source_seen(lab.a, IP["a1"], "node", lab.a, "uid-a1") == "10.244.1.1"


def test_pod_is_seen_with_its_nodes_address_by_another_node(lab: Lab):
    assert source_seen(lab.a, "172.18.0.3", "uid-a1", lab.b, "node") == "172.18.0.2"


def test_pod_reaches_its_own_node_with_its_own_address(lab: Lab):
    with captured(lab.a, "cni0") as seen:
        ping(lab.a, "172.18.0.2", where="uid-a1")
    assert [echo["src"] for echo in echoes(seen)] == [IP["a1"]]


# --- §4 captures --------------------------------------------------------------------------------------


def test_same_node_frame_is_the_same_everywhere_with_the_pods_macs_and_nothing_on_the_underlay(lab: Lab):
    """To a pod just made, so that a1 has to ask for its address."""
    bridge_dataplane = dataplanes.get("bridge")
    lab.wire(A1, A2, A3, B1, dataplane=bridge_dataplane)
    with (
        captured(lab.a, "eth0", "uid-a1") as p_a1,
        captured(lab.a, H["a1"]) as h_a1,
        captured(lab.a, H["a3"]) as h_a3,
        captured(lab.a, "eth0", "uid-a3") as p_a3,
        captured(lab.a, "cni0") as bridge,
        captured(lab.a, "eth0") as underlay,
    ):
        ping(lab.a, IP["a3"], where="uid-a1")
    macs = {name: mac(lab.a, "eth0", f"uid-{name}") for name in ("a1", "a3")}
    lab.wire(A1, A2, B1, dataplane=bridge_dataplane)
    for seen in (p_a1, h_a1, h_a3, p_a3):
        (echo,) = echoes(seen)
        assert (echo["from"], echo["to"], echo["ttl"], echo["length"]) == (macs["a1"], macs["a3"], 64, 98)
    asked = [(frame["src"], frame["dst"]) for frame in p_a3 if frame["what"] == "arp" and frame["op"] == 1]
    assert (IP["a1"], IP["a3"]) in asked
    assert echoes(bridge) == []
    assert underlay == []


def test_cross_node_packet_is_plain_on_the_underlay_between_the_nodes_macs(lab: Lab):
    with captured(lab.a, "eth0") as underlay, captured(lab.b, "eth0", "uid-b1") as p_b1:
        ping(lab.a, IP["b1"], where="uid-a1")
    (echo,) = echoes(underlay)
    assert (echo["src"], echo["dst"], echo["ttl"], echo["length"]) == (IP["a1"], IP["b1"], 63, 98)
    assert (echo["from"], echo["to"]) == (mac(lab.a, "eth0"), mac(lab.b, "eth0"))
    (arrived,) = echoes(p_b1)
    assert (arrived["src"], arrived["ttl"]) == (IP["a1"], 62)


def masqueraded(host: Host) -> int:
    """How many connections the rule has translated."""
    listing = host.ok("iptables-nft", "-t", "nat", "-L", "POSTROUTING", "-v", "-x", "-n")
    line = next(line for line in listing.splitlines() if "kubenet: SNAT" in line)
    return int(line.split()[0])


def test_outside_sees_the_nodes_address_and_the_rule_counts_it(lab: Lab):
    before = masqueraded(lab.a)
    with captured(lab.outside, "eth0") as seen:
        ping(lab.a, OUTSIDE, where="uid-a1")
    (echo,) = echoes(seen)
    assert (echo["src"], echo["ttl"], echo["length"]) == ("172.18.0.2", 63, 98)
    assert masqueraded(lab.a) == before + 1


def test_outside_within_10_8_sees_the_pods_address(lab: Lab):
    before = masqueraded(lab.a)
    with captured(lab.outside, "eth0") as seen:
        ping(lab.a, OUTSIDE_IN_10, where="uid-a1")
    assert [echo["src"] for echo in echoes(seen)] == [IP["a1"]]
    assert masqueraded(lab.a) == before


# --- applications -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [IP["a2"], IP["b1"], f"[{IP6['a2']}]", f"[{IP6['b1']}]"])
def test_pod_is_served_by_pods_of_both_nodes_in_both_families(lab: Lab, target: str):
    answer = lab.a.ok("curl", "-gsS", "-m5", f"http://{target}:8080/hostname", where="uid-a1")
    assert answer.strip() == {IP["a2"]: "a2", f"[{IP6['a2']}]": "a2"}.get(target, "b1")


def test_pod_reaches_itself_by_its_own_address(lab: Lab):
    answer = lab.a.ok("curl", "-sS", "-m5", f"http://{IP['a1']}:8080/hostname", where="uid-a1")
    assert answer.strip() == "a1"


def test_frame_sent_back_out_of_its_port_arrives_because_of_hairpin(lab: Lab):
    """A node's rule sends a1's connection to a virtual address back to a1, as a Service would."""
    dnat = [
        "PREROUTING",
        "-d",
        "10.96.0.10",
        "-p",
        "tcp",
        "-j",
        "DNAT",
        "--to-destination",
        f"{IP['a1']}:8080",
    ]
    masquerade = ["POSTROUTING", "-s", IP["a1"], "-d", IP["a1"], "-j", "MASQUERADE"]
    curl = ["curl", "-sS", "-m1", "http://10.96.0.10:8080/clientip"]
    for rule in (dnat, masquerade):
        lab.a.ok("iptables-nft", "-t", "nat", "-A", *rule)
    try:
        assert "10.244.1.1" in lab.a.ok(*curl, where="uid-a1")
        lab.a.ok("ip", "link", "set", H["a1"], "type", "bridge_slave", "hairpin", "off")
        assert lab.a.run(*curl, where="uid-a1").code == 28  # timed out
    finally:
        lab.a.ok("ip", "link", "set", H["a1"], "type", "bridge_slave", "hairpin", "on")
        for rule in (dnat, masquerade):
            lab.a.ok("iptables-nft", "-t", "nat", "-D", *rule)
