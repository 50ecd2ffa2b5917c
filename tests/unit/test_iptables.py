"""Proxy mode iptables writes what the real kube-proxy wrote, and its rules do what Services mean."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenes import GOLDEN, Scene, comparable, scenes, snapshot_of, steps
from service_sets import NODES, flows, host_of, services, snapshots

from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff, merge
from testbed.control.snapshot import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.kernel.fake import FakeKernel
from testbed.proxy.expected import IPTABLES, Services
from testbed.proxy.iptables import Iptables, probability
from testbed.proxy.kubelet import kubelet_rules
from testbed.proxy.services import service_ports
from testbed.proxy.settings import settings as settings_of
from testbed.rules.flows import differences
from testbed.rules.iptables import ChainKey, parse_save
from testbed.rules.walk import UnknownRule, parse, walk
from testbed.state import NODE, Chain, Family, NetnsState, NodeState

FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
SAVED: tuple[tuple[Family, str], ...] = (("ipv4", "iptables-save.txt"), ("ipv6", "ip6tables-save.txt"))


def compiled(snapshot: Snapshot, node: str = "node-1") -> dict[ChainKey, Chain]:
    return Iptables().compile(snapshot, snapshot.node[node]).chains


@pytest.mark.parametrize("scene", [*scenes(), *(scene for scene, _ in steps())], ids=lambda scene: scene.name)
def test_a_scene_is_what_was_recorded(scene: Scene) -> None:
    chains = compiled(scene.snapshot, scene.node.name)
    for family, kind in SAVED:
        if scene.path(kind).exists():
            assert comparable(chains, family) == comparable(parse_save(scene.text(kind), family), family)


# --- what the rules do --------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(snapshots(), st.sampled_from(NODES), st.booleans())
def test_every_flow_comes_out_where_the_services_mean_it_to(
    snapshot: Snapshot, node: Node, has_vips: bool
) -> None:
    chains = merge(
        [("kubelet", NodeState(kubelet_rules())), ("proxy", NodeState(Iptables().compile(snapshot, node)))]
    ).netns.chains
    vips = {vip for service in snapshot.services.values() for vip in service.vips} if has_vips else set()
    host = host_of(node, vips)
    for family in FAMILIES:
        ports = tuple(port for found in service_ports(snapshot, node, family).values() for port in found)
        meaning = Services(ports, settings_of(snapshot.facts, node, family), host, IPTABLES)
        for flow in flows(ports, node, host, family == "ipv6"):
            assert differences(meaning.expected(flow), walk(chains, flow, host)) == [], flow


def test_the_walker_refuses_what_it_does_not_know() -> None:
    for rule in (
        "-m time --kerneltz -j ACCEPT",
        "-j TPROXY --on-port 1",
        "-m tcp --tcp-flags SYN SYN -j DROP",
    ):
        with pytest.raises(UnknownRule):
            parse(rule)


# --- from state to state ------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots one after the other, in which what does not change is the same object."""
    snapshot = draw(snapshots())
    seen = [snapshot]
    for _ in range(draw(st.integers(1, 4))):
        service, slices = draw(services(draw(st.integers(1, 6))))
        key = service.namespace, service.name
        kept = {k: s for k, s in snapshot.services.items() if k[1] != service.name}
        kept_slices = {k: s for k, s in snapshot.slices.items() if k[1] != service.name}
        if draw(st.booleans()):
            kept[key] = service
            kept_slices |= {key: slices} if slices else {}
        snapshot = replace(snapshot, services=kept, slices=kept_slices)
        seen.append(snapshot)
    return seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_after_any_changes_the_rules_are_those_of_a_fresh_compile(history: list[Snapshot]) -> None:
    proxier, kernel = Iptables(), FakeKernel()
    state = NodeState()
    for snapshot in history:
        for node in NODES[1:]:
            proxier.compile(snapshot, node)  # what is kept for one node is not in another's way
        new = NodeState(proxier.compile(snapshot, NODES[0]))
        assert new == NodeState(Iptables().compile(snapshot, NODES[0]))
        for change in diff(state, new):
            assert isinstance(change, ChangeNetns)
            assert kernel.change(NODE, change.add, change.remove) == []
        state = new
        assert kernel.read(NODE).chains == new.netns.chains


