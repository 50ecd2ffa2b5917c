"""Compiling again keeps what is the same, and gives what a fresh compile gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.cluster.compile import Compiler, compile_node
from testbed.control.snapshot import ClusterFacts, Container, Node, Pod, Service, Snapshot
from testbed.dataplane import dataplanes
from testbed.spec.params import Param
from testbed.state import Chain, NetnsState

FACTS = ClusterFacts(
    cluster_domain="cluster.local",
    pod_cidrs=("10.244.0.0/16",),
    service_cidrs=("10.96.0.0/12",),
    node_cidrs=("192.168.100.0/24",),
    dns_addresses=("10.96.0.10",),
)
BRIDGE = dataplanes.get("bridge")


class OneChain:
    """A proxier that writes one chain with the names of all services, and counts its runs."""

    needs: frozenset[str] = frozenset()
    parameters: Mapping[str, Param] = MappingProxyType({})

    def __init__(self) -> None:
        self.runs = 0

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        self.runs += 1
        names = tuple(sorted(name for _, name in snapshot.services))
        return NetnsState(chains={("ipv4", "nat", "NAMES"): Chain("ipv4", "nat", "NAMES", names)})


def node(number: int) -> Node:
    return Node(f"node-{number}", (f"192.168.100.{10 + number}",), (f"10.244.{number}.0/24",))


def pod(number: int, **changed: Any) -> Pod:
    made = Pod(
        f"uid-{number}", "default", f"pod-{number}", "node-1", (f"10.244.1.{number + 1}",), {"app": "web"}
    )
    return replace(made, containers=(Container("c", "nginx"),), **changed)


def snapshot(pods: tuple[Pod, ...] = (), services: dict[Any, Service] | None = None) -> Snapshot:
    return Snapshot(FACTS, (node(1), node(2)), pods, {} if services is None else services)


def test_a_pod_that_comes_leaves_the_others_and_the_service_rules_as_they_are():
    proxier = OneChain()
    compiler = Compiler(BRIDGE, proxier)
    first = snapshot((pod(1),))
    before = compiler.compile(first, first.nodes[0])
    second = replace(first, pods=(*first.pods, pod(2)))
    after = compiler.compile(second, second.nodes[0])
    assert proxier.runs == 1
    assert after.pods["uid-1"] == before.pods["uid-1"]
    assert "uid-2" in after.pods
    assert compiler.compile(second, second.nodes[0]) is after


def test_service_rules_stay_as_they_were_until_they_are_asked_for():
    proxier = OneChain()
    compiler = Compiler(BRIDGE, proxier)
    first = snapshot()
    compiler.compile(first, first.nodes[0])
    second = replace(first, services={("default", "web"): Service("default", "web")}, pods=(pod(1),))
    held = compiler.compile(second, second.nodes[0], services=False)
    assert held.netns.chains["ipv4", "nat", "NAMES"].rules == ()
    assert "uid-1" in held.pods
    assert compiler.compile(second, second.nodes[0]).netns.chains["ipv4", "nat", "NAMES"].rules == ("web",)
    assert compiler.services("node-1").chains["ipv4", "nat", "NAMES"].rules == ("web",)


CHANGES = st.lists(
    st.tuples(st.sampled_from(["pod", "label", "service", "gone"]), st.integers(1, 3)), max_size=12
)


@settings(deadline=None)
@given(CHANGES)
def test_after_any_changes_the_result_is_that_of_a_fresh_compile(changes: list[tuple[str, int]]) -> None:
    proxier = OneChain()
    compiler = Compiler(BRIDGE, proxier)
    now = snapshot()
    for what, number in changes:
        pods = {one.uid: one for one in now.pods}
        uid, name = f"uid-{number}", ("default", f"svc-{number}")
        if what == "pod":
            pods[uid] = pod(number)
        elif what == "label":
            pods[uid] = pod(number, labels={"app": "api"})
        elif what == "service":
            now = replace(now, services={**now.services, name: Service(*name)})
        else:
            pods.pop(uid, None)
        now = replace(now, pods=tuple(pods.values()))
        for each in now.nodes:
            assert compiler.compile(now, each) == compile_node(now, each, BRIDGE, proxier)
