"""What policies mean, against every table there is: each cell of each step of each case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.conformance.network_policy.cases import (
    BLOCKED,
    Recorded,
    World,
    address_of,
    complete,
    load,
)
from testbed.control.ipam import Held
from testbed.control.policies import Policies
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.control.view import typed_pod
from testbed.policy.meaning import Flow, Meaning, own_addresses

GOLDEN = Path(__file__).parents[1] / "golden" / "network-policy"
OURS = Path(__file__).parents[1] / "cases" / "network-policy"
FOLDERS = {GOLDEN: 81, OURS / "upstream-listed": 45, OURS / "upstream-3x3": 45}
"""Where cases are, and how many."""
CASES = load(list(FOLDERS))

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
NODES = tuple(Node(f"node-{k}", (f"192.168.100.1{k}",), (f"10.244.{k}.0/24",)) for k in (1, 2, 3))


def snapshot_of(world: World) -> Snapshot:
    """The snapshot of a world; a pod is on the node of its /24."""
    kept = Policies()
    for obj in (*world.namespaces.values(), *world.policies.values()):
        kept.put(obj)
    return Snapshot(
        FACTS,
        NODES,
        tuple(_pod(pod) for pod in world.pods.values()),
        policies=kept.policies,
        namespaces=kept.namespaces,
    )


def _pod(pod: dict[str, Any]) -> Pod:
    ip = address_of(pod)
    metadata = {**pod["metadata"], "uid": f"{pod['metadata']['namespace']}-{pod['metadata']['name']}"}
    spec = {**pod["spec"], "nodeName": f"node-{ip.split('.')[2]}"}
    return typed_pod({**pod, "metadata": metadata, "spec": spec}, (ip,))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "/".join(Path(case.file).parts[-2:]))
def test_every_cell_of_the_recorded_tables_but_the_diagonal(case: Recorded) -> None:
    world = World.of(case.resources)
    for number, step in enumerate(case.steps):
        for action in step.actions:
            world.act(action)
        meaning = Meaning(snapshot_of(world))
        wrong = []
        for name, table in step.tables.items():
            protocol, _, port = name.partition("/")
            for source, row in table.items():
                for target, cell in zip(step.to, row, strict=True):
                    if source == target:
                        continue
                    ends = [address_of(world.pods[tuple(end.split("/"))]) for end in (source, target)]  # type: ignore[index]
                    verdict = meaning.allowed(Flow(*ends, protocol, int(port)))
                    if verdict.allowed != (cell != BLOCKED):
                        wrong.append(f"step {number} {name} {source} -> {target}: {verdict.deciding}")
        assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_all_cases_are_here(folder: Path) -> None:
    assert len(load([folder])) == FOLDERS[folder]


def test_an_open_connection_is_judged_by_its_own_node_only() -> None:
    """What another node masquerades has its client's address there, and the other's where the pod is."""
    world = World.of(CASES[0].resources)
    world.policies[("x", "from-node-2")] = complete(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "from-node-2", "namespace": "x"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "192.168.100.12/32"}}]}]},
        }
    )
    meaning = Meaning(snapshot_of(world))
    target = address_of(world.pods["x", "a"])
    of_client, masqueraded = Flow("203.0.113.9", target, "TCP", 80), Flow("192.168.100.12", target, "TCP", 80)
    assert [meaning.allowed_on(node, of_client) for node in ("node-1", "node-2")] == [False, True]
    assert meaning.allowed_on("node-1", masqueraded)


def test_the_first_address_of_a_pod_cidr_is_the_nodes_own_where_no_pool_gives_addresses() -> None:
    node = NODES[0]
    assert own_addresses(node) == ("192.168.100.11", "10.244.1.1")
    pooled = replace(node, pooled=True)
    assert own_addresses(pooled) == ("192.168.100.11",)
    tunnelled = replace(pooled, held=Held(("10.244.9.0/26",), own={"vxlan": "10.244.9.0"}))
    assert own_addresses(tunnelled) == ("192.168.100.11", "10.244.9.0")