def many(services: int, endpoints: int) -> Snapshot:
    made = {}
    for number in range(services):
        name = f"svc-{number}"
        each = Service("default", name, cluster_ips=(f"10.96.1.{number}",), ports=(ServicePort(80, "http"),))
        backends = tuple(Endpoint((f"10.244.{number}.{n + 1}",), node="node-2") for n in range(endpoints))
        one = EndpointSlice("default", f"{name}-a", name, "IPv4", (EndpointPort(8080, "http"),), backends)
        made["default", name] = each, (one,)
    return replace(
        Snapshot(snapshot_of([], "10.244.0.0/16").facts, NODES),
        services={key: service for key, (service, _) in made.items()},
        slices={key: slices for key, (_, slices) in made.items()},
    )


def with_endpoint_at(snapshot: Snapshot, name: str, address: str) -> Snapshot:
    """The snapshot with the first endpoint of a Service at another address, all else the same objects."""
    (one,) = snapshot.slices["default", name]
    moved = replace(one, endpoints=(replace(one.endpoints[0], addresses=(address,)), *one.endpoints[1:]))
    return replace(snapshot, slices={**snapshot.slices, ("default", name): (moved,)})


def test_a_moved_endpoint_touches_only_the_chains_of_its_service() -> None:
    proxier, before = Iptables(), many(100, 5)
    after = with_endpoint_at(before, "svc-7", "10.244.7.99")
    (change,) = diff(*(NodeState(proxier.compile(snapshot, NODES[0])) for snapshot in (before, after)))
    assert isinstance(change, ChangeNetns)
    touched = [*change.add.chains.values(), *change.remove.chains.values()]
    assert sorted(chain.name[:9] for chain in touched) == ["KUBE-SEP-", "KUBE-SEP-", "KUBE-SVC-"]
    assert all("default/svc-7" in rule for chain in touched for rule in chain.rules)


def test_what_did_not_change_is_not_compiled_again() -> None:
    proxier, before = Iptables(), many(50, 5)
    old = proxier.compile(before, NODES[0]).chains
    new = proxier.compile(with_endpoint_at(before, "svc-7", "10.244.7.99"), NODES[0]).chains
    own = [key for key in new if key[2].startswith(("KUBE-SVC-", "KUBE-SEP-"))]
    assert sum(new[key] is not old.get(key) for key in own) == 6  # the Service's own: one SVC and five SEP


@pytest.mark.parametrize(("endpoints", "commented"), [(10, True), (11, False)])
def test_over_a_thousand_endpoints_their_rules_go_without_comments(endpoints: int, commented: bool) -> None:
    chains = compiled(many(100, endpoints))
    own = [chain for chain in chains.values() if chain.name.startswith("KUBE-SEP-")]
    assert len(own) == 100 * endpoints
    assert all(("--comment" in rule) is commented for chain in own for rule in chain.rules)
    balancing = next(chain for chain in chains.values() if chain.name.startswith("KUBE-SVC-")).rules
    assert ["--comment" in rule for rule in balancing] == [True] + [commented] * endpoints


def test_rule_counts_grow_by_services_and_endpoints_alone() -> None:
    """5 + 3 per Service with 5 endpoints and 2 per endpoint, as in the recording of 100."""
    sizes = {n: sum(len(chain.rules) for chain in compiled(many(n, 5)).values()) for n in (0, 1, 100)}
    assert sizes[1] - sizes[0] == 1 + 1 + 5 + 5 * 2
    assert sizes[100] - sizes[0] == 100 * (sizes[1] - sizes[0])


# --- options ------------------------------------------------------------------------------------------


def rules_of(options: dict[str, Any], table: str, name: str, family: Family = "ipv4") -> tuple[str, ...]:
    snapshot = many(1, 1)
    return compiled(replace(snapshot, facts=replace(snapshot.facts, proxy_options=options)))[
        family, table, name
    ].rules


