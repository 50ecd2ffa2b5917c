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
from msgspec.structs import replace as replace_struct
from policy_worlds import FORMS, Generated, changed, disagreements, generated, namespace, passes

from testbed.cluster.apply import apply
from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import Snapshot
from testbed.kernel.fake import FakeKernel
from testbed.policy import Enforcer, enforcers
from testbed.rules.ipset import filling, isolation
from testbed.state import NODE, IpSet, NetnsState, NodeState


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_no_verdict_changes_for_a_moment_only(data: st.DataObject) -> None:
    """iptables cannot change rules and sets at once: what is the same before and after is so on the way."""
    world = data.draw(generated(flows=16))
    before, after = world.snapshot, data.draw(changed(world)).snapshot
    enforcer = enforcers.get("iptables")()
    for node in before.nodes:
        old, new = enforcer.compile(before, node), enforcer.compile(after, node)
        for flow in world.flows:
            verdicts = [passes("iptables", state, node, flow)[0] for state in steps(old, new)]
            assert verdicts[0] != verdicts[-1] or len(set(verdicts)) == 1, f"{node.name}: {flow}: {verdicts}"


def steps(old: NetnsState, new: NetnsState) -> list[NetnsState]:
    """What the kernel holds, one after the other, while a node becomes another."""
    changes = diff(NodeState(old), NodeState(new))
    if not changes:
        return [old]
    (change,) = changes
    assert isinstance(change, ChangeNetns)
    add, remove = change.add.ipsets, change.remove.ipsets
    filled = restored(old.ipsets, filling(add, remove))
    return [
        old,
        replace_struct(old, ipsets=filled),
        replace_struct(new, ipsets=filled),
        replace_struct(new, ipsets=restored(filled, isolation(add, remove))),
    ]


def restored(sets: dict[str, IpSet], text: str) -> dict[str, IpSet]:
    """The sets after ``ipset restore``."""
    entries = {name: set(each.entries) for name, each in sets.items()}
    for line in text.splitlines():
        verb, name, what = line.removesuffix(" -exist").split(" ", 2)
        if verb == "create":
            entries.setdefault(name, set())
        elif verb == "add":
            entries[name].add(what)
        else:
            entries[name] = {entry for entry in entries[name] if entry.split()[0] != what}
    return {name: IpSet(name, "hash:ip", entries=frozenset(each)) for name, each in entries.items()}


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
    for form, (kept, altered) in {
        "iptables": ("chains", "ipsets"),
        "nft": ("nft_chains", "nft_elements"),
    }.items():
        enforcer = enforcers.get(form)()
        node = before.node[pod.node]
        one, other = enforcer.compile(before, node), enforcer.compile(after, node)
        assert getattr(one, kept) == getattr(other, kept)
        assert getattr(one, altered) != getattr(other, altered)


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
