"""Proxy mode iptables on the real kernel: what is loaded reads back as the real kube-proxy's rules did."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_lab import isolated
from scenes import GOLDEN, Scene, comparable, scenes, steps
from service_sets import NODES, snapshots

from testbed.cli.main import main
from testbed.cluster.compile import compile_node
from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.dataplane import dataplanes
from testbed.kernel import netfilter, netns
from testbed.kernel.apply import RealKernel
from testbed.kernel.netfilter import FAMILIES, Backend
from testbed.kernel.run import run
from testbed.proxy.iptables import Iptables
from testbed.rules.iptables import ChainKey, full_input, parse_save
from testbed.state import NODE, Chain, Family, NetnsState, NodeState

pytestmark = pytest.mark.needs("iptables", "ip6tables")

BACKENDS: tuple[Backend, ...] = ("nft", "legacy")
KINDS: dict[Family, str] = {"ipv4": "iptables-save.txt", "ipv6": "ip6tables-save.txt"}


@pytest.fixture(autouse=True)
def own_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The legacy tools lock a file in /run, which a sandbox has of its own and these tests do not."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


ROOT = os.geteuid() == 0


def in_new_netns(function: Callable[[], Any]) -> Any:
    home = netns.current()
    held = netns.enter_new()
    try:
        return function()
    finally:
        netns.enter(home)
        os.close(held)
        os.close(home)


def saved(backend: Backend) -> dict[str, str]:
    return {family: netfilter.save(family, backend) for family in FAMILIES}


def assert_as_recorded(scene: Scene, ours: dict[Family, str]) -> None:
    for family, kind in KINDS.items():
        if scene.path(kind).exists():
            recorded = parse_save(scene.text(kind), family)
            assert comparable(parse_save(ours[family], family), family) == comparable(recorded, family)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_scene_reads_back_as_recorded(backend: Backend) -> None:
    def inside() -> list[Any]:
        return [in_new_netns(lambda scene=scene: loaded(scene)) for scene in scenes()]

    def loaded(scene: Scene) -> dict[str, str]:
        chains = Iptables().compile(scene.snapshot, scene.node).chains
        for family in FAMILIES:
            if ROOT:
                netfilter.restore(full_input(chains, family), family, backend)
            else:  # whose sockets do not take the largest scene at once
                netfilter.change(chains.values(), (), family, backend)
        return saved(backend)

    for scene, ours in zip(scenes(), isolated(inside), strict=True):
        assert_as_recorded(scene, ours)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_step_of_changes_reads_back_as_recorded(backend: Backend) -> None:
    def inside() -> list[Any]:
        kernel, proxier, state, answers = RealKernel(backend), Iptables(), NodeState(), []
        for scene, _ in steps():
            state = become(kernel, state, NodeState(proxier.compile(scene.snapshot, scene.node)))
            answers.append(saved(backend))
        return answers

    for (scene, _), ours in zip(steps(), isolated(inside), strict=True):
        assert_as_recorded(scene, ours)


def test_what_is_rendered_for_a_recorded_cluster_loads_as_it_stands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scene = next(scene for scene in scenes() if scene.name == "dual-stack")
    spec = tmp_path / "recorded.yaml"
    spec.write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nspec:\n  network:\n"
        f"    podCIDR: [{', '.join(scene.snapshot.facts.pod_cidrs)}]\n"
    )
    texts: dict[Family, str] = {}
    for family in FAMILIES:
        argv = ["render", str(spec), "-f", str(scene.path("scene.yaml")), "--node", "node-1"]
        assert main([*argv, "--what", "services", "--family", family]) == 0
        texts[family] = capfd.readouterr().out

    def inside() -> dict[str, str]:
        for family, text in texts.items():
            netfilter.restore(text, family)
        return saved("nft")

    assert_as_recorded(scene, isolated(inside))


def become(kernel: RealKernel, old: NodeState, new: NodeState) -> NodeState:
    """Bring the node's own netns from one state to another."""
    for change in diff(old, new):
        assert isinstance(change, ChangeNetns)
        assert kernel.change(NODE, change.add, change.remove) == []
    return new


