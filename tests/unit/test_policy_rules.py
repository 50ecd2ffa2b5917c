"""Meaning and rules agree: generated clusters, policies and flows, walked through both forms of the rules.

A disagreement is shrunk by hypothesis to the smallest cluster that shows it. The third answer, traffic, is in
tests/system/test_policy.py, on the same generator.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import product
from types import FunctionType, ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import FORMS, Generated, disagreements, generated, namespace

from testbed.cluster.apply import apply
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import Snapshot
from testbed.kernel.fake import FakeKernel
from testbed.policy import Enforcer, enforcers
from testbed.state import NODE, NetnsState, NodeState


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(world=generated())
def test_rules_do_what_policies_mean(form: str, world: Generated) -> None:
    assert disagreements(form, world.snapshot, world.flows) == []


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(worlds=st.lists(generated(flows=0), min_size=2, max_size=4))
def test_a_compiler_that_saw_other_clusters_makes_what_a_fresh_one_makes(
    form: str, worlds: list[Generated]
) -> None:
    old: Enforcer = enforcers.get(form)()
    for world, snapshot in ((world, world.snapshot) for world in worlds):
        for node in snapshot.nodes:
            assert old.compile(snapshot, node) == enforcers.get(form)().compile(snapshot, node), world


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(worlds=st.lists(generated(flows=0), min_size=2, max_size=3))
def test_the_kernel_takes_each_step_from_one_cluster_to_another(worlds: list[Generated]) -> None:
    for form in FORMS:
        kernel, now = FakeKernel(), NodeState()
        for world in worlds:
            enforcer = enforcers.get(form)()
            wanted = NodeState(enforcer.compile(world.snapshot, world.snapshot.nodes[0]))
            outcome = apply(kernel, diff(now, wanted), None)  # type: ignore[arg-type]
            assert outcome.failed == {}
            assert kernel.read(NODE) == wanted.netns
            now = wanted


def test_labels_change_sets_and_no_chains() -> None:
    world = Generated.example()
    before = world.snapshot
    pod, *others = before.pods
    after = replace(before, pods=(replace(pod, labels={"app": "other", "tier": "x"}), *others))
    for form, (kept, changed) in {
        "iptables": ("chains", "ipsets"),
        "nft": ("nft_chains", "nft_elements"),
    }.items():
        enforcer = enforcers.get(form)()
        node = before.node[pod.node]
        one, other = enforcer.compile(before, node), enforcer.compile(after, node)
        assert getattr(one, kept) == getattr(other, kept)
        assert getattr(one, changed) != getattr(other, changed)


def test_no_policy_no_rule() -> None:
    world = Generated.example()
    bare = replace(world.snapshot, policies=())
    for form, node in product(FORMS, bare.nodes):
        assert enforcers.get(form)().compile(bare, node) == NetnsState()


def _reachable(thing: object) -> int:
    """How many containers and instances hang on a thing; classes and functions hold the whole program."""
    seen: dict[int, object] = {}
    waiting = [thing]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | FunctionType | ModuleType):
            continue
        seen[id(each)] = each
        waiting += gc.get_referents(each)
    return len(seen)


def _another(number: int) -> Snapshot:
    """The same kind of cluster whose every object has another name than those before."""
    world = Generated.example()
    (policy,) = world.policies
    where, label = f"x{number}", {"app": f"a{number}"}
    pods = tuple(
        {**pod, "metadata": {**pod["metadata"], "name": f"p{number}-{k}", "namespace": where, "labels": label,
                             "uid": f"u{number}-{k}"}}
        for k, pod in enumerate(world.pods)
    )  # fmt: skip
    chosen = {"matchLabels": label}
    ports = [{"port": f"web-{number}", "protocol": "TCP"}, {"port": number + 1, "protocol": "TCP"}]
    spec = {**policy["spec"], "podSelector": chosen}
    spec["ingress"] = [{"from": [{"podSelector": chosen}], "ports": ports}]
    named = {"name": f"np{number}", "namespace": where}
    other = Generated((namespace(where, {}),), pods, ({**policy, "metadata": named, "spec": spec},)).snapshot
    new = {node.name: f"{node.name}-{number}" for node in other.nodes}
    return replace(
        other,
        nodes=tuple(replace(node, name=new[node.name]) for node in other.nodes),
        pods=tuple(replace(pod, node=new[pod.node]) for pod in other.pods),
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_compiler_keeps_nothing_of_what_is_gone(form: str) -> None:
    """However much came and went, no more is kept than of one cluster."""
    enforcer, kept = enforcers.get(form)(), []
    for number in range(10, 40):
        snapshot = _another(number)
        for node in snapshot.nodes:
            enforcer.compile(snapshot, node)
        kept.append(_reachable(enforcer))
    assert len(set(kept[5:])) == 1
