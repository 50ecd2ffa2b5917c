"""Proxy mode nftables writes what the real kube-proxy wrote for the same objects."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenes import Scene, scenes
from service_sets import NODES, snapshots

from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import Node, Snapshot
from testbed.kernel.fake import FakeKernel
from testbed.proxy.nftables import SET_MARK, Nftables, hashed
from testbed.rules.nft import parse_ruleset
from testbed.state import NODE as NODE_NETNS
from testbed.state import NetnsState, NodeState

NODE = NODES[0]


def rules(snapshot: Snapshot, node: Node) -> NetnsState:
    made = Nftables().compile(snapshot, node)
    return NetnsState(
        nft_tables=made.nft_tables,
        nft_chains=made.nft_chains,
        nft_sets=made.nft_sets,
        nft_elements=made.nft_elements,
    )


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_a_scene_is_what_was_recorded(scene: Scene) -> None:
    assert rules(scene.snapshot, scene.node) == parse_ruleset(scene.text("nftables.txt"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(snapshots(), min_size=1, max_size=5))
def test_what_is_kept_from_before_changes_nothing(snapshots: list[Snapshot]) -> None:
    """After any sequence, kept parts give what a fresh compile gives, and its changes lead a kernel there."""
    proxier, kernel, old = Nftables(), FakeKernel(), NetnsState()
    for snapshot in snapshots:
        new = proxier.compile(snapshot, NODE)
        assert new == Nftables().compile(snapshot, NODE)
        assert proxier.compile(snapshot, NODE) == new
        for change in diff(NodeState(old), NodeState(new)):
            assert isinstance(change, ChangeNetns)
            assert kernel.change(NODE_NETNS, change.add, change.remove) == []
        assert kernel.read(NODE_NETNS) == new
        old = new


def test_one_endpoint_touches_only_its_service() -> None:
    scene = next(each for each in scenes() if each.name == "scale-100x5")
    key, (first, *others) = next((key, each) for key, each in scene.snapshot.slices.items())
    fewer = replace(first, endpoints=first.endpoints[1:])
    after = replace(scene.snapshot, slices={**scene.snapshot.slices, key: (fewer, *others)})
    proxier = Nftables()
    (change,) = diff(
        NodeState(proxier.compile(scene.snapshot, scene.node)), NodeState(proxier.compile(after, scene.node))
    )
    assert isinstance(change, ChangeNetns)
    assert {name for _, _, name in change.add.nft_chains} == {
        name for _, _, name in proxier.compile(after, scene.node).nft_chains if f"/{key[1]}/" in name
    }
    assert {part for part in change.add.__struct_fields__ if getattr(change.add, part)} == {"nft_chains"}
    assert {part for part in change.remove.__struct_fields__ if getattr(change.remove, part)} <= {
        "nft_elements"
    }


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ns1/svc1/tcp/p80", "ULMVA6XW-ns1/svc1/tcp/p80"),
        ("ns5/svc5/tcp/p80__10.180.0.3/80", "GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80"),
        ("default/kubernetes/tcp/https", "2QRHZV4L-default/kubernetes/tcp/https"),
    ],
)
def test_names_are_hashed_as_upstream(name: str, base: str) -> None:
    assert hashed(name) == base


def test_a_long_name_is_cut() -> None:
    name = hashed("n" * 300)
    assert (len(name), name[-5:]) == (240, "nn...")


def options(**more: object) -> Snapshot:
    scene = next(each for each in scenes() if each.name == "nodeport-cluster")
    return replace(scene.snapshot, facts=replace(scene.snapshot.facts, proxy_options=more))


def chain_of(snapshot: Snapshot, name: str, family: str = "ip") -> tuple[str, ...]:
    return rules(snapshot, snapshot.node["node-1"]).nft_chains[family, "kube-proxy", name].rules


def test_node_ports_on_all_addresses_leave_out_the_loopback() -> None:
    everywhere = options(nodePortAddresses=("0.0.0.0/0",))
    guard = "ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap"
    assert chain_of(everywhere, "services")[-1] == f"fib daddr type local {guard} @service-nodeports"
    assert chain_of(everywhere, "nodeport-endpoints-check") == (f"{guard} @no-endpoint-nodeports",)
    made = rules(everywhere, everywhere.node["node-1"])
    assert ("ip", "kube-proxy", "nodeport-ips") not in made.nft_sets


def test_masquerade_all_and_no_range_of_pods() -> None:
    said = f'ip daddr @cluster-ips {SET_MARK} comment "masquerade all clusterIP traffic"'
    assert chain_of(options(masqueradeAll=True), "services")[0] == said
    nowhere = options()
    nowhere = replace(nowhere, facts=replace(nowhere.facts, pod_cidrs=()))
    assert not [rule for rule in chain_of(nowhere, "services") if "mark" in rule]


def test_known_service_ranges_are_guarded() -> None:
    known = replace(options(), service_cidrs=("10.96.0.0/12", "fd00:96::/112"))
    dropped = 'daddr 10.96.0.0/12 drop comment "Drop traffic to unallocated ClusterIPs"'
    assert chain_of(known, "cluster-ips-check")[1:] == (f"ip {dropped}",)
    assert chain_of(known, "cluster-ips-check", "ip6")[1:] == (
        f"ip6 {dropped.replace('10.96.0.0/12', 'fd00:96::/112')}",
    )