def present(backend: Backend = "nft") -> dict[ChainKey, tuple[str, ...]]:
    found: dict[ChainKey, Chain] = {}
    for family in FAMILIES:
        found |= parse_save(netfilter.save(family, backend), family)
    return {key: chain.rules for key, chain in found.items()}


def wanted(state: NodeState) -> dict[ChainKey, tuple[str, ...]]:
    return {key: chain.rules for key, chain in state.netns.chains.items()}


# --- a node -------------------------------------------------------------------------------------------

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16", "fd00:10:244::/48"), (), (), ())
NODE_1 = Node("node-1", ("192.168.100.11",), ("10.244.1.0/24",))


def cluster(number: int, endpoints: int = 2, *, protocol: str = "TCP", first: int = 0) -> Snapshot:
    """That many Services; first: number of the first endpoint."""
    services, slices = {}, {}
    for each in range(number):
        name = f"svc-{each}"
        address = f"10.96.{each // 250}.{1 + each % 250}"
        services["default", name] = Service(
            "default", name, cluster_ips=(address,), ports=(ServicePort(80, "p", protocol),)
        )
        backends = tuple(Endpoint((f"10.244.1.{2 + first + n}",), node="node-1") for n in range(endpoints))
        ports = (EndpointPort(8080, "p", protocol),)
        slices["default", name] = (EndpointSlice("default", f"{name}-a", name, "IPv4", ports, backends),)
    return Snapshot(FACTS, (NODE_1,), services=services, slices=slices)