def last(options: dict[str, Any], family: Family = "ipv4") -> list[str]:
    """What the jumps to the node ports match, at the end of KUBE-SERVICES."""
    found = [rule for rule in rules_of(options, "nat", "KUBE-SERVICES", family) if "NODEPORTS" in rule]
    bare = [re.sub(r'-m comment --comment ".*" ?', "", rule) for rule in found]
    return [rule.removesuffix("-j KUBE-NODEPORTS").strip() for rule in bare]


def test_node_ports_answer_on_the_addresses_that_are_asked_for() -> None:
    assert last({}) == ["-m addrtype --dst-type LOCAL"]
    assert last({"localhostNodePorts": False}) == ["! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL"]
    assert last({}, "ipv6") == ["! -d ::1/128 -m addrtype --dst-type LOCAL"]
    assert last({"nodePortAddresses": ["primary"]}) == ["-d 192.168.100.11/32"]
    assert last({"nodePortAddresses": ["192.168.0.0/16", "127.0.0.0/8"]}) == [
        "-d 192.168.100.11/32",
        "-d 127.0.0.1/32",
    ]


def test_without_node_ports_on_localhost_it_is_neither_guarded_nor_routed() -> None:
    assert rules_of({"localhostNodePorts": False}, "filter", "KUBE-FIREWALL") == ()
    snapshot = many(0, 0)
    off = replace(snapshot, facts=replace(snapshot.facts, proxy_options={"localhostNodePorts": False}))
    for each, routed in ((snapshot, "1"), (off, None)):
        sysctls = Iptables().compile(each, NODES[0]).sysctls
        assert sysctls.get("net/ipv4/conf/all/route_localnet") == routed


def test_all_is_masqueraded_where_that_is_asked_for_and_nothing_where_pods_are_unknown() -> None:
    def balancing(snapshot: Snapshot) -> tuple[str, ...]:
        return next(c for c in compiled(snapshot).values() if c.name.startswith("KUBE-SVC-")).rules

    snapshot = many(1, 1)
    everything = replace(snapshot, facts=replace(snapshot.facts, proxy_options={"masqueradeAll": True}))
    assert balancing(snapshot)[0].startswith("! -s 10.244.0.0/16 -d 10.96.1.0/32 -p tcp")
    assert balancing(everything)[0].startswith("-d 10.96.1.0/32 -p tcp")
    assert len(balancing(replace(snapshot, facts=replace(snapshot.facts, pod_cidrs=())))) == 1


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (2, "0.50000000000"),
        (3, "0.33333333349"),
        (6, "0.16666666651"),
        (7, "0.14285714272"),
        (9, "0.11111111101"),
    ],
)
def test_chances_are_as_the_kernel_keeps_them(left: int, text: str) -> None:
    assert probability(left) == text


def test_the_kubelets_rules_stand_behind_the_proxiers() -> None:
    """The kubelet came first and put its own in front, then kube-proxy its own in front of that."""
    recorded = parse_save((GOLDEN / "headless" / "iptables-save.txt").read_text(), "ipv4")
    live = merge(
        [
            ("the kubelet", NodeState(kubelet_rules())),
            ("the proxier", NodeState(NetnsState(chains=compiled(many(1, 1))))),
        ]
    ).netns.chains
    for name in ("INPUT", "OUTPUT"):
        alone = recorded["ipv4", "filter", name].rules
        assert live["ipv4", "filter", name].rules == (*alone[1:], "-j KUBE-FIREWALL")
        assert alone[0] == "-j KUBE-FIREWALL"
    added = {key[1:] for key in live if key[0] == "ipv4"} - {key[1:] for key in compiled(many(1, 1))}
    canaries = {(table, "KUBE-KUBELET-CANARY") for table in ("mangle", "nat", "filter")}
    assert added == {("mangle", "KUBE-IPTABLES-HINT"), *canaries}
