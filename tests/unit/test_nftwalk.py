"""The walk through nftables rules, and where it comes out for the rules of Services."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_sets import FACTS, NODES, flows, host_of, snapshots

from testbed.control.snapshot import Node, Service, ServicePort, Snapshot
from testbed.proxy.expected import NFTABLES, Services
from testbed.proxy.nftables import Nftables, node_settings
from testbed.proxy.services import service_ports
from testbed.rules import nftwalk
from testbed.rules.flows import Flow, Host, Verdict, Verdicts, differences
from testbed.rules.nft import fragment
from testbed.state import Family, NftChain, NftElement, NftSet, NftTable

HOST = Host(frozenset({"192.168.100.11"}), {"10.244.1.0/24": "cni0"})
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
RANGES = ("10.96.0.0/12", "fd00:10:96::/112")


def base(hook: str, *rules: str, kind: Any = "filter", priority: str = "filter", **more: Any) -> NftChain:
    return NftChain("ip", "t", f"{kind}-{hook}-{priority}", rules, kind, hook, priority, **more)


def chain(name: str, *rules: str) -> NftChain:
    return NftChain("ip", "t", name, rules)


def walked(*chains: NftChain, flow: Flow | None = None, elements: tuple[NftElement, ...] = ()) -> Verdicts:
    sets = {each.set: NftSet("ip", "t", each.set, "ipv4_addr", each.value and "verdict") for each in elements}
    state = fragment([NftTable("ip", "t")], chains, sets.values(), elements)
    return nftwalk.walk(state, flow or Flow("10.0.0.1", "10.0.0.9", port=80), HOST)


PASS = Verdict("pass", "10.0.0.9:80")


def test_without_rules_a_packet_passes() -> None:
    assert walked() == {PASS: 1.0}


def test_a_goto_does_not_come_back_and_a_jump_does() -> None:
    there = chain("there", "return")
    assert walked(there, base("forward", "jump there", "drop")) == {Verdict("drop"): 1.0}
    assert walked(there, base("forward", "goto there", "drop")) == {PASS: 1.0}
    middle = chain("middle", "goto there", "reject")
    assert walked(there, middle, base("forward", "jump middle", "drop")) == {Verdict("drop"): 1.0}


def test_the_policy_of_a_base_chain_holds_where_its_rules_end() -> None:
    assert walked(base("forward", "ip saddr 10.0.0.2 accept", policy="drop")) == {Verdict("drop"): 1.0}


def test_chains_of_a_hook_are_met_by_priority() -> None:
    first = base("prerouting", "drop", priority="dstnat - 10")
    nat = base("prerouting", "dnat to 10.1.1.1:8080", kind="nat", priority="dstnat")
    assert walked(nat, first) == {Verdict("drop"): 1.0}
    late = base("prerouting", "ip daddr 10.0.0.9 drop", priority="filter")
    assert walked(nat, late) == {Verdict("pass", "10.1.1.1:8080"): 1.0}


def test_chances_are_shared_and_multiplied() -> None:
    half = chain("half", "numgen random mod 2 vmap { 0 : goto four, 1 : drop }")
    four = chain(
        "four", "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.1.1.1 . 1, 1 : 10.1.1.2 . 2 }"
    )
    nat = base("prerouting", "jump half", kind="nat", priority="dstnat")
    assert walked(half, four, nat) == {
        Verdict("drop"): 0.5,
        Verdict("pass", "10.1.1.1:1"): 0.25,
        Verdict("pass", "10.1.1.2:2"): 0.25,
    }


def test_maps_and_sets_are_looked_into() -> None:
    elements = (
        NftElement("ip", "t", "m", "10.0.0.9 . tcp . 80", "goto no"),
        NftElement("ip", "t", "s", "10.0.0.1"),
    )
    no = chain("no", "reject")
    rule = "ip daddr . meta l4proto . th dport vmap @m"
    assert walked(no, base("forward", rule), elements=elements) == {Verdict("reject"): 1.0}
    assert walked(no, base("forward", "ip saddr @s drop"), elements=elements) == {Verdict("drop"): 1.0}
    assert walked(no, base("forward", "ip saddr != @s drop"), elements=elements) == {PASS: 1.0}


@pytest.mark.parametrize(
    "rule",
    ["ip saddr @nowhere drop", "jump nowhere", "ip dscp 4 drop", "queue num 1", "ct state invalid drop"],
)
def test_what_is_not_known_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="not"):
        walked(base("forward", rule))


# --- what Services mean -------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(snapshots(), st.sampled_from(NODES), st.booleans(), st.booleans())
def test_every_flow_comes_out_where_the_services_mean_it_to(
    snapshot: Snapshot, node: Node, has_vips: bool, knows_ranges: bool
) -> None:
    snapshot = replace(snapshot, service_cidrs=RANGES if knows_ranges else ())
    state = Nftables().compile(snapshot, node)
    vips = {vip for service in snapshot.services.values() for vip in service.vips} if has_vips else set()
    host = host_of(node, vips)
    for family, ranges in zip(FAMILIES, RANGES, strict=True):
        ports = tuple(port for found in service_ports(snapshot, node, family).values() for port in found)
        own = node_settings(snapshot, node, family)
        meaning = Services(ports, own, host, NFTABLES, (ranges,) if knows_ranges else ())
        unallocated = str(ip_network(ranges)[77])
        asked = list(flows(ports, node, host, family == "ipv6"))
        for flow in [*asked, *(replace(flow, destination=unallocated) for flow in asked[:20])]:
            assert differences(meaning.expected(flow), nftwalk.walk(state, flow, host)) == [], flow


def test_source_ranges_hold_where_nobody_serves_too() -> None:
    ports = (ServicePort(80, "http"),)
    ranged = {"cluster_ips": ("10.96.0.1",), "vips": ("198.51.100.1",), "source_ranges": ("203.0.113.0/24",)}
    service = Service("default", "web", "LoadBalancer", ports=ports, **ranged)  # type: ignore[arg-type]
    snapshot = Snapshot(FACTS, NODES, services={("default", "web"): service})
    state, host = Nftables().compile(snapshot, NODES[0]), host_of(NODES[0])
    served = tuple(service_ports(snapshot, NODES[0], "ipv4")["default", "web"])
    meaning = Services(served, node_settings(snapshot, NODES[0], "ipv4"), host, NFTABLES)
    for source, verdict in (("203.0.113.9", Verdict("reject")), ("192.0.2.9", Verdict("drop"))):
        flow = Flow(source, "198.51.100.1", port=80)
        assert meaning.expected(flow) == nftwalk.walk(state, flow, host) == {verdict: 1.0}