def test_a_live_node_has_the_kubelets_rules_behind_the_proxiers_and_the_dataplanes_last() -> None:
    def inside() -> Any:
        state = compile_node(cluster(1), NODE_1, dataplanes.get("bridge"), Iptables())
        rules = NodeState(NetnsState(chains=state.netns.chains))
        become(RealKernel(), NodeState(), rules)
        assert present() == wanted(rules)
        return [{"/".join(key[1:]): rules for key, rules in present().items() if key[0] == "ipv4"}]

    (found,) = isolated(inside)
    alone = parse_save((GOLDEN / "headless" / "iptables-save.txt").read_text(), "ipv4")
    for name in ("INPUT", "OUTPUT"):
        guard, *jumps = alone["ipv4", "filter", name].rules
        assert found[f"filter/{name}"] == [*jumps, guard]
    assert found["filter/FORWARD"] == list(alone["ipv4", "filter", "FORWARD"].rules)
    targets = [rule.rpartition(" ")[2] for rule in found["nat/POSTROUTING"]]
    assert targets == ["KUBE-POSTROUTING", "MASQUERADE"]
    assert {"mangle/KUBE-IPTABLES-HINT", "nat/KUBE-KUBELET-CANARY", "nat/KUBE-PROXY-CANARY"} <= found.keys()


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_services_are_written_in_pieces_and_edited_in_place(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(netfilter.QUICK_LINES, backend, 150)

    def inside() -> str:
        kernel, proxier, state = RealKernel(backend), Iptables(), NodeState()
        whole = cluster(120)
        some = replace(whole, services={k: s for n, (k, s) in enumerate(whole.services.items()) if n % 40})
        for snapshot in (whole, some, whole, cluster(3), cluster(120, 3), Snapshot(FACTS, (NODE_1,))):
            state = become(kernel, state, NodeState(proxier.compile(snapshot, NODE_1)))
            assert present(backend) == wanted(state)
        return "done"

    assert isolated(inside) == "done"


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_any_services_to_any_others_the_rules_read_back_letter_by_letter(backend: Backend) -> None:
    """All protocols, families, types and policies, on any node."""

    def inside() -> str:
        kernel, proxier, state = RealKernel(backend), Iptables(), NodeState()

        @settings(max_examples=20, deadline=None, database=None, derandomize=True)
        @given(snapshots(), st.sampled_from(NODES))
        def holds(snapshot: Snapshot, node: Node) -> None:
            nonlocal state
            state = become(kernel, state, NodeState(proxier.compile(snapshot, node)))
            assert present(backend) == wanted(state)

        holds()
        return "done"

    assert isolated(inside) == "done"


@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_that_others_removed_are_there_again_with_the_next_change(backend: Backend) -> None:
    def inside() -> str:
        kernel, proxier, state = RealKernel(backend), Iptables(), NodeState()
        state = become(kernel, state, NodeState(proxier.compile(cluster(100), NODE_1)))
        run((f"iptables-{backend}", "-t", "nat", "-F", "KUBE-SERVICES"))
        run((f"iptables-{backend}", "-t", "nat", "-F", "PREROUTING"))
        become(kernel, state, new := NodeState(proxier.compile(cluster(101), NODE_1)))
        assert present(backend)["ipv4", "nat", "KUBE-SERVICES"] == wanted(new)["ipv4", "nat", "KUBE-SERVICES"]
        # What the change did not touch comes back with a whole sync.
        become(kernel, NodeState(), new)
        assert present(backend) == wanted(new)
        return "done"

    assert isolated(inside) == "done"


def test_a_refused_change_leaves_nothing_twice() -> None:
    """The second table is refused after the first one was changed: the next try finds that out."""

    def inside() -> str:
        kernel, proxier = RealKernel(), Iptables()
        state = become(kernel, NodeState(), NodeState(proxier.compile(cluster(100), NODE_1)))
        good = NodeState(proxier.compile(cluster(101), NODE_1))
        broken = Chain("ipv4", "filter", "KUBE-BROKEN", ("-j NO-SUCH-CHAIN",))
        key = ("ipv4", "filter", "KUBE-BROKEN")
        bad = NodeState(msgspec.structs.replace(good.netns, chains={**good.netns.chains, key: broken}))
        (change,) = diff(state, bad)
        assert isinstance(change, ChangeNetns)
        assert kernel.change(NODE, change.add, change.remove) != []
        become(kernel, state, good)
        assert present() == wanted(good)
        return "done"

    assert isolated(inside) == "done"


# --- UDP ----------------------------------------------------------------------------------------------


def servers(stack: ExitStack, *addresses: str) -> dict[str, socket.socket]:
    """Sockets on port 8080 of addresses of this host."""
    found = {}
    for address in addresses:
        run(("ip", "address", "add", f"{address}/32", "dev", "lo"))
        found[address] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        found[address].bind((address, 8080))
        found[address].settimeout(5)
    return found


def test_an_open_udp_flow_goes_on_to_the_endpoints_of_now_and_one_that_is_served_is_left_alone() -> None:
    """Without an end to the tracked connection, its packets would go to the endpoint that is gone."""

    def inside() -> list[str]:
        with ExitStack() as stack:
            there = servers(stack, "10.244.1.2", "10.244.1.3", "10.244.1.4")
            run(("ip", "route", "add", "10.96.0.0/12", "dev", "lo"))
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.connect(("10.96.0.1", 80))
            kernel, proxier, state, heard = RealKernel(), Iptables(), NodeState(), []

            def served_by(first: int, endpoints: int, at: str) -> None:
                nonlocal state
                snapshot = cluster(1, endpoints, protocol="UDP", first=first)
                state = become(kernel, state, NodeState(proxier.compile(snapshot, NODE_1)))
                client.send(at.encode())
                heard.append(there[at].recv(100).decode())

            served_by(0, 1, "10.244.1.2")  # the only endpoint
            served_by(1, 1, "10.244.1.3")  # replaced by another
            before = entries()
            for endpoints in (2, 1):  # others come and go: this flow stays with the one that serves it
                served_by(1, endpoints, "10.244.1.3")
            assert entries() == before
            return heard

    def entries() -> set[str]:
        """The tracked UDP connections, with what identifies them."""
        listed = run(("conntrack", "-L", "-p", "udp", "-o", "id")).stdout
        return {" ".join(word for word in line.split() if "=" in word) for line in listed.splitlines()}

    assert isolated(inside) == ["10.244.1.2", "10.244.1.3", "10.244.1.3", "10.244.1.3"]
